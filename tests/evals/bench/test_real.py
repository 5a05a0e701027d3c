"""The figures of the real benchmark, from groups of traces written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arrol_train.heads.choose import Split
from arrol_train.heads.collect import CollectionManifest
from arrol_train.heads.dataset import Collected, States, open_collected
from arrol_train.heads.make import HeadOptions, fit_head
from arrol_train.heads.train import HeadTraining
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from evals.bench import made_once, real
from evals.bench.compared import compared
from evals.bench.real import first_questions, held_out_figures, made_of, transfer_figures
from evals.bench.real_figures import (
    ChosenVote,
    auroc_figures,
    pruning_figures,
    sample_figures,
    scores_at,
    vote_figures,
    way_figures,
)
from evals.reporting.replays import ways
from evals.reporting.sections import SECTIONS
from tests.arrol_train.heads.made import write_collection

WAYS = {"majority": ChosenVote("majority", {}), "head": ChosenVote("quality", {"odds_power": 1.0})}


def trace(question: str, i: int, right: bool, score: float, *, tokens: int = 20, early: float = 0.5) -> Trace:
    """Scored early at token 4, and at the finish."""
    return Trace(
        question,
        i,
        answer="right" if right else "wrong",
        num_tokens=tokens,
        scores={4: early, tokens - 1: score},
        confidence=np.full(tokens, score, np.float32),
        correct=right,
    )


def group(question: str, *rights: bool, sure: float = 0.9) -> list[Trace]:
    """The head knows which are right, early too."""
    return [
        trace(question, i, right, sure if right else 1 - sure, early=sure if right else 1 - sure)
        for i, right in enumerate(rights)
    ]


def test_samples_are_described_by_question() -> None:
    cut = trace("c", 0, False, 0.1, tokens=30)
    cut.finish_reason = "length"
    figures = sample_figures([group("a", True, False), group("b", True, True), [cut]])
    assert figures["sample_accuracy"] == pytest.approx(0.5)
    assert figures["pass_at_2"] == pytest.approx(2 / 3)
    assert figures["questions_with_both"] == 1
    assert figures["cut_off_share"] == pytest.approx(0.2)
    assert figures["tokens"] == 110


def test_a_vote_is_compared_with_those_that_come_before_it() -> None:
    no, yes = np.zeros(4), np.ones(4)
    figures = compared({"majority": no, "other": yes, "deepconf": yes, "head": yes})
    assert figures["head_above_majority"] == 1.0
    assert figures["head_above_majority_interval"] == [1.0, 1.0]
    assert figures["head_above_majority_mcnemar_p"] == pytest.approx(0.125)
    assert figures["head_above_deepconf_mcnemar_p"] == 1.0
    assert "head_above_other" not in figures
    assert "majority_above_deepconf" not in figures


def test_the_head_outvotes_a_majority_of_wrong_traces() -> None:
    groups = [group("a", True, False, False, False), group("b", True, True, True, False)]
    figures = vote_figures({name: way.votes(groups) for name, way in WAYS.items()})
    assert figures["accuracy_majority"] == 0.5
    assert figures["accuracy_head"] == 1.0
    one, two, four = figures["accuracy_over_k"]
    assert one == {"k": 1, "majority": pytest.approx(0.5, abs=0.06), "head": one["majority"]}
    assert two["head"] == pytest.approx(0.75, abs=0.06)  # of two traces, one right is enough
    assert four == {"k": 4, "majority": 0.5, "head": 1.0}


def test_what_is_known_is_asked_where_a_head_was_trained_and_at_the_finish_of_what_ended_before() -> None:
    ended = trace("a", 0, True, 0.9, tokens=3)
    del ended.scores[4]
    unsure = [ended, trace("a", 1, False, 0.2, early=0.95)]
    figures = auroc_figures({"head": [unsure], "head_v1": [unsure]}, [4], {"head_v1": [8]})
    assert figures["4"]["auroc_within_head"] == 0.0
    assert "auroc_within_head_v1" not in figures["4"]
    assert figures["4"]["head_above_confidence"] == -1.0
    assert figures["finish"]["auroc_within_head_v1"] == 1.0
    assert figures["finish"]["head_above_head_v1_interval"] == [0.0, 0.0]


def test_scores_are_those_that_a_sampler_records() -> None:
    scored = trace("a", 0, True, 0.9)
    scored.scores = {2: 0.1, 4: 0.5, 19: 0.9}
    assert scores_at([[scored]], 4)[0][0].scores == {4: 0.5, 19: 0.9}


def test_pruning_stands_beside_random_pruning_and_fewer_whole_traces() -> None:
    groups = [group(name, False, False, False, True) for name in "abc"]
    (row,) = pruning_figures(groups, WAYS, [4], [0.5])
    assert row["tokens_saved"] == pytest.approx(1 - (2 * 20 + 2 * 5) / 80)
    assert row["accuracy"] == 1.0
    assert row["above_all"] == 0.0
    # 50 tokens pay for two and a half traces; the right one is among two of four half of the time.
    assert row["equal_tokens_head"] == pytest.approx((0.5 + 0.75) / 2, abs=0.06)
    assert row["equal_tokens_majority"] < row["equal_tokens_head"]
    assert row["above_equal_tokens_head"] == pytest.approx(1 - row["equal_tokens_head"])
    # At random the right trace stays half of the time; a head that votes finds it then.
    assert row["random_head"] == pytest.approx(0.5, abs=0.25)
    assert row["random_majority"] < row["random_head"]


def test_ways_of_asking_for_fewer_traces_stand_beside_fewer_whole_ones() -> None:
    sure, divided = group("a", *[True] * 8), group("b", *[True, False] * 4)
    config = QualityHeadConfig("m", 8, voting={"quality": {"odds_power": 1.0}})
    voter = WeightedVoter(config=config)
    (way,) = [way for way in ways(voter, 8)["esc"] if way.setting == {"window": 8}]
    found = way_figures([sure, divided], voter, [way], WAYS)["esc"]
    assert found["setting"] == "window 8"
    assert found["tokens_saved"] == 0.0  # a window is all there is
    (way,) = [way for way in ways(voter, 8)["adaptive_consistency"] if way.setting == {"certainty": 0.9}]
    found = way_figures([sure, divided], voter, [way], WAYS)["adaptive_consistency"]
    # Three equal votes are enough; of the other question mostly all traces are asked for.
    assert 5 / 16 <= found["tokens_saved"] < 0.5
    assert found["equal_tokens_head"] == pytest.approx(1.0, abs=0.05)
    assert found["above_equal_tokens_majority_interval"][0] <= found["above_equal_tokens_majority"]


def test_a_question_that_lacks_samples_is_not_tested_on() -> None:
    manifest = CollectionManifest("m", None, 2, "d", "", [], {"max_tokens": 8}, [4], stride=1)
    found = [Trace("row-1", i, features={0: np.zeros(2, np.float32)}) for i in range(2)]
    one = Trace("row-2", 0, features={0: np.zeros(2, np.float32)})
    states = States(np.zeros((3, 2)), np.zeros(3, np.int64), np.arange(4))
    collected = Collected(manifest, [*found, one], states, np.array([0, 0, 1]), ["row-1", "row-2"])
    assert first_questions(collected, 1, 2) == {"row-1"}
    with pytest.raises(ValueError, match="1 of 2 questions have no 2 samples yet: go on sampling, or ask fewer"):
        first_questions(collected, 2, 2)


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collected]:
    """A made-up collection with what the engine records beside it."""
    folder = write_collection(tmp_path_factory.mktemp("real") / "collection", questions=40, signal=20.0)
    with open_collected(folder) as found:
        for trace in found.traces:
            trace.meta["self_certainty"] = float(trace.num_tokens + trace.sample_id)
        yield found


def test_heads_are_made_once_and_tested_on_other_questions(
    collected: Collected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = HeadTraining(epochs=20, learning_rate=1e-2)
    quick = replace(real.OPTIONS, sizes=(0,), weight_decays=(0.05,), seeds=1, cross_fit=2, training=fast)
    monkeypatch.setattr(real, "OPTIONS", quick)
    monkeypatch.setattr(real, "V1_OPTIONS", replace(quick, pooling="last"))
    names = collected.question_ids
    made = made_of(collected, frozenset(names[:28]), tmp_path)
    changed = (tmp_path / "head" / "head.safetensors").stat().st_mtime_ns
    again = made_of(collected, frozenset(names[:28]), tmp_path)
    assert (tmp_path / "head" / "head.safetensors").stat().st_mtime_ns == changed
    assert (again.chosen, again.combined, again.position) == (made.chosen, made.combined, made.position)
    online = made.chosen["asking"]["deepconf_online"]
    assert online["window"] in (8, 16, 32)  # traces have 40 tokens
    assert {way.name: way.setting for way in again.asking} == made.chosen["asking"]
    figures = held_out_figures(again, collected, frozenset(names[28:]))
    assert figures["questions"] == 12
    assert figures["accuracy_head"] >= figures["accuracy_majority"]
    assert figures["auroc_by_position"]["32"]["auroc_within_head"] > 0.9
    assert {row["position"] for row in figures["pruning"]} == {16, 32}
    assert set(figures["asking"]) == {"waves", "adaptive_consistency", "esc", "deepconf_online"}
    assert all(0 <= row["equal_tokens_deepconf"] <= 1 for row in figures["asking"].values())
    lost = dict.fromkeys(
        ("auroc_within", "auroc_within_lost", "auroc_within_fifth", "auroc_within_fifth_lost"), 0.1
    )
    lost = {"accuracy": 0.5, **lost}
    lost |= {f"{name}_interval": [0.0, 0.2] for name in lost}
    page = "\n\n".join(
        SECTIONS["real"].show(
            {
                **figures,
                "detection_position": again.position,
                "keep": 0.5,
                "ablation": dict.fromkeys(("all", "a_quarter_of_the_questions"), lost),
                "math500_easy": transfer_figures(again, collected, frozenset(names[28:])),
            }
        )
    )
    assert f"| **quality head** | {figures['accuracy_head']:.3f} |" in page
    assert f"**quality head, pruned** to 0.5 at token {again.position}" in page
    assert "loses +0.100 (+0.000 to +0.200, not to be told from none) of AUROC" in page


def test_what_is_kept_is_made_again_from_other_settings_or_where_making_it_failed(tmp_path: Path) -> None:
    path, made = tmp_path / "kept.json", []

    def make(size: int, *, fails: bool = False) -> None:
        def write() -> None:
            made.append(size)
            path.write_text(f"{size}")
            if fails:
                raise OSError("the disk is full")

        made_once(path, {"size": size, "positions": (16, 32)}, write)

    for size in (1, 1, 2):
        make(size)
    assert (made, path.read_text()) == ([1, 2], "2")
    with pytest.raises(OSError, match="full"):
        make(3, fails=True)
    make(2)  # what is there is neither
    assert (made, path.read_text()) == ([1, 2, 3, 2], "2")


def test_all_training_questions_choose_and_none_is_kept_back(collected: Collected) -> None:
    split = Split(frozenset(collected.question_ids[:24]), frozenset(collected.question_ids[24:30]), frozenset())
    options = HeadOptions(sizes=(0,), weight_decays=(0.05,), seeds=1, cross_fit=2)
    fitted = fit_head(collected, split, options)
    assert {group[0].question_id for group in fitted.held_out} == split.train | split.validation
    position = fitted.chosen.head.config.positions[0]
    assert {tuple(trace.scores) for group in fitted.held_out for trace in group} == {(position, 39)}


def test_sampling_is_timed_by_what_it_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def collect(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            with TraceStore(tmp_path / "train" / "traces") as store:
                store.extend(Trace("row-1", i, num_tokens=50) for i in range(8))

    monkeypatch.setattr(real, "arrol_train", collect)
    for _ in range(2):
        real.sample("train", 1, tmp_path, Path("model"))
    assert real.tokens_of(tmp_path / "train") == 400
    assert real.sampling_times(tmp_path)["tokens"] == 400  # the second call found nothing to do
    command = " ".join(map(str, calls[0]))
    assert "--plain" in command
    assert "--n 16 --limit 1 --stride 1 --unseeded" in command
