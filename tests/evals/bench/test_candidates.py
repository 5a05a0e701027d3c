"""Designs of a head: their pooling by hand, what they read, and a small run from sampling to figures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import evals.bench
from arrol_train.heads.collect import TRACES_FOLDER, CollectionManifest
from arrol_tts.errors import InputError
from arrol_tts.pocket import POCKET_MODEL
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from evals.bench import candidates
from evals.bench.candidate_heads import Design, Head, Inputs, Pooling, Recipe, held, loss_of, scores
from evals.bench.candidate_states import GroupStates, earlier_layers, read_states
from evals.bench.candidates import REFERENCE, Setting, Source, compare, main, split_groups, summary, weighted_vote

VALUES = [1.0, 3.0, -2.0]
GATES = [0.0, math.log(3), 0.0]


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("last", [1.0, 3.0, -2.0]),
        ("max", [1.0, 3.0, 3.0]),
        ("mean", [3.0, 6.0, 2.0]),
        ("gated", [3.0, 3 * 10 / 4, 3 * 8 / 5]),
        ("fading", [3.0, 3 * 3.5 / 1.5, 3 * -0.25 / 1.75]),
    ],
)
def test_a_pooling_over_three_tokens(pooling: Pooling, expected: list[float]) -> None:
    head = Head(Design(pooling, inner=0), inputs=4)
    if head.fading is not None:
        torch.nn.init.zeros_(head.fading)  # each token counts half as much as the next
    numbers = torch.tensor([VALUES, GATES]).T[:, : 2 if pooling == "gated" else 1]
    assert head.pool(numbers).tolist() == pytest.approx(expected)


def test_a_fading_mean_starts_with_a_half_life_of_16_tokens() -> None:
    head = Head(Design("fading"), inputs=4)
    assert head.fading is not None
    assert float(head.fading.detach().sigmoid() ** 16) == pytest.approx(0.5)


def test_a_trace_that_has_ended_keeps_its_last_score() -> None:
    found = held(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([2]), torch.tensor([[0, 1, 2, 7]]))
    assert found.tolist() == [[1.0, 2.0, 2.0, 2.0]]


def test_pairs_are_ranked_within_question_and_position() -> None:
    # Two questions; in the second both are right, so that it has no pair.
    logits = torch.tensor([[[1.0], [-1.0]], [[0.0], [0.0]]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    entropy = (2 * math.log1p(math.exp(-1)) + 2 * math.log(2)) / 4
    assert float(loss_of(logits, labels)) == pytest.approx(entropy + math.log1p(math.exp(-2)))


def some_states(lengths: Sequence[int], n: int = 2, shift: float = 0.0) -> GroupStates:
    """Random states, 4 wide; ``shift`` times the position is added to those of every trace."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(length, 4)) + shift * np.arange(length)[:, None] for length in lengths]
    traces = [
        Trace(f"q{i // n}", i % n, num_tokens=length, correct=i % n == 0) for i, length in enumerate(lengths)
    ]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return GroupStates(traces, n, starts, np.concatenate(rows), np.zeros(starts[-1], np.float32))  # type: ignore[arg-type]


def test_scores_relative_to_the_group_are_those_to_the_mean_of_the_traces_still_running() -> None:
    head = Head(Design("last", inner=0, extra="relative scores"), inputs=1)
    with torch.no_grad():
        head.outer.weight.fill_(1.0)
        head.outer.bias.fill_(5.0)
    found = scores(head, torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([2, 1]), n=2)
    assert found.tolist() == [[-1.5, 0.0], [1.5, 0.0]]


def test_states_relative_to_the_group_do_not_see_what_all_its_traces_share() -> None:
    design = Design("mean", extra="relative states")
    alike, shifted = (Inputs(design, some_states([3, 2, 4, 4], shift=s), [0, 1])([1]) for s in (0.0, 7.0))
    assert torch.allclose(alike, shifted, atol=1e-4)
    plain = [Inputs(Design("mean"), some_states([3, 2, 4, 4], shift=s), [0, 1])([1]) for s in (0.0, 7.0)]
    assert not torch.allclose(*plain, atol=1e-1)


def test_the_position_is_read_as_its_logarithm() -> None:
    inputs = Inputs(Design("mean", extra="position"), some_states([3, 2]), [0])
    read = inputs([0])[:, 4] / inputs.scale[4] + inputs.mean[4]
    assert read.tolist() == pytest.approx([0, math.log(2), math.log(3), 0, math.log(2)], abs=1e-5)


def test_earlier_layers_are_those_of_a_pass_over_the_whole_text() -> None:
    from transformers import AutoModelForCausalLM

    prompts, tokens = [[2, 10, 11], [2, 10, 12, 13]], [[5, 6, 7], [8], [9, 9], [4, 5, 6, 7]]
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    with torch.inference_mode():
        whole = model.model(
            torch.tensor([[*prompts[1], *tokens[3][:-1]]]), output_hidden_states=True
        ).hidden_states
    expected = torch.stack(whole[1:4], dim=2)[0, 3:]
    found = dict(earlier_layers(model, prompts, tokens, n=2))
    assert [found[0].shape, found[1].shape] == [(3 + 1, 3, 128), (2 + 4, 3, 128)]
    assert np.allclose(found[1][2:], expected, rtol=2e-3, atol=2e-3)


def write_collection(folder: Path, traces: Sequence[Trace]) -> Path:
    CollectionManifest(
        model="m", revision=None, hidden_size=4, data="d", data_sha256="", prompt=[], sampling={}, positions=[1]
    ).claim(folder)
    with TraceStore(folder / TRACES_FOLDER) as store:
        store.extend(traces)
    return folder


def a_trace(question: str, sample: int, positions: Sequence[int] = (0, 1)) -> Trace:
    features = {p: np.full(4, 10 * sample + p, np.float32) for p in positions}
    confidence = np.array([0.5, 0.25], np.float32)
    return Trace(
        question, sample, num_tokens=2, features=features, confidence=confidence, correct=True, token_ids=[1]
    )


def test_states_lie_group_after_group_and_a_question_that_lacks_a_trace_is_left_out(tmp_path: Path) -> None:
    traces = [a_trace("q-10", 1), a_trace("q-9", 0), a_trace("q-9", 1), a_trace("q-7", 0), a_trace("q-10", 0)]
    states = read_states(write_collection(tmp_path / "c", traces), tmp_path / "states")
    assert [(t.question_id, t.sample_id) for t in states.traces] == [
        ("q-9", 0),
        ("q-9", 1),
        ("q-10", 0),
        ("q-10", 1),
    ]
    assert states.last[states.rows_of(1), 0].tolist() == [0, 1, 10, 11]
    assert states.confidence.tolist() == [0.5, 0.25] * 4


def test_states_that_were_read_stay_the_same_while_the_collection_grows(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "c", [a_trace("q-1", 0), a_trace("q-1", 1)])
    assert read_states(folder, tmp_path / "states").groups == 1
    with TraceStore(folder / TRACES_FOLDER) as store:
        store.extend([a_trace("q-2", 0), a_trace("q-2", 1)])
    assert read_states(folder, tmp_path / "states").groups == 1
    assert read_states(folder, tmp_path / "again").groups == 2


def test_states_and_heads_of_other_settings_are_not_gone_on_from(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "c", [a_trace(f"q-{i}", j) for i in range(10) for j in range(2)])
    source = Source(folder, tmp_path / "asked.jsonl", tmp_path / "out", n=2)
    setting = Setting("s", "m", "t", "", (), (8,))
    for _ in range(2):
        compare(setting, source, seeds=0)
    with pytest.raises(InputError, match=r"states was made from n 2, and this call has 1: choose another --out"):
        compare(setting, replace(source, n=1), seeds=0)
    with pytest.raises(InputError, match=r"heads was made from recipe.epochs 12, and this call has 3"):
        compare(setting, source, seeds=0, recipe=Recipe(epochs=3))


def test_a_collection_without_every_state_is_refused(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "c", [a_trace("q-1", 0, positions=[1])])
    with pytest.raises(InputError, match="collect with --stride 1"):
        read_states(folder, tmp_path / "states")


def test_questions_are_dealt_out_without_overlap() -> None:
    split = split_groups(300)
    assert (len(split.train), len(split.choose), len(split.compare)) == (160, 40, 100)
    assert sorted(split.train + split.choose + split.compare) == list(range(300))


def test_a_vote_weighs_by_the_odds() -> None:
    traces = [Trace("q", i, answer=answer, correct=answer == "1") for i, answer in enumerate("1223")]
    assert not weighted_vote(traces, np.zeros(4, np.float32))
    assert weighted_vote(traces, np.array([2.0, 1.0, 1.0, 0.0], np.float32))  # e^2 > 2 e


def test_differences_are_means_over_seeds_of_the_questions_with_right_and_wrong() -> None:
    def one(early: list[float | None], votes: list[bool]) -> dict[str, object]:
        return {"auroc": {"3": early, "0": early}, "votes": votes, "choosing": 0.5, "epochs": 1, "seconds": 1.0}

    found = {
        REFERENCE: [one([0.5, None], [True, False]), one([0.75, None], [True, False])],
        Design("last"): [one([0.5, None], [True, True]), one([0.5, None], [True, False])],
    }
    row = summary(found, 3, 8, np.array([0.0, 0.0]))["designs"]["last, MLP"]
    assert row["auroc_early"] == 0.5
    assert row["auroc_early_above_reference"] == -0.125
    assert row["vote"] == 0.75
    assert row["vote_above_reference"] == 0.25
    assert row["vote_above_majority"] == 0.75


def test_only_what_engines_do_today_is_called_so() -> None:
    assert Design("gated", inner=0).cost(8) == {
        "numbers_a_row": 2,
        "sums_a_trace": 2,
        "parameters": 18,
        "beyond_the_last_state": "nothing",
        "in_engines_today": "yes",
    }
    assert Design("mean", layers=4).cost(8)["beyond_the_last_state"] == "3 earlier layers"
    for design in (Design("max"), Design("fading"), Design("mean", layers=2), Design("gated", extra="position")):
        assert design.cost(8)["in_engines_today"] == "no"


def test_the_pocket_part_runs_from_sampling_to_figures_and_measures_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evals.bench, "RESULTS", tmp_path / "results")
    designs = (Design("gated", inner=0), Design("mean", inner=0, layers=4), Design("last", extra="entropy"))
    monkeypatch.setitem(candidates.PARTS, "pocket", Setting("pocket", "m", "t", "both", designs, (32,)))
    monkeypatch.setattr(candidates, "REFERENCE", designs[0])

    def run() -> dict[str, object]:
        main(tmp_path / "out", pocket_questions=15, n=4, part=["pocket"])
        figures: dict[str, object] = json.loads((tmp_path / "results" / "candidates.json").read_text())["figures"]
        return figures

    first = run()["pocket"]
    assert isinstance(first, dict)
    assert (first["questions_to_learn_from"], first["questions_to_compare_on"]) == (8, 5)
    assert set(first["designs"]) == {"gated, linear", "mean, linear, 4 layers", "last, MLP, entropy"}
    assert all(0 <= row["auroc_finish"] <= 1 for row in first["designs"].values())
    head = tmp_path / "out" / "pocket" / "heads" / "gated, linear, 0.json"
    kept = json.loads(head.read_text())
    head.write_text(json.dumps(kept | {"epochs": 100 * 3}))
    again = run()["pocket"]
    assert isinstance(again, dict)
    assert again["designs"]["gated, linear"]["epochs"] > 100
    assert again["designs"]["mean, linear, 4 layers"] == first["designs"]["mean, linear, 4 layers"]
