"""Word problems from templates."""

from __future__ import annotations

import itertools
import re

import pytest

from arrol_tts.answers import extract_answer
from evals.word_problems import problems


@pytest.mark.parametrize("steps", [(1,), (2,), (1, 2)])
def test_solutions_compute_the_answer_from_the_questions_numbers(steps: tuple[int, ...]) -> None:
    rows = list(itertools.islice(problems(3, steps, 12), 300))
    assert len({row["question"] for row in rows}) == 300
    counts = set()
    for row in rows:
        given = [int(number) for number in re.findall(r"\d+", row["question"])]
        sums = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", row["solution"])
        counts.add(len(sums))
        for left, sign, right, result in sums:
            assert eval(f"{left}{sign}{right}") == int(result) >= 0
            assert int(right) in given
        assert int(sums[0][0]) in given
        assert sums[-1][3] == row["answer"] == extract_answer(row["solution"])
    assert counts == set(steps)


def test_a_seed_gives_the_same_problems() -> None:
    first, again, other = (list(itertools.islice(problems(seed), 20)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
