"""What the training tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from arrol_tts.engine.base import Engine
    from arrol_tts.engine.vllm_engine import VLLMEngine


def restore_pocket(engine: Engine) -> None:
    """Give the engine that all tests share the pocket model and its head back."""
    from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL

    engine.load_weights(POCKET_MODEL / "model.safetensors")
    engine.load_head(POCKET_HEAD)


@pytest.fixture
def engine(vllm_engine: VLLMEngine) -> Iterator[VLLMEngine]:
    """The pocket model in real vLLM, for a test that trains it; it is itself again afterwards."""
    yield vllm_engine
    restore_pocket(vllm_engine)
