"""Keys for answers: answers are equal when their keys are.

A key is a hashable value, computed from one spelling alone, which makes equality an equivalence by
construction: reflexive, symmetric, transitive, and independent of the order or the company in which answers are
seen. Plain numbers (`numbers`) never become tokens (`tokens`); the rest is read by `structure`, its algebra by
`parser` and `expression`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from functools import lru_cache
from typing import Literal

from arrol_tts.answers.numbers import plain_number
from arrol_tts.answers.structure import read_answer
from arrol_tts.answers.tokens import text_key, tokenise

PercentSign = Literal["fraction", "unit"]

MAX_CHARACTERS = 1000
"""Longer answers are compared as text: no answer is so long, and text costs nothing."""

MAX_TOKENS = 600

_DATE = re.compile(r"\$?\(?([0-9]{1,4})([-/])([0-9]{1,4})\2([0-9]{1,4})\)?\$?")


def answer_key(answer: str, percent: PercentSign = "fraction") -> Hashable:
    """The key of an answer's equivalence class, of any string and in any thread.

    Args:
        answer: one spelling, as extracted.
        percent: what ``50%`` means: a ``fraction`` (1/2) or a ``unit`` that is dropped (50).
    """
    if len(answer) > MAX_CHARACTERS:
        return ("text", " ".join(answer.split()))
    return _cached_key(answer, percent)


@lru_cache(maxsize=1 << 15)
def _cached_key(answer: str, percent: PercentSign) -> Hashable:
    number = plain_number(answer, percent_is_unit=percent == "unit")
    if number is not None:
        return ("number", number)
    date = _DATE.fullmatch(answer.strip().rstrip("."))
    if date:  # no quotients or differences of three numbers
        return ("date", date[2], *(part.lstrip("0") for part in date.group(1, 3, 4)))
    tokens = tokenise(answer)
    if len(tokens) > MAX_TOKENS:
        return text_key(tokens)
    return read_answer(tokens, percent_is_unit=percent == "unit")
