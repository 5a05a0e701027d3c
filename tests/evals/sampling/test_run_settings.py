"""What a run is to do, from options, recipe and head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from arrol_tts.pocket import POCKET_HEAD
from evals.sampling.run_settings import RunSettings, SettingsError, read_recipe


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """The pocket head, with sampling and a prompt of its own."""
    folder = tmp_path / "head"
    shutil.copytree(POCKET_HEAD, folder)
    config = json.loads((folder / "head_config.json").read_text())
    config["sampling"] = {"temperature": 0.7, "top_k": 20, "max_tokens": 100, "stop": ["Q:"]}
    config["prompt"] = [{"role": "user", "content": "Q: {question}"}]
    (folder / "head_config.json").write_text(json.dumps(config))
    return folder


def test_what_is_asked_comes_before_the_heads_own_and_defaults_last(head: Path) -> None:
    settings = RunSettings(("pocket",), head=str(head), limit=1, sampling={"top_k": 0, "min_p": 0.1})
    sampling = settings.complete(settings.load_benchmarks({})).sampling
    assert (sampling["temperature"], sampling["top_p"], sampling["max_tokens"]) == (0.7, 1.0, 100)
    assert (sampling["top_k"], sampling["min_p"]) == (0, 0.1)
    assert sampling["stop"] == ()  # its prompt is not always the one that is used


def test_asking_in_another_way_leaves_the_heads_config_as_it_is(head: Path) -> None:
    from arrol_tts.prompts import Prompt

    settings = RunSettings(("pocket",), head=str(head), engine="transformers")
    plain, own = settings.load_voter(Prompt()), settings.load_voter()
    assert plain.prompt == Prompt()
    assert own.prompt == Prompt((("user", "Q: {question}"),))
    assert plain.config == own.config
    assert plain.config is not None
    assert plain.config.prompt == [{"role": "user", "content": "Q: {question}"}]


def test_a_recipe_with_unknown_fields_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("benchmarks: [pocket]\ntemprature: 1\n")
    with pytest.raises(SettingsError, match=r"unknown fields temprature; known fields: .*temperature"):
        read_recipe(str(tmp_path / "mine.yaml"))
