"""vLLM's model runner V2, its default on GPUs, for real on a CPU: Triton's interpreter runs its kernels.

``test_runner_v2.py`` runs the checks of ``checks.py`` once for each of ``CONFIGURATIONS``, in a process of its
own, because the interpreter is for the whole process. By hand::

    ARROL_RUNNER_V2=asynchronous python -m pytest -n 0 -p tests.arrol_tts.engine.runner_v2.interpreter \\
        tests/arrol_tts/engine/runner_v2/checks.py
"""

from __future__ import annotations

from typing import Any

VARIABLE = "ARROL_RUNNER_V2"

BLOCK = 32

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # Prompts come in chunks, and where all run at once there are too few blocks for them.
    "asynchronous": {
        "max_num_seqs": 6,
        "max_num_batched_tokens": 16,
        "num_gpu_blocks_override": 9,
        "enable_prefix_caching": False,
    },
    "synchronous": {"max_num_seqs": 4, "enable_prefix_caching": True},
    "speculative": {"max_num_seqs": 8},  # conftest.py makes a draft model for it
}
"""What is given to the engine in each, beside a small model length and cache."""
