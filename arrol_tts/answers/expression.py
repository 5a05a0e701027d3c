"""Keys for algebraic expressions: equal values, equal keys.

A constant is reduced to its value, an expression with variables to its values at fixed points that depend on the
variables' names only (`evaluation`), so equality is transitive and each expression is read once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from functools import lru_cache, wraps
from typing import Any, TypeVar

from arrol_tts.answers.evaluation import CONSTANT, LOCK, MAX_WORK, POINT, Evaluator, Work
from arrol_tts.answers.parser import RefusedError, Tree, parse
from arrol_tts.answers.pieces import is_polynomial_in, settled, variables

_INTEGER_NAMES = frozenset("ijklmnKLMN")
_INTEGER_VALUES = (4, 7, 9, 16, 23, 30, 36, 51, 64)
_FAR_WHOLE = (1, 2, 3, 1001, 1763, 2491, 3335, 3441, 3553, 3599, 720_720, 10**9 + 7, 10**30 + 1)
"""Far apart, as many as `_FAR`; products of primes up to 61 among them, which tell gcd(n, 11) from gcd(n, 13)."""
_FAR = (12, 20, 50, 130, 400, 3000, 20_000, 10**6, 10**9, 10**13, 10**18, 10**24, 10**30)
_DENOMINATORS = (89, 97, 101, 103, 107, 109, 113)
POINTS = len(_INTEGER_VALUES)
"""Those near zero, which tell all functions apart but those of pieces."""
MIN_POINTS = 3
"""Points at which an expression must have a value to be compared by its values."""


@lru_cache(maxsize=1024)
def _coordinates(name: str) -> tuple[Fraction, ...]:
    """A variable's value at each point, first the near and then the far ones: whole numbers for the letters that
    name whole numbers.

    Whole numbers, squares and their neighbours among them, tell floor(n/2) from floor((n+1)/2); the
    other letters get positive fractions, so that x and floor(x) differ and the root of x^2 is x.
    """
    rng = random.Random(name)
    if name[0] in _INTEGER_NAMES:
        near = tuple(map(Fraction, rng.sample(_INTEGER_VALUES, POINTS)))
        return near + tuple(map(Fraction, rng.sample(_FAR_WHOLE, len(_FAR_WHOLE))))
    under = rng.choice(_DENOMINATORS)
    near = tuple(Fraction(rng.randrange(under // 8, 6 * under), under) for _ in range(POINTS))
    return near + tuple(far + Fraction(rng.randrange(1, under), under) for far in rng.sample(_FAR, len(_FAR)))


Values = list[tuple[Evaluator, Any] | None]


def _at_points(tree: Tree, names: frozenset[str], work: Work) -> Values:
    """The values at each point; None where a point gives none (a pole, a number too large)."""
    points = POINTS if names else 1
    if names:
        tree, of_pieces = settled(tree, lambda part: _keys(_values(part, names, work, POINTS + len(_FAR))))
        points += len(_FAR) if of_pieces else 0
    values = _values(tree, names, work, points)
    if sum(value is not None for value in values) < min(MIN_POINTS, points):
        raise RefusedError
    return values


def _values(tree: Tree, names: frozenset[str], work: Work, points: int) -> Values:
    values: Values = []
    for i in range(points):
        evaluator = Evaluator(POINT, {name: _coordinates(name)[i] for name in names}, work)
        try:
            values.append((evaluator, evaluator.value(tree)))
        except (RefusedError, ArithmeticError, ValueError):
            values.append(None)
            if i == points - MIN_POINTS and not any(values):
                break
    return values + [None] * (points - len(values))


def _keys(values: Values) -> list[Hashable]:
    return [None if value is None else value[0].key(value[1]) for value in values]


def _profile(values: Values) -> tuple[Hashable, ...]:
    """The keys of values; fractions by their hash, which is one number modulo 2**61 - 1 at each point."""
    return tuple(hash(key) if isinstance(key, Fraction) else key for key in _keys(values))


def _constant_key(tree: Tree, point: dict[str, Fraction], work: Work) -> Hashable:
    evaluator = Evaluator(CONSTANT, point, work)
    return ("number", evaluator.key(evaluator.value(tree)))


Result = TypeVar("Result")


def _bounded(function: Callable[..., Result | None]) -> Callable[..., Result | None]:
    """A function of trees that gives None beyond its bounds, called with the work that it may do first.

    Results are kept, and cost the same work again, so that a key never depends on what was read before.
    """

    @lru_cache(maxsize=1 << 13)
    def computed(*arguments: Any) -> tuple[Result | None, int]:
        work = Work()
        with LOCK:
            try:
                result = function(work, *arguments)
            # A pole, an argument outside a function's domain, a comparison of complex numbers.
            except (RefusedError, ArithmeticError, ValueError, TypeError):
                result = None
        return result, MAX_WORK - max(work.left, 0)

    @wraps(function)
    def bounded(work: Work, *arguments: Any) -> Result | None:
        result, used = computed(*arguments)
        work.spend(used)
        return result

    return bounded


def tree_of(tokens: Sequence[str]) -> Tree | None:
    """The tree of an expression, or None when it is none that is read here."""
    try:
        return parse(tokens)
    except (RefusedError, ArithmeticError, ValueError):
        return None


@_bounded
def tree_key(work: Work, tree: Tree) -> Hashable | None:
    """The key of a tree, or None when it cannot be evaluated within bounds.

    Constants give ``("number", value)``, the value a Fraction or, when it is irrational, its binary digits;
    expressions with variables give ``("expression", values)``.
    """
    names = variables(tree)
    if not names:
        return _constant_key(tree, {}, work)
    values = _at_points(tree, names, work)
    profile = _profile(values)
    if len(set(profile) - {None}) == 1:  # x - x + 3
        i = next(i for i, value in enumerate(values) if value is not None)
        return _constant_key(tree, {name: _coordinates(name)[i] for name in names}, work)
    return ("expression", profile)


@_bounded
def equation_key(work: Work, left: Tree, right: Tree) -> Hashable | None:
    """The key of an equation, the same for every multiple of it, or None when it cannot be evaluated.

    The values of ``left - right`` are divided by the first that is not zero, so ``x + y = 1`` equals
    ``2 - 2x = 2y``.
    """
    values = _at_points(("add", left, ("neg", right)), variables(left) | variables(right), work)
    first = next((value[1] for value in values if value is not None and value[1] != 0), None)
    if first is None:
        return None
    scaled: Values = [
        None if value is None else (value[0], value[0].times(value[1], 1 / first)) for value in values
    ]
    return ("equation", _profile(scaled))


@_bounded
def solved(work: Work, left: Tree, right: Tree, name: str) -> tuple[Tree, Tree] | None:
    """``slope, root`` where ``left - right`` is ``slope * (name - root)``; None where it is not linear."""
    difference: Tree = ("add", left, ("neg", right))
    if not is_polynomial_in(difference, name):  # |x - 5| is a line at all of the numbers that are tried
        return None
    at = [_substituted(difference, name, ("num", Fraction(x))) for x in (0, 1, 2, 3, -5)]
    intercept = at[0]
    slope: Tree = ("add", at[1], ("neg", intercept))
    names = variables(difference) - {name}
    for x, value in zip((2, 3, -5), at[2:], strict=True):
        expected = ("add", intercept, ("mul", ("num", Fraction(x)), slope))
        values = _at_points(("add", value, ("neg", expected)), names, work)
        if any(value is None or value[1] != 0 for value in values):
            return None
    if any(value is None or value[1] == 0 for value in _at_points(slope, names, work)):
        return None
    return slope, ("neg", ("mul", intercept, ("inv", slope)))


def _substituted(tree: Tree, name: str, value: Tree) -> Tree:
    if tree == ("var", name):
        return value
    return tuple(_substituted(part, name, value) if isinstance(part, tuple) else part for part in tree)
