r"""Pairs of answers whose truth is known by construction: no false merge, and few equal answers kept apart.

Numbers are built together with their exact value ``p + q sqrt(2)`` (rational p, q), so that two of them are equal
exactly when their values are; expressions with variables are polynomials, known by their coefficients.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from arrol_tts.answers import answers_equal

MANY = settings(max_examples=300, deadline=None)
small = st.integers(-12, 12)


@dataclass(frozen=True)
class Number:
    """A spelling and its value ``rational + irrational * sqrt(2)``."""

    text: str
    rational: Fraction
    irrational: Fraction = Fraction(0)

    @property
    def value(self) -> tuple[Fraction, Fraction]:
        return self.rational, self.irrational


@st.composite
def atoms(draw: Any) -> Number:
    """Whole numbers, decimals, fractions, mixed numbers, percentages and roots, each in one of its spellings."""
    a, b, c = draw(st.integers(0, 40)), draw(st.integers(1, 12)), draw(st.integers(0, 99))
    fraction = Fraction(a, b)
    repeating = Fraction(a * 99 + c, 99)
    return draw(
        st.sampled_from(
            [
                Number(str(a), Fraction(a)),
                Number(f"{a}.{c:02}", Fraction(100 * a + c, 100)),
                Number(rf"\frac{{{a}}}{{{b}}}", fraction),
                Number(f"({a}/{b})", fraction),
                Number(rf"\left({a}\div {b}\right)", fraction),
                Number(rf"{a}.\overline{{{c:02}}}", repeating),
                Number(rf"(1+\frac{{{a}}}{{{b}}})", 1 + fraction),
                Number(r"\sqrt{2}", Fraction(0), Fraction(1)),
                Number(rf"\sqrt{{{2 * a * a}}}", Fraction(0), Fraction(a)),
                Number(rf"\frac{{{a}}}{{\sqrt2}}", Fraction(0), Fraction(a, 2)),
                Number(rf"2^{{{c % 7}}}", Fraction(2 ** (c % 7))),
                Number(rf"{{{b}}}^{{-2}}", Fraction(1, b * b)),
                Number(rf"\sqrt{{{a * a}}}", Fraction(a)),
                Number(rf"\binom{{{b}}}{{2}}", Fraction(b * (b - 1), 2)),
                Number(rf"|{c % 5}-{a}|", Fraction(abs(c % 5 - a))),
                Number(rf"\lfloor {a}.{c:02}\rfloor", Fraction(a)),
                Number(rf"({b % 5})!", Fraction([1, 1, 2, 6, 24][b % 5])),
                Number(r"\cos 45^\circ", Fraction(0), Fraction(1, 2)),
                Number(r"\log_2 8", Fraction(3)),
            ]
        )
    )


def _sum(a: Number, b: Number) -> Number:
    return Number(f"{a.text} + {b.text}", a.rational + b.rational, a.irrational + b.irrational)


def _difference(a: Number, b: Number) -> Number:
    return Number(f"{a.text} - ({b.text})", a.rational - b.rational, a.irrational - b.irrational)


def _product(a: Number, b: Number) -> Number:
    rational = a.rational * b.rational + 2 * a.irrational * b.irrational
    return Number(rf"({a.text}) \cdot ({b.text})", rational, a.rational * b.irrational + a.irrational * b.rational)


def _quotient(a: Number, b: Number) -> Number:
    norm = b.rational**2 - 2 * b.irrational**2
    if norm == 0:
        return a
    over = _product(a, Number("", b.rational, -b.irrational))
    return Number(rf"\dfrac{{{a.text}}}{{{b.text}}}", over.rational / norm, over.irrational / norm)


def _negative(a: Number) -> Number:
    return Number(f"-({a.text})", -a.rational, -a.irrational)


numbers = st.recursive(
    atoms(),
    lambda parts: st.one_of(
        st.builds(_sum, parts, parts),
        st.builds(_difference, parts, parts),
        st.builds(_product, parts, parts),
        st.builds(_quotient, parts, parts),
        st.builds(_negative, parts),
    ),
    max_leaves=4,
)


def written(value: tuple[Fraction, Fraction]) -> str:
    """The plain spelling of p + q sqrt(2)."""
    rational, irrational = value
    parts = [f"{rational}"] if rational or not irrational else []
    parts += [rf"({irrational})\sqrt{{2}}"] if irrational else []
    return "+".join(parts)


@given(numbers, numbers)
@MANY
def test_numbers_are_equal_exactly_when_their_values_are(a: Number, b: Number) -> None:
    assert answers_equal(a.text, b.text) == (a.value == b.value)


@given(numbers)
@MANY
def test_a_number_equals_its_plain_spelling(a: Number) -> None:
    assert answers_equal(a.text, written(a.value))


@given(numbers, st.integers(1, 10**6), st.integers(2, 40))
@MANY
def test_a_number_differs_from_its_neighbours(a: Number, over: int, digits: int) -> None:
    near = Number("", a.rational + Fraction(over, 10**6 * 10**digits), a.irrational)
    assert not answers_equal(a.text, written(near.value))


# --- lists, sets, tuples, intervals -----------------------------------------------------------------

few = st.lists(atoms(), min_size=2, max_size=3)


@given(few, few, st.sampled_from([", ", ",", r"\text{ and }", " or "]))
@MANY
def test_lists_are_equal_exactly_when_their_counted_values_are(
    a: list[Number], b: list[Number], joint: str
) -> None:
    first, second = joint.join(n.text for n in a), ", ".join(n.text for n in b)
    left, right = Counter(n.value for n in a), Counter(n.value for n in b)
    if joint == " or ":
        left = Counter(set(left))
    assert answers_equal(first, second) == (left == right)


@given(few, few)
@MANY
def test_sets_are_equal_exactly_when_their_values_are(a: list[Number], b: list[Number]) -> None:
    first, second = (r"\{" + ", ".join(n.text for n in each) + r"\}" for each in (a, b))
    assert answers_equal(first, second) == ({n.value for n in a} == {n.value for n in b})


@given(few, few)
@MANY
def test_tuples_are_equal_exactly_when_their_values_are_in_order(a: list[Number], b: list[Number]) -> None:
    first, second = ("(" + ", ".join(n.text for n in each) + ")" for each in (a, b))
    assert answers_equal(first, second) == ([n.value for n in a] == [n.value for n in b])


bounds = st.tuples(small, small).filter(lambda pair: pair[0] < pair[1])
kinds = st.tuples(st.booleans(), st.booleans())


@given(bounds, kinds, bounds, kinds)
@MANY
def test_intervals_equal_the_inequalities_that_mean_the_same(
    a: tuple[int, int], closed_a: tuple[bool, bool], b: tuple[int, int], closed_b: tuple[bool, bool]
) -> None:
    interval = f"{'(['[closed_a[0]]}{a[0]}, {a[1]}{')]'[closed_a[1]]}"
    above, below = (r">", r"\geq")[closed_b[0]], ("<", r"\leq")[closed_b[1]]
    from_low = ("<", r"\le")[closed_b[0]]
    inequality = f"{b[0]} {from_low} x {below} {b[1]}"
    conjunction = rf"x {below} {b[1]} \text{{ and }} x {above} {b[0]}"
    equal = (a, closed_a) == (b, closed_b)
    assert answers_equal(interval, inequality) == answers_equal(interval, conjunction) == equal
    assert answers_equal(inequality, conjunction)


pieces = st.lists(bounds, min_size=1, max_size=3)


def covered(intervals: list[tuple[int, int]]) -> set[Fraction]:
    points = [Fraction(i, 2) for i in range(-26, 27)]
    return {x for x in points if any(low < x < high for low, high in intervals)}


@given(pieces, pieces)
@MANY
def test_unions_of_open_intervals_are_equal_exactly_when_they_cover_the_same(
    a: list[tuple[int, int]], b: list[tuple[int, int]]
) -> None:
    first, second = (r" \cup ".join(f"({low}, {high})" for low, high in each) for each in (a, b))
    # One piece is a pair of numbers too, which no union is.
    assert answers_equal(first, second) == (covered(a) == covered(b))


# --- expressions, equations -------------------------------------------------------------------------

coefficients = st.tuples(small, small, small)


@given(coefficients, coefficients, small)
@MANY
def test_polynomials_are_equal_exactly_when_their_coefficients_are(
    a: tuple[int, int, int], b: tuple[int, int, int], shift: int
) -> None:
    plain = f"{a[0]}x^2 + ({a[1]})x + ({a[2]})"
    # The same in powers of x - shift, with a product written out.
    p, q, r = b
    moved = (
        rf"{p}(x-({shift}))^2 + ({q + 2 * p * shift})(x-({shift})) + \left({r + q * shift + p * shift**2}\right)"
    )
    assert answers_equal(plain, moved) == (a == b)


@given(st.tuples(small, small, small), st.tuples(small, small, small), st.integers(1, 5))
@MANY
def test_lines_are_equal_exactly_when_they_are_multiples(
    a: tuple[int, int, int], b: tuple[int, int, int], factor: int
) -> None:
    if not (a[1] and b[1] and a[0] and b[0]):
        return  # a line parallel to an axis is an equation for one variable
    first = f"{factor * a[0]}x + ({factor * a[1]})y = {factor * a[2]}"
    second = rf"y = \frac{{{b[2]}}}{{{b[1]}}} - \left(\frac{{{b[0]}}}{{{b[1]}}}\right)x"
    equal = a[0] * b[1] == a[1] * b[0] and a[2] * b[1] == a[1] * b[2]
    assert answers_equal(first, second) == equal


@given(small, small, small, small)
@MANY
def test_roots_of_linear_equations_are_their_answers(a: int, b: int, c: int, wrong: int) -> None:
    if a == 0:
        return
    root = Fraction(c - b, a)
    assert answers_equal(f"{a}x + ({b}) = {c}", f"x = {root}")
    assert answers_equal(f"{a}x + ({b}) > {c}", f"x {'>' if a > 0 else '<'} {root}")
    assert answers_equal(f"{a}x + ({b}) = {c}", f"x = {wrong}") == (root == wrong)
