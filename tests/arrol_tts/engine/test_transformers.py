"""What the transformers engine does like the others although nothing in it runs between the steps: new weights."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch

from arrol_tts.engine.request import Question, Sampling
from arrol_tts.errors import EngineError, HeadError, InputError
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.stopping import TraceSpec
from tests.heads import head_of_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arrol_tts.engine.transformers_engine import TransformersEngine
    from arrol_tts.head import QualityHead

QUESTIONS = [Question(f"q{i}", q.text) for i, q in enumerate(itertools.islice(questions("test"), 2))]
GREEDY = Sampling(n=1, temperature=0, max_tokens=40)


@pytest.fixture
def engine(transformers_engine: TransformersEngine) -> Iterator[TransformersEngine]:
    yield transformers_engine
    transformers_engine.load_weights(POCKET_MODEL / "model.safetensors")


@pytest.fixture(scope="module")
def disturbed() -> Any:
    """A language model of the same shape with other weights, the tied embedding among them."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype="float32").eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    return model


def texts(engine: TransformersEngine) -> list[str]:
    return [trace.text for trace in engine.sample(QUESTIONS, GREEDY)]


def test_new_weights_are_those_that_are_sampled_from(engine: TransformersEngine, disturbed: Any) -> None:
    before = texts(engine)
    engine.load_weights(disturbed.named_parameters())
    for trace in engine.sample(QUESTIONS, GREEDY):
        question = next(question for question in QUESTIONS if question.id == trace.question_id)
        from arrol_tts.prompts import prompt_ids

        prompt = prompt_ids(engine._tokenizer, question)
        expected = disturbed.generate(input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=40)
        assert trace.token_ids == expected[0, len(prompt) :].tolist()
    engine.load_weights(POCKET_MODEL / "model.safetensors")
    assert texts(engine) == before


def test_weights_of_another_model_are_refused(engine: TransformersEngine) -> None:
    with pytest.raises(InputError, match=r"the weights do not fit the engine's model \(nonsense"):
        engine.load_weights([("nonsense", torch.zeros(3))])
    with pytest.raises(InputError, match=r"(?s)the weights do not fit the engine's model.*size mismatch"):
        engine.load_weights([("model.embed_tokens.weight", torch.zeros(3, 3))])


def test_weights_are_refused_while_traces_are_being_sampled(engine: TransformersEngine) -> None:
    sampling = engine.sample(QUESTIONS, GREEDY)
    next(sampling)
    with pytest.raises(EngineError, match="traces are being sampled: load new weights when they have ended"):
        engine.load_weights(POCKET_MODEL / "model.safetensors")
    sampling.close()
    engine.load_weights(POCKET_MODEL / "model.safetensors")


def test_a_new_head_scores_from_then_on(engine: TransformersEngine, pocket_head: QualityHead) -> None:
    other = head_of_kind("last", pocket_head, seed=1)
    engine.load_head(other, "other")
    (trace,) = engine.sample(QUESTIONS[:1], GREEDY, TraceSpec(score_at=(5,), head="other", features_at=(5,)))
    with torch.inference_mode():
        expected = float(other(torch.from_numpy(trace.features[5].copy())))
    assert trace.scores[5] == pytest.approx(expected, abs=1e-6)


def test_a_head_of_another_width_is_refused(engine: TransformersEngine) -> None:
    from arrol_tts.head import QualityHead as Head
    from arrol_tts.head_config import QualityHeadConfig

    with pytest.raises(HeadError, match="width 64"):
        engine.load_head(Head(QualityHeadConfig(base_model="owner/other", hidden_size=64)))
