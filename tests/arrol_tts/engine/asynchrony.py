"""Asynchronous scheduling on a CPU, where vLLM switches it off in every configuration that it finishes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def two_batches_in_flight() -> Iterator[None]:
    """Engines that are built meanwhile schedule asynchronously, with vLLM's own scheduler and engine core."""
    from vllm import EngineArgs

    from arrol_tts.engine.vllm_plugin.scheduler import QualityHeadAsyncScheduler

    finish = EngineArgs.create_engine_config

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = finish(self, *args, **kwargs)
        config.scheduler_config.async_scheduling = True
        config.scheduler_config.scheduler_cls = QualityHeadAsyncScheduler
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineArgs, "create_engine_config", create_engine_config)
        yield
