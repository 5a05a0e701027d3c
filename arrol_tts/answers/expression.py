"""Keys for algebraic expressions: equal values, equal keys.

Reading LaTeX algebra is left to math-verify's parser (``latex2sympy2_extended``); deciding equality is
not. math-verify compares pairs with tolerances, which is no equivalence, and relies on SymPy's
``simplify``, which has no bound that works outside the main thread. Here an expression is reduced to
its *values* instead: a constant to its exact or 30-digit value, an expression with variables to its
values at fixed points that depend on the variables' names only. Two expressions are equal when their
values are (identity testing by evaluation, in the manner of Schwartz and Zippel,
https://en.wikipedia.org/wiki/Schwartz-Zippel_lemma), so equality is transitive and each expression is
read once.

Cost is bounded before it arises. The parser takes time exponential in nested braces and evaluates some
commands eagerly (``\\binom{1000000}{500000}`` takes a minute), so an expression is first rewritten into
the small, explicit part of LaTeX that is read quickly; whatever does not fit is refused, and its caller
compares it as text.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import threading
from collections.abc import Callable, Hashable
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_TOKENS = 200
MAX_REWRITTEN = 600
MAX_DEPTH = 6
MAX_BITS = 50_000
"""Numbers are at most 2**MAX_BITS in size, so that 9**9**9 is refused."""

FORGET_AFTER = 1000
"""Parses after which the parser's tables are emptied: they take about 0.1 MB for each new expression."""

DIGITS = 30
"""Decimal digits that two inexact values must share to be equal; they are computed with 100."""

_TOKEN = re.compile(r"\\[a-zA-Z]+|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[a-zA-Z]|[-+*/^_!|()\[\]{}]|\s+")
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_FUNCTIONS = {
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc"),
    *("sinh", "cosh", "tanh", "ln", "log", "exp"),
}
_SPELLED = {"+": "plus", "-": "minus", "*": "times", "/": "over"}
_GREEK = {
    *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota"),
    *("kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi"),
    *("omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega"),
}
_ACCENTS = {r"\dot", r"\ddot", r"\bar", r"\hat", r"\vec", r"\tilde", r"\overline"}
_COMMANDS = {"\\" + name for name in _FUNCTIONS | _GREEK | {"pi", "hbar", "ell", "cdot", "times", "div"}}

_NOT_VARIABLES = {"d", "E", "I", r"\gamma", r"\Gamma"}
"""Variables that the parser takes for a differential, an exponent sign, i and Euler's constant."""

_E = r"\bar{exponential}"

_LOCK = threading.Lock()  # the parser's tables and the precision of an mpmath context are shared state


_FACTOR = (*"0123456789.(", r"\frac")
"""How a factor starts that the parser would join to a number after it: it reads 2(\\frac12) as 2.5."""


class _RefusedError(Exception):
    """The expression lies outside what is read here."""


# --- rewriting into the part of LaTeX that is read fast and without ambiguity -------------------------


def _rewrite(latex: str) -> str:
    tokens = _TOKEN.findall(latex)
    if sum(map(len, tokens)) != len(latex):
        raise _RefusedError  # a character that is no part of algebra
    tokens = [token for token in reversed(tokens) if not token.isspace()]
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise _RefusedError
    text = _until(tokens, "", 0)
    if len(text) > MAX_REWRITTEN:
        raise _RefusedError
    return f"0 + {text}"  # so that the parser does not look for sets and intervals


def _until(tokens: list[str], closing: str, depth: int) -> str:
    """Rewrite the tokens (a stack, first token on top) up to a closing one."""
    if depth > MAX_DEPTH:
        raise _RefusedError
    parts: list[str] = []
    while tokens:
        token = tokens.pop()
        if token == closing:
            if not parts:
                raise _RefusedError
            return " ".join(parts)
        previous = parts[-1] if parts else ""
        if token in _CLOSING:
            inner = _until(tokens, _CLOSING[token], depth + 1)
            # A letter before a parenthesis is left to the parser, since f(x) may be a function.
            if previous.startswith(_FACTOR):
                parts.append(r"\cdot")
            parts.append(f"({inner})" if token in "([{" else f"{token} {inner} {_CLOSING[token]}")
        elif token == r"\frac":
            over, under = _argument(tokens, depth), _argument(tokens, depth)
            fraction = rf"\frac{{{over}}}{{{under}}}"
            if previous.isdigit() and over.isdigit() and under.isdigit():
                parts[-1] = f"({previous}+{fraction})"
            else:
                if previous.startswith(_FACTOR):
                    parts.append(r"\cdot")
                parts.append(fraction)
        elif token == r"\binom":
            n, k = _argument(tokens, depth), _argument(tokens, depth)
            parts.append(rf"(\frac{{({n})!}}{{({k})!\cdot(({n})-({k}))!}})")
        elif token == r"\sqrt":
            index = "2"
            if tokens and tokens[-1] == "[":
                tokens.pop()
                index = _until(tokens, "]", depth + 1)
                if not re.fullmatch("[0-9]{1,3}|[a-zA-Z]", index):
                    raise _RefusedError  # the parser divides by the index eagerly
            parts.append(rf"\sqrt[{index}]{{{_argument(tokens, depth)}}}")
        elif token == "^":
            if not previous or previous[0] == "^":
                raise _RefusedError  # x^y^z is no LaTeX
            parts.append(f"^{{{_argument(tokens, depth)}}}")
        elif token == "_":
            if previous == r"\log":
                base = _argument(tokens, depth)
                if not base.isalnum():
                    raise _RefusedError
                parts.append(f"_{{{base}}}")
            elif re.fullmatch(r"[a-zA-Z]|\\[a-zA-Z]+|\\bar\{\w+\}", previous):
                parts[-1] += f"_{{{_name(tokens)}}}"
            else:
                raise _RefusedError  # the parser drops the base of 52_8
        elif token[0].isdigit() or token[0] == ".":
            if previous.startswith(_FACTOR):
                parts.append(r"\cdot")
            parts.append(token)
        elif token in _ACCENTS:
            parts.append(rf"\bar{{{token[1:]}{_name(tokens)}}}")
        elif token == "e" and tokens and tokens[-1] == "^":
            parts.append(_E)  # the parser evaluates e^{...} eagerly
        elif token in _NOT_VARIABLES or (token == "e" and tokens and tokens[-1] == "_"):
            parts.append(r"\bar{" + token.removeprefix("\\") + "}")
        elif token == "!" and (len(parts) == 1 or parts[-2:-1] == [r"\cdot"]) and previous[0] != "^":
            parts[-1] = f"({previous}!)"  # so that n!^2 is read
        elif token.isalpha() or token in _COMMANDS or token in "+-*/!":
            parts.append(token)
        else:
            raise _RefusedError
    if closing:
        raise _RefusedError
    return " ".join(parts)


def _argument(tokens: list[str], depth: int) -> str:
    r"""The argument of a command: a group in braces, or one symbol, as in \frac12 and x^2."""
    if not tokens:
        raise _RefusedError
    token = tokens.pop()
    if token == "{":
        return _until(tokens, "}", depth + 1)
    if token == r"\frac":
        return rf"\frac{{{_argument(tokens, depth + 1)}}}{{{_argument(tokens, depth + 1)}}}"
    if token == r"\sqrt":
        return rf"\sqrt{{{_argument(tokens, depth + 1)}}}"
    if token[0].isdigit():
        if len(token) > 1:
            tokens.append(token[1:])
        return token[0]
    if token.isalpha() or token in _COMMANDS:
        return token
    if token == "-" and tokens and tokens[-1].isdigit():  # 10^-3, as models write it
        return "-" + tokens.pop()
    raise _RefusedError


def _name(tokens: list[str]) -> str:
    """A subscript or an accented symbol is a name: kept as letters and digits, whatever it holds."""
    parts, depth = [], 0
    while tokens:
        token = tokens.pop()
        depth += (token == "{") - (token == "}")
        if token not in "{}":
            parts.append(_SPELLED.get(token, token.removeprefix("\\")))
        if depth <= 0:
            break
    name = "".join(parts)
    if depth or not name.isalnum():
        raise _RefusedError
    return name


def _forget_tables() -> None:
    """Empty the parser's prediction tables, which otherwise grow with every new form of expression."""
    from antlr4 import DFA, PredictionContextCache
    from latex2sympy2_extended.antlr_parser import PSLexer, PSParser

    for recogniser in (PSParser, PSLexer):
        for i, state in enumerate(recogniser.atn.decisionToState):
            recogniser.decisionsToDFA[i] = DFA(state, i)
    PSParser.sharedContextCache = PredictionContextCache()


_parses = itertools.count(1)


def _parse(text: str) -> Any:
    """The SymPy tree of a rewritten expression."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    if next(_parses) % FORGET_AFTER == 0:
        _forget_tables()
    try:
        tree = latex2sympy(
            text, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False)
        )
    except Exception as error:  # the parser raises bare Exception, and whatever SymPy raises
        raise _RefusedError from error
    if not hasattr(tree, "free_symbols"):
        raise _RefusedError
    return tree


# --- evaluation -----------------------------------------------------------------------------------

_INTEGER_NAMES = frozenset("ijklmnKLMN")
_INTEGER_VALUES = (4, 7, 9, 16, 23, 30, 36, 51, 64)


@lru_cache(maxsize=1024)
def _coordinates(name: str) -> tuple[Fraction, ...]:
    """A variable's value at each point: whole numbers for the letters that name whole numbers.

    Whole numbers, squares and their neighbours among them, tell floor(n/2) from floor((n+1)/2); the
    other letters get positive fractions, so that x and floor(x) differ and the root of x^2 is x.
    """
    rng = random.Random(name)
    if name[0] in _INTEGER_NAMES:
        return tuple(map(Fraction, rng.sample(_INTEGER_VALUES, len(_INTEGER_VALUES))))
    return tuple(Fraction(rng.randrange(1000, 60_000), 9973) for _ in _INTEGER_VALUES)


@lru_cache(maxsize=2)
def _context(digits: int) -> Any:
    import mpmath

    context = mpmath.MPContext()
    context.dps = digits
    return context


class _Evaluator:
    """Evaluates a SymPy tree at one point, in exact fractions as far as they go."""

    def __init__(self, context: Any, symbols: dict[str, Any]) -> None:
        self.context = context
        self.symbols = symbols

    def inexact(self, value: Any) -> Any:
        if isinstance(value, Fraction):
            return self.context.mpf(value.numerator) / value.denominator
        return value

    def value(self, node: Any) -> Any:
        """The value of a tree: a Fraction where it is exact, otherwise an mpf or mpc."""
        return self.bounded(self._value(node))

    def bounded(self, value: Any) -> Any:
        if isinstance(value, Fraction):
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
                raise _RefusedError
        elif not self.context.isfinite(value) or (value and abs(self.context.mag(value)) > MAX_BITS):
            raise _RefusedError
        return value

    def _value(self, node: Any) -> Any:
        if node.is_Rational:
            return Fraction(int(node.p), int(node.q))
        if node.is_Float:
            return Fraction(str(node))
        if node.is_Symbol:
            return self.symbols[node.name]
        name = node.func.__name__
        if name in _CONSTANTS:
            return _CONSTANTS[name](self.context)
        arguments = [self.value(argument) for argument in node.args]
        if name in ("Add", "Mul"):
            result: Any = Fraction(name == "Mul")
            for argument in arguments:
                if not (isinstance(result, Fraction) and isinstance(argument, Fraction)):
                    result, argument = self.inexact(result), self.inexact(argument)
                result = self.bounded(result + argument if name == "Add" else result * argument)
            return result
        if name == "Pow":
            return self.power(*arguments)
        if name in ("floor", "ceiling"):
            return self.rounded(arguments[0], math.floor if name == "floor" else math.ceil)
        if name == "Abs" and isinstance(arguments[0], Fraction):
            return abs(arguments[0])
        if name == "factorial" and isinstance(arguments[0], Fraction) and arguments[0].denominator == 1:
            if not 0 <= arguments[0] <= 4000:
                raise _RefusedError
            return Fraction(math.factorial(int(arguments[0])))
        inexact = [self.inexact(argument) for argument in arguments]
        if name in _MPMATH and len(inexact) <= 2:
            if any(abs(argument) > 1e4 and name not in ("Abs", "log") for argument in inexact):
                raise _RefusedError
            return getattr(self.context, "fabs" if name == "Abs" else name)(*inexact)
        # A function or a derivative that has no value: an unknown of its own, the same for the same
        # arguments.
        if not inexact:
            raise _RefusedError
        digits = " ".join(_digits(self.context, argument) for argument in inexact)
        return Fraction(random.Random(f"{name} {digits}").randrange(1000, 60_000), 9967)

    def power(self, base: Any, exponent: Any) -> Any:
        if base == 0:
            if isinstance(exponent, Fraction) and exponent > 0:
                return Fraction(0)
            raise _RefusedError
        if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
            size = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent)
            if abs(base) != 1 and size > 2 * MAX_BITS:
                raise _RefusedError
            return base ** int(exponent)
        inexact, power = self.inexact(base), self.inexact(exponent)
        if abs(power) * (abs(self.context.mag(inexact)) + 1) > MAX_BITS:
            raise _RefusedError
        if isinstance(exponent, Fraction) and exponent.denominator % 2 and inexact.imag == 0 > inexact.real:
            # The real root of a negative number: the cube root of -8 is -2.
            return (-1) ** exponent.numerator * (-inexact.real) ** power
        return inexact**power

    def rounded(self, value: Any, rounding: Callable[[Any], int]) -> Fraction:
        if isinstance(value, Fraction):
            return Fraction(rounding(value))
        if abs(value.imag) > 1e-50:
            raise _RefusedError
        nearest = self.context.nint(value.real)
        if abs(value.real - nearest) < 1e-50:  # log_2 8 is 3, not 2.99...
            return Fraction(int(nearest))
        return Fraction(int(self.context.floor(value.real)) + (rounding is math.ceil))


_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    "Pi": lambda context: +context.pi,
    "Exp1": lambda context: +context.e,
    "ImaginaryUnit": lambda context: context.mpc(0, 1),
}
_MPMATH = {
    *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc"),
    *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "exp", "log", "gamma", "factorial", "Abs"),
}
"""SymPy's functions that have a value; mpmath names them alike, Abs apart."""


def _digits(context: Any, value: Any) -> str:
    """A value as text, with DIGITS significant digits; noise of the computation is dropped."""
    if isinstance(value, Fraction):
        value = context.mpf(value.numerator) / value.denominator
    scale = abs(value)
    if scale < 1e-60:
        return "0"
    real, imag = (
        "0" if abs(part) < scale * 1e-40 else context.nstr(part, DIGITS)
        for part in (context.mpf(value.real), context.mpf(value.imag))
    )
    return real if imag == "0" else f"{real} {imag}i"


def _fraction(context: Any, value: Any) -> Fraction | None:
    """The fraction that an inexact value stands for, if it is one with a denominator up to 10**15."""
    if abs(value.imag) > 1e-60 * abs(value):
        return None
    sign, mantissa, exponent, _ = value.real._mpf_
    exact = Fraction(int(mantissa)) * Fraction(2) ** exponent * (-1) ** sign
    near = exact.limit_denominator(10**15)
    return near if abs(exact - near) * 10**55 < max(1, abs(exact)) else None


def _constant(tree: Any, digits: int = 100) -> Hashable:
    context = _context(digits)
    value = _Evaluator(context, _units(context)).value(tree)
    if isinstance(value, Fraction):
        return value
    if abs(value) < 1e-40:
        # Zero, or small: the remainder of a cancellation shrinks with the precision, a value does not.
        finer = _context(2 * digits)
        value = _Evaluator(finer, _units(finer)).value(tree)
        if abs(value) < finer.mpf(10) ** (-digits - 20):
            return Fraction(0)
        return str(finer.nstr(value, DIGITS))
    near = _fraction(context, value)
    return _digits(context, value) if near is None else near


def _units(context: Any) -> dict[str, Any]:
    return {"i": context.mpc(0, 1), _E[1:]: +context.e}


def _symbols(tree: Any) -> set[str]:
    return {node.name for node in tree.atoms() if node.is_Symbol} - {"i", _E[1:]}


def _at_points(tree: Any) -> list[Any]:
    """The values at each point; None where a point gives none (a pole, a number too large)."""
    context = _context(100)
    names = _symbols(tree)
    values: list[Any] = []
    for i in range(len(_INTEGER_VALUES)):
        evaluator = _Evaluator(context, {name: _coordinates(name)[i] for name in names} | _units(context))
        try:
            values.append(evaluator.inexact(evaluator.value(tree)))
        except (_RefusedError, ArithmeticError, ValueError):
            values.append(None)
    if sum(value is not None for value in values) < 3:
        raise _RefusedError
    return values


def _tree_key(tree: Any) -> Hashable:
    if not _symbols(tree):
        return ("number", _constant(tree))
    return ("expression", _profile(_at_points(tree)))


def _profile(values: list[Any]) -> tuple[str, ...]:
    return tuple("" if value is None else _digits(_context(100), value) for value in values)


def _difference_key(left: Any, right: Any) -> Hashable | None:
    pairs = zip(_at_points(left), _at_points(right), strict=True)
    values = [None if a is None or b is None else a - b for a, b in pairs]
    scale = next((value for value in values if value is not None and abs(value) > 1e-60), None)
    if scale is None:
        return None
    return ("equation", _profile([None if value is None else value / scale for value in values]))


@lru_cache(maxsize=1 << 13)
def _bounded_key(key: Callable[..., Hashable | None], *texts: str) -> Hashable | None:
    with _LOCK:
        try:
            return key(*map(_parse, texts))
        # A pole, an argument outside a function's domain, a matrix where a number should be.
        except (_RefusedError, ArithmeticError, ValueError, TypeError, AttributeError, RecursionError):
            return None


def expression_key(latex: str) -> Hashable | None:
    """The key of an expression, or None when it cannot be read within bounds.

    Constants give ``("number", value)``, the value a Fraction or, when it is irrational, its digits;
    expressions with variables give ``("expression", values)``.
    """
    try:
        return _bounded_key(_tree_key, _rewrite(latex))
    except _RefusedError:
        return None


def equation_key(left: str, right: str) -> Hashable | None:
    """The key of an equation, the same for every multiple of it, or None when it cannot be read.

    The values of ``left - right`` are divided by the first that is not zero, so ``x + y = 1`` equals
    ``2 - 2x = 2y``.
    """
    try:
        return _bounded_key(_difference_key, _rewrite(left), _rewrite(right))
    except _RefusedError:
        return None
