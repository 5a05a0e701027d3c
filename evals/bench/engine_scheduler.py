"""What the plug-in adds to the work of vLLM's scheduler in a step, at 1,024 requests: no model, no worker.

vLLM's own scheduler and ours take turns, step by step, over the same requests and made-up outputs; the difference
is what ours costs. Processor time of the thread is taken, so that a busy machine counts for little.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrol_tts import ConfidenceFloor, KeepShare, TraceSpec
from arrol_tts.engine.signals import HeadKind
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY, Signals
from arrol_tts.pocket import POCKET_MODEL

REQUESTS, GROUP = 1024, 32
STEPS = 120
"""Steps that are counted; as many tokens are before a rule of a position looks."""

BLOCK = 16
_names = itertools.count()

SPECS = {
    # A head that pools: two numbers a row, added up in the scheduler.
    "plugin_scheduler_ms_1024": TraceSpec(size=GROUP, rules=(KeepShare(STEPS // 2, 1.0),)),
    "plugin_scheduler_ms_1024_floor": TraceSpec(size=GROUP, rules=(ConfidenceFloor(GROUP, 0.5, 32),)),
}


def scheduler() -> dict[str, Any]:
    """Milliseconds a step that the plug-in adds, with one rule and with a confidence floor."""
    figures: dict[str, Any] = {}
    for name, spec in SPECS.items():
        # Where its objects lie in memory is worth up to a millisecond to whoever is made first: each is it once.
        orders = [_take_turns(None, spec), _take_turns(spec, None)[:, ::-1]]
        added = [pairs[:, 1] - pairs[:, 0] for pairs in orders]
        figures[name] = round(1e3 * float(np.mean([np.median(each) for each in added])), 3)
        figures[f"{name}_of"] = {
            "stock": round(1e3 * float(np.median(np.concatenate(orders)[:, 0])), 3),
            "orders": [round(1e3 * float(np.median(each)), 3) for each in added],
            "quarters": [round(1e3 * float(q), 3) for q in np.quantile(np.concatenate(added), (0.25, 0.75))],
        }
    return figures


def _take_turns(*specs: TraceSpec | None) -> NDArray[np.float64]:
    """Seconds of each step, ``[steps, arms]``, of arms made in this order."""
    arms = [_Arm(spec) for spec in specs]
    gc.collect()
    gc.disable()  # a collection falls on one of them by chance
    try:
        seconds = [[arm.step() for arm in arms] for _ in range(STEPS)]
    finally:
        gc.enable()
    return np.array(seconds[3:-1])


class _Arm:
    """A scheduler with requests that are all decoding."""

    def __init__(self, spec: TraceSpec | None) -> None:
        self._spec = spec
        self.scheduler = _scheduler(plugin=spec is not None)
        for _ in range(REQUESTS):
            self.scheduler.add_request(_request(spec, next(_names)))
        self._rng = np.random.default_rng(0)
        self.step()  # the prompts

    def step(self) -> float:
        """Seconds of the processor that the scheduler takes for a step."""
        start = time.thread_time()
        scheduled = self.scheduler.schedule()
        seconds = time.thread_time() - start
        output = self._output(list(scheduled.num_scheduled_tokens))
        start = time.thread_time()
        self.scheduler.update_from_output(scheduled, output)
        seconds += time.thread_time() - start
        assert len(scheduled.num_scheduled_tokens) == REQUESTS
        return seconds

    def _output(self, request_ids: list[str]) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        index = {request_id: i for i, request_id in enumerate(request_ids)}
        output: Any = ModelRunnerOutput(request_ids, index, [[7] for _ in request_ids])
        if self._spec is not None:
            scored = self._spec.scores
            numbers = self._rng.random((2 if scored else 1, len(request_ids)), dtype=np.float32)
            heads = {"": HeadKind(width=2)} if scored else {}
            output.arrol_signals = Signals(numbers, heads=heads, confidence=not scored)
        return output


def _request(spec: TraceSpec | None, number: int) -> Any:
    from dataclasses import replace

    from vllm import SamplingParams
    from vllm.v1.request import Request

    asked = None
    if spec is not None:
        asked = {CONFIG_KEY: replace(spec, group=f"g{number // GROUP}")}
    params = SamplingParams(max_tokens=2 * STEPS, ignore_eos=True, extra_args=asked)
    return Request(f"r{number}", [1, 2, 3, 4], params, None)


def _scheduler(*, plugin: bool) -> Any:
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from arrol_tts.engine.vllm_plugin.scheduler import QualityHeadScheduler

    config = EngineArgs(
        str(POCKET_MODEL),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=REQUESTS,
        max_num_batched_tokens=8 * REQUESTS,
        enforce_eager=True,
        enable_prefix_caching=False,
        additional_config={CONFIG_KEY: {"in_process": True, "allow": ["confidence"]}},
    ).create_engine_config()
    blocks = REQUESTS * (2 * STEPS // BLOCK + 2)
    config.cache_config.num_gpu_blocks = blocks
    shape = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
    kind: Callable[..., Any] = QualityHeadScheduler if plugin else Scheduler
    return kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], shape)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        hash_block_size=BLOCK,
    )
