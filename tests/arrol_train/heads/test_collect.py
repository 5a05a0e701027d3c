"""Collecting: what is kept, how it goes on, and what it refuses. The pocket model in real vLLM."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from arrol_train.heads.collect import CollectError, CollectionManifest, collect, default_positions, predicted_bytes
from arrol_train.questions import TrainingQuestion
from arrol_train.rewards import pocket_reward
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.pocket import POCKET_MODEL, questions, verify
from arrol_tts.revision import model_revision
from arrol_tts.stopping import TraceSpec
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from tests.conftest import TOP_K

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")

POSITIONS = [16, 64]
QUESTIONS = [
    TrainingQuestion(f"row-{i}", q.text, q.answer)
    for i, q in enumerate(itertools.islice(questions("train", 5), 4))
]
MANIFEST = CollectionManifest(
    model=str(POCKET_MODEL),
    revision="sha256:1",
    hidden_size=128,
    data="pocket.jsonl",
    data_sha256="1",
    prompt=[],
    sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 220, "seed": 0},
    positions=POSITIONS,
    top_k=TOP_K,
)
N = 4


class CutOffError(Exception):
    pass


def cut_off_after(count: int) -> Any:
    left = iter(range(count))

    def on_trace(_: Trace) -> None:
        if next(left, None) is None:
            raise CutOffError

    return on_trace


def traces_of(folder: Path) -> dict[tuple[str, int], Trace]:
    traces = list(TraceStore(folder / "traces"))
    named = {(t.question_id, t.sample_id): t for t in traces}
    assert len(named) == len(traces)
    return named


@pytest.fixture(scope="module")
def whole(vllm_engine: VLLMEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("collect") / "whole"
    assert collect(vllm_engine, MANIFEST, QUESTIONS, pocket_reward, folder, n=N) == len(QUESTIONS) * N
    return folder


def test_traces_are_graded_and_carry_vectors(whole: Path) -> None:
    texts = {question.id: question.question for question in QUESTIONS}
    traces = traces_of(whole)
    assert len(traces) == len(QUESTIONS) * N
    for trace in traces.values():
        assert trace.correct == (trace.finish_reason == "stop" and verify(texts[trace.question_id], trace.answer))
        expected = {p for p in POSITIONS if p < trace.num_tokens} | {trace.num_tokens - 1}
        assert set(trace.features) == expected
        assert all(vector.shape == (128,) for vector in trace.features.values())
        assert trace.confidence is not None
        assert len(trace.confidence) == trace.num_tokens
    assert len({trace.correct for trace in traces.values()}) == 2


def test_vectors_are_the_models_own(whole: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from arrol_tts.prompts import encode_prompt

    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    backbone = AutoModelForCausalLM.from_pretrained(POCKET_MODEL).eval().base_model
    trace = traces_of(whole)["row-0", 0]
    prompt = encode_prompt(tokenizer, QUESTIONS[0].question)
    with torch.inference_mode():
        states = backbone(input_ids=torch.tensor([prompt + (trace.token_ids or [])])).last_hidden_state[0]
    for position, vector in trace.features.items():
        expected = states[len(prompt) - 1 + position].float().numpy()
        np.testing.assert_allclose(vector, expected, rtol=1e-3, atol=1e-3)  # kept in float16


def test_a_cut_run_goes_on_without_loss_or_repetition(
    vllm_engine: VLLMEngine, whole: Path, tmp_path: Path
) -> None:
    sampled = 0
    for count in (0, 3, 5):
        with pytest.raises(CutOffError):
            collect(vllm_engine, MANIFEST, QUESTIONS, pocket_reward, tmp_path, n=N, on_trace=cut_off_after(count))
        sampled += count + 1
        assert len(traces_of(tmp_path)) == sampled
    assert collect(vllm_engine, MANIFEST, QUESTIONS, pocket_reward, tmp_path, n=N) == len(QUESTIONS) * N - sampled
    again, undisturbed = traces_of(tmp_path), traces_of(whole)
    assert {key: trace.text for key, trace in again.items()} == {k: t.text for k, t in undisturbed.items()}


def test_nothing_is_sampled_when_nothing_is_missing(vllm_engine: VLLMEngine, whole: Path) -> None:
    assert collect(vllm_engine, MANIFEST, QUESTIONS, pocket_reward, whole, n=N) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revision": "sha256:2"}, "with revision 'sha256:1', and this is 'sha256:2' .the model has changed"),
        ({"model": "other"}, "with model"),
        ({"sampling": {"temperature": 0.5}}, "with sampling"),
        ({"positions": [8]}, "with positions"),
        ({"data_sha256": "2"}, "with data_sha256"),
        ({"prompt": [{"role": "user", "content": "{question}!"}]}, "with prompt"),
    ],
)
def test_another_collection_in_the_same_folder_is_refused(
    whole: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CollectError, match=message):
        replace(MANIFEST, **change).claim(whole)


def test_the_same_collection_may_move_its_data_file(whole: Path) -> None:
    replace(MANIFEST, data="elsewhere.jsonl").claim(whole)


class WrittenEngine:
    """Stands in for an engine where a real one does not fail: gives traces that were written for the test."""

    hidden_size = 2
    model = "m"

    def __init__(self, vector: list[float] | None) -> None:
        self._vector = vector

    def sample(self, asked: Sequence[Question], sampling: Sampling, spec: TraceSpec) -> Iterator[Trace]:
        for question in asked:
            features = {} if self._vector is None else {3: np.array(self._vector, np.float32)}
            yield Trace(question.id, 0, text="1", num_tokens=4, features=features)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([0.0, np.nan], "NaN or infinite.*dtype"),
        ([np.inf, 0.0], "NaN or infinite"),
        (None, "gave no hidden vectors"),
    ],
)
def test_useless_vectors_from_a_stand_in_engine_are_refused(
    tmp_path: Path, vector: list[float] | None, message: str
) -> None:
    with pytest.raises(CollectError, match=message):
        collect(WrittenEngine(vector), MANIFEST, QUESTIONS, pocket_reward, tmp_path, n=1)  # type: ignore[arg-type]


def test_a_disk_that_is_too_small_is_refused_before_sampling(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, hidden_size=1 << 20, positions=list(range(1, 60)))
    with pytest.raises(CollectError, match="GB free"):
        collect(WrittenEngine(None), manifest, QUESTIONS, pocket_reward, tmp_path, n=1 << 20)  # type: ignore[arg-type]


def test_the_predicted_disk_is_an_upper_bound(whole: Path) -> None:
    used = sum(path.stat().st_size for path in (whole / "traces").glob("*.parquet"))
    predicted = predicted_bytes(MANIFEST, len(QUESTIONS) * N)
    assert 0.2 * predicted < used < predicted


@pytest.mark.parametrize(
    ("max_tokens", "positions"), [(1024, [16, 32, 64, 128, 256, 512]), (48, [16, 32]), (16, [8]), (2, [1])]
)
def test_positions_double_up_to_the_limit(max_tokens: int, positions: list[int]) -> None:
    assert default_positions(max_tokens) == positions


def test_a_revision_tells_changed_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(1_000_000))
    before = model_revision(tmp_path)
    assert before == model_revision(tmp_path)
    weights.write_bytes(bytes(999_999) + b"\x01")
    assert model_revision(tmp_path) != before
