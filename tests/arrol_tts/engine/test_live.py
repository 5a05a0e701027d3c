"""What an engine says while it samples: events, asyncio, several callers, heads that come and go."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from arrol_tts import (
    Consensus,
    Ended,
    Progress,
    Question,
    Sampling,
    Trace,
    TraceSpec,
    Voted,
    VoteResult,
    WeightedVoter,
    vote,
)
from arrol_tts.head import QualityHead
from arrol_tts.head_config import read_head_config
from arrol_tts.pocket import POCKET_HEAD, questions
from arrol_tts.prompts import encode_prompt
from tests.heads import head_of_kind

if TYPE_CHECKING:
    from pathlib import Path

    from arrol_tts.engine.vllm_engine import VLLMEngine
    from tests.arrol_tts.engine.parity import Reference

TEXTS = [q.text for q in itertools.islice(questions("test"), 3)]
QUESTIONS = [Question(f"q{i}", text) for i, text in enumerate(TEXTS)]
SAMPLING = Sampling(n=6, max_tokens=160, seed=5)


def key_of(item: Progress | Trace) -> tuple[str, int]:
    return item.question_id, item.sample_id


def assert_same_vote(one: VoteResult, other: VoteResult) -> None:
    """The same, but for rounding: other batches add up in another order."""
    assert [(row.answer, row.votes) for row in one.table] == [(row.answer, row.votes) for row in other.table]
    assert one.weights == pytest.approx(other.weights, rel=1e-3)


def test_progress_adds_up_to_the_traces(engine: Any) -> None:
    spec = TraceSpec(score_every=8, score_finish=True, head="gated")
    text: defaultdict[Any, str] = defaultdict(str)
    scores: defaultdict[Any, dict[int, float]] = defaultdict(dict)
    tokens: dict[Any, list[int]] = defaultdict(list)
    ended: dict[Any, Trace] = {}
    for item in engine.stream(QUESTIONS, SAMPLING, spec, every=0.0):
        if isinstance(item, Trace):
            ended[key_of(item)] = item
            continue
        assert key_of(item) not in ended
        text[key_of(item)] += item.text
        scores[key_of(item)] |= item.scores
        tokens[key_of(item)].append(item.num_tokens)
    assert len(ended) == 18
    for key, trace in ended.items():
        assert trace.text.startswith(text[key])
        assert len(text[key]) > 10
        assert tokens[key] == sorted(set(tokens[key]))
        assert scores[key].items() <= trace.scores.items()
        assert set(scores[key]) >= {8, 16}


def test_streamed_traces_are_those_of_sample(engine: Any) -> None:
    spec = TraceSpec(score_at=(20,), confidence=True)
    sampled = {key_of(trace): trace for trace in engine.sample(QUESTIONS, SAMPLING, spec)}
    streamed = {key_of(t): t for t in engine.stream(QUESTIONS, SAMPLING, spec) if isinstance(t, Trace)}
    assert sampled.keys() == streamed.keys()
    for key, trace in sampled.items():
        assert (trace.text, trace.token_ids) == (streamed[key].text, streamed[key].token_ids)
        assert trace.scores == pytest.approx(streamed[key].scores, abs=1e-4)


def test_the_last_vote_of_a_stream_is_what_solve_returns(voter: WeightedVoter) -> None:
    events = list(voter.stream(TEXTS[0], n=6, seed=5, keep=1.0))
    assert {type(event) for event in events} >= {Ended, Voted}
    last = events[-1]
    assert isinstance(last, Voted)
    assert_same_vote(last.result, voter.solve(TEXTS[0], n=6, seed=5, keep=1.0))
    answered = [event.trace for event in events if isinstance(event, Ended) and event.trace.answer is not None]
    votes = [event.result for event in events if isinstance(event, Voted)]
    assert len(votes) in (len(answered), len(answered) + 1)
    assert vote(answered[:1]).answer == votes[0].answer


def test_a_stream_prunes_as_solve_does(voter: WeightedVoter) -> None:
    *_, last = voter.stream(TEXTS[0], n=6, seed=5)
    assert isinstance(last, Voted)
    assert last.result.tokens.pruned_traces == 3


def test_bad_input_is_refused_when_the_stream_is_made(voter: WeightedVoter) -> None:
    with pytest.raises(ValueError, match="is empty"):
        voter.stream(" ")
    with pytest.raises(ValueError, match="unknown voting method"):
        voter.stream(TEXTS[0], method="most")


def test_consensus_cancels_the_rest_of_a_stream(voter: WeightedVoter) -> None:
    consensus = Consensus(share=0.5, min_votes=1)
    events = list(voter.stream({"easy": "2+3+4"}, n=12, keep=1.0, consensus=consensus))
    ended = [event.trace for event in events if isinstance(event, Ended)]
    assert len(ended) == 12
    assert any(trace.finish_reason == "cancelled" and "of the votes" in trace.detail for trace in ended)


def test_asolve_answers_as_solve_and_lets_others_run(voter: WeightedVoter) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.002)

    async def ask() -> list[Any]:
        ticking = asyncio.create_task(tick())
        results = await asyncio.gather(*(voter.asolve(text, n=6, seed=5, keep=1.0) for text in TEXTS[:2]))
        ticking.cancel()
        return results

    results = asyncio.run(ask())
    assert ticks > 5
    for text, result in zip(TEXTS, results, strict=False):
        # Nothing is pruned, because traces tie at the detection position and rounding decides between them.
        assert_same_vote(result, voter.solve(text, n=6, seed=5, keep=1.0))


def test_a_cancelled_task_aborts_its_sampling(vllm_engine: VLLMEngine) -> None:
    voter = WeightedVoter(vllm_engine, config=read_head_config(POCKET_HEAD))

    async def ask() -> None:
        seen = 0
        async for _ in voter.astream(TEXTS, n=24, every=0.01):
            seen += 1
            if seen == 5:
                break
        task = asyncio.create_task(voter.asolve_many(TEXTS, n=24))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    deadline = time.monotonic() + 10
    while vllm_engine._loop.call(lambda engine: engine.has_unfinished_requests()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_callers_on_several_threads_share_the_engine(vllm_engine: VLLMEngine) -> None:
    alone = {key_of(trace): trace.text for trace in vllm_engine.sample(QUESTIONS, SAMPLING)}
    found: dict[str, list[Trace]] = {}

    def ask(question: Question) -> None:
        found[question.id] = list(vllm_engine.sample([question], SAMPLING))

    threads = [threading.Thread(target=ask, args=(question,)) for question in QUESTIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key_of(trace): trace.text for traces in found.values() for trace in traces} == alone


def test_iterators_may_be_read_in_turns(vllm_engine: VLLMEngine) -> None:
    one, other = (vllm_engine.sample([question], SAMPLING) for question in QUESTIONS[:2])
    with closing(one), closing(other):
        pairs = list(zip(one, other, strict=True))
    assert [(a.question_id, b.question_id) for a, b in pairs] == [("q0", "q1")] * 6


def test_an_error_of_the_callers_own_ends_its_call_only(vllm_engine: VLLMEngine) -> None:
    def fail(_trace: Trace) -> str:
        raise KeyError("mine")

    other = vllm_engine.sample(QUESTIONS[1:2], SAMPLING)
    with pytest.raises(KeyError, match="mine"):
        list(vllm_engine.sample(QUESTIONS[:1], SAMPLING, stop_question=fail))
    assert len(list(other)) == 6


def test_log_probabilities_are_those_of_the_sampled_distribution(engine: Any, reference: Reference) -> None:
    sampling = replace(SAMPLING, temperature=0.7)
    for trace in engine.sample(QUESTIONS[:1], sampling, TraceSpec(logprobs=True)):
        prompt = encode_prompt(reference.tokenizer, TEXTS[0])
        with torch.inference_mode():
            logits = reference.model(input_ids=torch.tensor([[*prompt, *trace.token_ids]])).logits[0]
        steps = logits[len(prompt) - 1 : -1].div(0.7).log_softmax(-1)
        expected = steps.gather(1, torch.tensor(trace.token_ids)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(trace.logprobs, expected, atol=1e-3)


def test_a_prompt_may_be_given_as_token_ids(engine: Any, reference: Reference) -> None:
    ids = tuple(encode_prompt(reference.tokenizer, TEXTS[0]))
    asked = [replace(QUESTIONS[0], messages="", token_ids=ids)]
    as_text = sorted(trace.text for trace in engine.sample(QUESTIONS[:1], SAMPLING))
    assert sorted(trace.text for trace in engine.sample(asked, SAMPLING)) == as_text


def test_windowed_measures_vote_as_every_tokens_confidence_does(engine: Any) -> None:
    voter = WeightedVoter(engine, config=read_head_config(POCKET_HEAD), method="deepconf")
    window = voter.config.voting["deepconf"]["window"]  # type: ignore[union-attr]
    full = voter.solve(TEXTS[0], n=6, seed=5)
    measured = voter.solve(TEXTS[0], n=6, seed=5, confidence_window=window)
    assert all(trace.confidence is None for trace in measured.traces)
    assert measured.weights == pytest.approx(full.weights, abs=1e-5)
    with pytest.raises(ValueError, match="wants windows of 7 tokens"):
        voter.vote(measured.traces, window=7)


def test_requests_of_several_heads_and_of_none_share_the_steps(
    vllm_engine: VLLMEngine, reference: Reference
) -> None:
    specs = [TraceSpec(score_at=(1, 20), score_finish=True, head=head) for head in ("gated", "last", "linear")]
    specs.append(TraceSpec(confidence=True, head="mean"))  # names a head and asks it nothing
    asked = [vllm_engine.sample(QUESTIONS[:1], SAMPLING, spec) for spec in specs]
    for traces, spec in zip(asked, specs, strict=True):
        reference.assert_signals(list(traces), QUESTIONS, spec)


def test_several_heads_score_side_by_side_and_are_replaced_in_place(
    vllm_engine: VLLMEngine, tmp_path: Path
) -> None:
    constant = QualityHead.from_pretrained(POCKET_HEAD)
    torch.nn.init.zeros_(constant.outer.weight)
    value = float(constant(torch.zeros(1, vllm_engine.hidden_size)).detach())
    spec = TraceSpec(score_finish=True)
    with pytest.raises(ValueError, match="need a quality head"):
        vllm_engine.sample(QUESTIONS[:1], SAMPLING, replace(spec, head="constant"))
    vllm_engine.load_head(constant, "constant")
    by_default = vllm_engine.sample(QUESTIONS[:1], SAMPLING, spec)
    by_name = vllm_engine.sample(QUESTIONS[:1], SAMPLING, replace(spec, head="constant"))
    assert {round(trace.score or 0, 5) for trace in by_name} == {round(value, 5)}
    assert len({trace.score for trace in by_default}) > 1
    constant.config.calibration = [0.0, 2.0]
    constant.save_pretrained(tmp_path)
    vllm_engine.load_head(tmp_path, "constant")
    again = vllm_engine.sample(QUESTIONS[:1], SAMPLING, replace(spec, head="constant"))
    assert {round(trace.score or 0, 4) for trace in again} == {0.8808}
    pooled = head_of_kind("gated", constant, seed=1)
    vllm_engine.load_head(pooled, "constant")
    for trace in vllm_engine.sample(QUESTIONS[:1], SAMPLING, replace(spec, head="constant", features_every=1)):
        rows = torch.from_numpy(np.stack(list(trace.features.values())))
        with torch.inference_mode():
            assert trace.score == pytest.approx(float(pooled(rows)[-1]), abs=1e-5)


def test_a_closed_engine_says_so() -> None:
    from arrol_tts.engine.vllm_loop import VLLMLoop

    loop = VLLMLoop(lambda: object(), lambda _: None)  # type: ignore[arg-type, return-value]
    loop.stop()
    with pytest.raises(RuntimeError, match="it was closed"):
        loop.call(lambda engine: engine)
