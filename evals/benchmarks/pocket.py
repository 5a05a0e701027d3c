"""The pocket benchmark (synthetic): held-out questions of the built-in task, with its exact verifier."""

from __future__ import annotations

import itertools

from arrol_tts.pocket import questions, verify

from .base import Benchmark, Problem

QUESTIONS = 120
"""Default number of questions: a run takes minutes on two cores."""


def load(limit: int | None = None) -> Benchmark:
    """The first ``limit`` test questions; they share no question with training."""
    problems = tuple(
        Problem(f"pocket-{i}", question.text, question.answer)
        for i, question in enumerate(itertools.islice(questions("test"), limit or QUESTIONS))
    )
    return Benchmark(
        "pocket",
        problems,
        is_right=lambda problem, answer: verify(problem.question, answer),
        head="pocket",
        synthetic=True,
    )
