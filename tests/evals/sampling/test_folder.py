"""Results folders: what may go into one, and what is said of one that is none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from arrol_tts.head_config import QualityHeadConfig, read_head_config
from arrol_tts.pocket import POCKET_HEAD
from evals.benchmarks import pocket
from evals.sampling.folder import FolderError, RunFolder, RunManifest

MANIFEST = RunManifest(
    model="m",
    engine="vllm",
    head=None,
    head_sha256=None,
    head_config=None,
    sampling={"n": 4, "temperature": 1.0, "top_p": 1.0, "max_tokens": 64},
    keep=0.5,
    stopping=[],
    prompt="chat",
    seeds=[0],
    commands=["arrol-eval run"],
)


def test_sessions_add_seeds_and_commands(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(dataclasses.replace(MANIFEST))
    folder.open(dataclasses.replace(MANIFEST, seeds=[2], commands=["arrol-eval run --seed 2"]))
    manifest = folder.manifest()
    assert manifest.seeds == [0, 2]
    assert manifest.commands == ["arrol-eval run", "arrol-eval run --seed 2"]


def test_another_setting_is_named_with_both_values(tmp_path: Path) -> None:
    RunFolder(tmp_path).open(dataclasses.replace(MANIFEST))
    other = dataclasses.replace(MANIFEST, sampling={**MANIFEST.sampling, "top_k": 20})
    with pytest.raises(FolderError, match="holds traces with sampling.top_k none, and this run has 20"):
        RunFolder(tmp_path).open(other)


def test_the_same_weights_with_another_config_are_another_head(tmp_path: Path) -> None:
    config = read_head_config(POCKET_HEAD)

    def of(config: QualityHeadConfig) -> RunManifest:
        return dataclasses.replace(
            MANIFEST, head="pocket", head_sha256="0", head_config=dataclasses.asdict(config)
        )

    folder = RunFolder(tmp_path)
    folder.open(of(config))
    with pytest.raises(
        FolderError, match=r"holds traces with head_config.calibration \[.*\], and this run has \[2"
    ):
        folder.open(of(dataclasses.replace(config, calibration=[2.0, -1.0])))
    folder.open(of(dataclasses.replace(config, base_model="/moved", metrics={"note": "looked at again"})))


def test_a_folder_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path).open(dataclasses.replace(MANIFEST, format_version=99))
    with pytest.raises(FolderError, match="was written by a newer version: upgrade arrol"):
        RunFolder(tmp_path).manifest()


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 1, "colour": "red"}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(FolderError, match=r"manifest.json is damaged .*: restore it, or run into another folder"):
        RunFolder(tmp_path).manifest()


@pytest.mark.parametrize("content", ["", '{"name": "pocket"}\n', '{"name": "pocket", "syn'])
def test_damaged_problems_are_refused(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path)
    folder.open(dataclasses.replace(MANIFEST))
    folder.add(pocket.load(2))
    (tmp_path / "pocket" / "problems.jsonl").write_text(content)
    with pytest.raises(FolderError, match="problems.jsonl is damaged"):
        folder.benchmarks()


def test_problems_come_back_in_the_order_in_which_benchmarks_were_added(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(dataclasses.replace(MANIFEST))
    folder.add(dataclasses.replace(pocket.load(2), name="z:1"))
    folder.add(pocket.load(3))
    assert [(b.name, len(b.problems)) for b in folder.benchmarks()] == [("z:1", 2), ("pocket", 3)]
    assert json.loads((tmp_path / "z-1" / "problems.jsonl").read_text().splitlines()[0])["synthetic"]
