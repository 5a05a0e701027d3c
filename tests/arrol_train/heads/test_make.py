"""From a collection to a head, its card and its inspection; no model: the collections are made by the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from arrol_train.heads.dataset import open_collected
from arrol_tts import WeightedVoter
from arrol_tts.combined import CombinedVoter
from arrol_tts.errors import HeadError
from arrol_tts.head import QualityHead
from arrol_tts.head_config import read_head_config
from arrol_tts.pocket import POCKET_MODEL
from tests.arrol_train.heads.made import FAST, MANIFEST, WIDTH, invoke, refused, write_collection


def test_a_head_is_made_with_its_card(head: Path) -> None:
    names = {path.name for path in head.iterdir() if path.is_file()}
    assert names == {
        "README.md",
        "auroc_by_position.png",
        "combined.json",
        "evaluation.json",
        "head.safetensors",
        "head_config.json",
        "reliability.png",
    }
    config = read_head_config(head)
    assert (config.base_model, config.base_revision, config.hidden_size) == ("owner/model", "sha256:abc", WIDTH)
    assert config.prompt == MANIFEST.prompt
    assert config.engine == {"top_k": 5}
    assert config.metrics["synthetic"] is True
    card = (head / "README.md").read_text()
    for word in (
        "owner/model",
        "`sha256:abc`",
        "made-up.jsonl",
        "linear head",
        "**Synthetic**",
        "from_pretrained",
    ):
        assert word in card


def test_the_card_is_that_of_the_size_that_was_asked_for_though_a_linear_head_is_better(tmp_path: Path) -> None:
    collection, out = write_collection(tmp_path / "collection", questions=40, signal=1.0), tmp_path / "head"
    options = (
        "--weight-decays",
        "0.05",
        "--seeds",
        "1",
        "--cross-fit",
        "0",
        "--epochs",
        "3",
        "--learning-rate",
        "1e-2",
    )
    invoke("head", collection, "--out", out, "--sizes", "3", *options)
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert [candidate["size"] for candidate in evaluation["candidates"]] == [0, 3]
    assert evaluation["chosen"] == evaluation["candidates"][1]
    assert "- a network of inner size 3, mean over" in (out / "README.md").read_text()


def test_the_position_is_chosen_where_the_vectors_begin_to_tell(head: Path) -> None:
    assert read_head_config(head).positions == [16, 4, 8]


def test_test_questions_are_no_others(collection: Path, head: Path) -> None:
    evaluation = json.loads((head / "evaluation.json").read_text())
    split = {name: set(members) for name, members in evaluation["split"].items()}
    assert {name: len(members) for name, members in split.items()} == {"train": 36, "validation": 12, "test": 12}
    assert len(set.union(*split.values())) == 60
    assert set(evaluation["votes"]["combined"]["right"]) == split["test"]
    assert evaluation["test"]["questions"] == 12


def test_the_signal_is_measured_where_it_is(head: Path) -> None:
    rows = json.loads((head / "evaluation.json").read_text())["test"]["positions"]
    assert [row["position"] for row in rows] == [*range(4, 40, 4), None]
    early, later, finish = rows[0], rows[3], rows[-1]
    assert abs(early["head"]["within"] - 0.5) < 0.2
    assert later["head"]["within"] > 0.85
    assert finish["head"]["within"] > 0.9
    assert abs(finish["confidence"]["within"] - 0.5) < 0.2
    low, high = finish["head"]["within_interval"]
    assert low <= finish["head"]["within"] <= high


def test_votes_use_the_head(head: Path) -> None:
    votes = json.loads((head / "evaluation.json").read_text())["votes"]
    assert votes["quality"]["accuracy"] > votes["majority"]["accuracy"]
    assert votes["quality"]["above_majority"][0] == pytest.approx(
        votes["quality"]["accuracy"] - votes["majority"]["accuracy"]
    )


def test_the_same_seed_makes_the_same_head(collection: Path, head: Path, tmp_path: Path) -> None:
    invoke("head", collection, "--out", tmp_path, *FAST)
    for name in ("head.safetensors", "head_config.json", "combined.json", "evaluation.json"):
        assert (tmp_path / name).read_bytes() == (head / name).read_bytes()


def test_the_combined_vote_is_loaded_from_the_folder(collection: Path, head: Path) -> None:
    combined = CombinedVoter.from_dict(json.loads((head / "combined.json").read_text()))
    with open_collected(collection) as collected:
        (group,) = collected.scored(QualityHead.from_pretrained(head), frozenset(["row-0"]))
    assert WeightedVoter(config=read_head_config(head)).vote(group, combined).method == "combined"


def test_a_head_is_refused_for_another_width(head: Path, tmp_path: Path) -> None:
    other = tmp_path / "wider"
    replace(MANIFEST, hidden_size=16).claim(other)
    assert "width 8" in refused("inspect", head, "--collection", other)
    with pytest.raises(HeadError, match="width 8.*width 128"):
        WeightedVoter.from_pretrained(head, model=str(POCKET_MODEL))


def test_a_model_that_changed_under_its_name_is_refused(collection: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(1000))
    invoke("head", collection, "--out", tmp_path / "head", *FAST, "--base-model", model)
    with pytest.raises(HeadError, match="has changed since this head was trained"):
        WeightedVoter.from_pretrained(tmp_path / "head")


@pytest.mark.parametrize(("right", "message"), [(True, "all 480 samples are right"), (False, "are wrong")])
def test_samples_of_one_kind_are_refused(tmp_path: Path, right: bool, message: str) -> None:
    collection = write_collection(tmp_path / "one", all_are=right)
    assert message in refused("head", collection, "--out", tmp_path / "head")
    assert not (tmp_path / "head").exists()


def test_sampling_that_cannot_work_is_refused_before_a_model_loads(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "1+1", "answer": "2"}')
    asked = ("collect", "--model", POCKET_MODEL, "--data", data, "--out", tmp_path / "out")
    assert "min_p is 2.0; it must be from 0 to 1" in refused(*asked, "--min-p", "2")
    assert "min_tokens=50 is more than max_tokens=40" in refused(*asked, "--min-tokens", 50, "--max-tokens", 40)
    assert not (tmp_path / "out").exists()


def test_what_cannot_work_is_refused(collection: Path, tmp_path: Path) -> None:
    assert "holds no collection" in refused("head", tmp_path, "--out", tmp_path / "head")
    assert "choose smaller --sizes" in refused(
        "head", collection, "--out", tmp_path / "head", "--sizes", "2000000"
    )
    assert "--pooling steps: use mean, gated, last" in refused(
        "head", collection, "--out", tmp_path / "head", "--pooling", "steps"
    )
    assert "fold 7 of 5" in refused("head", collection, "--out", tmp_path / "head", "--fold", "7")
    assert "does not say what it was made from" in refused("inspect", "pocket")
    few = write_collection(tmp_path / "few", questions=3)
    assert "cannot be dealt" in refused("head", few, "--out", tmp_path / "head")


@pytest.mark.slow
def test_the_pocket_head_is_made_by_the_same_code(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    command = [sys.executable, "-m", "arrol_train.build_pocket", "head", "--questions", "60", "--n", "8"]
    subprocess.run([*command, "--out", tmp_path / "head", "--collection", tmp_path / "c"], check=True)
    config = json.loads((tmp_path / "head" / "head_config.json").read_text())
    assert (config["base_model"], sorted(config["positions"]), config["pooling"]) == (
        "../model",
        [16, 32],
        "gated",
    )
    assert config["metrics"]["synthetic"] is True
    assert config["metrics"]["test_auroc"] > 0.6
