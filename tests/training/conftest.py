"""What the training tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine


@pytest.fixture
def engine(vllm_engine: VLLMEngine) -> Iterator[VLLMEngine]:
    """The pocket model in real vLLM, for a test that trains it; it is itself again afterwards."""
    from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL

    yield vllm_engine
    vllm_engine.load_weights(POCKET_MODEL / "model.safetensors")
    vllm_engine.load_head(POCKET_HEAD)
