"""What the training tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.conftest import load_pocket

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine


@pytest.fixture(scope="session")
def training_engine() -> VLLMEngine:
    """An engine of their own: a push of weights needs what vLLM tears down when another engine is closed."""
    return load_pocket()


@pytest.fixture
def engine(training_engine: VLLMEngine) -> Iterator[VLLMEngine]:
    """The pocket model in real vLLM, for a test that trains it; it is itself again afterwards."""
    from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL

    yield training_engine
    training_engine.load_weights(POCKET_MODEL / "model.safetensors")
    training_engine.load_head(POCKET_HEAD)
