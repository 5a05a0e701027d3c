"""Importing the core is light."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import arrol_tts

CHECK = """
import sys, time
began = time.perf_counter()
import arrol_tts
seconds = time.perf_counter() - began
names = "torch vllm transformers sklearn pyarrow sympy numpy fastapi pydantic".split()
heavy = sorted(set(names) & set(sys.modules))
print(seconds, ",".join(heavy))
"""


def run(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment).stdout


def test_import_is_fast_and_loads_nothing_heavy() -> None:
    best = 1.0
    for _ in range(3):  # the machine may be busy: the best of three says what the import costs
        seconds, heavy = run(CHECK).rstrip("\n").split(" ")
        assert heavy == ""
        best = min(best, float(seconds))
    assert best < 0.2


RATIO = """
import time
began = time.process_time()
import numpy
between = time.process_time()
from arrol_tts import WeightedVoter
print(between - began, time.process_time() - between)
"""


def test_the_voter_costs_at_most_half_of_what_numpy_costs_on_top_of_it(tmp_path: Path) -> None:
    # Processor time within one process, compiled files of their own and the median of some runs: neither the first
    # run nor other work on the machine counts.
    cached = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    runs = [[float(seconds) for seconds in run(RATIO, **cached).split()] for _ in range(15)]
    assert statistics.median(ours / numpys for numpys, ours in runs) <= 0.5


def test_voting_over_recorded_traces_loads_neither_torch_nor_vllm() -> None:
    out = run(
        "import sys\n"
        "from arrol_tts import Trace, WeightedVoter\n"
        "traces = [Trace('q', i, answer=a) for i, a in enumerate(['2', '3', '2.0'])]\n"
        "print(WeightedVoter(method='majority').vote(traces).answer)\n"
        "print(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))\n"
    )
    assert out == "2\n[]\n"


def test_every_public_name_resolves() -> None:
    assert sorted(arrol_tts.__all__) == sorted(set(arrol_tts.__all__))
    for name in arrol_tts.__all__:
        assert getattr(arrol_tts, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        arrol_tts.nothing  # noqa: B018
