"""Stopping rules replayed over recorded traces."""

from __future__ import annotations

import numpy as np
import pytest

from arrol_tts.replay import equal_tokens, replay
from arrol_tts.stopping import ConfidenceFloor, KeepShare, Monitor, Threshold, TraceSpec
from arrol_tts.trace import Trace
from arrol_tts.voting import VoteResult, vote


def trace(sample_id: int, scores: dict[int, float], num_tokens: int = 50) -> Trace:
    return Trace("q", sample_id, answer="1", num_tokens=num_tokens, scores=scores, correct=True)


def test_losers_lose_their_answer_and_cost_one_token_more_than_the_position() -> None:
    traces = [trace(i, {10: s, 49: 0.5}) for i, s in enumerate((0.2, 0.8, 0.6, 0.4))]
    result = replay(traces, KeepShare(10, 0.5))
    assert [t.finish_reason for t in result] == ["pruned", "stop", "stop", "pruned"]
    assert [t.num_tokens for t in result] == [11, 50, 50, 11]
    assert [t.answer for t in result] == [None, "1", "1", None]
    assert result[0].scores == {10: 0.2}
    assert result[1] is traces[1]
    assert traces[0].answer == "1"


def test_a_loser_keeps_what_its_prompt_cost_and_loses_its_calls() -> None:
    traces = [
        Trace(
            "q", i, answer="1", num_tokens=9, scores={4: 0.1 + i / 2}, tool_calls=[{"id": "c"}], prompt_tokens=30
        )
        for i in range(2)
    ]
    loser, winner = replay(traces, KeepShare(4, 0.5))
    assert (loser.finish_reason, loser.tool_calls, loser.prompt_tokens) == ("pruned", None, 30)
    assert winner.tool_calls == [{"id": "c"}]


def test_a_trace_that_ended_before_the_position_is_kept() -> None:
    traces = [trace(0, {7: 0.1}, num_tokens=8), trace(1, {10: 0.5, 49: 0.5}), trace(2, {10: 0.4, 49: 0.5})]
    assert [t.finish_reason for t in replay(traces, KeepShare(10, 0.3))] == ["stop", "stop", "pruned"]


def test_threshold_replays_too() -> None:
    traces = [trace(0, {10: 0.1, 49: 0.5}), trace(1, {10: 0.6, 49: 0.5})]
    assert [t.finish_reason for t in replay(traces, Threshold(10, 0.5))] == ["pruned", "stop"]


def test_missing_score_is_named() -> None:
    with pytest.raises(ValueError, match=r"sample 0 of question 'q' has no score at token 10.*score_at=\(10,\)"):
        replay([trace(0, {49: 0.5})], KeepShare(10, 0.5))


def confident(sample_id: int, values: list[float]) -> Trace:
    confidence = np.array(values, np.float32)
    return Trace("q", sample_id, answer="1", num_tokens=len(values), confidence=confidence, correct=True)


def test_a_confidence_floor_replays_with_the_first_traces_as_warm_up() -> None:
    # Lowest windows of two tokens of the warm-up: 4 and 2. The floor that half of them stay above is 3.
    warm = [confident(0, [4, 4, 6]), confident(1, [2, 2, 8])]
    # Means of two: 5, 2.5 -> stopped at its third token; 3, 3 -> goes on; ended in the window that is too low.
    late = [confident(2, [5, 5, 0, 9, 9]), confident(3, [3, 3, 3]), confident(4, [5, 5, 0])]
    result = replay([*warm, *late], ConfidenceFloor(warmup=2, keep=0.5, window=2))
    assert [t.finish_reason for t in result] == ["stop", "stop", "pruned", "stop", "stop"]
    assert result[2].num_tokens == 3
    assert result[2].detail == "confidence 2.500 of the last 2 tokens is below 3.000"


def test_a_replayed_confidence_floor_stops_what_the_monitor_stops() -> None:
    rng = np.random.default_rng(0)
    traces = [confident(i, rng.gamma(4, 4, rng.integers(2, 30)).tolist()) for i in range(16)]
    rule = ConfidenceFloor(warmup=4, keep=0.7, window=5)
    monitor, stopped = Monitor(), {}
    spec = TraceSpec("g", len(traces), rules=(rule,))
    for i in range(len(traces)):
        monitor.add(i, spec)
    for i, trace in enumerate(traces):
        assert trace.confidence is not None
        for position, value in enumerate(trace.confidence):
            finished = position == trace.num_tokens - 1
            monitor.observe(i, position, confidence=float(value), finished=finished)
            if monitor.take_verdicts():
                stopped[i] = position + 1
                break
    replayed = {t.sample_id: t.num_tokens for t in replay(traces, rule) if t.finish_reason == "pruned"}
    assert replayed == stopped
    assert 2 < len(stopped) < 12


def test_a_confidence_floor_needs_confidences() -> None:
    with pytest.raises(ValueError, match="sample 0 of question 'q' has no token confidences; sample with confi"):
        replay([trace(0, {49: 0.5})], ConfidenceFloor(warmup=1, window=2))


# --- as many tokens in whole traces ---------------------------------------------------------------


def whole(question: str, answers: str, scores: list[float] | None = None, num_tokens: int = 10) -> VoteResult:
    """A vote over traces whose answers are letters, "r" the right one; by scores where there are some."""
    traces = [
        Trace(question, i, answer=a, num_tokens=num_tokens, correct=a == "r", scores={9: s} if scores else {})
        for i, (a, s) in enumerate(zip(answers, scores or [0.0] * len(answers), strict=True))
    ]
    return vote(traces, "quality" if scores else "majority", equality="exact")


def test_tokens_of_two_and_a_half_traces_are_half_way_between_two_and_three() -> None:
    # Two of r, w, w: ww is wrong, the two others tie (one half): 1/3. All three: wrong. Two and a half: 1/6.
    control = equal_tokens([whole("q", "rww")], 25, subsets=20_000)
    assert control.traces == 2.5
    assert control.accuracy.tolist() == pytest.approx([1 / 6], abs=0.01)


def test_the_control_weighs_its_traces_as_the_vote_does() -> None:
    # The right trace outweighs the two wrong ones: right whenever it is among the two.
    control = equal_tokens([whole("q", "rww", [0.9, 0.1, 0.1])], 20, subsets=20_000)
    assert control.accuracy.tolist() == pytest.approx([2 / 3], abs=0.01)


def test_every_question_gets_as_many_whole_traces_whatever_they_cost() -> None:
    # A trace costs 15 tokens on average, so 30 buy two of each question: 20 tokens here, 40 there.
    control = equal_tokens([whole("a", "rrr"), whole("b", "www", num_tokens=20)], 30)
    assert control.traces == 2
    assert control.accuracy.tolist() == [1.0, 0.0]


def test_less_than_a_trace_leaves_questions_unasked_and_more_than_all_buys_all() -> None:
    assert equal_tokens([whole("q", "rr")], 4).accuracy.tolist() == pytest.approx([0.4])
    everything = equal_tokens([whole("q", "rrwww")], 1000)
    assert (everything.traces, everything.accuracy.tolist()) == (5, [0.0])


def test_a_question_with_fewer_traces_gets_all_it_has() -> None:
    # 45 tokens for two questions: one trace of ten tokens is all that the first has, so the second gets 3.5.
    control = equal_tokens([whole("a", "r"), whole("b", "rwwww")], 45 / 2, subsets=20_000)
    assert control.traces == 3.5
    assert control.accuracy.tolist() == pytest.approx([1.0, 0.0])


def test_the_control_needs_tokens() -> None:
    with pytest.raises(ValueError, match="1 questions whose traces have 10 tokens, and 0 to spend"):
        equal_tokens([whole("a", "rr")], 0)
    with pytest.raises(ValueError, match="0 questions whose traces have 0 tokens, and 5 to spend"):
        equal_tokens([], 5)
