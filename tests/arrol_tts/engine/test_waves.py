"""Waves through real engines: more traces of a question while its vote is open."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts import (
    AnswerCalibration,
    Consensus,
    Ended,
    Sampling,
    Trace,
    Voted,
    VoteResult,
    Waves,
    WeightedVoter,
    replay_waves,
)
from arrol_tts.engine.request import Question, Request
from arrol_tts.errors import EngineError
from arrol_tts.head_config import read_head_config
from arrol_tts.pocket import POCKET_HEAD, questions
from arrol_tts.stopping import KeepShare, TraceSpec

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

TEXTS = {f"q{i}": q.text for i, q in enumerate(itertools.islice(questions("test"), 4))}
ASKED: dict[str, Any] = {"seed": 5, "keep": 1.0, "method": "majority"}
DECISION = Waves(start=3, step=2, certainty=0.9)
WAVES: dict[str, Any] = {"n": 8, "start": 3, "step": 2, "certainty": 0.9, **ASKED}


def texts(traces: Any) -> list[tuple[str, int, str]]:
    return sorted((trace.question_id, trace.sample_id, trace.text) for trace in traces)


def assert_mostly_equal(found: Any, whole: Any) -> None:
    """The same, but for rounding: other batches add up in another order, and a draw may fall the other way."""
    assert found
    assert {key[:2] for key in texts(found)} <= {key[:2] for key in texts(whole)}
    assert len({*texts(found)} - {*texts(whole)}) <= 1


def assert_decided(result: VoteResult) -> None:
    """Each wave was decided on the traces that there were, and no trace was left out or asked for twice."""
    assert [trace.sample_id for trace in result.traces] == list(range(len(result.traces)))
    assert len(replay_waves(result.traces, DECISION)) == len(result.traces)
    assert DECISION.more(result.traces, n=8) == 0
    assert result.tokens.unstarted_traces == 8 - len(result.traces)
    assert result.tokens.generated == sum(trace.num_tokens for trace in result.traces)


def test_an_added_trace_is_the_one_of_a_full_run(engine: Any) -> None:
    asked = [Question(name, text) for name, text in list(TEXTS.items())[:2]]
    whole = list(engine.sample(asked, Sampling(n=5, max_tokens=160, seed=5)))
    running = engine.sample(asked, Sampling(n=3, max_tokens=160, seed=5))
    found = [next(running)]
    running.add("q0", range(3, 5))  # while others are being written
    found += itertools.islice(running, 7)
    running.add("q1", range(3, 5))  # after the last has been taken
    found += running
    assert len(found) == len(whole) == 10
    assert_mostly_equal(found, whole)


def test_a_call_that_has_ended_takes_no_more(engine: Any) -> None:
    running = engine.sample([Question("q0", TEXTS["q0"])], Sampling(n=1, max_tokens=8))
    assert len(list(running)) == 1
    running.add("q0", [1])
    assert list(running) == []


def test_added_traces_meet_among_themselves(engine: Any) -> None:
    half = TraceSpec(rules=(KeepShare(16, 0.5),))
    running = engine.sample([Question("q0", TEXTS["q0"])], Sampling(n=4, max_tokens=160, seed=5), half)
    found = list(itertools.islice(running, 4))
    running.add("q0", range(4, 10))
    found += running
    pruned = Counter(trace.sample_id < 4 for trace in found if trace.finish_reason == "pruned")
    assert pruned == {True: 2, False: 3}


def test_waves_are_the_first_traces_of_a_full_run_until_they_decide(voter: WeightedVoter) -> None:
    whole = voter.sample(TEXTS, n=8, seed=5, keep=1.0)
    results = voter.solve_many(TEXTS, **WAVES)
    for result in results:
        assert_decided(result)
    assert_mostly_equal(
        [trace for result in results for trace in result.traces],
        [trace for traces in whole.values() for trace in traces],
    )
    sizes = {len(result.traces) for result in results}
    assert sizes <= {3, 5, 7, 8}
    assert len(sizes) > 1


def test_a_result_says_how_many_of_n_were_started_and_what_that_saved(voter: WeightedVoter) -> None:
    result = voter.solve("2+3+4", n=16, start=4, temperature=0, **ASKED)  # four times the same
    assert len(result.traces) == 4
    mean = sum(trace.num_tokens for trace in result.traces) / 4
    assert result.tokens.saved == round(12 * mean)
    assert f"4 of 16 traces started, 0 traces pruned, about {result.tokens.saved} tokens saved" in str(result)


def test_a_stream_goes_on_in_waves(voter: WeightedVoter) -> None:
    last: dict[str, VoteResult] = {}
    ended: Counter[str] = Counter()
    for event in voter.stream(TEXTS, **WAVES):
        if isinstance(event, Ended):
            ended[event.trace.question_id] += 1
        elif isinstance(event, Voted):
            last[event.result.question_id] = event.result
    assert last.keys() == TEXTS.keys()
    for name, result in last.items():
        assert_decided(result)
        assert ended[name] == len(result.traces)


def test_a_calibration_decides_and_is_the_results_confidence(transformers_engine: Any) -> None:
    voter = WeightedVoter(transformers_engine)
    even = AnswerCalibration("majority", (0.0, 0.0, 0.0, 0.0), 0.0)  # whatever the vote, as likely right as wrong
    asked: dict[str, Any] = {"method": "majority", "start": 2, "temperature": 0, "calibration": even}
    result = voter.solve("2+3+4", n=4, certainty=0.5, **asked)
    assert (len(result.traces), result.confidence) == (2, 0.5)
    assert len(voter.solve("2+3+4", n=4, certainty=0.6, **asked).traces) == 4


def test_a_consensus_ends_the_waves_of_its_question(voter: WeightedVoter) -> None:
    asked: dict[str, Any] = {"n": 24, "start": 6, "certainty": 1.0, **ASKED}
    result = voter.solve("2+3+4", consensus=Consensus(share=0.5, min_votes=2), **asked)
    assert len(result.traces) == 6
    assert result.tokens.unstarted_traces == 18
    later = Consensus(share=0.5, min_votes=7)
    assert len(voter.solve("2+3+4", consensus=later, **asked).traces) == 8


def test_sample_goes_on_by_the_voters_own_method(engine: Any) -> None:
    voter = WeightedVoter(engine, config=read_head_config(POCKET_HEAD), method="majority")
    seen: list[Trace] = []
    (traces,) = voter.sample(["2+3+4"], n=16, start=4, temperature=0, keep=1.0, on_trace=seen.append).values()
    assert [trace.sample_id for trace in traces] == [0, 1, 2, 3]
    assert len(seen) == 4


def test_a_method_that_fails_at_the_end_of_a_wave_ends_the_call(voter: WeightedVoter) -> None:
    def fail(_traces: Any) -> Any:
        raise RuntimeError("no weights today")

    with pytest.raises(RuntimeError, match="no weights today"):
        voter.solve_many(TEXTS, n=8, start=2, seed=5, keep=1.0, method=fail)
    assert len(voter.solve("2+3+4", n=2, **ASKED).traces) == 2


def test_asolve_goes_on_in_waves(voter: WeightedVoter) -> None:
    few = dict(itertools.islice(TEXTS.items(), 2))

    async def ask() -> Any:
        return await asyncio.gather(voter.asolve_many(few, **WAVES), voter.asolve(TEXTS["q3"], **WAVES))

    many, one = asyncio.run(ask())
    assert [result.question_id for result in many] == list(few)
    for result in (*many, one):
        assert_decided(result)


def test_leaving_a_stream_between_waves_aborts_it(vllm_engine: VLLMEngine) -> None:
    voter = WeightedVoter(vllm_engine, config=read_head_config(POCKET_HEAD))

    async def ask() -> int:
        ended = 0
        async for event in voter.astream(TEXTS, n=32, start=2, step=4, certainty=1, every=0.01, **ASKED):
            ended += isinstance(event, Ended)
            if ended == 10:
                break
        task = asyncio.create_task(voter.asolve_many(TEXTS, n=32, start=2, certainty=1.0, **ASKED))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ended

    assert asyncio.run(ask()) == 10
    deadline = time.monotonic() + 10
    while vllm_engine._loop.call(lambda engine: engine.has_unfinished_requests()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # a wave that was decided on meanwhile would start now
    assert not vllm_engine._loop.call(lambda engine: engine.has_unfinished_requests())


def test_a_wave_for_an_engine_that_is_gone_or_refuses_it_is_an_error() -> None:
    pytest.importorskip("vllm")
    from arrol_tts.engine.vllm_loop import VLLMLoop
    from arrol_tts.engine.vllm_run import Prepared, VLLMRun

    class Refusing:
        def add_request(self, *_: Any) -> None:
            raise ValueError("no more today")

    request = Request.of([Question("q0", token_ids=(1, 2))], Sampling(n=1))
    loop = VLLMLoop(Refusing, lambda _: None)  # type: ignore[arg-type]
    ready = Prepared([1, 2], opened=False, fields=None)
    decoder: Any = None  # nothing ends
    refused, late = (VLLMRun(loop, decoder, lambda _: ready, None, in_process=True) for _ in range(2))
    refused.add(request)
    with pytest.raises(ValueError, match="no more today"):
        next(refused)
    loop.stop()
    late.add(request)
    with pytest.raises(EngineError, match="the vLLM engine is gone"):
        next(late)


def test_waves_of_many_questions_share_batches(transformers_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    decode = transformers_engine._decode

    def counted(rows: list[Any], *arguments: Any) -> Any:
        batches.append(len(rows))
        return decode(rows, *arguments)

    monkeypatch.setattr(transformers_engine, "_decode", counted)
    voter = WeightedVoter(transformers_engine, config=read_head_config(POCKET_HEAD))
    results = voter.solve_many(TEXTS, n=6, start=2, step=2, certainty=1.0, max_tokens=40, **ASKED)
    assert [len(result.traces) for result in results] == [6] * 4
    assert batches == [8, 8, 8]
