"""Scores, confidences, hidden states and prunings on runner V2, against a plain transformers forward pass."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from arrol_tts.engine.request import Question, Sampling
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import Budget, ConfidenceFloor, KeepShare, Threshold, TraceSpec
from tests.arrol_tts.engine.parity import CONFIDENCE_TOLERANCE, SCORE_TOLERANCE

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from arrol_tts.trace import Trace
    from tests.arrol_tts.engine.parity import Reference

AT = 6
TEXTS = [q.text for q in itertools.islice(questions("test"), 8)]
# Two expressions in a row: nearly a KV block, so that what is written needs a second one.
QUESTIONS = [Question(f"q{i}", "+".join(TEXTS[i : i + 2])) for i in range(6)]
# Hot, because cold traces begin alike and so have the same scores; nobody ends before a rule has looked.
SAMPLING = Sampling(n=2, temperature=2, max_tokens=14, min_tokens=14, seed=4)
WATCHED = TraceSpec(score_at=(1, AT), score_finish=True, confidence=True, self_certainty=True)
LATE = {"asynchronous": 1, "synchronous": 0, "speculative": 4}
"""Tokens that a pruned trace may have beyond the position: in flight while it waited, or accepted drafts."""


@dataclass
class Steps:
    """What the engine did."""

    partial_prefills: int = 0
    prefix_hits: int = 0
    preempted: set[str] = field(default_factory=set)
    batches: int = 0
    most_tokens: int = 0


def core_of(engine: VLLMEngine) -> Any:
    return engine._loop.engine.engine_core.engine_core


@contextmanager
def watched(engine: VLLMEngine) -> Iterator[Steps]:
    """Counts the features at work, and checks that nothing is left behind."""
    core, steps = core_of(engine), Steps()
    scheduler = core.scheduler
    schedule, update = scheduler.schedule, scheduler.update_from_output
    pool = scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()

    def watch_schedule(*args: Any) -> Any:
        output = schedule(*args)
        for request in output.scheduled_new_reqs:
            rest = len(request.prompt_token_ids) - request.num_computed_tokens
            steps.partial_prefills += output.num_scheduled_tokens[request.req_id] < rest
            steps.prefix_hits += request.num_computed_tokens > 0
        steps.preempted |= output.preempted_req_ids or set()
        steps.batches = max(steps.batches, 1 + len(core.batch_queue or ()))
        return output

    def watch_update(*args: Any) -> Any:
        outputs = update(*args)
        lengths = [len(output.new_token_ids) for group in outputs.values() for output in group.outputs]
        steps.most_tokens = max([steps.most_tokens, *lengths])
        return outputs

    scheduler.schedule, scheduler.update_from_output = watch_schedule, watch_update
    try:
        yield steps
        engine._loop.call(_drain)
    finally:
        del scheduler.schedule, scheduler.update_from_output
    assert pool.get_num_free_blocks() == free
    assert (scheduler.requests, scheduler.running, scheduler._monitor.logs) == ({}, [], {})
    assert not scheduler._monitor.any_held


def _drain(engine: Any) -> None:
    """Take in what is still in flight of requests that have ended."""
    core = engine.engine_core.engine_core
    while core.batch_queue or core.scheduler.has_requests():
        engine.step()


def test_it_is_runner_v2_with_vllms_own_scheduler_and_engine_core(engine: VLLMEngine, configuration: str) -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    core = core_of(engine)
    asynchronous = configuration == "asynchronous"
    assert isinstance(core.model_executor.driver_worker.worker.model_runner, GPUModelRunner)
    assert isinstance(core.scheduler, AsyncScheduler) is asynchronous
    assert core.batch_queue_size == (2 if asynchronous else 1)


def test_scores_confidences_and_states_equal_a_plain_forward_pass(
    engine: VLLMEngine, reference: Reference, configuration: str
) -> None:
    # Three calls at once, so that a step has rows of all heads; states are asked for by one of them only.
    heads = ("", "gated", "linear")
    specs = [replace(WATCHED, head=head) for head in heads]
    specs[1] = replace(specs[1], features_at=(0, AT), features_finish=True)
    greedy = replace(SAMPLING, temperature=0, n=1)
    calls = [(QUESTIONS[:2], SAMPLING), (QUESTIONS[2:4], SAMPLING), (QUESTIONS[4:], greedy)]
    with watched(engine) as steps:
        running = [engine.sample(*call, spec) for call, spec in zip(calls, specs, strict=True)]
        traces = [list(each) for each in running]
    for (asked, _), spec, found in zip(calls, specs, traces, strict=True):
        reference.assert_signals(found, asked, spec)
        assert all(trace.meta["self_certainty"] > 0 for trace in found)
    assert not any(trace.features for trace in traces[0] + traces[2])
    texts = {question.id: question.text for question in QUESTIONS}
    for trace in traces[1]:
        states = states_of(reference, texts[trace.question_id], trace)
        assert list(trace.features) == [0, AT, trace.num_tokens - 1]
        for position, vector in trace.features.items():
            np.testing.assert_allclose(vector, states[position], atol=1e-3)
    if configuration == "asynchronous":
        assert steps.batches == 2
        assert steps.partial_prefills > 0
        assert len(steps.preempted) >= 2
    elif configuration == "speculative":
        assert steps.most_tokens > 2


@torch.inference_mode()
def states_of(reference: Reference, text: str, trace: Trace) -> Any:
    """The hidden state of each step, as ``Reference.read`` counts them."""
    prompt = encode_prompt(reference.tokenizer, text)
    tokens = torch.tensor([[*prompt, *(trace.token_ids or [])]])
    hidden = reference.model(input_ids=tokens, output_hidden_states=True).hidden_states[-1][0]
    return hidden[len(prompt) - 1 :].numpy()


def test_every_stopping_rule_ends_the_traces_that_a_forward_pass_names(
    engine: VLLMEngine, reference: Reference, configuration: str
) -> None:
    late = LATE[configuration]
    four = replace(SAMPLING, n=4)
    rules = {
        "keep": KeepShare(AT, 0.5),
        "threshold": Threshold(AT, 0.6),
        "floor": ConfidenceFloor(warmup=2, keep=0.1, window=3),
        "budget": Budget(at=4, tokens=36, length=10),
    }
    asked = {name: [replace(QUESTIONS[i], id=name)] for i, name in enumerate(rules)}
    specs = {name: TraceSpec(score_at=(AT,), confidence=True, rules=(rule,)) for name, rule in rules.items()}
    specs["threshold"] = replace(specs["threshold"], head="last")
    specs["budget"] = replace(specs["budget"], head="gated")
    with watched(engine) as steps:
        running = {name: engine.sample(asked[name], four, spec) for name, spec in specs.items()}
        traces = {name: sorted(run, key=lambda trace: trace.sample_id) for name, run in running.items()}
    for name, spec in specs.items():
        reference.assert_signals(traces[name], asked[name], spec)
    reference.assert_pruned(traces["keep"], asked["keep"], KeepShare(AT, 0.5), late_tokens=late)

    text = asked["threshold"][0].text
    scores = [float(reference.read(text, trace.token_ids or [], "last")[0][AT]) for trace in traces["threshold"]]
    assert [trace.finish_reason == "pruned" for trace in traces["threshold"]] == [score < 0.6 for score in scores]
    drafts = late if configuration == "speculative" else 0  # a token that was in flight is dropped
    lengths = {trace.num_tokens for trace in traces["threshold"] if trace.finish_reason == "pruned"}
    assert lengths <= set(range(AT + 1, AT + 2 + drafts))
    pruned = {name: sum(t.finish_reason == "pruned" for t in traces[name]) for name in traces}
    assert (pruned["keep"], pruned["threshold"]) == (2, 2)
    assert pruned["budget"] >= 1
    assert pruned["floor"] >= 1 or configuration == "speculative"  # its drafts bring other traces
    assert_floor(reference, asked["floor"][0], traces["floor"], rules["floor"])
    assert_budget(reference, asked["budget"][0], traces["budget"], rules["budget"], late)
    if configuration == "asynchronous":
        assert steps.batches == 2


def assert_floor(reference: Reference, asked: Question, traces: Sequence[Trace], rule: Any) -> None:
    """The first traces set the floor; a later one ends where, and only where, it falls below."""
    means = []
    for trace in traces:
        _, confidence = reference.read(asked.text, trace.token_ids or [])
        means.append(np.convolve(confidence, np.ones(rule.window) / rule.window, mode="valid"))
    floor = float(np.percentile([mean.min() for mean in means[: rule.warmup]], 100 * (1 - rule.keep)))
    for trace, mean in list(zip(traces, means, strict=True))[rule.warmup :]:
        low = np.flatnonzero(mean < floor - CONFIDENCE_TOLERANCE)
        if trace.finish_reason == "pruned":
            assert mean.min() < floor + CONFIDENCE_TOLERANCE
        else:
            # What it wrote while the floor was not set, and its last token, are not judged.
            assert not set(low.tolist()) - {*range(3), len(mean) - 1}
    assert {trace.finish_reason for trace in traces[: rule.warmup]} == {"length"}


def assert_budget(reference: Reference, asked: Question, traces: Sequence[Trace], rule: Any, late: int) -> None:
    """All reach the position, the best one goes on, and the budget is what is spent."""
    scores = [float(reference.read(asked.text, trace.token_ids or [], "gated")[0][rule.at]) for trace in traces]
    lengths = [trace.num_tokens for trace in traces]
    assert min(lengths) >= rule.at + 1
    # Others go on beside it, and may be ahead of it where memory ran short.
    assert lengths[int(np.argmax(scores))] > rule.at + 1
    # A step may bring each of them its tokens before the verdict.
    assert rule.tokens <= sum(lengths) <= rule.tokens + len(traces) * (1 + late)
    assert any(trace.finish_reason == "pruned" for trace in traces)


def test_a_group_larger_than_the_running_batch_is_decided_whole(
    engine: VLLMEngine, reference: Reference, configuration: str
) -> None:
    slots = core_of(engine).scheduler.max_num_running_reqs
    rule = KeepShare(AT, 0.25)
    spec = TraceSpec(score_at=(AT,), rules=(rule,))
    late = LATE[configuration]
    length = AT + 3 + late  # so that none ends in the step that brings its score
    short = replace(SAMPLING, n=slots + 2, max_tokens=length, min_tokens=length)
    with watched(engine):
        traces = list(engine.sample(QUESTIONS[:1], short, spec))
    reference.assert_pruned(traces, QUESTIONS[:1], rule, late_tokens=late)
    assert sum(trace.finish_reason == "pruned" for trace in traces) == slots + 2 - rule.survivors(slots + 2)


def test_a_caller_who_stops_listening_leaves_nothing_behind(engine: VLLMEngine) -> None:
    with watched(engine):
        listening = engine.sample(QUESTIONS[:3], SAMPLING, replace(WATCHED, rules=(KeepShare(AT, 0.5),)))
        for _ in range(3):
            engine._loop.call(lambda _: None)  # a step is between two calls
        listening.close()


def test_new_weights_are_used_by_the_next_trace_and_its_logprobs_are_theirs(
    engine: VLLMEngine, reference: Reference, configuration: str
) -> None:
    if configuration == "speculative":
        pytest.skip("the draft model would need new weights too")
    model: Any = type(reference.model).from_pretrained(POCKET_MODEL, dtype="float32").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    short = replace(SAMPLING, temperature=1, max_tokens=5, min_tokens=0)
    engine.load_weights(model.named_parameters())
    try:
        traces = list(engine.sample(QUESTIONS[:2], short, TraceSpec(logprobs=True, score_at=(2,), head="last")))
    finally:
        engine.load_weights(POCKET_MODEL / "model.safetensors")
    changed = replace_model(reference, model)
    texts = {question.id: question.text for question in QUESTIONS}
    for trace in traces:
        prompt = encode_prompt(reference.tokenizer, texts[trace.question_id])
        ids = trace.token_ids or []
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert trace.logprobs is not None
        np.testing.assert_allclose(trace.logprobs, expected.numpy(), atol=1e-4)
        scores, _ = changed.read(texts[trace.question_id], ids, "last")
        assert trace.scores[2] == pytest.approx(float(scores[2]), abs=SCORE_TOLERANCE)


def replace_model(reference: Reference, model: Any) -> Reference:
    """The reference with another model."""
    changed = copy.copy(reference)
    changed.model = model
    return changed
