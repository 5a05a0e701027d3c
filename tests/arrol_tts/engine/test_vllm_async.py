"""Asynchronous scheduling, vLLM's default on GPUs, for real: its own engine core with two batches in flight."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts.engine.request import Question, Sampling
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.stopping import KeepShare, Threshold, TraceSpec
from tests.arrol_tts.engine.asynchrony import two_batches_in_flight
from tests.conftest import TOP_K

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from arrol_tts.head import QualityHead
    from tests.arrol_tts.engine.parity import Reference

pytest.importorskip("vllm")

AT = 20
TEXTS = [q.text for q in itertools.islice(questions("test"), 5)]
# Two expressions in a row: nearly a KV block, so that prompts come in chunks and traces need several blocks.
QUESTIONS = [Question(f"q{i}", "+".join(TEXTS[i : i + 2])) for i in range(4)]
SAMPLING = Sampling(n=6, max_tokens=60, seed=3)
WATCHED = TraceSpec(score_at=(1, AT), score_finish=True, confidence=True)


@pytest.fixture(scope="module")
def engine(heads: dict[str, QualityHead]) -> Iterator[VLLMEngine]:
    """Eight slots, 24 tokens a step, and blocks for about five traces of full length."""
    from arrol_tts.engine.vllm_engine import VLLMEngine

    with two_batches_in_flight():
        engine = VLLMEngine(
            POCKET_MODEL,
            head=heads,
            top_k=TOP_K,
            dtype="float32",
            max_model_len=128,
            max_num_seqs=8,
            max_num_batched_tokens=24,
            block_size=32,
            num_gpu_blocks_override=17,
        )
    yield engine
    engine.close()


def core_of(engine: VLLMEngine) -> Any:
    return engine._loop.engine.engine_core.engine_core


@pytest.mark.parametrize("head", ["", "gated", "linear"])
def test_signals_that_arrive_a_step_late_belong_to_their_positions(
    engine: VLLMEngine, reference: Reference, head: str
) -> None:
    core = core_of(engine)
    most, preempted = 0, set[str]()
    schedule = core.scheduler.schedule

    def watch(*args: Any) -> Any:
        nonlocal most
        output = schedule(*args)
        most = max(most, 1 + len(core.batch_queue))
        preempted.update(output.preempted_req_ids or ())
        return output

    core.scheduler.schedule = watch
    spec = replace(WATCHED, head=head)
    try:
        traces = list(engine.sample(QUESTIONS, SAMPLING, spec))
    finally:
        del core.scheduler.schedule
    assert most == 2
    assert len(preempted) >= 2
    assert len(traces) == len(QUESTIONS) * SAMPLING.n
    reference.assert_signals(traces, QUESTIONS, spec)


def test_groups_that_have_too_few_slots_and_blocks_keep_their_best_half(
    engine: VLLMEngine, reference: Reference
) -> None:
    rule = KeepShare(AT, 0.5)
    spec = replace(WATCHED, rules=(rule,))
    traces = list(engine.sample(QUESTIONS, SAMPLING, spec))
    reference.assert_signals(traces, QUESTIONS, spec)
    # One that waits for its group may have had a token in flight when it began to wait.
    reference.assert_pruned(traces, QUESTIONS, rule, late_tokens=1)


def test_the_token_in_flight_of_a_pruned_trace_is_dropped_and_its_blocks_are_free_at_the_verdict(
    engine: VLLMEngine,
) -> None:
    scheduler = core_of(engine).scheduler
    pool, update = scheduler.kv_cache_manager.block_pool, scheduler.update_from_output
    free, gained, in_flight = pool.get_num_free_blocks(), [], []

    def watch(*args: Any) -> Any:
        before, requests = pool.get_num_free_blocks(), dict(scheduler.requests)
        outputs = update(*args)
        for output in (output for group in outputs.values() for output in group.outputs):
            if output.stop_reason == "pruned":
                in_flight.append(requests[output.request_id].num_in_flight_tokens)
                gained.append(pool.get_num_free_blocks() - before)
        return outputs

    scheduler.update_from_output = watch
    try:
        spec = TraceSpec(rules=(Threshold(AT, 1.0),))
        (trace,) = engine.sample(QUESTIONS[:1], replace(SAMPLING, n=1), spec)
    finally:
        del scheduler.update_from_output
    assert trace.num_tokens == AT + 1
    assert in_flight == [1]
    assert gained[0] >= 1
    assert pool.get_num_free_blocks() == free


def test_a_stop_text_ends_a_trace_whose_next_token_is_in_flight(engine: VLLMEngine) -> None:
    greedy = replace(SAMPLING, n=1, temperature=0)
    (whole,) = engine.sample(QUESTIONS[:1], greedy, WATCHED)
    stop = whole.text[8:11]
    assert whole.text.index(stop) > 1
    (stopped,) = engine.sample(QUESTIONS[:1], greedy, replace(WATCHED, stop=(stop,)))
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert list(stopped.scores)[-1] == stopped.num_tokens - 1 < whole.num_tokens - 1
