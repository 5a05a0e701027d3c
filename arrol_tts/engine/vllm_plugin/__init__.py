"""A quality head inside unmodified vLLM: a worker and a scheduler, named by configuration.

``vllm_options`` gives the configuration; the same names go on the command line of a vLLM server::

    --worker-cls arrol_tts.engine.vllm_plugin.worker.QualityHeadWorker
    --scheduler-cls arrol_tts.engine.vllm_plugin.scheduler.QualityHeadAutoScheduler
    --additional-config '{"arrol": {"head": "path/of/the/head", "top_k": 20, "allow": ["confidence"]}}'
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from arrol_tts.engine.base import DEFAULT_TOP_K
from arrol_tts.engine.vllm_plugin.allowed import SIGNALS
from arrol_tts.errors import EngineError

SUPPORTED_VLLM = ("0.31", "0.32", "0.33")
_SUPPORTED = f"{', '.join(SUPPORTED_VLLM[:-1])} and {SUPPORTED_VLLM[-1]}"

CPU_OPTIONS = {"async_scheduling": False, "enforce_eager": True}
"""On a CPU compilation takes minutes, and asynchronous scheduling gains nothing."""


def check_vllm() -> None:
    """Refuse a vLLM this plug-in was not tested with.

    Raises:
        EngineError: naming what is missing and the supported versions.
    """
    import vllm

    found = re.match(r"\d+\.\d+", vllm.__version__)
    if found is None or found.group() not in SUPPORTED_VLLM:
        raise EngineError(
            f"vLLM {vllm.__version__} is installed; arrol's plug-in supports vLLM {_SUPPORTED}: "
            "install one of these"
        )
    from vllm.v1.core.sched.scheduler import Scheduler

    require(
        Scheduler,
        "schedule",
        "update_from_output",
        "_update_request_with_output",
        "_free_request",
        "finish_requests",
        "_handle_blocked_waiting_request",
        "_preempt_request",
    )


def check_config(config: Any) -> None:
    """Refuse what makes rows of a step those of other requests, in a VllmConfig that is finished.

    Raises:
        EngineError: naming the option of vLLM's to leave out.
    """
    parallel, speculative = config.parallel_config, config.speculative_config
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        raise EngineError(
            "prefill context parallelism spreads a prompt's rows over the ranks, where the plug-in would read "
            "those of others: leave prefill_context_parallel_size at 1 (decode context parallelism works)"
        )
    if getattr(speculative, "enable_adaptive_verification", False):
        raise EngineError(
            "adaptive verification drops draft tokens after the batch was laid out, so the plug-in would read "
            "rows of others: leave enable_adaptive_verification out of the speculative config"
        )


def require(owner: Any, *names: str) -> None:
    """Check that a class or object of vLLM has what the plug-in uses of it; much of that is not public.

    Raises:
        EngineError: naming what is missing and the supported versions.
    """
    known = getattr(owner, "__dataclass_fields__", {})
    missing = [name for name in names if name not in known and not hasattr(owner, name)]
    if missing:
        import vllm

        kind = owner if isinstance(owner, type) else type(owner)
        raise EngineError(
            f"vLLM's {kind.__name__} lacks {', '.join(missing)}: this build of {vllm.__version__} differs from "
            f"the releases {_SUPPORTED} that arrol supports"
        )


def vllm_options(
    *,
    head: str | Mapping[str, str] | None,
    top_k: int = DEFAULT_TOP_K,
    allow: Collection[str] = SIGNALS,
    in_process: bool = False,
) -> dict[str, Any]:
    """Engine arguments that switch the plug-in on.

    Args:
        head: local folder of a quality head, or of several by name ("" is the default one); None for
            confidences only.
        top_k: candidates of DeepConf's token confidence.
        allow: signals that requests may ask for, beside scores; of ``allowed.SIGNALS``.
        in_process: the scheduler runs in the process of who samples, so that specs come and logs go as objects.
    """
    package = __name__
    here = {"in_process": True} if in_process else {}
    return {
        "worker_cls": f"{package}.worker.QualityHeadWorker",
        "scheduler_cls": f"{package}.scheduler.QualityHeadAutoScheduler",
        "additional_config": {"arrol": {"head": head, "top_k": top_k, "allow": list(allow)} | here},
    }
