"""Plain numbers, which most answers are: read by two patterns, without tokens."""

from __future__ import annotations

import re
from fractions import Fraction

# A choice between alternatives that start differently, repeated possessively: no text backtracks.
_DECIMAL = re.compile(
    r"([-+]?) ?"
    r"((?:[0-9]{1,3}+(?:,[0-9]{3})++(?![0-9])|[0-9]{1,3}+(?: [0-9]{3})++(?![0-9])|[0-9]*+)(?:\.[0-9]*+)?+)"
    r"(?:[eE]([-+]?[0-9]{1,4}+)|(?: ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?\{? ?([-+]?[0-9]{1,4}+) ?\}?))?+"
    r" ?((?:\\?%)?)"
)
_FRACTION = re.compile(
    r"([-+]?) ?(?:([0-9]++) ?(?=\\frac)|([0-9]++) (?=[0-9]++ ?/))?+"
    r"(?:\\frac ?(?:\{ ?([-+]?[0-9.]++) ?\}|([0-9])) ?(?:\{ ?([-+]?[0-9.]++) ?\}|([0-9]))"
    r"|([0-9.]++) ?/ ?([0-9.]++)) ?((?:\\?%)?)"
)


def plain_number(text: str, *, percent_is_unit: bool) -> Fraction | None:
    """The value of a decimal, a number in scientific notation or a common or mixed fraction; else None."""
    try:
        value = _decimal(text)
        if value is None:
            value = _fraction(text)
    except (ValueError, ZeroDivisionError):  # two decimal points, no digits at all, 1/0
        return None
    if value is not None and text.endswith("%") and not percent_is_unit:
        value /= 100
    return value


def _decimal(text: str) -> Fraction | None:
    match = _DECIMAL.fullmatch(text)
    if not match or not any(map(str.isdigit, match[2])):
        return None
    sign, digits, e, power, _ = match.groups()
    value = Fraction(sign + digits.replace(",", "").replace(" ", "").removesuffix("."))
    return value * Fraction(10) ** int(e or power) if e or power else value


def _fraction(text: str) -> Fraction | None:
    match = _FRACTION.fullmatch(text)
    if not match:
        return None
    sign, whole, whole_too, *parts, _ = match.groups()
    over, under = (Fraction(part.removesuffix(".")) for part in parts if part is not None)
    value = Fraction(whole or whole_too or 0) + over / under
    return -value if sign == "-" else value
