"""Stopping rules replayed over recorded traces."""

from __future__ import annotations

import pytest

from arrol_tts.replay import replay
from arrol_tts.stopping import KeepShare, Threshold
from arrol_tts.trace import Trace


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


def test_a_trace_that_ended_before_the_position_is_kept() -> None:
    traces = [trace(0, {7: 0.1}, num_tokens=8), trace(1, {10: 0.5, 49: 0.5}), trace(2, {10: 0.4, 49: 0.5})]
    assert [t.finish_reason for t in replay(traces, KeepShare(10, 0.3))] == ["stop", "stop", "pruned"]


def test_threshold_replays_too() -> None:
    traces = [trace(0, {10: 0.1, 49: 0.5}), trace(1, {10: 0.6, 49: 0.5})]
    assert [t.finish_reason for t in replay(traces, Threshold(10, 0.5))] == ["pruned", "stop"]


def test_missing_score_is_named() -> None:
    with pytest.raises(ValueError, match=r"sample 0 of question 'q' has no score at token 10.*score_at=\(10,\)"):
        replay([trace(0, {49: 0.5})], KeepShare(10, 0.5))
