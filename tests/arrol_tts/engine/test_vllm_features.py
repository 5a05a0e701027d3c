"""Scores, confidences and pruning equal a plain forward pass under every feature of the vLLM engine.

Each test also shows that the feature was at work: a parity test of a feature that never happened
proves nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts.engine.request import Question, Sampling
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.stopping import KeepShare, TraceSpec
from arrol_tts.trace import Trace
from tests.conftest import TOP_K

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from arrol_tts.head import QualityHead
    from tests.arrol_tts.engine.parity import Reference

pytest.importorskip("vllm")

BLOCK = 32
AT = 40
TEXTS = [q.text for q in itertools.islice(questions("test"), 6)]
# Three expressions in a row: prompts of more than a KV block, so that their prefix can be cached.
QUESTIONS = [Question(f"q{i}", "+".join(TEXTS[i : i + 3])) for i in range(3)]
SAMPLED = Sampling(n=8, max_tokens=160, seed=4)
GREEDY = replace(SAMPLED, n=1, temperature=0)
SHORT = replace(SAMPLED, n=4, max_tokens=64)
WATCHED = TraceSpec(score_at=(1, AT), score_finish=True, confidence=True, head="gated")
HALVED = replace(WATCHED, rules=(KeepShare(AT, 0.5),))
# A head that pools every fourth row where tokens are chosen, one that pools every row where they are drawn.
both_samplings = pytest.mark.parametrize(
    ("sampling", "spec"),
    [(SAMPLED, WATCHED), (GREEDY, replace(WATCHED, head="linear"))],
    ids=["sampled", "greedy"],
)


@dataclass
class Steps:
    """What the engine's scheduler did."""

    partial_prefills: int = 0
    prefix_hits: int = 0
    preempted: set[str] = field(default_factory=set)
    most_waiting: int = 0


def scheduler_of(engine: VLLMEngine) -> Any:
    """The scheduler of an in-process engine core."""
    return engine._loop.engine.engine_core.engine_core.scheduler


@contextmanager
def watched(engine: VLLMEngine) -> Iterator[Steps]:
    """Counts the features at work, and checks that nothing is left behind."""
    scheduler, steps = scheduler_of(engine), Steps()
    pool = scheduler.kv_cache_manager.block_pool
    all_free = pool.get_num_free_blocks()
    schedule = scheduler.schedule

    def watch_schedule(*args: Any) -> Any:
        output = schedule(*args)
        for request in output.scheduled_new_reqs:
            rest = len(request.prompt_token_ids) - request.num_computed_tokens
            steps.partial_prefills += output.num_scheduled_tokens[request.req_id] < rest
            steps.prefix_hits += request.num_computed_tokens > 0
        steps.preempted |= output.preempted_req_ids or set()
        waiting = sum(scheduler._monitor.is_held(request_id) for request_id in scheduler.requests)
        steps.most_waiting = max(steps.most_waiting, waiting)
        return output

    scheduler.schedule = watch_schedule
    try:
        yield steps
    finally:
        del scheduler.schedule
    assert pool.get_num_free_blocks() == all_free
    assert (scheduler.requests, scheduler._monitor.logs) == ({}, {})
    assert not scheduler._monitor.any_held


@contextmanager
def watched_tokens(engine: VLLMEngine) -> Iterator[list[int]]:
    """Collects how many tokens each request got in each step, wherever the engine core runs."""
    client: Any = engine._loop.engine.engine_core
    tokens: list[int] = []
    get_output = client.get_output

    def watch() -> Any:
        outputs = get_output()
        tokens.extend(len(output.new_token_ids) for output in outputs.outputs)
        return outputs

    client.get_output = watch
    try:
        yield tokens
    finally:
        del client.get_output


def load(heads: dict[str, QualityHead], **options: Any) -> Iterator[VLLMEngine]:
    from arrol_tts.engine.vllm_engine import VLLMEngine

    options = {"dtype": "float32", "max_model_len": 320, "max_num_seqs": 16, "block_size": BLOCK} | options
    engine = VLLMEngine(POCKET_MODEL, head=heads, top_k=TOP_K, **options)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def squeezed_engine(heads: dict[str, QualityHead]) -> Iterator[VLLMEngine]:
    """16 tokens a step and a KV cache of 20 blocks, where 8 running requests want about 50."""
    yield from load(
        heads,
        max_num_seqs=8,
        max_num_batched_tokens=16,
        num_gpu_blocks_override=21,
        enable_prefix_caching=True,
    )


@pytest.fixture(scope="module")
def speculative_engine(heads: dict[str, QualityHead]) -> Iterator[VLLMEngine]:
    # In a process of its own: vLLM's n-gram proposer loads numba, and a process that holds numba cannot
    # load another vLLM engine on the CPU.
    yield from load(
        heads,
        in_process=False,
        speculative_config={
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 2,
        },
    )


@pytest.fixture(scope="module")
def parallel_engine(heads: dict[str, QualityHead]) -> Iterator[VLLMEngine]:
    """The engine core in a process of its own, and two more with half of the model each."""
    with pytest.MonkeyPatch.context() as patch:
        # vLLM would bind each of them to a NUMA node of its own, and refuse where there are fewer.
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        yield from load(heads, in_process=False, tensor_parallel_size=2)


@pytest.fixture(scope="module")
def compiled_engine(heads: dict[str, QualityHead]) -> Iterator[VLLMEngine]:
    yield from load(heads, enforce_eager=False)


def sample(engine: VLLMEngine, sampling: Sampling, spec: TraceSpec) -> list[Trace]:
    traces = list(engine.sample(QUESTIONS, sampling, spec))
    names = {(trace.question_id, trace.sample_id) for trace in traces}
    assert names == {(question.id, i) for question in QUESTIONS for i in range(sampling.n)}
    assert len(traces) == len(names)
    return traces


@both_samplings
def test_parity_with_prompts_prefilled_in_chunks(
    squeezed_engine: VLLMEngine, reference: Reference, sampling: Sampling, spec: TraceSpec
) -> None:
    with watched(squeezed_engine) as steps:
        traces = sample(squeezed_engine, sampling, spec)
    assert steps.partial_prefills > 0
    reference.assert_signals(traces, QUESTIONS, spec)


def test_parity_with_prompts_read_from_the_prefix_cache(squeezed_engine: VLLMEngine, reference: Reference) -> None:
    scheduler_of(squeezed_engine).reset_prefix_cache()
    with watched(squeezed_engine) as cold:
        sample(squeezed_engine, GREEDY, WATCHED)
    with watched(squeezed_engine) as warm:
        traces = sample(squeezed_engine, GREEDY, WATCHED)
    assert (cold.prefix_hits, warm.prefix_hits) == (0, len(QUESTIONS))
    reference.assert_signals(traces, QUESTIONS, WATCHED)


def test_parity_of_preempted_requests(squeezed_engine: VLLMEngine, reference: Reference) -> None:
    with watched(squeezed_engine) as steps:
        traces = sample(squeezed_engine, SAMPLED, WATCHED)
    assert len(steps.preempted) >= 3
    reference.assert_signals(traces, QUESTIONS, WATCHED)


def test_groups_that_fit_into_the_kv_cache_one_by_one_prune_to_their_share(
    squeezed_engine: VLLMEngine, reference: Reference
) -> None:
    # 6 traces of a question reach position 40 in 18 blocks; the three questions together cannot.
    rule = KeepShare(AT, 0.5)
    with watched(squeezed_engine) as steps:
        traces = sample(squeezed_engine, replace(SAMPLED, n=6), HALVED)
    assert steps.most_waiting > 0
    reference.assert_signals(traces, QUESTIONS, HALVED)
    reference.assert_pruned(traces, QUESTIONS, rule, head=HALVED.head)


def test_groups_that_exhaust_the_kv_cache_while_they_wait_do_not_deadlock(
    squeezed_engine: VLLMEngine, reference: Reference
) -> None:
    # Groups of 16 at position 100 would need 80 blocks to meet; there are 20.
    rule = KeepShare(100, 0.25)
    spec = replace(WATCHED, score_at=(100,), rules=(rule,), head="mean")
    with watched(squeezed_engine) as steps:
        traces = sample(squeezed_engine, replace(SAMPLED, n=16), spec)
    assert steps.most_waiting > 1
    reference.assert_signals(traces, QUESTIONS, spec)
    for question in QUESTIONS:
        group = [t for t in traces if t.question_id == question.id]
        pruned = [t for t in group if t.finish_reason == "pruned"]
        assert 1 <= len(pruned) < len(group)
        assert {t.num_tokens for t in pruned} == {101}


# Shorter than the others: vLLM's speculative decoding is slow without a GPU.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "spec"),
    [(SHORT, WATCHED), (replace(SHORT, n=1, temperature=0), replace(WATCHED, head="linear"))],
    ids=["sampled", "greedy"],
)
def test_parity_with_speculative_decoding(
    speculative_engine: VLLMEngine, reference: Reference, sampling: Sampling, spec: TraceSpec
) -> None:
    with watched_tokens(speculative_engine) as tokens:
        traces = sample(speculative_engine, sampling, spec)
    assert max(tokens) > 1
    reference.assert_signals(traces, QUESTIONS, spec)


@pytest.mark.slow
def test_pruning_with_speculative_decoding(speculative_engine: VLLMEngine, reference: Reference) -> None:
    with watched_tokens(speculative_engine) as tokens:
        traces = sample(speculative_engine, SHORT, HALVED)
    assert max(tokens) > 1
    reference.assert_signals(traces, QUESTIONS, HALVED)
    # The tokens accepted in the step of the detection position are part of the trace.
    reference.assert_pruned(traces, QUESTIONS, KeepShare(AT, 0.5), head=HALVED.head, late_tokens=3)


@pytest.mark.slow
@both_samplings
def test_parity_with_tensor_parallel_workers_and_a_core_process(
    parallel_engine: VLLMEngine, reference: Reference, sampling: Sampling, spec: TraceSpec
) -> None:
    assert not hasattr(parallel_engine._loop.engine.engine_core, "engine_core")
    assert parallel_engine._loop.engine.vllm_config.parallel_config.tensor_parallel_size == 2
    reference.assert_signals(sample(parallel_engine, sampling, spec), QUESTIONS, spec)


@pytest.mark.slow
def test_pruning_with_tensor_parallel_workers_and_a_core_process(
    parallel_engine: VLLMEngine, reference: Reference
) -> None:
    spec = replace(HALVED, head="last")
    traces = sample(parallel_engine, SAMPLED, spec)
    reference.assert_signals(traces, QUESTIONS, spec)
    reference.assert_pruned(traces, QUESTIONS, KeepShare(AT, 0.5), head="last")


@pytest.mark.slow
@both_samplings
def test_parity_with_a_compiled_model(
    compiled_engine: VLLMEngine, reference: Reference, sampling: Sampling, spec: TraceSpec
) -> None:
    from vllm.config import CompilationMode

    mode = compiled_engine._loop.engine.vllm_config.compilation_config.mode
    assert mode not in (None, CompilationMode.NONE)
    reference.assert_signals(sample(compiled_engine, sampling, spec), QUESTIONS, spec)


@pytest.mark.slow
def test_pruning_with_a_compiled_model(compiled_engine: VLLMEngine, reference: Reference) -> None:
    with watched(compiled_engine):
        traces = sample(compiled_engine, SAMPLED, HALVED)
    reference.assert_pruned(traces, QUESTIONS, KeepShare(AT, 0.5), head=HALVED.head)
