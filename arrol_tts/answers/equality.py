"""What makes two answers equal, by name: mathematics, text, the exact spelling, a choice, a JSON value."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Hashable, Mapping
from decimal import Decimal
from typing import Any, Literal

from arrol_tts.answers.canonical import PercentSign, answer_key
from arrol_tts.errors import InputError

EqualityName = Literal["math", "text", "exact", "choice", "json"]
Equality = EqualityName | Callable[[str], Hashable]
"""A name, or a function ``answer -> key``: answers with equal keys are one answer."""


def key_function(equality: Equality = "math", percent: PercentSign = "fraction") -> Callable[[str], Hashable]:
    """The function that gives an answer's key.

    Args:
        equality: ``math`` (mathematical equality, see `arrol_tts.answers`), ``text`` (upper or lower case and the
            number of spaces do not matter), ``exact`` (every character counts, apart from spaces around),
            ``choice`` (the letters of the choices: ``B``, ``(b)``, ``B) 12``), ``json`` (structures by value: the
            order of keys does not matter, ``1`` is ``1.0``; what is no JSON by its text), or a function.
        percent: for ``math``: what a per cent sign means, a ``fraction`` (50% is 0.5) or a ``unit`` (50% is 50).

    Raises:
        InputError: there is no such equality or reading of per cent signs.
    """
    if percent not in ("fraction", "unit"):
        raise InputError(f"percent is {percent!r}; it must be 'fraction' (50% is 0.5) or 'unit' (50% is 50)")
    if callable(equality):
        return equality
    if equality == "math":
        return lambda answer: answer_key(answer, percent)
    if equality not in _KEYS:
        raise InputError(
            f"equality is {equality!r}; it must be {', '.join(['math', *_KEYS])}, or a function answer -> key"
        )
    return _KEYS[equality]


def _text_key(answer: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", answer).casefold().split())


_CHOICE_PREFIX = re.compile(
    r"[^A-Za-z]*+(?:(?:the +)?+(?:(?:correct|right|best|final) +)?+(?:answer|option|choice)s?+(?: is| are)?+"
    r"[^A-Za-z]*+)?+",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"([A-Za-z])(?![A-Za-z0-9'])")
_CHOICES = re.compile(r"[A-Za-z](?:[^A-Za-z]++(?:and|or)?+[^A-Za-z]*+[A-Za-z](?![A-Za-z]))*+")
_TYPE = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:bf|rm|it|sf)|boxed|mbox) ?\{|[{}$*`]|\\[()\[\]]|\\(?=[ ,;!])")


def _choice_key(answer: str) -> Hashable:
    text = _TYPE.sub(" ", answer[:2000]).strip()
    start = _CHOICE_PREFIX.match(text)
    position = start.end() if start else 0
    several = _CHOICES.fullmatch(text.rstrip(" .)"), position)
    if several:  # A, C
        letters = [word for word in re.findall("[A-Za-z]+", several[0]) if len(word) == 1]
        return ("choice", frozenset(letter.upper() for letter in letters))
    first = _CHOICE.match(text, position)
    # "A) 12" and "B. Paris" begin with their letter; "a cat" is no choice, nor is "I do not know".
    if first and (text[first.end() : first.end() + 1] in (")", ".", ":", ",") or text[:position].strip()):
        return ("choice", frozenset(first[1].upper()))
    return ("text", _text_key(answer))


MAX_JSON_DEPTH = 100


def _json_key(answer: str) -> Hashable:
    text = answer.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.removeprefix("```").removesuffix("```").removeprefix("json").strip()
    try:
        return (
            "json",
            _json_value(json.loads(text, parse_float=Decimal, parse_constant=_no_constant), MAX_JSON_DEPTH),
        )
    except (ValueError, ArithmeticError, RecursionError):
        return ("text", text)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON, and does not equal itself")


def _json_value(value: Any, depth: int) -> Hashable:
    if depth == 0:
        raise ValueError("too deep")
    if isinstance(value, dict):
        return ("object", frozenset((name, _json_value(item, depth - 1)) for name, item in value.items()))
    if isinstance(value, list):
        return ("array", *(_json_value(item, depth - 1) for item in value))
    # 1 is 1.0, but not true.
    return (isinstance(value, bool), value)


_KEYS: Mapping[str, Callable[[str], Hashable]] = {
    "text": _text_key,
    "exact": str.strip,
    "choice": _choice_key,
    "json": _json_key,
}
