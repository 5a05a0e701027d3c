r"""From tokens to the tree of an algebraic expression, as people read LaTeX and what models write for it.

A tree is a tuple of an operation and its operands: ``("num", Fraction)``, ``("var", name)``, ``("const", name)``,
``("add", ...)``, ``("mul", ...)``, ``("neg", a)``, ``("inv", a)``, ``("pow", a, b)``, ``("degree", a)``,
``("call", function, ...)`` with a known function, ``("opaque", name, ...)`` with one that only has a name.

Products without a sign bind more tightly than division: ``1/2x`` is ``1/(2x)``. The argument of a function
without brackets ends before the next function: ``\sin 2x \cos x`` is a product.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from arrol_tts.answers.tokens import vocabulary

Tree = tuple[Any, ...]

MAX_TOKENS = 300
MAX_DEPTH = 40


class RefusedError(Exception):
    """The expression lies outside what is read here: it is compared as text."""


GREEK = vocabulary(
    """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
    omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega
    """
)
_INVERSES = {name: "a" + name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")}
FUNCTIONS = {
    **{name: name for name in ("ln", "log", "lg", "exp", "coth", "sech", "csch", *_INVERSES, *_INVERSES.values())},
    **{"arc" + name: inverse for name, inverse in _INVERSES.items()},
}
_OF_LISTS = frozenset(("max", "min", "gcd", "lcm"))
_OF_ONE = {"abs": "abs", "floor": "floor", "ceil": "ceiling", "ceiling": "ceiling"}
_ACCENTS = frozenset((r"\dot", r"\ddot", r"\bar", r"\hat", r"\vec", r"\tilde", r"\overline", r"\overrightarrow"))
_PREFIXES = frozenset(("arcsin", "arccos", "arctan", "sin", "cos", "tan", "log", "ln", "exp", "cot", "sec", "csc"))
_CLOSING = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_SPELLED = {"+": "plus", "-": "minus", "*": "times", "/": "over", ",": "and", "'": "prime"}
_STARTS = frozenset(
    ("(", "[", "{", r"\lfloor", r"\lceil", r"\frac", r"\sqrt", r"\binom", r"\pi", r"\hbar", r"\ell")
)
_FACTORS_BEFORE_ARGUMENTS = frozenset("abcdeijklmnotxyz")
"""Letters before a number in brackets that are factors: x(2) is a product, g(2) a value of g."""


def parse(tokens: Sequence[str]) -> Tree:
    """The tree of an expression.

    Raises:
        RefusedError: it is no expression that is read here, or too long or too deep.
    """
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise RefusedError
    parser = _Parser(tokens)
    tree = parser.whole()
    if parser.rest:
        raise RefusedError
    return tree


def product(factors: Sequence[Tree]) -> Tree:
    return factors[0] if len(factors) == 1 else ("mul", *factors)


def is_product_of_letters(run: str) -> bool:
    """Whether a run of letters in a formula can be a product of its letters, and not a word."""
    if len(run) <= 2:
        return True
    if len(run) > 4:
        return False
    vowels = [letter for letter in run[run[0] in "ei" :] if letter in "eiouEIOU"]
    return not vowels


def _literal(token: str) -> Fraction:
    """The value of a number's token."""
    mantissa, _, exponent = token.replace("E", "e").partition("e")
    if len(exponent.lstrip("+-")) > 4:
        raise RefusedError
    value = Fraction(mantissa)
    return value * Fraction(10) ** int(exponent) if exponent else value


def is_call_without_space(run: str) -> bool:
    """Whether a run of letters is a function and its argument, as in sinx."""
    return run[-1] in "xy" and run[:-1] in _PREFIXES


class _Parser:
    def __init__(self, tokens: Sequence[str]) -> None:
        self.rest = list(reversed(tokens))
        self.depth = 0
        self.bars = 0  # of absolute values that are open in the innermost brackets

    def peek(self) -> str:
        return self.rest[-1] if self.rest else ""

    def take(self, token: str) -> None:
        if not self.rest or self.rest.pop() != token:
            raise RefusedError

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise RefusedError

    # --- sums and products ---

    def whole(self) -> Tree:
        """All there is in a pair of brackets, or in the expression."""
        tree = self.sum()
        if self.peek() in (r"\choose", r"\over"):
            is_quotient = self.rest.pop() == r"\over"
            under = self.sum()
            tree = ("mul", tree, ("inv", under)) if is_quotient else ("call", "binomial", tree, under)
        return tree

    def sum(self) -> Tree:
        self.deeper()
        terms = [self.term()]
        while self.peek() in ("+", "-"):
            terms.append(self.term())
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("add", *terms)

    def term(self) -> Tree:
        negative = self.signs()
        factors = [self.juxtaposed()]
        while self.peek() in ("*", "/"):
            inverse = self.rest.pop() == "/"
            negative ^= self.signs()
            factor = self.juxtaposed()
            factors.append(("inv", factor) if inverse else factor)
        return ("neg", product(factors)) if negative else product(factors)

    def signs(self) -> bool:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.rest.pop() == "-"
        return negative

    def juxtaposed(self, *, in_argument: bool = False) -> Tree:
        factors = [self.factor()]
        while self.starts_factor(in_argument):
            number_before = factors[-1][0] == "num" and self.peek()[0].isdigit()
            if number_before and not (len(factors) == 1 and self.mixed(factors)):
                raise RefusedError
            if not number_before:
                factors.append(self.factor())
        return product(factors)

    def mixed(self, factors: list[Tree]) -> bool:
        """Read the fraction of 7 1/8 into the whole number before it."""
        if len(self.rest) < 3 or self.rest[-2] != "/" or not (self.rest[-1].isdigit() and self.rest[-3].isdigit()):
            return False
        over, _, under = self.rest.pop(), self.rest.pop(), self.rest.pop()
        if int(under) == 0 or factors[0][1].denominator != 1:
            raise RefusedError
        factors[0] = ("num", factors[0][1] + Fraction(int(over), int(under)))
        return True

    def starts_factor(self, in_argument: bool) -> bool:
        token = self.peek()
        if not token:
            return False
        if token[0].isdigit() or token[0] == ".":
            return True
        if token == "|":
            return self.bars == 0
        name = token.lstrip('"\\')
        if in_argument and (name in FUNCTIONS or name in _OF_LISTS):
            return False
        return (
            token in _STARTS
            or (token[0].isalpha() and token.isascii())
            or (token[0] == '"' and (len(token) == 2 or name in FUNCTIONS))
            or (
                token[0] == "\\" and (name in GREEK or name in FUNCTIONS or name in _OF_LISTS or token in _ACCENTS)
            )
            or token.startswith(r"\cal")
        )

    # --- factors ---

    def factor(self) -> Tree:
        grouped = self.peek() in _CLOSING or self.peek() == "|"
        base = self.primary()
        postfixes, powers = 0, 0
        while self.peek() in ("^", "!", "°"):
            token = self.rest.pop()
            postfixes += 1
            if postfixes > 4:
                raise RefusedError
            if token == "°":
                base = ("degree", base)
            elif token == "!":
                if self.peek() == "!":
                    self.rest.pop()
                    base = ("call", "double factorial", base)
                else:
                    base = ("call", "factorial", base)
            elif powers:
                raise RefusedError  # x^y^z is no LaTeX
            else:
                powers += 1
                base = ("pow", base, self.exponent())
        number_follows = self.peek()[:1].isdigit() and self.rest[-2:-1] != ["^"]  # n2^n is a product, n2 is not
        if self.peek() == "_" or (number_follows and base[0] in ("var", "const", "pow") and not grouped):
            raise RefusedError  # the base of 52_8; x2
        return base

    def exponent(self) -> Tree:
        negative = self.signs()
        if self.peek() == "(":
            tree = self.group()
        elif self.peek()[:1].isdigit():
            tree = self.primary()
        else:
            tree = self.argument()
        return ("neg", tree) if negative else tree

    def argument(self) -> Tree:
        r"""The argument of a command: a group in braces, or one symbol, as in \frac12 and x^2."""
        token = self.peek()
        if token == "{":
            return self.group()
        if token[:1].isdigit() and len(token) > 1:
            if not token.isdigit():
                raise RefusedError
            self.rest[-1] = token[1:]
            return ("num", Fraction(token[0]))
        if len(token) > 1 and token.isalpha() and token not in FUNCTIONS and token not in ("pi", "sqrt", *GREEK):
            self.rest[-1:] = reversed(token)
        if not token or token in ("+", "-", "*", "/", "^", "_", "!"):
            raise RefusedError
        self.deeper()
        tree = self.primary()
        self.depth -= 1
        return tree

    def group(self) -> Tree:
        """What stands in a pair of brackets."""
        opening = self.rest.pop()
        bars, self.bars = self.bars, 0
        tree = self.whole()
        self.take(_CLOSING[opening])
        self.bars = bars
        if opening in (r"\lfloor", r"\lceil"):
            return ("call", "floor" if opening == r"\lfloor" else "ceiling", tree)
        return tree

    def primary(self) -> Tree:
        if not self.rest:
            raise RefusedError
        token = self.peek()
        if token[0].isdigit() or token[0] == ".":
            return self.number()
        if token == "{" and len(self.rest) > 3 and self.rest[-3:-1] != [] and self.rest[-4:-2] == ["_", "}"]:
            letter = self.rest[-2]  # {g}_{k}
            del self.rest[-3:]
            self.rest.append(letter)
            return self.primary()
        if token in _CLOSING:
            return self.group()
        self.rest.pop()
        if token == "|":
            return self.absolute()
        if token == r"\frac":
            self.refuse_derivative()
            return ("mul", self.argument(), ("inv", self.argument()))
        if token == r"\binom":
            return ("call", "binomial", self.argument(), self.argument())
        name = token.lstrip('"\\')
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.call(FUNCTIONS[name])
        if name in _OF_LISTS and self.peek() in ("(", r"\{"):
            return ("call", name, *self.arguments())
        if name in _OF_ONE and self.peek() == "(":
            return ("call", _OF_ONE[name], self.group())
        if token in (r"\pi", "pi"):
            return ("const", "pi")
        if token[0] == "\\":
            return self.command(token, name)
        if not name.isalpha() or not name.isascii() or (token[0] == '"' and len(name) > 1):
            raise RefusedError
        return self.letters(name)

    def refuse_derivative(self) -> None:
        r"""Refuse what follows a \frac where it is d/dx or dy/dx, which is no quotient of products."""
        following = " ".join(self.rest[:-10:-1])
        if re.match(r"\{ d ?[A-Za-z]? (?:\} )\{ d ?[A-Za-z] \}", following):
            raise RefusedError

    def number(self) -> Tree:
        token = self.rest.pop()
        value = _literal(token)
        # 1\frac{4}{5} is a mixed number, 2\frac{a}{b} a product.
        if self.peek() == r"\frac" and token.isdigit():
            fraction = self.plain_fraction()
            if fraction is not None:
                return ("num", value + fraction)
        return ("num", value)

    def plain_fraction(self) -> Fraction | None:
        r"""Read \frac{4}{5} with nothing but digits in it; None, with nothing read, for any other."""
        rest, digits, i = self.rest, [], len(self.rest) - 2
        for _ in range(2):
            if i >= 0 and rest[i] == "{":
                if i < 2 or rest[i - 2] != "}" or not rest[i - 1].isdigit():
                    return None
                digits.append(rest[i - 1])
                i -= 3
            elif i >= 0 and rest[i].isdigit():
                digits += list(rest[i]) if len(digits) + len(rest[i]) <= 2 else ["0", "0", "0"]
                i -= 1
            if len(digits) >= 2:
                break
        if len(digits) != 2 or int(digits[1]) == 0:
            return None
        del rest[i + 1 :]
        return Fraction(int(digits[0]), int(digits[1]))

    def absolute(self) -> Tree:
        self.bars += 1
        tree = self.sum()
        self.take("|")
        self.bars -= 1
        return ("call", "abs", tree)

    def root(self) -> Tree:
        index: Tree = ("num", Fraction(2))
        if self.peek() == "[":
            index = self.group()
        if self.peek() in ("(", "{"):
            inner = self.group()
        elif self.peek()[:1].isdigit():
            inner = ("num", _literal(self.rest.pop()))
        else:
            inner = self.argument()
        return ("pow", inner, ("inv", index))

    def arguments(self) -> list[Tree]:
        """The arguments of a function in round or set brackets."""
        closing = ")" if self.rest.pop() == "(" else r"\}"
        bars, self.bars = self.bars, 0
        arguments = [self.sum()]
        while self.peek() == ",":
            self.rest.pop()
            arguments.append(self.sum())
        self.take(closing)
        self.bars = bars
        return arguments

    def call(self, function: str) -> Tree:
        self.deeper()
        base: Tree | None = None
        power: Tree | None = None
        for _ in range(2):
            if self.peek() == "_" and function == "log" and base is None:
                self.rest.pop()
                base = self.primary() if self.peek()[:1].isdigit() else self.argument()
            elif self.peek() == "^" and power is None:
                self.rest.pop()
                power = self.exponent()
        if power in (("neg", ("num", Fraction(1))), ("num", Fraction(-1))) and function in _INVERSES:
            function, power = _INVERSES[function], None
        if self.peek() in ("(", "[", "{", r"\lfloor", r"\lceil"):
            argument = self.group()
        elif self.signs():
            argument = ("neg", self.juxtaposed(in_argument=True))
        else:
            argument = self.juxtaposed(in_argument=True)
        self.depth -= 1
        if function in ("log", "lg"):
            tree: Tree = ("call", "log", argument, base or ("num", Fraction(10)))
        else:
            tree = ("call", function, argument)
        return tree if power is None else ("pow", tree, power)

    # --- names ---

    def command(self, token: str, name: str) -> Tree:
        if token in _ACCENTS:
            return self.named(name + " " + self.subscript())
        if name in GREEK or token in (r"\hbar", r"\ell") or token.startswith(r"\cal"):
            return self.named(name)
        raise RefusedError

    def letters(self, run: str) -> Tree:
        if len(run) == 1:
            if run in "ei" and self.peek() != "_":
                return ("const", run)
            return self.named(run)
        if run in GREEK:
            return self.named(run)
        if is_call_without_space(run):
            self.rest += [run[-1], run[:-1]]
            return self.primary()
        if not is_product_of_letters(run):
            raise RefusedError
        self.rest.extend(reversed(run[1:]))
        return self.letters(run[0])

    def named(self, name: str) -> Tree:
        """A variable with its subscript, or a function that has no more than a name, with its arguments."""
        if self.peek() == "_":
            self.rest.pop()
            name += "_" + self.subscript()
        while self.peek() in ("'", "''"):
            name += self.rest.pop()
        if self.peek() == "(" and len(name) == 1 and name.isalpha():
            function = self.function(name)
            if function is not None:
                return function
        return ("var", name)

    def function(self, name: str) -> Tree | None:
        """f(...), g(2), C(5,2); None, with nothing read, where a letter before a bracket is a factor."""
        depth = commas = length = 0
        for token in reversed(self.rest):
            depth += (token in _CLOSING) - (token in (")", "]", "}"))
            commas += token == "," and depth == 1
            length += 1
            if depth == 0:
                break
        number = length == 3 and self.rest[-2][0].isdigit() and name not in _FACTORS_BEFORE_ARGUMENTS
        if not (commas or number or name in "fF"):
            return None
        arguments = self.arguments()
        if name == "C" and len(arguments) == 2:
            return ("call", "binomial", *arguments)
        return ("opaque", name, *arguments)

    def subscript(self) -> str:
        """A subscript or an accented symbol is a name: kept as letters and digits, whatever it holds."""
        if not self.rest:
            raise RefusedError
        token = self.rest.pop()
        parts: list[str] = []
        if token == "{":
            while self.peek() not in ("}", ""):
                inner = self.rest.pop()
                if inner != "{":
                    parts.append(_SPELLED.get(inner, inner.lstrip('"\\')))
            self.take("}")
        elif len(token) > 1 and token.isalpha():
            parts.append(token[0])
            self.rest.extend(reversed(token[1:]))
        else:
            parts.append(token.lstrip('"\\'))
        name = "".join(parts)
        if not re.fullmatch(r"[\w.]+", name):
            raise RefusedError
        return name
