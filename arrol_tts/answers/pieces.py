"""Functions that are one formula here and another there: ``|x - 10|`` is ``10 - x`` below ten.

Values at a few points tell polynomials apart, since one that is not zero seldom vanishes at random. A function of
pieces agrees with each of its formulas on a whole range, so the points must lie on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction

from arrol_tts.answers.parser import RefusedError, Tree

_OF_PIECES = frozenset(("abs", "floor", "ceiling", "max", "min", "gcd", "lcm"))

Keys = Callable[[Tree], Sequence[Hashable]]
"""What the values of a tree are compared by, point by point; None where it has none."""


def variables(tree: Tree) -> frozenset[str]:
    """The names of a tree's variables."""
    if tree[0] == "var":
        return frozenset((tree[1],))
    return frozenset().union(*(variables(part) for part in tree[1:] if isinstance(part, tuple)))


def is_polynomial_in(tree: Tree, name: str) -> bool:
    """Whether a name stands in sums, products and whole powers only."""
    parts = [part for part in tree[1:] if isinstance(part, tuple)]
    if tree[0] in ("add", "mul", "neg", "inv", "var", "num", "const", "opaque"):
        return all(is_polynomial_in(part, name) for part in parts)
    if tree[0] == "pow" and _whole(parts[1]) is not None:
        return is_polynomial_in(parts[0], name)
    return name not in variables(tree)


def settled(tree: Tree, keys: Keys) -> tuple[Tree, bool]:
    """A tree without those functions that are one formula at all points; whether others are left.

    The root of a square is the absolute value of what was squared.

    Args:
        tree: of an expression.
        keys: of its values, or those of a part, at points that lie far apart.

    Raises:
        RefusedError: a function has one value at all points, so that its other pieces have not been seen.
    """
    parts, left = [], False
    for part in tree:
        if isinstance(part, tuple):
            part, other = settled(part, keys)
            left = left or other
        parts.append(part)
    tree = tuple(parts)
    if tree[0] == "pow" and (squared := _root_of_squares(tree)) is not None:
        return settled(squared, keys)
    if tree[0] != "call" or tree[1] not in _OF_PIECES or not variables(tree):
        return tree, left
    own = keys(tree)
    seen = [i for i, key in enumerate(own) if key is not None]
    formulas = [*tree[2:], ("neg", tree[2])] if tree[1] == "abs" else tree[2:]
    for formula in formulas:
        at = keys(formula)
        if seen and all(at[i] == own[i] for i in seen):
            return formula, left
    if len({own[i] for i in seen}) < 2:
        raise RefusedError
    return tree, True


def _root_of_squares(tree: Tree) -> Tree | None:
    """An even root with the squares taken out of it, or None when it is none or has none."""
    base, exponent = tree[1], _fraction(tree[2])
    if exponent is None or exponent.denominator % 2:
        return None
    outside: list[Tree] = []
    inside: list[Tree] = []
    for factor in base[1:] if base[0] == "mul" else (base,):
        power = factor[1] if factor[0] == "inv" else factor
        times = _whole(power[2]) if power[0] == "pow" else None
        if times is None or times % 2 or not variables(power[1]):
            inside.append(factor)
        else:
            times = -times if factor[0] == "inv" else times
            outside.append(("pow", ("call", "abs", power[1]), ("num", times * exponent)))
    if not outside:
        return None
    rest = [("pow", inside[0] if len(inside) == 1 else ("mul", *inside), tree[2])] if inside else []
    factors = [*outside, *rest]
    return factors[0] if len(factors) == 1 else ("mul", *factors)


def _whole(tree: Tree) -> int | None:
    value = _fraction(tree)
    return int(value) if value is not None and value.denominator == 1 else None


def _fraction(tree: Tree) -> Fraction | None:
    """A number that stands as such, or as a quotient or product of such."""
    if tree[0] == "num":
        return Fraction(tree[1])
    if tree[0] not in ("neg", "inv", "mul"):
        return None
    result = Fraction(1)
    for part in tree[1:]:
        value = _fraction(part)
        if value is None or (tree[0] == "inv" and not value):
            return None
        result *= value
    return -result if tree[0] == "neg" else 1 / result if tree[0] == "inv" else result
