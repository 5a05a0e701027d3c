r"""Names that stand left of an equals sign and are dropped: ``x``, ``f(n)``, ``|AB|``, ``\text{Area}``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from arrol_tts.answers.parser import FUNCTIONS, GREEK

_ACCENTS = frozenset(
    (
        r"\dot",
        r"\ddot",
        r"\bar",
        r"\hat",
        r"\vec",
        r"\tilde",
        r"\overline",
        r"\overrightarrow",
        r"\widehat",
        r"\widetilde",
    )
)
_OPERATORS = frozenset(
    (r"\lim", r"\int", r"\sum", r"\prod", r"\max", r"\min", r"\deg", r"\det", r"\dim", r"\gcd", r"\iint", r"\oint")
)
_BEFORE = frozenset((r"\angle", r"\measuredangle", r"\triangle", r"\odot", r"\partial", r"\mathop"))
_TRIGONOMETRIC = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))
_FUNCTION_LETTERS = frozenset("fghFGHPEVNSRTpquvwAQ")
_DENIALS = frozenset(("no", "not", "never", "all", "any", "some", "every", "none", "without", "and", "or"))
_ARITHMETIC = frozenset("+-*/^!")


def is_name(tokens: Sequence[str]) -> bool:
    """Whether all tokens are one name, or a tuple of names in brackets."""
    if not tokens or len(tokens) > 60:
        return False
    first = tokens[0]
    if first in _OPERATORS and len(tokens) > 1:
        return True
    if tuple(tokens[:2]) in (("m", r"\angle"), ("m", r"\measuredangle")):
        return is_name(tokens[1:])
    if first == "(" and tokens[-1] == ")":
        inner = tokens[1:-1]
        return len(inner) > 1 and all(part and _name_end(part, 0) == len(part) for part in _comma_parts(inner))
    if first == "|" and tokens[-1] == "|" and len(tokens) > 2:
        inner = tokens[1:-1]
        return (len(inner) == 1 and len(inner[0]) > 1 and inner[0].isupper()) or (
            inner[0] in _ACCENTS and _name_end(inner, 0) == len(inner)
        )
    if first == "[" and len(tokens) == 3:
        return tokens[1].isupper() and len(tokens[1]) > 2
    if first == r"\frac":
        quotient = r"\\frac \{ (?:d ?[A-Za-z] \} \{ d ?[A-Za-z]|[A-Z]{2} \} \{ [A-Z]{2}) \}"
        return re.fullmatch(quotient, " ".join(tokens)) is not None
    if ":" in tokens:  # x:y
        return len(tokens) % 2 == 1 and all((token == ":") == bool(i % 2) for i, token in enumerate(tokens))
    if first.lstrip("\\") in _TRIGONOMETRIC and len(tokens) > 1:
        return _name_end(tokens, 1) == len(tokens) and tokens[-1] != ")"
    position = _name_end(tokens, 0)
    while 0 < position < len(tokens) and tokens[position - 1][0] == '"':  # \text{Total cost}
        position = _name_end(tokens, position)
    return position == len(tokens)


def _comma_parts(tokens: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for token in tokens:
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _name_end(tokens: Sequence[str], i: int) -> int:
    """The index after the name that starts at ``i``; -1 if none does."""
    while i < len(tokens) and tokens[i] in _BEFORE:
        i += 1
    if i >= len(tokens):
        return -1
    token = tokens[i]
    bare = token.lstrip('\\"')
    if token in _ACCENTS:
        i = _group_end(tokens, i + 1)
    elif token[0] == '"':
        if bare.casefold() in _DENIALS:
            return -1
        i += 1
    elif token[0].isalpha() or bare in GREEK or token in (r"\hbar", r"\ell") or token.startswith(r"\cal"):
        if bare in ("pi", "i", "e") or bare in FUNCTIONS:
            return -1
        i += 1
    else:
        return -1
    while 0 < i < len(tokens):
        if tokens[i] == "_":
            i = _group_end(tokens, i + 1)
        elif tokens[i] in ("'", "''"):
            i += 1
        elif tuple(tokens[i : i + 5]) == ("^", "{", "-", "1", "}"):
            i += 5
        else:
            break
    if 0 < i < len(tokens) and tokens[i] == "(":
        end = _group_end(tokens, i)
        inside = tokens[i + 1 : end - 1]
        digits = any(inner[0].isdigit() for inner in inside)
        plain = not digits and not _ARITHMETIC.intersection(inside)
        return (
            end
            if end > 0 and inside and (plain or bare in _FUNCTION_LETTERS or bare in GREEK or len(bare) > 1)
            else -1
        )
    return i


def _group_end(tokens: Sequence[str], i: int) -> int:
    """The index after a bracketed group or the one token at ``i``; -1 if the brackets do not close."""
    if i >= len(tokens):
        return -1
    if tokens[i] not in ("{", "("):
        return i + 1
    depth = 0
    for j in range(i, len(tokens)):
        depth += (tokens[j] in ("{", "(")) - (tokens[j] in ("}", ")"))
        if depth == 0:
            return j + 1
    return -1
