"""Benchmarks: problems, and how an answer is checked. A short file for each; docs/evals.md says how to add one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from arrol_tts.answers import EqualityName, PercentSign

from . import pocket, reasoning_gym
from .aime24 import AIME24
from .aime25 import AIME25
from .amc23 import AMC23
from .base import Benchmark, BenchmarkError, Problem, Shot
from .brumo25 import BRUMO25
from .gsm8k import GSM8K
from .hmmt25 import HMMT25
from .math500 import MATH500
from .minerva_math import MINERVA_MATH
from .olympiadbench import OLYMPIADBENCH
from .table import Table

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        AMC23,
        AIME24,
        AIME25,
        MATH500,
        MINERVA_MATH,
        OLYMPIADBENCH,
        GSM8K,
        BRUMO25,
        HMMT25,
    )
}
"""The published benchmarks."""

NAMES = ("pocket", *TABLES, "reasoning_gym:TASK")


def load(
    name: str,
    limit: int | None = None,
    *,
    data: Path | None = None,
    partial: bool = False,
    equality: EqualityName | None = None,
    percent: PercentSign | None = None,
) -> Benchmark:
    """Load a benchmark by its name on the command line.

    Args:
        name: one of ``NAMES``.
        limit: only so many problems, the first ones.
        data: a local copy of a published benchmark.
        partial: accept an incomplete copy.
        equality, percent: what makes two answers one, in place of the benchmark's own.

    Raises:
        BenchmarkError: when there is no such benchmark, or its problems cannot be read.
        MissingPackageError: when a package that it comes from is not installed.
    """
    if name in TABLES:
        return TABLES[name].load(limit, data, partial=partial, equality=equality, percent=percent)
    if data is not None:
        raise BenchmarkError(f"--data is for published benchmarks ({', '.join(TABLES)}), and {name!r} is none")
    kind, _, task = name.partition(":")
    if name == "pocket":
        found = pocket.load(limit)
    elif kind == "reasoning_gym" and task:
        found = reasoning_gym.load(task, limit)
    else:
        raise BenchmarkError(f"there is no benchmark {name!r}; known: {', '.join(NAMES)}")
    # These have verifiers of their own: only the votes' grouping changes.
    return dataclasses.replace(found, equality=equality or found.equality, percent=percent or found.percent)


__all__ = ["NAMES", "TABLES", "Benchmark", "BenchmarkError", "Problem", "Shot", "Table", "load"]
