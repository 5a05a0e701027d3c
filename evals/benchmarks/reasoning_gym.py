"""reasoning-gym's tasks (synthetic), as ``reasoning_gym:NAME``: made by a program, graded by its own scorer."""

from __future__ import annotations

from typing import Any

from arrol_tts.errors import MissingPackageError

from .base import Benchmark, BenchmarkError, Problem

QUESTIONS = 100
SEED = 1_000_003
"""Of the questions: far from the seeds that training counts up from."""

INSTRUCTION = "\n\nThink step by step, and put your final answer within \\boxed{}."


def load(name: str, limit: int | None = None) -> Benchmark:
    """The first ``limit`` questions of a task.

    reasoning-gym gives partial credit; only a full score counts as right.

    Raises:
        BenchmarkError: when it has no such task.
        MissingPackageError: without reasoning-gym.
    """
    try:
        import reasoning_gym
    except ImportError:
        raise MissingPackageError(
            "reasoning-gym's tasks need the package: pip install 'arrol[benchmarks]'"
        ) from None
    try:
        dataset = reasoning_gym.create_dataset(name, size=limit or QUESTIONS, seed=SEED)
    except ValueError as error:
        raise BenchmarkError(f"reasoning-gym has no task {name!r}: {error}") from None
    entries: list[dict[str, Any]] = [dataset[i] for i in range(len(dataset))]
    problems = tuple(
        Problem(f"{name}-{i}", entry["question"], str(entry["answer"])) for i, entry in enumerate(entries)
    )
    by_id = {problem.id: entry for problem, entry in zip(problems, entries, strict=True)}
    return Benchmark(
        f"reasoning_gym:{name}",
        problems,
        is_right=lambda problem, answer: dataset.score_answer(answer, by_id[problem.id]) >= 1.0,
        synthetic=True,
        instruction=INSTRUCTION,
        source=f"reasoning-gym, seed {SEED}",
    )
