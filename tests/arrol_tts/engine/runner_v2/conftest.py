"""One engine of the configuration that the environment names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts.pocket import POCKET_MODEL
from tests.arrol_tts.engine.asynchrony import two_batches_in_flight
from tests.arrol_tts.engine.runner_v2 import BLOCK, CONFIGURATIONS, VARIABLE
from tests.conftest import TOP_K

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from arrol_tts.head import QualityHead


@pytest.fixture(scope="session")
def configuration() -> str:
    return os.environ[VARIABLE]


@pytest.fixture(scope="session")
def engine(
    configuration: str, heads: dict[str, QualityHead], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VLLMEngine]:
    from arrol_tts.engine.vllm_engine import VLLMEngine

    options: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 96,
        "block_size": BLOCK,
        "kv_cache_memory_bytes": 64 << 20,
        **CONFIGURATIONS[configuration],
    }
    if configuration == "speculative":
        draft = _draft_model(tmp_path_factory.mktemp("draft"))
        options["speculative_config"] = {"method": "draft_model", "model": draft, "num_speculative_tokens": 3}
    with two_batches_in_flight() if configuration == "asynchronous" else nullcontext():
        engine = VLLMEngine(POCKET_MODEL, head=heads, top_k=TOP_K, **options)
    _overwrite_what_was_read(engine)
    yield engine
    engine.close()


def _overwrite_what_was_read(engine: VLLMEngine) -> None:
    """Write over the states of every step as soon as it was sampled, as the next replay of a CUDA graph does."""
    worker = engine._loop.engine.engine_core.engine_core.model_executor.driver_worker.worker
    runner = worker.model_runner
    sample_tokens = runner.sample_tokens

    def sample_and_overwrite(*args: Any) -> Any:
        state = runner.execute_model_state
        output = sample_tokens(*args)
        if state is not None:
            state.hidden_states.fill_(float("nan"))
        return output

    runner.sample_tokens = sample_and_overwrite


def _draft_model(folder: Path) -> str:
    """The pocket model with noise on its weights: its drafts are right often, and wrong often."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype="float32")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(POCKET_MODEL).save_pretrained(folder)
    return str(folder)
