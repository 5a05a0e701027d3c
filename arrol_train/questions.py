"""Training questions with their answers, and prompts, read from the user's files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arrol_tts.answers import extract_answer
from arrol_tts.errors import InputError, MissingFileError
from arrol_tts.prompts import PLACEHOLDER, Prompt
from arrol_tts.rows import numbered_rows

WORKED = ("####", "\\boxed", "\\fbox")
"""Marks of an answer column that holds whole solutions."""


@dataclass(frozen=True, slots=True)
class TrainingQuestion:
    """A question with its reference answer; ``id`` names its row of the file."""

    id: str
    question: str
    answer: str


def read_questions(
    path: Path, *, question_column: str = "question", answer_column: str = "answer", limit: int | None = None
) -> list[TrainingQuestion]:
    """Questions of a JSON lines, JSON, CSV or Parquet file.

    Raises:
        MissingFileError: when there is no such file.
        InputError: as `labelled_rows`, and for questions that come twice: of two equal questions one could be
            trained on and the other tested on.
    """
    found: list[TrainingQuestion] = []
    rows_of: dict[str, int] = {}
    for number, row in labelled_rows(_rows(path), str(path), question_column, answer_column):
        key = " ".join(row["question"].casefold().split())
        if key in rows_of:
            raise InputError(
                f"{path}: row {number} asks the same as row {rows_of[key]}; remove one, so that no question is "
                "both trained and tested on"
            )
        rows_of[key] = number
        found.append(TrainingQuestion(f"row-{number}", row["question"], row["answer"]))
        if len(found) == limit:
            break
    if not found:
        raise InputError(f"{path} has no rows")
    return found


def labelled_rows(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    source: str,
    question_column: str = "question",
    answer_column: str = "answer",
    *,
    options: tuple[str, str] = ("--question-column", "--answer-column"),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows whose ``question`` and ``answer`` are text; their other columns stay.

    Answers may be text, numbers, lists of one, or worked solutions that end in ``#### N`` or ``\\boxed{N}``.

    Args:
        rows: ``(number, row)``.
        source: where they come from, for messages.
        question_column: column of the questions.
        answer_column: column of the answers.
        options: what names the two columns, for messages.

    Raises:
        InputError: naming the row, for columns or values that are missing.
    """
    for number, row in rows:
        for column, option in zip((question_column, answer_column), options, strict=True):
            if row.get(column) in (None, "", []):
                raise InputError(
                    f"{source}, row {number} has no {column!r}; it has {', '.join(map(repr, row))}: name the "
                    f"column with {option}"
                )
        question = str(row[question_column]).strip()
        answer = _answer(row[answer_column], f"{source}, row {number}")
        yield number, {**row, "question": question, "answer": answer}


def read_prompt(path: Path | None, shots: Path | None = None, *, chat: bool = True) -> Prompt:
    """The prompt from what the user gave.

    Args:
        path: a text that contains ``{question}``, or a JSON list of chat messages whose last one does.
        shots: JSON lines of worked examples, with ``question`` and ``solution``, that come before it.
        chat: whether they go through the model's chat template.

    Raises:
        InputError: when it does not ask the question, or an example is incomplete.
    """
    prompt = Prompt(chat=chat)
    if path is not None:
        text = path.read_text()
        prompt = (
            Prompt.from_messages(json.loads(text), chat=chat)
            if path.suffix == ".json"
            else Prompt((("user", text.strip()),), chat)
        )
    if shots is None:
        return prompt
    *before, last = prompt.messages
    for number, row in _rows(shots):
        if not row.get("question") or not row.get("solution"):
            raise InputError(f"{shots}, row {number}: a worked example needs question and solution")
        before += [("user", last[1].replace(PLACEHOLDER, row["question"])), ("assistant", row["solution"])]
    return Prompt((*before, last), chat)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}")
    return numbered_rows(path)


def _answer(value: Any, where: str) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where}: the answer is {value!r}; give text, a number, or a list of one")
    text = str(value).strip()
    return (extract_answer(text) if any(mark in text for mark in WORKED) else text) or text
