"""Benchmarks: problems, and how an answer is checked. One short file for each family."""

from __future__ import annotations

from collections.abc import Callable

from evals.benchmarks import pocket
from evals.benchmarks.base import Benchmark, Problem

BENCHMARKS: dict[str, Callable[[int | None], Benchmark]] = {
    "pocket": pocket.load,
}
"""``{name: load(limit)}``."""

__all__ = ["BENCHMARKS", "Benchmark", "Problem"]
