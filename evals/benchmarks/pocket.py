"""The pocket benchmark (synthetic): held-out questions of the built-in task, with its exact verifier."""

from __future__ import annotations

import itertools

from arrol_tts.pocket import questions, verify
from arrol_tts.pocket.task import Split

from .base import Benchmark, Problem

QUESTIONS = 120
"""Default number of questions: a run takes minutes on two cores."""


CHOOSING_SEED = 2
"""Of the training questions to choose settings on: the model learned from stream 0, the head from stream 1."""


def load(limit: int | None = None, split: Split = "test") -> Benchmark:
    """The first ``limit`` test questions, which share none with training, or training questions to choose on."""
    stream = questions(split, 0 if split == "test" else CHOOSING_SEED)
    problems = tuple(
        Problem(f"pocket-{i}", question.text, question.answer)
        for i, question in enumerate(itertools.islice(stream, limit or QUESTIONS))
    )
    return Benchmark(
        "pocket",
        problems,
        is_right=lambda problem, answer: verify(problem.question, answer),
        head="pocket",
        synthetic=True,
    )
