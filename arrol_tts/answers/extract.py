"""Extracting the answer from the text of a solution."""

from __future__ import annotations

import re
from collections.abc import Callable

Extractor = Callable[[str], str | None]
"""Solution text -> answer, or None when it holds none. ``extract_answer`` is one; so is your own."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=(\{)|([0-9a-zA-Z]))|\\[a-zA-Z]+|\\.|[{}]", re.DOTALL)
_ANSWER = re.compile(
    r"\banswer(?:\*\*)?\s*(?:is|are|was|would be|will be|equals|:|=)[:*\s]*"
    r"|\banswer\s+(?:to|of|for)\b[^\n.:]{0,100}?\s(?:is|are|:)[:*\s]*"
    r"|^[#* ]{0,9}(?:final\s+)?answer\b[:*\s]+(?=[-+$\\(\[{0-9])",
    re.IGNORECASE | re.MULTILINE,
)
_HEDGES = re.compile(
    r"(?:(?:thus|therefore|hence|approximately|about|equal to|simply|just|option|choice)\b:?,?\s*)+", re.I
)
_MATH = re.compile(r"\$\$(.{1,2000}?)\$\$|\$([^$]{1,2000})\$|\\\((.{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]", re.DOTALL)
_REASON = re.compile(r",?\s+(?:since|because|as|so|which|where|when|if)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\*|$)|\n")
_NUMBER = re.compile(
    r"(?:(?<![0-9a-zA-Z)}\]])[-−])?"  # noqa: RUF001
    r"(?:\\[dt]?frac\s?\{-?[0-9]{1,50}\}\s?\{[0-9]{1,50}\}|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9])"
    r"|[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+(?![0-9a-zA-Z])|/[0-9]+(?:\.[0-9]+)?)?|\.[0-9]+)(?:\s?\\?%)?"
)
_CHOICE = re.compile(r"(?<![a-zA-Z'\\])\(?([A-J])\)?(?![a-zA-Z'])")
_MARKED_CHOICE = re.compile(r"\(([A-J])\)|\*\*([A-J])\b|^\s?([A-J])[.)]?\s*$", re.MULTILINE)
_MAX_STATEMENT = 2000


def extract_answer(text: str, *, choices: bool = False) -> str | None:
    r"""The answer that a solution states, or None when there is none.

    Looked for in this order, the last occurrence of each: ``\boxed{...}`` with balanced braces (a box
    that the text was cut off in does not count), ``#### N`` (GSM8K), "the (final) answer is X" or
    "answer: X" (also a last line ``answer X``), and at last the last number of the text. The time is
    linear in the length of the text.

    Args:
        text: a solution, as generated.
        choices: the question is multiple choice: the answer is a letter from A to J.

    Raises:
        TypeError: ``text`` is no string.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {type(text).__name__}; pass the solution as a string")
    boxed = _last_box(text) or _last_hashes(text)
    stated = None if boxed else _last_statement(text)
    if choices:
        return _choice(boxed or stated or "", text)
    return boxed or (stated and _short(stated)) or _last_number(text)


def _last_box(text: str) -> str | None:
    """The content of the box that ends last; in one pass, so that many open boxes cost nothing."""
    open_groups: list[int | None] = []  # where a box's content starts; None for other braces
    start: int | None = None
    best: tuple[int, int] | None = None
    for match in _BOX.finditer(text):
        token = match[0]
        if match[1]:
            start = match.end() + 1
        elif match[2] and match[0].startswith((r"\boxed", r"\fbox")):
            end = next((i for i in range(match.end(), len(text)) if not text[i].isalnum()), len(text))
            best = (match.end(), end)
        elif token == "{":
            open_groups.append(start)
            start = None
        elif token == "}" and open_groups:
            content = open_groups.pop()
            if content is not None and text[content : match.start()].strip():
                best = (content, match.start())
    return text[best[0] : best[1]].strip() if best else None


def _last_hashes(text: str) -> str | None:
    return text.rpartition("####")[2].lstrip().partition("\n")[0].strip() or None if "####" in text else None


def _last_statement(text: str) -> str | None:
    """What follows the last "answer is"."""
    found = None
    for match in _ANSWER.finditer(text):
        if text[match.end() : match.end() + 1].strip():
            found = match
    return text[found.end() : found.end() + _MAX_STATEMENT] if found else None


def _short(statement: str) -> str | None:
    """The answer in a statement: its leading formula, or the words up to the end of the sentence."""
    hedge = _HEDGES.match(statement)
    statement = statement[hedge.end() :] if hedge else statement
    formula = _MATH.match(statement)
    if formula:
        percent = "%" if statement[formula.end() :].lstrip().startswith("%") else ""
        return _content(formula) + percent
    for ending in (_SENTENCE_END, _REASON):
        end = ending.search(statement)
        statement = statement[: end.start()] if end else statement
    statement = statement.strip().strip("*").strip()
    if len(statement.split()) <= 5:
        return statement or None
    formula = _MATH.search(statement)  # a sentence rather than an answer: its first formula or number
    if formula:
        return _content(formula)
    number = _NUMBER.search(statement)
    return number[0] if number else None


def _content(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def _last_number(text: str) -> str | None:
    found = None
    for match in _NUMBER.finditer(text):
        found = match
    return found[0].strip() if found else None


def _choice(statement: str, text: str) -> str | None:
    """The first letter of the statement, or the last letter that the text sets apart as a choice."""
    letter = _CHOICE.search(statement.split("\n\n")[0])
    if letter:
        return letter[1]
    marked = _MARKED_CHOICE.findall(text[-_MAX_STATEMENT:])
    return "".join(marked[-1]) if marked else None
