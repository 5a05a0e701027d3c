"""From a collection to a head, its card and its inspection; no model: the collections are made by the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from arrol_train.cli import app
from arrol_train.heads.choose import choose_position, split_questions
from arrol_train.heads.collect import TRACES_FOLDER, CollectError, CollectionManifest
from arrol_train.heads.dataset import open_collected
from arrol_train.heads.knowledge import inspect_traces, pruned
from arrol_tts import WeightedVoter
from arrol_tts.combined import CombinedVoter
from arrol_tts.errors import HeadError
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig, read_head_config
from arrol_tts.pocket import POCKET_MODEL
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace

WIDTH, POSITIONS, LENGTH = 8, (4, 16), 40
MANIFEST = CollectionManifest(
    model="owner/model",
    revision="sha256:abc",
    hidden_size=WIDTH,
    data="made-up.jsonl",
    data_sha256="0",
    prompt=[{"role": "user", "content": "Solve {question}"}],
    sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 64, "seed": 0},
    positions=list(POSITIONS),
    top_k=5,
    synthetic=True,
)


def write_collection(folder: Path, questions: int = 60, n: int = 8, signal: float = 3.0, **labels: Any) -> Path:
    """Traces whose vectors tell right from wrong from token 16 on, and nothing at token 4."""
    rng = np.random.default_rng(0)
    replace(MANIFEST, **labels.pop("manifest", {})).claim(folder)
    with TraceStore(folder / TRACES_FOLDER) as store:
        for i in range(questions):
            ease = rng.uniform(0.1, 0.9)
            for sample in range(n):
                right = labels.get("all_are", bool(rng.random() < ease))
                vectors = rng.normal(size=(3, WIDTH)).astype(np.float32)
                vectors[1:, 0] += signal * right
                store.append(
                    Trace(
                        f"row-{i}",
                        sample,
                        answer="1" if right else str(2 + int(rng.integers(2))),
                        num_tokens=LENGTH,
                        correct=right,
                        confidence=rng.random(LENGTH, np.float32),
                        features=dict(zip((*POSITIONS, LENGTH - 1), vectors, strict=True)),
                    )
                )
    return folder


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


FAST = (
    "--sizes",
    "0,16",
    "--weight-decays",
    "0.05",
    "--seeds",
    "2",
    "--cross-fit",
    "3",
    "--epochs",
    "12",
    "--learning-rate",
    "3e-3",
)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("made") / "collection")


@pytest.fixture(scope="module")
def head(collection: Path) -> Path:
    out = collection.parent / "head"
    invoke("head", collection, "--out", out, *FAST)
    return out


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
        "linear probe",
        "**Synthetic**",
        "from_pretrained",
    ):
        assert word in card


def test_the_position_is_chosen_where_the_vectors_begin_to_tell(head: Path) -> None:
    assert read_head_config(head).positions == [16, 4]


def test_test_questions_are_no_others(collection: Path, head: Path) -> None:
    evaluation = json.loads((head / "evaluation.json").read_text())
    split = {name: set(members) for name, members in evaluation["split"].items()}
    assert {name: len(members) for name, members in split.items()} == {"train": 36, "validation": 12, "test": 12}
    assert len(set.union(*split.values())) == 60
    assert set(evaluation["votes"]["combined"]["right"]) == split["test"]
    assert evaluation["test"]["questions"] == 12


def test_the_signal_is_measured_where_it_is(head: Path) -> None:
    early, later, finish = json.loads((head / "evaluation.json").read_text())["test"]["positions"]
    assert abs(early["head"]["within"] - 0.5) < 0.2
    assert later["head"]["within"] > 0.9
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


def test_scoring_by_one_head_leaves_no_trace_in_what_another_scores(collection: Path, head: Path) -> None:
    first = QualityHead.from_pretrained(head)
    second = QualityHead(QualityHeadConfig("m", WIDTH, inner_size=4))
    asked = frozenset(["row-3", "row-1"])
    with open_collected(collection) as collected:
        alone = collected.scored(first, asked)
        other = collected.scored(second, asked)
        again = collected.scored(first, asked)
        assert [[t.scores for t in group] for group in alone] == [[t.scores for t in group] for group in again]
        assert alone[0][0].scores.keys() == other[0][0].scores.keys() == {*POSITIONS, LENGTH - 1}
        assert alone[0][0].scores != other[0][0].scores
        assert [group[0].question_id for group in alone] == ["row-1", "row-3"]
        assert not any(trace.scores for trace in collected.traces)


def test_inspect_writes_figures_of_the_test_questions(head: Path) -> None:
    output = invoke("inspect", head)
    assert "12 questions, 96 samples" in output
    found = json.loads((head / "inspection" / "inspection.json").read_text())
    assert found["positions"] == json.loads((head / "evaluation.json").read_text())["test"]["positions"]
    assert found["difficulty"][0]["name"] == "0% to 25% right"
    assert (head / "inspection" / "auroc_by_position.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_looks_at_all_of_another_collection(head: Path, tmp_path: Path) -> None:
    other = write_collection(tmp_path / "other", questions=9, signal=0.0)
    assert "9 questions, 72 samples" in invoke(
        "inspect", head, "--collection", other, "--out", tmp_path / "figures"
    )
    found = json.loads((tmp_path / "figures" / "inspection.json").read_text())
    assert abs(found["positions"][-1]["head"]["within"] - 0.5) < 0.2


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


def test_what_cannot_work_is_refused(collection: Path, tmp_path: Path) -> None:
    assert "holds no collection" in refused("head", tmp_path, "--out", tmp_path / "head")
    assert "choose smaller --sizes" in refused(
        "head", collection, "--out", tmp_path / "head", "--sizes", "2000000"
    )
    assert "fold 7 of 5" in refused("head", collection, "--out", tmp_path / "head", "--fold", "7")
    assert "does not say what it was made from" in refused("inspect", "pocket")
    few = write_collection(tmp_path / "few", questions=3)
    assert "cannot be dealt" in refused("head", few, "--out", tmp_path / "head")


def test_vectors_of_another_width_are_refused(tmp_path: Path) -> None:
    collection = write_collection(tmp_path / "c", questions=2, manifest={"hidden_size": WIDTH + 1})
    with pytest.raises(CollectError, match="width 8, and the manifest says 9"), open_collected(collection):
        pass


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    MANIFEST.claim(tmp_path)
    with TraceStore(tmp_path / TRACES_FOLDER) as store:
        store.append(Trace("a", 0, num_tokens=5, features={4: np.full(WIDTH, np.nan, np.float32)}, correct=True))
    with pytest.raises(CollectError, match="NaN, infinite or huge"), open_collected(tmp_path):
        pass


def test_the_file_of_vectors_goes_away(collection: Path) -> None:
    before = sorted(collection.iterdir())
    with open_collected(collection) as collected:
        assert collected.features.shape == (60 * 8 * 3, WIDTH)
    assert sorted(collection.iterdir()) == before


def test_a_split_is_by_question_and_every_question_is_tested_once() -> None:
    names = [f"q{i}" for i in range(23)]
    splits = [split_questions(names, seed=1, folds=4, fold=fold) for fold in range(4)]
    assert frozenset.union(*(split.test for split in splits)) == frozenset(names)
    assert sum(len(split.test) for split in splits) == 23
    for split in splits:
        assert split.train | split.validation | split.test == frozenset(names)
        assert not split.train & split.test
        assert not split.validation & (split.train | split.test)


def scored_group(question_id: str, rows: list[tuple[bool, float, float]]) -> list[Trace]:
    """Traces of 10 tokens: right or not, score at token 2, score at the finish."""
    return [
        Trace(
            question_id, i, answer="1" if right else f"{2 + i}", num_tokens=10, correct=right, scores={2: a, 9: b}
        )
        for i, (right, a, b) in enumerate(rows)
    ]


GROUPS = [
    scored_group("a", [(True, 0.9, 0.9), (False, 0.8, 0.2), (False, 0.1, 0.1), (True, 0.2, 0.8)]),
    scored_group("b", [(False, 0.1, 0.9), (False, 0.2, 0.1), (True, 0.9, 0.95), (False, 0.3, 0.1)]),
]


def test_what_is_known_equals_a_hand_computation() -> None:
    found = inspect_traces(GROUPS, [2])
    at_two, finish = found.positions
    # Question a at token 2: the right ones score 0.9 and 0.2, the wrong 0.8 and 0.1: 3 of 4 pairs; b: 3 of 3.
    assert at_two.head.within == pytest.approx((3 / 4 + 1) / 2)
    assert finish.head.within == pytest.approx(1.0)
    # Of 15 pairs, a wrong one's 0.9 is above 0.8 and ties with 0.9.
    assert finish.head.auroc == pytest.approx(13.5 / 15)
    assert at_two.confidence is None
    assert found.sample_accuracy == pytest.approx(3 / 8)
    assert [part.name for part in found.difficulty] == ["25% to 50% right", "50% to 75% right"]


def test_what_pruning_saves_equals_a_hand_computation() -> None:
    cut = pruned(GROUPS, 2, 0.5)
    # Two of each four stop after 3 of their 10 tokens.
    assert cut.tokens_saved == pytest.approx(2 * 2 * 7 / 80)
    assert cut.accuracy == 1.0  # kept: in a scores 0.9 (right) and 0.2 (wrong, 0.8 at 2), in b 0.95 and 0.1


def test_the_earliest_of_equal_positions_is_chosen() -> None:
    groups = [scored_group(f"q{i}", [(True, 0.9, 0.9), (False, 0.1, 0.1)]) for i in range(5)]
    for group in groups:
        for trace in group:
            trace.scores = {1: trace.scores[2], **trace.scores}
    assert choose_position(groups, [1, 2], 0.5, {}) == 1
    for group in groups:  # at token 1 the wrong one is kept
        group[0].scores[1], group[1].scores[1] = 0.1, 0.9
    assert choose_position(groups, [1, 2], 0.5, {}) == 2


@pytest.mark.slow
def test_the_pocket_head_is_made_by_the_same_code(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    command = [sys.executable, "-m", "arrol_train.build_pocket", "head", "--questions", "60", "--n", "8"]
    subprocess.run([*command, "--out", tmp_path / "head", "--collection", tmp_path / "c"], check=True)
    config = json.loads((tmp_path / "head" / "head_config.json").read_text())
    assert (config["base_model"], config["positions"], config["hidden_size"]) == ("../model", [32], 128)
    assert config["metrics"]["synthetic"] is True
    assert config["metrics"]["test_auroc"] > 0.6
