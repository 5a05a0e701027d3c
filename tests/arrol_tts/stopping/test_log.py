"""The log of a trace becomes a Trace, in a process and over the wire."""

from __future__ import annotations

import json
import math
from array import array

import numpy as np
import pytest

from arrol_tts.stopping import TraceLog, TraceSpec, Verdict
from arrol_tts.trace import Trace
from arrol_tts.voting import METHODS, vote

SPEC = TraceSpec(confidence=True, logprobs=True, self_certainty=True, score_finish=True, features_finish=True)


def full_log() -> TraceLog:
    return TraceLog(
        SPEC,
        scores={1: 0.25, 2: math.nan},
        confidence=array("f", [1.5, 2.5, 3.5]),
        logprobs=array("f", [-0.5, -1.0, -0.25]),
        features={2: np.array([1.0, -2.0], np.float32).tobytes()},
        certainty=6.0,
        length=3,
    )


def over_the_wire(log: TraceLog) -> TraceLog:
    return TraceLog.from_wire(json.loads(json.dumps(log.to_wire())), log.spec)


@pytest.mark.parametrize("wire", [False, True])
def test_everything_that_was_observed_is_in_the_trace(wire: bool) -> None:
    log = over_the_wire(full_log()) if wire else full_log()
    trace = log.to_trace("q", 4, "text", [7, 8, 9], "stop")
    assert (trace.question_id, trace.sample_id, trace.text, trace.token_ids) == ("q", 4, "text", [7, 8, 9])
    assert (trace.num_tokens, trace.finish_reason, trace.detail) == (3, "stop", "")
    assert trace.scores == {1: 0.25, 2: 0.0}
    assert trace.confidence is not None
    assert (trace.confidence.dtype, trace.confidence.tolist()) == (np.float32, [1.5, 2.5, 3.5])
    assert trace.logprobs is not None
    assert trace.logprobs.tolist() == [-0.5, -1.0, -0.25]
    assert trace.features[2].tolist() == [1.0, -2.0]
    assert trace.meta == {"self_certainty": 2.0}


@pytest.mark.parametrize("wire", [False, True])
def test_a_verdict_says_how_the_trace_ended(wire: bool) -> None:
    log = full_log()
    log.verdict = Verdict("threshold", 1, 0.25, "too low")
    trace = (over_the_wire(log) if wire else log).to_trace("q", 0, "text", [7], "stop")
    assert (trace.finish_reason, trace.detail) == ("pruned", "too low")


@pytest.mark.parametrize("wire", [False, True])
def test_deepconfs_measures_come_without_every_tokens_number(wire: bool) -> None:
    log = TraceLog(TraceSpec(confidence_window=2), confidence=array("f", [4.0, 2.0, 6.0]), length=3)
    trace = (over_the_wire(log) if wire else log).to_trace("q", 0, "", [1, 2, 3], "length")
    assert trace.confidence is None
    assert trace.meta["deepconf"]["window"] == 2
    assert trace.meta["deepconf"]["lowest_window"] == pytest.approx(3.0)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_not_finite_counts_as_0_and_spoils_no_vote(odd: float) -> None:
    spec = TraceSpec(confidence=True, confidence_window=2, self_certainty=True, score_finish=True)
    log = TraceLog(spec, {2: math.nan}, array("f", [4.0, odd, odd]), certainty=odd, length=3)
    json.dumps(log.to_wire() | {"confidence": ""}, allow_nan=False)
    spoilt = over_the_wire(log).to_trace("q", 0, "", [1, 2, 3], "length")
    assert spoilt.confidence is not None
    assert spoilt.confidence.tolist() == [4.0, 0.0, 0.0]
    assert spoilt.meta["self_certainty"] == 0.0
    assert spoilt.meta["deepconf"]["lowest_window"] == 0.0
    good = full_log().to_trace("q", 1, "", [1, 2, 3], "stop")
    good.scores = {2: 0.75}
    spoilt.answer, good.answer = "1", "2"
    for method in METHODS:
        weights = vote([spoilt, good], method).weights
        assert weights[0] < weights[1] or method == "majority", method


def ended_by(stop_text: str, text: str) -> Trace:
    log = TraceLog(TraceSpec(stop=("\n",)), stop_text=stop_text)
    return over_the_wire(log).to_trace("q", 0, text, [1], "stop")


def test_the_text_is_cut_before_the_stop_text_that_ended_it() -> None:
    assert ended_by("\n and", "one\ntwo\n and").text == "one\ntwo"
    assert ended_by("", "one\ntwo").text == "one\ntwo"
    assert ended_by("\n", "a server cut it").text == "a server cut it"


def test_a_log_without_a_trace_of_the_asked_signals_gives_none() -> None:
    trace = TraceLog(TraceSpec()).to_trace("q", 0, "", None, "stop")
    assert (trace.confidence, trace.logprobs, trace.token_ids, trace.meta) == (None, None, None, {})
