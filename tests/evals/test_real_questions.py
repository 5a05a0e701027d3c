"""Question files of the real benchmark, from small local files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.real_questions import SHOTS, TRAIN_FROM, write_questions


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def word_problem(i: int, padding: int = 0) -> dict[str, str]:
    return {"question": f"What is {i} and 1000?", "answer": f"{'x' * padding}<<{i}+1000>>{i}\n#### 1,{i:03}"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    level = [{"problem": f"p{i}", "answer": f"$\\frac{{{i}}}{{7}}$", "level": 1 + i % 5} for i in range(10)]
    padded = {i: word_problem(i, 100) for i in range(40, 60)} | {i: word_problem(i, 200) for i in range(20, 28)}
    return {
        "train": lines(tmp_path / "a", [padded.get(i, word_problem(i)) for i in range(TRAIN_FROM + 5)]),
        "test": lines(tmp_path / "b", [word_problem(i) for i in range(6)]),
        "math": lines(tmp_path / "c", level),
    }


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_worked_examples_are_of_middling_length_and_not_asked(tmp_path: Path, files: dict[str, Path]) -> None:
    write_questions(tmp_path, **files, train_count=5, test_count=6, math_count=4)
    prompt = (tmp_path / "prompt.txt").read_text()
    assert prompt.startswith(
        "Question: What is 20 and 1000?\nAnswer: "
        + "x" * 200
        + "20\nThe final answer is \\boxed{1020}.\n\nQuestion:"
    )
    assert prompt.endswith("\n\nQuestion: {question}\nAnswer:")
    assert prompt.count("Question:") == SHOTS + 1
    train = read(tmp_path / "train.jsonl")
    assert sorted(row["answer"] for row in train) == ["11000", "11001", "11002", "11003", "11004"]


def test_questions_of_many_steps_are_left_out(tmp_path: Path, files: dict[str, Path]) -> None:
    for name in ("train", "test"):
        rows = read(files[name])
        rows[-1]["answer"] = "<<1>><<2>><<3>><<4>>\n#### 4"
        lines(files[name], rows)
    write_questions(tmp_path, **files, train_count=4, test_count=5, math_count=1)
    for name in ("train", "test"):
        assert "4" not in {row["answer"] for row in read(tmp_path / f"{name}.jsonl")}


def test_of_math_500_the_easy_levels_are_asked(tmp_path: Path, files: dict[str, Path]) -> None:
    write_questions(tmp_path, **files, train_count=1, test_count=1, math_count=4)
    assert {row["question"] for row in read(tmp_path / "math.jsonl")} == {"p0", "p1", "p5", "p6"}
    assert read(tmp_path / "math.jsonl")[0]["answer"].startswith("$\\frac")


def test_the_same_questions_are_drawn_every_time(tmp_path: Path, files: dict[str, Path]) -> None:
    for out in ("one", "two"):
        write_questions(tmp_path / out, **files, train_count=3, test_count=3, math_count=3)
    for name in ("train.jsonl", "test.jsonl", "math.jsonl", "prompt.txt"):
        first, second = ((tmp_path / out / name).read_text() for out in ("one", "two"))
        assert first == second


def test_more_questions_than_there_are_is_an_error(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"test\.jsonl is to have 7 questions and there are 6: ask fewer"):
        write_questions(tmp_path, **files, train_count=1, test_count=7, math_count=1)
