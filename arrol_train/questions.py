"""Problems: the questions with answers that a head is trained on, read from the user's file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arrol_tts.answers import extract_answer
from arrol_tts.prompts import PLACEHOLDER, Prompt
from arrol_tts.recorded import numbered_rows

WORKED = ("####", "\\boxed", "\\fbox")
"""Marks of an answer column that holds whole solutions."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its reference answer; ``id`` names its row of the file."""

    id: str
    question: str
    answer: str


def read_problems(
    path: Path, *, question_column: str = "question", answer_column: str = "answer", limit: int | None = None
) -> list[Problem]:
    """Problems of a JSON lines, JSON, CSV or Parquet file.

    Answers may be text, numbers, lists of one, or worked solutions that end in ``#### N`` or ``\\boxed{N}``.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming the row, for columns or values that are missing, and for questions that come twice: of
            two equal questions one could be trained on and the other tested on.
    """
    problems: list[Problem] = []
    rows_of: dict[str, int] = {}
    for number, row in _rows(path):
        for column, option in ((question_column, "--question-column"), (answer_column, "--answer-column")):
            if row.get(column) in (None, "", []):
                raise ValueError(
                    f"{path}, row {number} has no {column!r}; it has {', '.join(map(repr, row))}: name the column "
                    f"with {option}"
                )
        question = str(row[question_column]).strip()
        key = " ".join(question.casefold().split())
        if key in rows_of:
            raise ValueError(
                f"{path}: row {number} asks the same as row {rows_of[key]}; remove one, so that no question is "
                "both trained and tested on"
            )
        rows_of[key] = number
        problems.append(Problem(f"row-{number}", question, _answer(row[answer_column], f"{path}, row {number}")))
        if len(problems) == limit:
            break
    if not problems:
        raise ValueError(f"{path} has no rows")
    return problems


def read_prompt(path: Path | None, shots: Path | None = None) -> Prompt:
    """The prompt from what the user gave.

    Args:
        path: a text that contains ``{question}``, or a JSON list of chat messages whose last one does.
        shots: JSON lines of worked examples, with ``question`` and ``solution``, that come before it.

    Raises:
        ValueError: when it does not ask the question, or an example is incomplete.
    """
    prompt = Prompt()
    if path is not None:
        text = path.read_text()
        prompt = (
            Prompt.from_messages(json.loads(text)) if path.suffix == ".json" else Prompt((("user", text.strip()),))
        )
    if shots is None:
        return prompt
    *before, last = prompt.messages
    for number, row in _rows(shots):
        if not row.get("question") or not row.get("solution"):
            raise ValueError(f"{shots}, row {number}: a worked example needs question and solution")
        before += [("user", last[1].replace(PLACEHOLDER, row["question"])), ("assistant", row["solution"])]
    return Prompt((*before, last))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".csv":
        return enumerate(_csv_rows(path), start=1)
    return numbered_rows(path)


def _csv_rows(path: Path) -> Iterable[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _answer(value: Any, where: str) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where}: the answer is {value!r}; give text, a number, or a list of one")
    text = str(value).strip()
    return (extract_answer(text) if any(mark in text for mark in WORKED) else text) or text
