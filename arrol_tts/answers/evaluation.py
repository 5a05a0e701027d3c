"""The value of a tree: exact where it is rational, otherwise to a fixed number of binary digits.

Two expressions are equal when their values are (identity testing by evaluation, in the manner of Schwartz and
Zippel, https://en.wikipedia.org/wiki/Schwartz-Zippel_lemma). What the digits cannot tell apart is refused
rather than taken for equal: a term too small to be seen beside another, an argument at which a function is
flat, a fraction with more digits than are kept. Work is counted, and refused beyond `MAX_WORK`.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

from arrol_tts.answers.parser import RefusedError, Tree

MAX_BITS = 50_000
"""Numbers are at most 2**MAX_BITS in size, so that 9**9**9 is refused."""

MAX_WORK = 40_000
"""Units of about five microseconds that the reading of one answer may take."""

LOCK = threading.Lock()
"""mpmath's contexts and the constants it keeps are shared state."""


@dataclass(frozen=True)
class Precision:
    """How many binary digits are computed, and what they are trusted for.

    Attributes:
        computed: digits that are computed with.
        compared: digits of a value that make its key.
        cancelled: a sum smaller than its terms by so many digits is zero.
        gap: a term smaller than the other by more digits is refused: the key might not show it.
        fraction: digits of a numerator or denominator, powers of two apart; longer ones are refused beside
            inexact values, since two such fractions could agree in all digits that are compared.
    """

    computed: int
    compared: int
    cancelled: int
    gap: int
    fraction: int


CONSTANT = Precision(computed=1700, compared=1000, cancelled=1300, gap=400, fraction=480)
"""For expressions without variables: about 300 decimal digits are compared."""

POINT = Precision(computed=420, compared=200, cancelled=320, gap=150, fraction=1 << 20)
"""For one of several points: about 60 decimal digits are compared at each."""


@lru_cache(maxsize=4)
def _context(bits: int) -> Any:
    import mpmath

    context = mpmath.MPContext()
    context.prec = bits
    return context


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _odd_bits(number: int) -> int:
    return number.bit_length() - (number & -number).bit_length() + 1


class Work:
    """What is left of the units of work that may be done."""

    __slots__ = ("left",)

    def __init__(self, units: int = MAX_WORK) -> None:
        self.left = units

    def spend(self, units: float) -> None:
        """Count work before it is done.

        Raises:
            RefusedError: nothing is left.
        """
        self.left -= int(units) + 1
        if self.left < 0:
            raise RefusedError


class Evaluator:
    """Evaluates trees at one point: a Fraction where a value is exact, otherwise mpmath's mpf or mpc.

    Args:
        precision: of inexact values.
        variables: the value of each variable.
        work: counts what is done.
    """

    def __init__(self, precision: Precision, variables: Mapping[str, Fraction], work: Work) -> None:
        self.precision = precision
        self.variables = variables
        self.spend = work.spend

    @property
    def context(self) -> Any:
        return _context(self.precision.computed)

    def value(self, tree: Tree) -> Any:
        """The value of a tree.

        Raises:
            RefusedError: it has none, or none within bounds.
            ArithmeticError, ValueError: a pole, an argument outside a function's domain.
        """
        return self.bounded(self._OPERATIONS[tree[0]](self, *tree[1:]))

    def bounded(self, value: Any) -> Any:
        if isinstance(value, Fraction):
            bits = _bits(value)
            self.spend(bits * bits / 2.5e6)
            if bits > MAX_BITS:
                raise RefusedError
        else:
            self.spend(1)
            if not self.context.isfinite(value) or (value and abs(self.context.mag(value)) > MAX_BITS):
                raise RefusedError
        return value

    def inexact(self, value: Any) -> Any:
        if not isinstance(value, Fraction):
            return value
        if max(_odd_bits(value.numerator), _odd_bits(value.denominator)) > self.precision.fraction:
            raise RefusedError
        return self.context.mpf(value.numerator) / value.denominator

    # --- operations ---

    def _num(self, value: Fraction) -> Fraction:
        return value

    def _var(self, name: str) -> Any:
        return self.variables[name]

    def _const(self, name: str) -> Any:
        if name == "i":
            return self.context.mpc(0, 1)
        return +self.context.pi if name == "pi" else +self.context.e

    def _add(self, *terms: Tree) -> Any:
        total = self.value(terms[0])
        for term in terms[1:]:
            total = self.bounded(self.plus(total, self.value(term)))
        return total

    def plus(self, a: Any, b: Any) -> Any:
        """The sum of two values; exactly zero when only the noise of computation is left."""
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a + b
        if a == 0 or b == 0:
            return b if a == 0 else a
        a, b = self.inexact(a), self.inexact(b)
        mag = self.context.mag
        larger, smaller = mag(a), mag(b)
        if larger < smaller:
            larger, smaller = smaller, larger
        if larger - smaller > self.precision.gap:
            raise RefusedError
        total = a + b
        return Fraction(0) if not total or mag(total) < larger - self.precision.cancelled else total

    def _mul(self, *factors: Tree) -> Any:
        result = self.value(factors[0])
        for factor in factors[1:]:
            result = self.bounded(self.times(result, self.value(factor)))
        return result

    def times(self, a: Any, b: Any) -> Any:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a * b
        if a == 0 or b == 0:
            return Fraction(0)
        return self.inexact(a) * self.inexact(b)

    def _neg(self, tree: Tree) -> Any:
        return -self.value(tree)

    def _inv(self, tree: Tree) -> Any:
        return 1 / self.value(tree)

    def _degree(self, tree: Tree) -> Any:
        return self.value(tree)

    def _pow(self, base: Tree, exponent: Tree) -> Any:
        return self.power(self.value(base), self.value(exponent))

    def power(self, base: Any, exponent: Any) -> Any:
        if base == 0:
            if isinstance(exponent, Fraction) and exponent > 0:
                return Fraction(0)
            raise RefusedError
        if isinstance(exponent, Fraction):
            over, under = exponent.numerator, exponent.denominator
            if isinstance(base, Fraction):
                if abs(base) != 1 and _bits(base) * abs(exponent) > 2 * MAX_BITS:
                    raise RefusedError
                if under == 1:
                    self.spend((_bits(base) * abs(over)) ** 2 / 2.5e6)
                    return base**over
                root = _exact_root(base, under)
                if root is not None:
                    return root**over
            inexact = self.inexact(base)
            if abs(exponent) * (abs(self.context.mag(inexact)) + 1) > MAX_BITS or _bits(exponent) > 400:
                raise RefusedError
            self.spend(40)
            if under == 1:
                return inexact**over
            if under == 2:
                return self.context.sqrt(inexact) ** over
            if under % 2 and inexact.imag == 0 > inexact.real:
                # The real root of a negative number: the cube root of -8 is -2.
                return (-1) ** over * (-inexact.real) ** self.inexact(exponent)
            return inexact ** self.inexact(exponent)
        inexact = self.inexact(base)
        self.spend(60)
        if abs(exponent) * (abs(self.context.mag(inexact)) + 1) > MAX_BITS:
            raise RefusedError
        self.not_flat(exponent)
        return inexact**exponent

    def not_flat(self, argument: Any) -> None:
        """Refuse an argument so small that a function is flat there."""
        if argument and self.context.mag(argument) < -self.precision.gap // 2:
            raise RefusedError

    # --- functions ---

    def _call(self, name: str, *trees: Tree) -> Any:
        if name in _TRIGONOMETRIC:
            trees = (_in_radians(trees[0]),)
        arguments = [self.value(tree) for tree in trees]
        if name in ("floor", "ceiling"):
            return self.rounded(arguments[0], math.floor if name == "floor" else math.ceil)
        if name == "abs":
            return abs(arguments[0])
        if name in ("factorial", "double factorial", "binomial"):
            return self.combinatorial(name, arguments)
        if name in ("max", "min", "gcd", "lcm"):
            return _of_list(name, arguments)
        return self.transcendental(name, *arguments)

    def combinatorial(self, name: str, arguments: list[Any]) -> Any:
        if not all(isinstance(value, Fraction) and abs(value) <= 4000 for value in arguments):
            raise RefusedError
        n = arguments[0]
        if name == "binomial":
            k = arguments[1]
            if k.denominator == 1 and n.denominator == 1 and n >= 0 <= k:
                self.spend(200)
                return Fraction(math.comb(int(n), int(k)))
            quotient = self.times(self.factorial(k), self.factorial(n - k))
            return self.times(self.factorial(n), 1 / quotient)
        if name == "factorial":
            return self.factorial(n)
        if n.denominator != 1 or not 0 <= n <= 4000:
            raise RefusedError
        self.spend(200)
        return Fraction(math.prod(range(int(n), 0, -2)))

    def factorial(self, n: Fraction) -> Any:
        if n.denominator == 1:
            if n < 0:
                raise RefusedError
            self.spend(200)
            return Fraction(math.factorial(int(n)))
        if abs(n) > 500:
            raise RefusedError
        self.spend(1000)
        return self.context.gamma(self.inexact(n) + 1)

    def transcendental(self, name: str, argument: Any, base: Any = None) -> Any:
        context = self.context
        self.spend(60)
        if name in ("ln", "log"):
            if argument == 0 or base == 0:
                raise RefusedError
            if isinstance(argument, Fraction) and argument == 1:
                return Fraction(0)
            logarithm = context.log(self.inexact(argument))
            return logarithm if base is None else logarithm / context.log(self.inexact(base))
        if argument == 0:
            argument = Fraction(0)
        x = self.inexact(argument)
        self.not_flat(x)
        if abs(x) > (50 if name in ("tanh", "coth") else 10_000):
            raise RefusedError
        return getattr(context, name)(x)

    def rounded(self, value: Any, rounding: Callable[[Any], int]) -> Fraction:
        if isinstance(value, Fraction):
            return Fraction(rounding(value))
        if value.imag and abs(value.imag) > 1e-50:
            raise RefusedError
        nearest = self.context.nint(value.real)
        if abs(value.real - nearest) < 1e-50:  # log_2 8 is 3, not 2.99...
            return Fraction(int(nearest))
        return Fraction(int(self.context.floor(value.real)) + (rounding is math.ceil))

    def _opaque(self, name: str, *trees: Tree) -> Any:
        """A function that only has a name: an unknown of its own, the same for the same arguments."""
        keys = [self.key(self.value(tree)) for tree in trees]
        return Fraction(random.Random(f"{name} {keys}").randrange(1000, 60_000), 9967)

    # --- keys ---

    def rational(self, value: Any) -> Fraction | None:
        """The fraction that a value is, or that an inexact one stands for."""
        if isinstance(value, Fraction):
            return value
        real, imag = self.parts(value)
        if imag:
            return None
        _, mantissa, exponent, _ = real._mpf_
        sign = -1 if real < 0 else 1
        bits = self.precision.compared // 3
        return _nearest_fraction(sign * int(mantissa), int(exponent), bits, self.precision.cancelled)

    def parts(self, value: Any) -> tuple[Any, Any]:
        """Real and imaginary part, the noise of the computation dropped."""
        real, imag = value.real, value.imag
        if not imag:
            return real, 0
        mag = self.context.mag
        least = mag(value) - self.precision.cancelled
        return (0 if not real or mag(real) < least else real, 0 if mag(imag) < least else imag)

    def key(self, value: Any) -> Fraction | tuple[tuple[int, int, int], ...]:
        """What a value is compared by: a Fraction, or sign, mantissa and exponent of each part."""
        rational = self.rational(value)
        if rational is not None:
            return rational
        real, imag = self.parts(value)
        return (self.rounded_part(real), self.rounded_part(imag)) if imag else (self.rounded_part(real),)

    def rounded_part(self, part: Any) -> tuple[int, int, int]:
        if not part:
            return 0, 0, 0
        from mpmath.libmp import mpf_pos

        sign, mantissa, exponent, _ = mpf_pos(self.context.mpf(part)._mpf_, self.precision.compared, "n")
        return int(sign), int(mantissa), int(exponent)

    _OPERATIONS: ClassVar[dict[str, Callable[..., Any]]] = {
        **{"num": _num, "var": _var, "const": _const, "add": _add, "mul": _mul, "neg": _neg, "inv": _inv},
        **{"pow": _pow, "degree": _degree, "call": _call, "opaque": _opaque},
    }


_TRIGONOMETRIC = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))
_RADIANS_A_DEGREE: Tree = ("mul", ("const", "pi"), ("num", Fraction(1, 180)))


def _in_radians(tree: Tree) -> Tree:
    """The argument of a trigonometric function with its degrees as radians."""
    if tree[0] == "degree":
        return ("mul", tree[1], _RADIANS_A_DEGREE)
    if tree[0] in ("add", "mul", "neg", "inv"):
        return (tree[0], *map(_in_radians, tree[1:]))
    return tree


def _exact_root(base: Fraction, degree: int) -> Fraction | None:
    """The root of a positive fraction where it is a fraction."""
    if base < 0 or degree > 64:
        return None
    roots = [_integer_root(part, degree) for part in (base.numerator, base.denominator)]
    return None if None in roots else Fraction(*roots)  # type: ignore[arg-type]


def _integer_root(number: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(number)
        return root if root * root == number else None
    root = 1 << -(-number.bit_length() // degree)
    while True:  # Newton's method from above falls until it has the floor of the root
        lower = ((degree - 1) * root + number // root ** (degree - 1)) // degree
        if lower >= root:
            return root if root**degree == number else None
        root = lower


def _nearest_fraction(mantissa: int, exponent: int, bits: int, accuracy: int) -> Fraction | None:
    """The fraction with a denominator below 2**bits that agrees with a number, by continued fractions.

    Args:
        mantissa, exponent: of the number, mantissa * 2**exponent.
        bits: of the largest denominator.
        accuracy: binary digits that must agree.
    """
    over, under = (mantissa << exponent, 1) if exponent >= 0 else (mantissa, 1 << -exponent)
    if exponent >= 0:
        return Fraction(over)
    p, q, p_before, q_before = 1, 0, 0, 1
    a, b = over, under
    while b:
        whole, remainder = divmod(a, b)
        p, q, p_before, q_before = whole * p + p_before, whole * q + q_before, p, q
        if q.bit_length() > bits:
            return None
        if abs(p * under - q * over) <= q * abs(over) >> accuracy:
            return Fraction(p, q)
        a, b = b, remainder
    return Fraction(p, q)


def _of_list(name: str, values: list[Any]) -> Any:
    if not all(isinstance(value, Fraction) for value in values):
        raise RefusedError
    if name in ("max", "min"):
        return max(values) if name == "max" else min(values)
    if not all(value.denominator == 1 for value in values):
        raise RefusedError
    return Fraction((math.gcd if name == "gcd" else math.lcm)(*map(int, values)))
