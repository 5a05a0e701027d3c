"""Sets of real numbers: unions of intervals, with numbers as bounds whose order is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction
from typing import Any

Bound = tuple[Any, Hashable]
"""A bound's place on the line, a Fraction or an infinity, and its key."""

Interval = tuple[Bound, bool, Bound, bool]
"""Lower bound, whether it belongs to the set, upper bound, whether it does."""

LOWEST: Bound = (-math.inf, ("infinity", "-"))
HIGHEST: Bound = (math.inf, ("infinity", "+"))
REALS: list[Interval] = [(LOWEST, False, HIGHEST, False)]


def collection(keys: Iterable[Hashable], *, distinct: bool = False) -> Hashable:
    """The key of a list without order, with each member's count, or as a set; one member stands for itself."""
    counts = Counter(keys)
    if distinct:
        counts = Counter(dict.fromkeys(counts, 1))
    if counts.total() == 1:
        return next(iter(counts))
    return ("list", frozenset(counts.items()))


def members(keys: Iterable[Hashable]) -> list[Hashable]:
    """The keys with lists among them opened: 1 \\pm \\sqrt 5 in a list is two of its members."""
    opened: list[Hashable] = []
    for key in keys:
        if isinstance(key, tuple) and key[:1] == ("list",):
            opened += [member for member, count in key[1] for _ in range(count)]
        else:
            opened.append(key)
    return opened


def bound(key: Hashable) -> Bound | None:
    """The bound that a key stands for, if it is a real number or an infinity."""
    if not isinstance(key, tuple):
        return None
    if key[0] == "infinity":
        return HIGHEST if key[1] == "+" else LOWEST
    if key[0] != "number":
        return None
    value = key[1]
    if isinstance(value, Fraction):
        return value, key
    if len(value) != 1:
        return None
    sign, mantissa, exponent = value[0]
    return (-1) ** sign * mantissa * Fraction(2) ** exponent, key


def as_set(key: Hashable) -> list[Interval] | None:
    """The set that a key stands for: an interval, a number, a list of numbers or a union; None for others."""
    if not isinstance(key, tuple):
        return None
    point = bound(key)
    if point is not None:
        return [(point, True, point, True)] if key[0] == "number" else None
    if key[0] == "sequence" and len(key) == 5:
        low, high = bound(key[2]), bound(key[3])
        return None if low is None or high is None else [(low, key[1] == "[", high, key[4] == "]")]
    if key[0] in ("list", "union"):
        parts = [as_set(part) for part in (members([key]) if key[0] == "list" else key[1])]
        return None if None in parts else union(*parts)  # type: ignore[arg-type]
    return None


def union(*sets: Sequence[Interval]) -> list[Interval]:
    """The union, as intervals from left to right that neither meet nor touch."""
    pieces = [
        piece
        for piece in (piece for each in sets for piece in each)
        if piece[0][0] < piece[2][0] or (piece[0][0] == piece[2][0] and piece[1] and piece[3])
    ]
    pieces.sort(key=lambda piece: (piece[0][0], not piece[1]))
    merged: list[Interval] = []
    for piece in pieces:
        if merged:
            low, low_in, high, high_in = merged[-1]
            start, end = piece[0][0], piece[2][0]
            if start < high[0] or (start == high[0] and (high_in or piece[1])):
                if end > high[0]:
                    merged[-1] = (low, low_in, piece[2], piece[3])
                elif end == high[0]:
                    merged[-1] = (low, low_in, high, high_in or piece[3])
                continue
        merged.append(piece)
    return merged


def complement(intervals: Sequence[Interval]) -> list[Interval]:
    """The real numbers that are in none of the intervals."""
    gaps: list[Interval] = []
    low, low_in = LOWEST, False
    for start, start_in, end, end_in in union(intervals):
        gaps.append((low, low_in, start, not start_in))
        low, low_in = end, not end_in
    gaps.append((low, low_in and low != HIGHEST, HIGHEST, False))
    return union([gap for gap in gaps if gap[0][0] != gap[2][0] or abs(gap[0][0]) != math.inf])


def intersection(*sets: Sequence[Interval]) -> list[Interval]:
    """The real numbers that are in all of the sets."""
    return complement(union(*map(complement, sets)))


def set_key(intervals: Sequence[Interval]) -> Hashable:
    """The key of a set: of its numbers if there are finitely many, of its one interval, or of its pieces."""
    pieces = union(intervals)
    if all(low[0] == high[0] for low, _, high, _ in pieces):
        return collection(low[1] for low, *_ in pieces)
    keys = [
        low[1]
        if low[0] == high[0]
        else ("sequence", "[" if low_in else "(", low[1], high[1], "]" if high_in else ")")
        for low, low_in, high, high_in in pieces
    ]
    return keys[0] if len(keys) == 1 else ("union", frozenset(keys))
