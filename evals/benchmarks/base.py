"""What a benchmark is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from arrol_tts.answers import EqualityName, PercentSign
from arrol_tts.errors import InputError


class BenchmarkError(InputError):
    """Problems that cannot be used; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its reference answer; ``id`` is distinct within the benchmark."""

    id: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Shot:
    """A worked example of a few-shot prompt."""

    question: str
    solution: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A set of problems.

    Attributes:
        name: as on the command line.
        problems: in a fixed order.
        is_right: ``(problem, answer) -> bool``.
        head: the head that is used when none is named.
        synthetic: whether the problems are made by a program; reports say so.
        instruction: follows the question when a chat model is asked.
        shots: worked examples for base models.
        source: where the problems came from: a dataset with its revision, a file with its hash, or a program.
        equality: what makes two answers one, in votes and, without a verifier of its own, in grading.
        percent: what a per cent sign means there.
    """

    name: str
    problems: tuple[Problem, ...]
    is_right: Callable[[Problem, str], bool]
    head: str | None = None
    synthetic: bool = False
    instruction: str = ""
    shots: tuple[Shot, ...] = ()
    source: str = "built in"
    equality: EqualityName = "math"
    percent: PercentSign = "fraction"
