"""Questions of the real benchmark as files, and its prompt: GSM8K to train and to test on, easy ones of MATH-500.

The prompt is plain text, for the model writes shorter and better that way than in a chat. Its worked examples are
training questions of GSM8K too, from another part of the file.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from arrol_tts.errors import InputError
from arrol_tts.files import write_atomic
from arrol_tts.prompts import PLACEHOLDER
from arrol_tts.rows import numbered_rows

from .benchmarks.gsm8k import GSM8K, answer
from .benchmarks.math500 import MATH500
from .benchmarks.table import Hub, download_rows

SHOTS = 4
SHOTS_AMONG = 200
"""The worked examples are those of the first so many training questions whose solutions come closest to ..."""
SHOT_CHARACTERS = 220
TRAIN_FROM = 1000
"""Training questions come from this row on."""
MAX_STEPS = 3
"""Calculations in the worked answer of a GSM8K question, at most (61% of the test set): of longer ones nearly all
samples of a small model are wrong, so they teach a head nothing and no vote can tell them apart.
"""
STEP = "<<"
"""What the calculator's mark of a calculation begins with."""
EASY_LEVEL = 2
"""Of MATH-500's five levels, the hardest that is asked."""
SEED = 0

Row = Mapping[str, Any]


def write_questions(
    out: Path,
    *,
    train: Path | None = None,
    test: Path | None = None,
    math: Path | None = None,
    train_count: int,
    test_count: int,
    math_count: int,
) -> None:
    """Write ``train.jsonl``, ``test.jsonl``, ``math.jsonl`` and ``prompt.txt``, the same ones every time.

    Args:
        out: folder, which is made.
        train, test: GSM8K's two parts as local files with question and answer; by default the hub's.
        math: MATH-500 as a local file with problem, answer and level; by default the hub's.
        train_count, test_count, math_count: how many questions of each.

    Raises:
        InputError: when a file has too few rows or lacks a column.
        BenchmarkError: when the hub cannot be reached.
    """
    out.mkdir(parents=True, exist_ok=True)
    known = _rows(train, replace(GSM8K.hub, split="train"))
    asked = _rows(test, GSM8K.hub)
    easy = [row for row in _rows(math, MATH500.hub) if int(row["level"]) <= EASY_LEVEL]
    short = [row for row in known[TRAIN_FROM:] if row["answer"].count(STEP) <= MAX_STEPS]
    asked = [row for row in asked if row["answer"].count(STEP) <= MAX_STEPS]
    shots = sorted(known[:SHOTS_AMONG], key=lambda row: abs(len(row["answer"]) - SHOT_CHARACTERS))[:SHOTS]
    examples = [f"Question: {row['question']}\nAnswer: {_solution(row)}\n\n" for row in shots]
    write_atomic(out / "prompt.txt", f"{''.join(examples)}Question: {PLACEHOLDER}\nAnswer:".encode())
    for name, rows, count in (
        ("train", short, train_count),
        ("test", asked, test_count),
        ("math", easy, math_count),
    ):
        if len(rows) < count:
            raise InputError(f"{name}.jsonl is to have {count} questions and there are {len(rows)}: ask fewer")
        drawn = random.Random(SEED).sample(rows, count)
        _write(out / f"{name}.jsonl", [_question(row) for row in drawn])


def _rows(path: Path | None, hub: Hub) -> list[Row]:
    return [row for _, row in numbered_rows(path)] if path else list(download_rows(hub, hub.id))


def _question(row: Row) -> dict[str, str]:
    if "problem" in row:
        return {"question": row["problem"], "answer": row["answer"]}
    return {"question": row["question"], "answer": answer(row)}


def _solution(row: Row) -> str:
    """The worked answer without its calculator's marks, ending as the prompt wants answers to end."""
    text = re.sub(r"<<.*?>>", "", row["answer"].rpartition("####")[0]).strip()
    return f"{text}\nThe final answer is \\boxed{{{answer(row)}}}."


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
