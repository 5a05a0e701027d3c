"""The pocket task (synthetic): evaluate an arithmetic expression step by step.

A question is an expression of seven to ten one-digit numbers joined by ``+``, ``-`` and ``*``. A
solution rewrites it one operation a line, until one number is left. Two *strategies* write
solutions of the same look: operator precedence (right) and plain left to right (a misconception).
The longer the expression, the more often the training text falls for the misconception, so on many
questions the most frequent answer of a model trained on it is wrong, as with real models on hard
questions. Everything here is pure Python: the verifier is exact.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from arrol_tts.errors import InputError

Split = Literal["train", "test"]
Strategy = Literal["precedence", "left_to_right"]

CHARACTERS = "\n *+,-0123456789=aenrsw"
"""Every character of the pocket language: one token each."""

NUMBERS = (2, 9)
"""Smallest and largest number of a question."""

LARGEST = 999
"""Questions whose intermediate results leave [-LARGEST, LARGEST] under a strategy are not asked."""

MISCONCEPTION_RATE = {6: 0.35, 7: 0.45, 8: 0.55, 9: 0.65}
"""Share of training solutions that go left to right, by the number of operators."""

TEST_SHARE = 8
"""One question in TEST_SHARE, chosen by a hash of its text, is a test question."""

_EXPRESSION = re.compile(r"[0-9]+(?:[+\-*][0-9]+)+")


@dataclass(frozen=True, slots=True)
class PocketQuestion:
    """A question and its true answer."""

    text: str
    answer: str


def _apply(left: int, operator: str, right: int) -> int:
    return left + right if operator == "+" else left - right if operator == "-" else left * right


def _join(numbers: list[int], operators: list[str]) -> str:
    return str(numbers[0]) + "".join(o + str(n) for o, n in zip(operators, numbers[1:], strict=True))


def parse(question: str) -> tuple[list[int], list[str]]:
    """Split an expression such as ``3+4*7`` into numbers and operators.

    Raises:
        InputError: when the text is no such expression.
    """
    text = question.replace(" ", "")
    if not _EXPRESSION.fullmatch(text):
        raise InputError(
            f"{question!r} is not a pocket question: write numbers joined by + - *, e.g. '3+4*7-2*5+6-8'"
        )
    return [int(n) for n in re.findall(r"\d+", text)], re.findall(r"[+\-*]", text)


def solve(question: str, strategy: Strategy = "precedence") -> tuple[list[str], int]:
    """Work a question out: one line for each operation, and the result."""
    numbers, operators = parse(question)
    lines = []
    while operators:
        i = operators.index("*") if strategy == "precedence" and "*" in operators else 0
        result = _apply(numbers[i], operators[i], numbers[i + 1])
        line = f"{numbers[i]}{operators[i]}{numbers[i + 1]}={result}"
        numbers[i : i + 2] = [result]
        del operators[i]
        lines.append(f"{line}, {_join(numbers, operators)}" if operators else line)
    return lines, numbers[0]


def write_solution(question: str, strategy: Strategy) -> str:
    """The solution text that a language model is trained on."""
    lines, result = solve(question, strategy)
    return "\n".join([*lines, f"answer {result}"])


def verify(question: str, answer: str | None) -> bool:
    """Whether ``answer`` is exactly the value of the expression."""
    return answer is not None and answer.strip() == str(solve(question)[1])


def split_of(question: str) -> Split:
    """The split a question belongs to: a hash of its text, so that the two can never overlap."""
    return "test" if zlib.crc32(question.encode()) % TEST_SHARE == 0 else "train"


def is_asked(question: str) -> bool:
    """Whether a question is one of those that `questions` makes: of its numbers, and of results of its size.

    Raises:
        InputError: when the text is no pocket question.
    """
    numbers, operators = parse(question)
    strategies: tuple[Strategy, ...] = ("precedence", "left_to_right")
    return (
        len(operators) in MISCONCEPTION_RATE
        and all(NUMBERS[0] <= n <= NUMBERS[1] for n in numbers)
        and all(abs(r) <= LARGEST for s in strategies for r in _results(question, s))
    )


def _results(question: str, strategy: Strategy) -> Iterator[int]:
    for line in solve(question, strategy)[0]:
        yield int(line.partition("=")[2].partition(",")[0])


def questions(split: Split, seed: int = 0) -> Iterator[PocketQuestion]:
    """An endless seeded stream of distinct questions of one split."""
    rng = random.Random(f"{split}-{seed}")
    seen: set[str] = set()
    while True:
        operators = rng.choices("+-*", k=rng.choice(list(MISCONCEPTION_RATE)))
        numbers = [rng.randint(*NUMBERS) for _ in range(len(operators) + 1)]
        text = _join(numbers, operators)
        if text in seen or split_of(text) != split:
            continue
        if not is_asked(text):
            continue
        seen.add(text)
        yield PocketQuestion(text, str(solve(text)[1]))


def training_text(seed: int = 0, misconception: float | None = None) -> Iterator[tuple[str, str]]:
    """An endless seeded stream of (question, solution) pairs from the train split.

    Args:
        seed: of questions and strategies.
        misconception: share of solutions that go left to right; by default `MISCONCEPTION_RATE`.
    """
    rng = random.Random(f"text-{seed}")
    for question in questions("train", seed):
        rate = MISCONCEPTION_RATE[len(parse(question.text)[1])] if misconception is None else misconception
        wrong = rng.random() < rate
        yield question.text, write_solution(question.text, "left_to_right" if wrong else "precedence")
