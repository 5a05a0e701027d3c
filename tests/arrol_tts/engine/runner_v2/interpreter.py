"""A pytest plugin that makes vLLM take its model runner V2 on a CPU; it must come before vLLM is imported."""

from __future__ import annotations

import importlib.metadata as metadata
import os
from types import SimpleNamespace

os.environ |= {
    "TRITON_INTERPRET": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "CUDA_VISIBLE_DEVICES": "",
}

_version = metadata.version


def _as_built_for_cpus(name: str) -> str:
    """vLLM asks for the version of "vllm", which vllm-cpu is not called, and looks for "cpu" in it."""
    return f"{_version('vllm-cpu')}+cpu" if name == "vllm" else _version(name)


metadata.version = _as_built_for_cpus

import triton.backends  # noqa: E402

# vLLM uses Triton where it has an active driver; the interpreter needs none.
triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))
