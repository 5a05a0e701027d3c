"""The sampling parameters of model cards: every engine draws from the same distribution, token by token."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from arrol_tts.engine.base import Engine
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.engine.transformers_logits import Distribution
from arrol_tts.pocket import questions
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import TraceSpec

if TYPE_CHECKING:
    from tests.arrol_tts.engine.parity import Reference

QUESTIONS = [Question(f"q{i}", q.text) for i, q in enumerate(itertools.islice(questions("test"), 2))]
PLAIN = Sampling(n=4, max_tokens=40, temperature=2.0, seed=11)
GREEDY = Sampling(n=1, max_tokens=60, temperature=0)
LOGPROBS = TraceSpec(logprobs=True)


@pytest.fixture(params=["vllm_engine", "transformers_engine"], scope="module")
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(request.param)


def eos_of(reference: Reference) -> int:
    return int(reference.model.generation_config.eos_token_id)


@torch.inference_mode()
def logits_of(reference: Reference, question: Question, token_ids: list[int]) -> tuple[list[int], torch.Tensor]:
    """The prompt, and the model's own logits at each generated token, from one plain forward pass."""
    prompt = encode_prompt(reference.tokenizer, question.text)
    output = reference.model(input_ids=torch.tensor([[*prompt, *token_ids]]))
    return prompt, output.logits[0, len(prompt) - 1 : -1].float()


@pytest.mark.parametrize(
    "changes",
    [
        {"min_p": 0.05},
        {"min_p": 0.02, "top_k": 6, "top_p": 0.9},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.7},
        {"frequency_penalty": 0.4},
        {"presence_penalty": -0.3, "frequency_penalty": 0.6, "repetition_penalty": 1.2, "min_p": 0.05, "top_k": 8},
        {"min_tokens": 30, "repetition_penalty": 0.8},
    ],
)
def test_tokens_are_drawn_from_the_distribution_that_the_parameters_make(
    engine: Engine, reference: Reference, changes: dict[str, Any]
) -> None:
    sampling = replace(PLAIN, **changes)
    distribution = Distribution(sampling, {eos_of(reference)})
    changed = 0
    for trace in engine.sample(QUESTIONS, sampling, LOGPROBS):
        assert trace.token_ids is not None
        assert trace.logprobs is not None
        question = next(question for question in QUESTIONS if question.id == trace.question_id)
        prompt, logits = logits_of(reference, question, trace.token_ids)
        steps = range(trace.num_tokens)
        drawn_from = distribution(logits, [prompt] * len(steps), [trace.token_ids[:k] for k in steps])
        chosen = torch.tensor(trace.token_ids)[:, None]
        expected = drawn_from.log_softmax(-1).gather(1, chosen)[:, 0].numpy()
        np.testing.assert_allclose(trace.logprobs, expected, atol=2e-3)
        plain = (logits / sampling.temperature).log_softmax(-1).gather(1, chosen)[:, 0].numpy()
        changed += int((np.abs(plain - expected) > 0.01).sum())
    assert changed > 3, "the parameters make a difference"


def test_whole_numbers_are_numbers(engine: Engine) -> None:
    sampling = replace(PLAIN, n=1, max_tokens=4, temperature=2, repetition_penalty=2, min_p=1)
    (trace,) = engine.sample(QUESTIONS[:1], sampling)
    assert trace.num_tokens == 4


def test_penalties_change_greedy_traces_alike(engine: Engine, reference: Reference) -> None:
    sampling = replace(GREEDY, repetition_penalty=1.2, frequency_penalty=0.3)
    distribution = Distribution(sampling, {eos_of(reference)})
    (trace,) = engine.sample(QUESTIONS[:1], sampling)
    assert trace.token_ids is not None
    prompt, logits = logits_of(reference, QUESTIONS[0], trace.token_ids)
    steps = range(trace.num_tokens)
    rows = distribution(logits, [prompt] * len(steps), [trace.token_ids[:k] for k in steps])
    # Where the two best are as good as equal, either may come.
    best = rows.topk(2).values
    clear = (best[:, 0] - best[:, 1] > 1e-3).tolist()
    assert [token for token, sure in zip(trace.token_ids, clear, strict=True) if sure] == [
        token for token, sure in zip(rows.argmax(-1).tolist(), clear, strict=True) if sure
    ]
    (free,) = engine.sample(QUESTIONS[:1], GREEDY)
    assert free.token_ids != trace.token_ids


def test_no_trace_ends_before_min_tokens(engine: Engine, reference: Reference) -> None:
    (free,) = engine.sample(QUESTIONS[:1], replace(GREEDY, max_tokens=256))
    assert free.finish_reason == "stop"
    longer = free.num_tokens + 5
    (held,) = engine.sample(QUESTIONS[:1], replace(GREEDY, max_tokens=longer + 1, min_tokens=longer))
    assert held.token_ids is not None
    assert held.num_tokens >= longer
    assert eos_of(reference) not in held.token_ids[:longer]


def test_a_stop_token_ends_a_trace_and_stays_in_it(engine: Engine) -> None:
    (free,) = engine.sample(QUESTIONS[:1], GREEDY)
    assert free.token_ids is not None
    token = free.token_ids[20]
    first = free.token_ids.index(token)
    (stopped,) = engine.sample(QUESTIONS[:1], replace(GREEDY, stop_token_ids=(token,)))
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert stopped.finish_reason == "stop"
    (held,) = engine.sample(QUESTIONS[:1], replace(GREEDY, stop_token_ids=(token,), min_tokens=first + 2))
    assert held.num_tokens >= first + 2
    assert token not in (held.token_ids or [])[: first + 2]


def test_a_stop_text_within_min_tokens_neither_ends_a_trace_nor_cuts_its_text(engine: Engine) -> None:
    (free,) = engine.sample(QUESTIONS[:1], GREEDY)
    assert free.token_ids is not None
    stop = free.text[12:15]
    (early,) = engine.sample(QUESTIONS[:1], replace(GREEDY, stop=(stop,)))
    assert early.text == free.text.partition(stop)[0]
    after = early.num_tokens
    (late,) = engine.sample(QUESTIONS[:1], replace(GREEDY, stop=(stop,), min_tokens=after))
    assert late.token_ids == free.token_ids[: late.num_tokens]
    assert late.num_tokens > after
    assert stop in late.text
    assert free.text.startswith(late.text)


def test_self_certainty_is_the_mean_over_the_models_own_logits(engine: Engine, reference: Reference) -> None:
    spec = TraceSpec(self_certainty=True)
    for trace in engine.sample(QUESTIONS, replace(PLAIN, min_p=0.05, repetition_penalty=1.2), spec):
        question = next(question for question in QUESTIONS if question.id == trace.question_id)
        _, logits = logits_of(reference, question, trace.token_ids or [])
        expected = -(logits.log_softmax(-1) + np.log(logits.shape[-1])).mean(-1).mean()
        assert trace.meta["self_certainty"] == pytest.approx(float(expected), abs=1e-3)
        assert trace.confidence is None


def test_self_certainty_is_left_out_unless_asked_for(engine: Engine) -> None:
    (trace,) = engine.sample(QUESTIONS[:1], replace(GREEDY, max_tokens=4), TraceSpec(confidence=True))
    assert "self_certainty" not in trace.meta
