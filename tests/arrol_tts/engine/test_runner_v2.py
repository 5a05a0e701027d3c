"""vLLM's model runner V2 on the CPU; see ``runner_v2``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.arrol_tts.engine.runner_v2 import CONFIGURATIONS, VARIABLE

pytest.importorskip("vllm")

CHECKS = Path(__file__).parent / "runner_v2" / "checks.py"
FIRST = next(iter(CONFIGURATIONS))


@pytest.mark.parametrize(
    "configuration",
    [pytest.param(name, marks=() if name == FIRST else pytest.mark.slow) for name in CONFIGURATIONS],
)
def test_runner_v2_is_read_and_pruned_as_a_plain_forward_pass_says(configuration: str) -> None:
    plugin = "tests.arrol_tts.engine.runner_v2.interpreter"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        plugin,
        str(CHECKS),
    ]
    done = subprocess.run(
        command, env=os.environ | {VARIABLE: configuration}, capture_output=True, text=True, timeout=550
    )
    print(done.stdout)  # what took long; pytest shows it when this fails
    assert done.returncode == 0, done.stdout + done.stderr
