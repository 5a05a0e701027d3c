"""Both engines, on the real pocket model: scores, confidences and pruning against a plain forward pass."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from arrol_tts.engine.base import Engine
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.pocket import questions
from arrol_tts.prompts import encode_prompt
from arrol_tts.replay import replay
from arrol_tts.stopping import Budget, ConfidenceFloor, KeepShare, Threshold, TraceSpec
from arrol_tts.trace import Trace
from tests.heads import KINDS

if TYPE_CHECKING:
    from arrol_tts.head import QualityHead
    from tests.arrol_tts.engine.parity import Reference

AT = 32
QUESTIONS = [Question(f"q{i}", q.text) for i, q in enumerate(itertools.islice(questions("test"), 5))]
SAMPLING = Sampling(n=8, max_tokens=256, seed=3)
SCORED = TraceSpec(score_at=(1, AT), score_finish=True, confidence=True)


@pytest.fixture(params=["vllm_engine", "transformers_engine"], scope="module")
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def traces(engine: Engine) -> list[Trace]:
    return list(engine.sample(QUESTIONS, SAMPLING, SCORED))


def by_id(traces: Sequence[Trace]) -> dict[tuple[str, int], Trace]:
    return {(t.question_id, t.sample_id): t for t in traces}


def test_every_trace_comes_back_once_and_finished(traces: list[Trace]) -> None:
    assert sorted(by_id(traces)) == sorted((q.id, i) for q in QUESTIONS for i in range(SAMPLING.n))
    assert len(traces) == len(QUESTIONS) * SAMPLING.n
    assert {t.finish_reason for t in traces} <= {"stop", "length"}
    assert all(t.num_tokens == len(t.token_ids or []) for t in traces)
    assert len({tuple(t.token_ids or []) for t in traces if t.question_id == "q0"}) > 1


def test_scores_and_confidences_equal_a_plain_forward_pass(traces: list[Trace], reference: Reference) -> None:
    reference.assert_signals(traces, QUESTIONS, SCORED)


@pytest.mark.parametrize("head", KINDS)
def test_scores_of_every_kind_of_head_equal_a_plain_forward_pass(
    engine: Engine, reference: Reference, head: str
) -> None:
    spec = TraceSpec(score_at=(*range(1, 10), AT), score_finish=True, head=head)
    sampling = replace(SAMPLING, n=2, max_tokens=48)
    reference.assert_signals(list(engine.sample(QUESTIONS[:2], sampling, spec)), QUESTIONS, spec)


def test_a_pooled_score_prunes_as_its_replay_and_goes_on_after_a_group_has_met(
    engine: Engine, reference: Reference
) -> None:
    rule, spec, asked = KeepShare(AT, 0.5), replace(SCORED, head="gated"), QUESTIONS[:1]
    pruned = list(engine.sample(asked, SAMPLING, replace(spec, rules=(rule,))))
    reference.assert_signals(pruned, asked, spec)  # of those that waited and went on, at the finish too
    replayed = replay(list(engine.sample(asked, SAMPLING, spec)), rule)
    for traces in (pruned, replayed):
        reference.assert_pruned(traces, asked, rule, head="gated")
        assert sum(trace.finish_reason == "pruned" for trace in traces) == 4


def test_the_right_traces_are_pruned_and_the_others_are_untouched(engine: Engine, traces: list[Trace]) -> None:
    full = by_id(traces)
    pruned = list(engine.sample(QUESTIONS, SAMPLING, replace(SCORED, rules=(KeepShare(AT, 0.5),))))
    assert len(pruned) == len(traces)
    for question in QUESTIONS:
        group = {t.sample_id: t for t in pruned if t.question_id == question.id}
        scores = {i: full[question.id, i].scores.get(AT, full[question.id, i].score) for i in group}
        kept = {i for i, t in group.items() if t.finish_reason != "pruned"}
        assert len(kept) == 4
        # Traces with the same first tokens have the same score: either may be kept.
        assert min(scores[i] for i in kept) >= max(scores[i] for i in set(group) - kept) - 1e-4
    for trace in pruned:
        whole = full[trace.question_id, trace.sample_id]
        if trace.finish_reason == "pruned":
            assert trace.token_ids == (whole.token_ids or [])[: AT + 1]
            assert trace.num_tokens == AT + 1
            assert "is not among the best 4 of 8" in trace.detail
            assert trace.answer is None
        else:
            assert (trace.token_ids, trace.finish_reason) == (whole.token_ids, whole.finish_reason)
            assert trace.scores == pytest.approx(whole.scores, abs=1e-4)


def test_threshold_prunes_exactly_the_low_scores(engine: Engine, traces: list[Trace]) -> None:
    bound = float(np.median([t.scores[AT] for t in traces if AT in t.scores])) + 1e-6
    stopped = by_id(list(engine.sample(QUESTIONS, SAMPLING, replace(SCORED, rules=(Threshold(AT, bound),)))))
    for trace in traces:
        low = trace.num_tokens > AT + 1 and trace.scores[AT] < bound
        if abs(trace.scores.get(AT, 1) - bound) > 1e-4:
            assert (stopped[trace.question_id, trace.sample_id].finish_reason == "pruned") is low


def test_the_same_seed_gives_the_same_traces_alone_and_in_company(engine: Engine, traces: list[Trace]) -> None:
    alone = list(engine.sample(QUESTIONS[2:3], SAMPLING))
    full = by_id(traces)
    same = [t.token_ids == full[t.question_id, t.sample_id].token_ids for t in alone]
    # Rounding differs with the batch's shape, so a draw at a boundary may fall the other way.
    assert sum(same) >= len(same) - 1


def test_greedy_sampling_agrees_with_transformers_generate(engine: Engine, reference: Reference) -> None:
    model, tokenizer = reference.model, reference.tokenizer
    (trace,) = engine.sample(QUESTIONS[:1], Sampling(n=1, temperature=0, max_tokens=256))
    prompt = torch.tensor([encode_prompt(tokenizer, QUESTIONS[0].text)])
    expected = model.generate(input_ids=prompt, do_sample=False, max_new_tokens=256)[0, prompt.shape[1] :]
    assert trace.token_ids == expected.tolist()


def test_traces_cut_by_max_tokens_say_so_and_are_scored(engine: Engine) -> None:
    result = list(engine.sample(QUESTIONS[:1], replace(SAMPLING, max_tokens=40), SCORED))
    assert {t.finish_reason for t in result} == {"length"}
    assert {t.num_tokens for t in result} == {40}
    assert all(list(t.scores) == [1, AT, 39] for t in result)


def test_a_trace_ends_with_the_token_that_completes_a_stop_text(engine: Engine) -> None:
    greedy = Sampling(n=1, temperature=0, max_tokens=256)
    full = {t.question_id: t for t in engine.sample(QUESTIONS, greedy, SCORED)}
    stop = full["q0"].text[AT + 6 : AT + 10]
    stopped = list(engine.sample(QUESTIONS, replace(greedy, stop=(stop, "never written")), SCORED))
    for trace in stopped:
        whole = full[trace.question_id]
        before, found, _ = whole.text.partition(stop)
        if not found:
            assert (trace.text, trace.token_ids) == (whole.text, whole.token_ids)
            continue
        assert trace.text == before
        assert trace.finish_reason == "stop"
        # A token of the pocket model is a character, and its first ones need not show.
        assert whole.token_ids is not None
        assert trace.token_ids == whole.token_ids[: trace.num_tokens]
        shown = len(whole.text) - len(before + stop)
        assert trace.num_tokens == whole.num_tokens - shown - (whole.finish_reason == "stop")
        last = trace.num_tokens - 1
        assert set(trace.scores) == {k for k in (1, AT, last) if k <= last}
        assert all(trace.scores[k] == pytest.approx(whole.scores[k], abs=1e-4) for k in (1, AT) if k <= last)
        assert trace.confidence is not None
        assert len(trace.confidence) == trace.num_tokens
    assert next(t for t in stopped if t.question_id == "q0").num_tokens < full["q0"].num_tokens


def test_a_stop_text_counts_at_the_token_limit_too(engine: Engine) -> None:
    greedy = Sampling(n=1, temperature=0, max_tokens=40)
    (cut,) = engine.sample(QUESTIONS[:1], greedy)
    (ended,) = engine.sample(QUESTIONS[:1], replace(greedy, stop=(cut.text[-3:],)))
    assert cut.finish_reason == "length"
    assert ended.finish_reason == "stop"
    assert ended.text == cut.text.partition(cut.text[-3:])[0]


def test_groups_of_different_prompt_lengths_prune_to_their_own_share(engine: Engine) -> None:
    result = list(engine.sample(QUESTIONS, replace(SAMPLING, n=5), replace(SCORED, rules=(KeepShare(2, 0.2),))))
    for question in QUESTIONS:
        reasons = [t.finish_reason for t in result if t.question_id == question.id]
        assert reasons.count("pruned") == 4


@pytest.mark.parametrize(
    ("questions_", "sampling", "spec", "message"),
    [
        (QUESTIONS, SAMPLING, TraceSpec(rules=(KeepShare(256, 0.5),)), "detection position 256 is beyond"),
        (QUESTIONS, SAMPLING, TraceSpec(score_at=(9999,)), "detection position 9999 is beyond"),
        ([Question("a", " ")], SAMPLING, TraceSpec(), "question 'a' is empty"),
        ([QUESTIONS[0], QUESTIONS[0]], SAMPLING, TraceSpec(), "two questions have the same id"),
    ],
)
def test_what_cannot_work_is_refused_before_sampling(
    engine: Engine, questions_: list[Question], sampling: Sampling, spec: TraceSpec, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        engine.sample(questions_, sampling, spec)


def test_a_stopped_question_ends_at_once_and_the_others_go_on(engine: Engine, traces: list[Trace]) -> None:
    full = by_id(traces)
    scores = [trace.scores[AT] for trace in traces if trace.question_id == "q0"]
    assert max(scores) - min(scores) > 1e-3
    # Some trace of the question ends long before the others, and so on a busy machine too.
    spec = replace(SCORED, rules=(Threshold(AT, (min(scores) + max(scores)) / 2),))
    ended: list[str] = []

    def stop_first(trace: Trace) -> str:
        ended.append(trace.question_id)
        return "enough" if trace.question_id == "q0" else ""

    result = list(engine.sample(QUESTIONS, SAMPLING, spec, stop_question=stop_first))
    assert sorted(by_id(result)) == sorted(full)
    cancelled = [t for t in result if t.finish_reason == "cancelled"]
    assert cancelled
    assert {t.question_id for t in cancelled} == {"q0"}
    assert {t.detail for t in cancelled} == {"enough"}
    assert len(ended) == len(result) - len(cancelled)
    for trace in result:
        whole = full[trace.question_id, trace.sample_id].token_ids or []
        assert trace.token_ids == whole[: trace.num_tokens]
        assert (trace.finish_reason in ("cancelled", "pruned")) == (trace.num_tokens < len(whole))


def test_whoever_takes_a_trace_decides_whether_its_question_goes_on(engine: Engine) -> None:
    deciders = []

    def decide(trace: Trace) -> str:
        deciders.append(threading.current_thread())
        return ""

    assert len(list(engine.sample(QUESTIONS[:1], replace(SAMPLING, n=3, max_tokens=8), stop_question=decide))) == 3
    assert deciders == [threading.current_thread()] * 3


def test_an_error_of_the_callers_own_ends_its_call_and_no_other(engine: Engine) -> None:
    def decide(trace: Trace) -> str:
        raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        list(engine.sample(QUESTIONS, SAMPLING, stop_question=decide))
    assert len(list(engine.sample(QUESTIONS[:1], replace(SAMPLING, n=2, max_tokens=8)))) == 2


def test_confidence_floor_runs_the_warm_up_first_and_stops_the_rest_early(
    engine: Engine, traces: list[Trace]
) -> None:
    from arrol_tts.confidence import lowest_window

    full = by_id(traces)
    rule = ConfidenceFloor(warmup=4, keep=0.5, window=8)
    result = by_id(list(engine.sample(QUESTIONS, SAMPLING, replace(SCORED, rules=(rule,)))))
    for question in QUESTIONS:
        lowest = [lowest_window(full[question.id, i].confidence, 8) for i in range(8)]  # type: ignore[arg-type]
        floor = np.percentile(lowest[:4], 50)
        for i in range(8):
            trace = result[question.id, i]
            whole = full[question.id, i]
            assert trace.token_ids == (whole.token_ids or [])[: trace.num_tokens]
            if i < 4:
                assert trace.finish_reason == whole.finish_reason
            elif abs(lowest[i] - floor) > 1e-3:
                stopped = trace.finish_reason == "pruned"
                # A window that is the last of its trace cannot stop it: it has ended.
                assert stopped == (lowest[i] < floor) or trace.num_tokens == whole.num_tokens


def test_budget_is_kept_and_spent_on_the_best(engine: Engine, traces: list[Trace]) -> None:
    rule = Budget(at=AT, tokens=800, length=200)
    result = list(engine.sample(QUESTIONS, SAMPLING, replace(SCORED, rules=(rule,))))
    for question in QUESTIONS:
        group = [t for t in result if t.question_id == question.id]
        # Tokens are counted per step: the last step may overshoot by a token for each running trace.
        assert sum(t.num_tokens for t in group) <= 800 + 2 * len(group)
        finished = [t.scores.get(AT, 1.0) for t in group if t.finish_reason == "stop"]
        unstarted = [t.scores[AT] for t in group if t.num_tokens == AT + 1]
        assert finished
        if unstarted:
            assert max(finished) >= max(unstarted) - 1e-4
    assert any(t.detail == "the group's budget of 800 tokens is spent" for t in result)


def test_hidden_vectors_are_those_the_scores_were_read_from(engine: Engine, heads: dict[str, QualityHead]) -> None:
    spec = TraceSpec(score_at=(AT,), score_finish=True, features_at=(AT,), features_finish=True, head="last")
    result = list(engine.sample(QUESTIONS[:2], replace(SAMPLING, n=4), spec))
    for trace in result:
        assert list(trace.features) == list(trace.scores)
        for position, vector in trace.features.items():
            assert vector.shape == (128,)
            with torch.inference_mode():
                score = float(heads["last"](torch.from_numpy(vector.copy())))
            assert score == pytest.approx(trace.scores[position], abs=1e-5)


def test_the_vectors_at_every_fourth_token_make_the_score_of_a_head_with_that_stride(
    engine: Engine, heads: dict[str, QualityHead]
) -> None:
    spec = TraceSpec(score_finish=True, features_every=4, head="linear")
    for trace in engine.sample(QUESTIONS[:1], replace(SAMPLING, n=2), spec):
        rows = torch.from_numpy(np.stack(list(trace.features.values())))
        assert list(trace.features) == list(range(0, trace.num_tokens, 4))
        with torch.inference_mode():
            assert trace.score == pytest.approx(float(heads["linear"](rows)[-1]), abs=1e-5)


def test_hidden_vectors_need_no_head(engine: Engine) -> None:
    (trace,) = engine.sample(QUESTIONS[:1], replace(SAMPLING, n=1), TraceSpec(features_at=(0, 3)))
    assert list(trace.features) == [0, 3]
    assert trace.scores == {}


def test_some_of_a_questions_traces_are_the_same_as_among_all(engine: Engine, traces: list[Trace]) -> None:
    wanted = [replace(QUESTIONS[0], samples=(1, 6)), replace(QUESTIONS[3], samples=(0,))]
    some = by_id(list(engine.sample(wanted, SAMPLING, SCORED)))
    assert sorted(some) == [("q0", 1), ("q0", 6), ("q3", 0)]
    assert all(trace.token_ids == by_id(traces)[key].token_ids for key, trace in some.items())
    with pytest.raises(ValueError, match="the stopping rules compare all"):
        engine.sample(wanted, SAMPLING, replace(SCORED, rules=(KeepShare(AT, 0.5),)))


def test_without_chat_the_text_is_the_prompt(engine: Engine) -> None:
    question = Question("plain", QUESTIONS[0].text, chat=False)
    as_ids = Question("plain", token_ids=tuple(engine._tokenizer.encode(question.text)))  # type: ignore[attr-defined]
    sampling = replace(SAMPLING, n=2, max_tokens=16)
    assert [t.token_ids for t in engine.sample([question], sampling)] == [
        t.token_ids for t in engine.sample([as_ids], sampling)
    ]
