"""New weights in a running vLLM engine: its log-probabilities are those of the new model."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from arrol_tts.engine.request import Question, Sampling
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import TraceSpec
from tests.conftest import load_pocket

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")

QUESTIONS = [Question(f"q{i}", q.text) for i, q in enumerate(itertools.islice(questions("test"), 3))]
SAMPLING = Sampling(n=2, max_tokens=60, seed=5)


@pytest.fixture
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype="float32").eval()


@pytest.fixture
def engine(vllm_engine: VLLMEngine, model: Any) -> Iterator[VLLMEngine]:
    yield vllm_engine
    vllm_engine.load_weights(POCKET_MODEL / "model.safetensors")


def disturb(model: Any) -> None:
    """Other weights, the tied embedding among them, that are still a language model."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


@torch.inference_mode()
def assert_same_logprobs(engine: VLLMEngine, model: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    texts = {question.id: question.text for question in QUESTIONS}
    traces = list(engine.sample(QUESTIONS, SAMPLING, TraceSpec(logprobs=True)))
    assert len(traces) == 6
    for trace in traces:
        prompt = encode_prompt(tokenizer, texts[trace.question_id])
        assert trace.token_ids is not None
        assert trace.logprobs is not None
        logits = model(torch.tensor([prompt + trace.token_ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(trace.token_ids)[:, None])[:, 0]
        np.testing.assert_allclose(trace.logprobs, expected.numpy(), atol=1e-4)


def test_logprobs_after_a_push_are_the_new_models_with_its_tied_head(engine: VLLMEngine, model: Any) -> None:
    assert model.config.tie_word_embeddings
    for _ in range(2):  # the second push meets weights that were already packed again
        disturb(model)
        engine.load_weights(model.named_parameters())
        assert_same_logprobs(engine, model)


def test_an_engine_that_is_closed_or_dropped_leaves_the_others_of_the_process_whole(
    engine: VLLMEngine, model: Any
) -> None:
    """They share vLLM's parallel groups, which are global to a process; new weights need them."""
    closed, dropped = load_pocket(), load_pocket()
    closed.close()
    closed.close()
    thread = dropped._loop._thread
    del dropped
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="make a new one"):
        closed.sample(QUESTIONS, SAMPLING)
    disturb(model)
    engine.load_weights(model.named_parameters())
    assert_same_logprobs(engine, model)


@pytest.mark.slow
def test_weights_of_another_shape_are_refused() -> None:
    """In an engine of its own, which is lost with it."""
    from arrol_tts.engine.vllm_engine import VLLMEngine

    engine = VLLMEngine(POCKET_MODEL, dtype="float32", max_model_len=128, in_process=False)
    try:
        with pytest.raises(Exception, match="do not fit the engine's model"):
            engine.load_weights([("model.norm.weight", torch.zeros(7))])
    finally:
        engine.close()
