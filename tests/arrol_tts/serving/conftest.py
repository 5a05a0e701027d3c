"""One endpoint of the pocket model a module, on the engine of the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from tests.arrol_tts.serving.endpoint import Endpoint


@pytest.fixture(scope="module")
def endpoint(vllm_engine: VLLMEngine) -> Iterator[Endpoint]:
    from arrol_tts.head_config import read_head_config
    from arrol_tts.pocket import POCKET_HEAD
    from tests.arrol_tts.serving.endpoint import serving

    with serving(vllm_engine, read_head_config(POCKET_HEAD)) as endpoint:
        yield endpoint
