"""The figures of the head benchmark, from evaluations written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.bench.head import SHORT, expressions, pruning, votes, write_word_problems


def evaluation(**right: dict[str, bool]) -> dict[str, Any]:
    cut = {"position": 4, "keep": 0.5, "tokens_saved": 0.4, "accuracy": 0.5, "above_full": 0.1, "random": 0.2}
    return {
        "votes": {method: {"right": verdicts} for method, verdicts in right.items()},
        "test": {"pruning": [cut | {"accuracy": float(len(right["majority"]))}]},
    }


def test_every_question_counts_once_over_the_folds() -> None:
    no, yes = {"a": False, "b": False}, {"a": True, "b": True}
    one = evaluation(majority=no, deepconf=no, quality=yes, combined={"b": True, "a": False})
    two = evaluation(**{method: {"c": True} for method in ("majority", "deepconf", "quality", "combined")})
    figures = votes([one, two])
    assert figures["accuracy_majority"] == pytest.approx(1 / 3)
    assert figures["accuracy_head"] == 1.0
    assert figures["head_above_majority"] == pytest.approx(2 / 3)
    assert figures["combined_above_deepconf"] == pytest.approx(1 / 3)
    assert figures["head_above_majority_mcnemar_p"] == pytest.approx(0.5)
    assert figures["accuracy_head_interval"] == [1.0, 1.0]
    assert pruning([one, two])[0]["accuracy"] == pytest.approx(1.5)


def test_worked_examples_are_not_asked(tmp_path: Path) -> None:
    data, shots = write_word_problems(tmp_path, 500)
    assert len(data.read_text().splitlines()) == 500
    assert not set(data.read_text().splitlines()) & set(shots.read_text().splitlines())


def test_expressions_are_dealt_by_length() -> None:
    short, long = next(expressions(short=True)), next(expressions(short=False))
    assert 1 + sum(short["question"].count(sign) for sign in "+-*") <= SHORT
    assert 1 + sum(long["question"].count(sign) for sign in "+-*") > SHORT
