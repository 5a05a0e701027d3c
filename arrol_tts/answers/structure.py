"""The kinds of answer that models write, and the key of each.

`read` tries them in turn: qualified statements, lists, equations and inequalities, sets, tuples and intervals,
matrices, numbers in a stated base, times, words, and last algebra. What is none of them is compared as text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Sequence
from fractions import Fraction

from arrol_tts.answers import sets
from arrol_tts.answers.evaluation import Work
from arrol_tts.answers.expression import equation_key, solved, tree_key, tree_of
from arrol_tts.answers.names import is_name
from arrol_tts.answers.parser import (
    FUNCTIONS,
    GREEK,
    RefusedError,
    Tree,
    is_call_without_space,
    is_product_of_letters,
)
from arrol_tts.answers.pieces import variables
from arrol_tts.answers.sets import collection, members
from arrol_tts.answers.tokens import enclosed, split, text_key, vocabulary, word
from arrol_tts.answers.units import are_one_quantity, measured, with_percent_signs

MAX_NESTING = 12
MAX_SIGNS = 4
"""Plus-minus signs in an expression; each doubles the values it stands for."""

_FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}
_BEFORE_A_VALUE = frozenset((",", ";", "+", "-", "*", "/", "=", r"\cdot", r"\times"))
_RELATIONS = frozenset(("=", "≠", "<", ">", "≤", "≥", r"\in", r"\approx", r"\equiv"))
_STATEMENTS = vocabulary(
    r"""
    \notin \subset \subseteq \supset \supseteq \sim \cong \parallel \perp \to \mapsto \implies \Rightarrow
    \iff \Leftrightarrow \rightarrow \leftarrow \longrightarrow \propto \pmod \bmod \mod \ni \because
    \therefore \exists \neg
    """
)
_QUALIFIERS = frozenset(
    ("for", "where", "with", "when", "if", "such", "whenever", "provided", "whence", "unless", "given")
)
_QUANTIFIERS = frozenset(("all", "any", "every", "each"))
_INTEGERS = frozenset(("integer", "integers", "whole"))
_PARAMETER = r"\calparameter"
_MATRICES = frozenset(
    rf"\begin:{name}"
    for name in ("matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "psmallmatrix", "array")
)
_ROOT_NAMES = frozenset(("x", "z", "t", "r", r"\lambda"))
_NUMBERS_IN_WORDS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}


class Reading:
    """One answer's reading.

    Args:
        percent_is_unit: whether 50% is 50, rather than 1/2.
    """

    def __init__(self, *, percent_is_unit: bool) -> None:
        self.percent_is_unit = percent_is_unit
        self.depth = 0
        self.work = Work()

    def read(self, tokens: list[str]) -> Hashable:
        """The key of tokens; each kind returns None for what it is not.

        Raises:
            RefusedError: all the work that may be done for an answer is done.
        """
        self.work.spend(5 + len(tokens) / 2)
        self.depth += 1
        try:
            if self.depth > MAX_NESTING or not tokens:
                return text_key(tokens)
            for kind in self._KINDS:
                key = kind(self, tokens)
                if key is not None:
                    return key
            return _statement_key(tokens)
        finally:
            self.depth -= 1

    def tree_key(self, tree: Tree) -> Hashable | None:
        return tree_key(self.work, tree)

    # --- words and labels -----------------------------------------------------------------------------

    def word(self, tokens: list[str]) -> Hashable | None:
        """One word, or a phrase of words only."""
        if not all(word(token) or token in ("-", ".", "'") for token in tokens) or {'"and', '"or'} & {*tokens}:
            return None
        if len(tokens) == 1:
            run = tokens[0].lstrip('"')
            return None if _is_formula(run) else text_key(tokens)
        runs = [token.lstrip('"') for token in tokens]
        if all(_is_formula(run) or run in FUNCTIONS for run in runs) and not any(
            token[0] == '"' and len(token) > 2 for token in tokens
        ):
            return None
        if [run.casefold() for run in runs if run != "."] in (["all", "real", "numbers"], ["all", "reals"]):
            return sets.set_key(sets.REALS)
        return _statement_key([token for token in tokens if word(token)])

    def labelled(self, tokens: list[str]) -> Hashable | None:
        """``(C) 27`` and ``C) 27``: the answer with the letter of a choice before it."""
        start = int(tokens[0] == "(")
        if len(tokens) < start + 3 or tokens[start].lstrip('"') not in "ABCDEFGHIJ" or tokens[start + 1] != ")":
            return None
        rest = tokens[start + 2 :]
        if rest[0] in (".", ":"):
            rest = rest[1:]
        if not rest or (start and not (rest[0][0].isdigit() or rest[0][0] in '-+\\"')):
            return None
        return self.read(rest)

    # --- qualifications -----------------------------------------------------------------------------------

    def qualified(self, tokens: list[str]) -> Hashable | None:
        r"""``2k\pi where k \in Z``, ``f(n) = n for all n``: families of answers, and statements with a domain."""
        depth = 0
        for i, token in enumerate(tokens):
            depth += (token in ("(", "[", "{", r"\{")) - (token in (")", "]", "}", r"\}"))
            if i and depth == 0 and (token == r"\forall" or word(token) in _QUALIFIERS):
                break
        else:
            return self.parenthesised_domain(tokens)
        main = tokens[: i - 1] if tokens[i - 1] == "," else tokens[:i]
        condition = tokens[i + 1 :]
        if word(token) == "such" and condition and word(condition[0]) == "that":
            condition = condition[1:]
        universal = token == r"\forall"
        while condition and word(condition[0]) in _QUANTIFIERS:
            universal = True
            condition = condition[1:]
        if not main or not condition:
            return None
        domain = _domain(condition)
        if domain and domain[1] == "Z" and not _defines_function(main):
            return self.family(main, *domain)
        if universal and (domain or _is_natural_domain(condition)):
            return self.read(main)
        if domain:
            return self.family(main, *domain)
        return ("with", self.read(main), text_key(condition))

    def parenthesised_domain(self, tokens: list[str]) -> Hashable | None:
        if tokens[-1] != ")" or "(" not in tokens[1:]:
            return None
        start = len(tokens) - 1 - tokens[::-1].index("(")
        domain = _domain(tokens[start + 1 : -1])
        return self.family(tokens[:start], *domain) if domain and start else None

    def family(self, main: list[str], name: str, domain: str) -> Hashable:
        """The values of an expression over a domain, whatever its parameter is called."""
        if name not in main:
            return ("with", self.read(main), ("domain", domain))
        return ("family", self.read([_PARAMETER if token == name else token for token in main]), domain)

    # --- lists --------------------------------------------------------------------------------------------

    def listed(self, tokens: list[str]) -> Hashable | None:
        r"""``2, 3``, ``x=1 or x=2``, ``x < 0 or x > 3``: in any order, repetitions counted."""
        if r"\land" in tokens or r"\lor" in tokens:  # between conditions these are words, else they are logic
            if not all(_RELATIONS.intersection(part) for part in split(tokens, (r"\land", r"\lor"))):
                return _statement_key(tokens)
            tokens = [{r"\land": '"and', r"\lor": '"or'}.get(token, token) for token in tokens]
        separators = (",", ";", '"and', '"or')
        parts = [part for part in split(tokens, separators) if part]
        if len(parts) < 2:
            return self.read(parts[0]) if parts and len(parts[0]) < len(tokens) else None
        joined_by = _separators(tokens, separators)
        domain = _domain(parts[-1])
        if domain and len(parts) == 2:
            return self.family(parts[0], *domain)
        conditions = self.conditions(parts, joined_by)
        if conditions is not None:
            return conditions
        if are_one_quantity([measured(part)[2] for part in parts]):
            return text_key(tokens)
        if [r"\ldots"] in parts:
            return ("sequence", "...", *map(self.read, parts))
        names = [_name_before_equals(part) or self.name_of_condition(part) for part in parts]
        keys = [self.read(part) for part in parts]
        if len(set(names) - {""}) > 1:  # x=1, y=2: here the names matter
            return collection(zip(names, keys, strict=True))
        return collection(members(keys), distinct=joined_by == {'"or'})

    def name_of_condition(self, part: list[str]) -> str:
        """The variable of ``x > 1``, which matters beside ``y > 2``; '' for what is no inequality."""
        found = self.condition(part) if _FLIPPED.keys() & {*part} else None
        return found[0] if found else ""

    def conditions(self, parts: list[list[str]], joined_by: set[str]) -> Hashable | None:
        """Conditions on one variable: ``and`` intersects, ``or`` unites, a comma what leaves something to say."""
        if not all(any(token in _FLIPPED or token in ("≠", r"\in") for token in part) for part in parts):
            return None
        found = [self.condition(part) for part in parts]
        if None in found:
            return None
        names = {name for name, _ in found}  # type: ignore[misc]
        if len(names) > 1:
            return None
        each = [intervals for _, intervals in found]  # type: ignore[misc]
        union, intersection = sets.union(*each), sets.intersection(*each)
        if '"and' in joined_by and '"or' not in joined_by:
            return sets.set_key(intersection) if intersection else None
        if '"or' in joined_by:
            return sets.set_key(union) if '"and' not in joined_by else None
        if union == sets.REALS:
            return sets.set_key(intersection)
        return sets.set_key(union) if not intersection else None

    # --- relations ----------------------------------------------------------------------------------------

    def related(self, tokens: list[str]) -> Hashable | None:
        r"""``x \in S``, ``x = 5`` and ``1 < x`` are what they say of x; other equations stand for themselves."""
        if _STATEMENTS.intersection(_in_order(tokens, _STATEMENTS)) or r"\pmod" in tokens:
            return _statement_key(tokens)
        sides = split(tokens, _RELATIONS)
        if len(sides) < 2:
            return None
        relations = _in_order(tokens, _RELATIONS)
        if r"\approx" in relations:
            return self.estimated(sides, relations)
        if not all(sides):
            return _statement_key(tokens)
        kinds = set(relations)
        if kinds == {r"\in"}:
            return self.read(sides[1]) if len(sides) == 2 and is_name(sides[0]) else _statement_key(tokens)
        if kinds == {r"\equiv"} and len(sides) == 2 and is_name(sides[0]):
            return self.read(sides[1])
        if kinds == {"="}:
            key = self.equation(sides)
        elif kinds <= {*_FLIPPED, "≠"}:
            key = self.inequality(sides, relations)
        else:
            key = None
        return _statement_key(tokens) if key is None else key

    def estimated(self, sides: list[list[str]], relations: list[str]) -> Hashable | None:
        r"""``\sqrt 2 \approx 1.41``: the exact side counts, unless it is a name."""
        i = relations.index(r"\approx")
        exact = [side for side in sides[: i + 1] if side]
        if set(relations[:i]) - {"="}:
            return None
        if exact and not is_name(exact[-1]):
            return self.read(exact[-1])
        return self.read(sides[i + 1]) if sides[i + 1] else None

    def equation(self, sides: list[list[str]]) -> Hashable | None:
        left, right = sides[0], sides[-1]
        if len(sides) > 2:
            return self.chain(sides)
        words = [side[0].lstrip('"') if len(side) == 1 else "" for side in sides]
        if all(len(each) > 1 and each.isalpha() for each in words):  # MR=SRMC
            return ("equation", frozenset(each.casefold() for each in words))
        if "'" in "".join(left) and left[0] in right:  # y' = y
            return None
        if is_name(left) and not (left == ["x"] and _variables(right) == frozenset("y")):
            return self.read(right)
        if any(token in (r"\pm", r"\mp") for token in left + right):
            signed = self.signed([*left, "=", *right])
            return signed
        trees = tree_of(left), tree_of(right)
        if trees[0] is None or trees[1] is None:
            if is_name(right):
                return self.read(left)
            key = self.read(right)
            return key if self.read(left) == key else None
        return self.tree_equation(trees[0], trees[1], right)

    def tree_equation(self, left: Tree, right: Tree, right_tokens: list[str]) -> Hashable | None:
        names = variables(left) | variables(right)
        if not names:
            key = self.tree_key(right)
            return key if self.tree_key(left) == key else None
        if is_name(right_tokens) and not (left != ("var", "x") and right == ("var", "x") and names == {"x", "y"}):
            return self.tree_key(left)  # 2x + 1 = y
        if not variables(right) and not names & {"x", "y", "z"} and _is_sum_or_product_of_names(left):
            return self.tree_key(right)
        if len(names) == 1:
            (name,) = names
            magnitude = _of_magnitude(left, name)
            if magnitude is not None and not variables(right):
                root = right if magnitude == 1 else ("pow", right, ("inv", ("num", Fraction(2))))
                keys = [self.tree_key(root), self.tree_key(("neg", root))]
                return None if None in keys else collection(keys, distinct=True)
            line = solved(self.work, left, right, name)
            if line:
                return self.tree_key(line[1])
        if names == {"x", "y"}:
            line = solved(self.work, left, right, "y")
            if line:
                return self.tree_key(line[1])
        return equation_key(self.work, left, right)

    def chain(self, sides: list[list[str]]) -> Hashable | None:
        """``f(3) = 45/408 + 1/408 = 23/204`` ends in its answer; of the equations of a line every side counts."""
        rest = sides[1:] if is_name(sides[0]) else sides
        while len(rest) > 1 and is_name(rest[0]):
            rest = rest[1:]
        keys = [self.read(side) for side in rest]
        last = tree_of(rest[-1])
        ends_in_constant = last is not None and not variables(last)
        if all(key == keys[-1] for key in keys) or (
            ends_in_constant and (len(rest) < len(sides) or _constant(rest[0]))
        ):
            return keys[-1]
        return ("chain", frozenset(keys))

    # --- inequalities -------------------------------------------------------------------------------------

    def inequality(self, sides: list[list[str]], relations: list[str]) -> Hashable | None:
        """An inequality in one variable is the set of its solutions."""
        if len(sides) == 2 and relations == ["≠"] and is_name(sides[0]) and tree_of(sides[0]) is None:
            return None
        condition = self.condition(_joined(sides, relations))
        if condition is not None:
            return sets.set_key(condition[1])
        if "≠" in relations:
            return None
        if relations[0] in ">≥":
            sides, relations = sides[::-1], [_FLIPPED[relation] for relation in reversed(relations)]
        if not set(relations) <= {"<", "≤"}:
            return None
        symbolic = self.symbolic_interval(sides, relations)
        if symbolic is not None:
            return symbolic
        return ("inequality", *(self.read(side) for side in sides), *relations)

    def symbolic_interval(self, sides: list[list[str]], relations: list[str]) -> Hashable | None:
        """``a < x < b`` and ``x > a``, where the bounds are names too."""
        opening, closing = "([", ")]"
        if len(sides) == 3 and is_name(sides[1]):
            low, high = self.read(sides[0]), self.read(sides[2])
            return ("sequence", opening[relations[0] == "≤"], low, high, closing[relations[1] == "≤"])
        if len(sides) != 2:
            return None
        for variable, limit in (sides, sides[::-1]):
            if len(variable) == 1 and variable[0] in ("x", "y", "z", "t"):
                others = _variables(limit)
                if others is not None and not others & {"x", "y", "z", "t"}:
                    if variable is sides[0]:
                        return ("sequence", "(", ("infinity", "-"), self.read(limit), closing[relations[0] == "≤"])
                    return ("sequence", opening[relations[0] == "≤"], self.read(limit), ("infinity", "+"), ")")
        return None

    def condition(self, tokens: list[str]) -> tuple[str, list[sets.Interval]] | None:
        """The variable of a condition and the real numbers that fulfil it; None if it is no such condition."""
        sides = split(tokens, _RELATIONS)
        relations = _in_order(tokens, _RELATIONS)
        if len(sides) < 2 or not all(sides):
            return None
        if relations == [r"\in"]:
            intervals = sets.as_set(self.read(sides[1]))
            return (" ".join(sides[0]), intervals) if intervals is not None and is_name(sides[0]) else None
        if not set(relations) <= {*_FLIPPED, "≠"} or (len(relations) > 1 and "≠" in relations):
            return None
        if set(relations) & {"<", "≤"} and set(relations) & {">", "≥"}:
            return None
        found = [self.half(sides[i], relations[i], sides[i + 1]) for i in range(len(relations))]
        if None in found or len({name for name, _ in found}) != 1:  # type: ignore[misc]
            return None
        return found[0][0], sets.intersection(*(intervals for _, intervals in found))  # type: ignore[index, misc]

    def half(self, left: list[str], relation: str, right: list[str]) -> tuple[str, list[sets.Interval]] | None:
        """The solutions of one linear inequality in one variable, or of one with its absolute value."""
        if is_name(right) and not is_name(left):
            left, relation, right = right, _FLIPPED.get(relation, relation), left
        if is_name(left):
            limit = sets.bound(self.read(right))
            return None if limit is None else (" ".join(left), _ray(relation, limit))
        trees = tree_of(left), tree_of(right)
        if trees[0] is None or trees[1] is None:
            return None
        names = variables(trees[0]) | variables(trees[1])
        if len(names) != 1:
            return None
        (name,) = names
        if _of_magnitude(trees[0], name) == 1 and not variables(trees[1]):
            low, high = (sets.bound(self.tree_key(tree)) for tree in (("neg", trees[1]), trees[1]))
            if low is None or high is None or high[0] <= 0:
                return None
            inside = [(low, relation in "≤>", high, relation in "≤>")]
            return (name, inside if relation in "<≤" else sets.complement(inside)) if relation != "≠" else None
        line = solved(self.work, trees[0], trees[1], name)
        if line is None:
            return None
        slope = sets.bound(self.tree_key(line[0]))
        limit = sets.bound(self.tree_key(line[1]))
        if slope is None or limit is None:
            return None
        return name, _ray(relation if slope[0] > 0 else _FLIPPED.get(relation, relation), limit)

    # --- plus-minus ---------------------------------------------------------------------------------------

    def signed(self, tokens: list[str]) -> Hashable | None:
        r"""``2 \pm \sqrt 7`` is both; several signs are chosen apart, unless a \mp ties them together."""
        plus_minus = tokens.count(r"\pm")
        tied = r"\mp" in tokens
        if not plus_minus and not tied:
            return None
        if plus_minus > MAX_SIGNS:
            return text_key(tokens)
        keys = []
        for signs in itertools.product("+-", repeat=1 if tied else plus_minus):
            choice = itertools.cycle(signs)
            replaced = [
                next(choice)
                if token == r"\pm"
                else ("-" if signs[0] == "+" else "+")
                if token == r"\mp"
                else token
                for token in tokens
            ]
            keys.append(self.read(replaced))
        return collection(members(keys))

    # --- sets, tuples, matrices ---------------------------------------------------------------------------

    def united(self, tokens: list[str]) -> Hashable | None:
        for operation in (r"\cup", r"\cap", r"\setminus"):
            parts = split(tokens, (operation,))
            if len(parts) < 2 or not all(parts):
                continue
            keys = [self.read(part) for part in parts]
            found = [sets.as_set(key) for key in keys]
            if None in found:
                return (operation, frozenset(keys)) if operation != r"\setminus" else (operation, *keys)
            known: list[list[sets.Interval]] = found  # type: ignore[assignment]
            if operation == r"\cup":
                return sets.set_key(sets.union(*known))
            if operation == r"\cap":
                return sets.set_key(sets.intersection(*known))
            return sets.set_key(sets.intersection(known[0], *map(sets.complement, known[1:])))
        if tokens[0] == r"\setR" and len(tokens) > 2 and tokens[1] == "-":
            return self.united([tokens[0], r"\setminus", *tokens[2:]])
        return None

    def braced_set(self, tokens: list[str]) -> Hashable | None:
        if tokens[0] not in (r"\{", "{") or tokens[-1] not in (r"\}", "}") or not enclosed(tokens):
            return None
        inside = tokens[1:-1]
        if tokens[0] == "{":
            if len(split(inside, (",",))) < 2:
                return self.read(inside) if inside else None
        else:
            described = _split_once(inside, ("|", ":"))
            # After a comma or a sign the bar opens an absolute value.
            if described and described[0][-1] not in _BEFORE_A_VALUE:
                return self.described_set(*described)
        parts = [part for part in split(inside, (",", ";")) if part]
        if [r"\ldots"] in parts:
            return ("sequence", "...", *map(self.read, parts))
        return collection(members(map(self.read, parts)), distinct=True)

    def described_set(self, element: list[str], condition: list[str]) -> Hashable:
        r"""``\{x \in R | x > 2\}`` is an interval, ``\{2^k | k \in N\}`` a family."""
        sides = split(element, (r"\in",))
        domain = _domain(condition)
        if domain and len(sides) == 1 and not is_name(element):
            return (
                "family",
                self.read([_PARAMETER if token == domain[0] else token for token in element]),
                domain[1],
            )
        if is_name(sides[0]) and (len(sides) == 1 or sides[1] == [r"\setR"]):
            key = self.read(condition)
            if sets.as_set(key) is not None:
                return key
        return ("described", text_key(element), text_key(condition))

    def bracketed(self, tokens: list[str]) -> Hashable | None:
        """Tuples, intervals and superfluous brackets. (1,2) is one key, as a point or an interval."""
        if tokens[0] in "[]" and tokens[-1] in "[]" and not enclosed(tokens):  # ]0,1[
            turned = ["[("[tokens[0] == "]"], *tokens[1:-1], "])"[tokens[-1] == "["]]
            is_interval = sum(token in "[]()" for token in tokens) == 2 and enclosed(turned)
            return self.bracketed(turned) if is_interval else None
        transposed = _without_transposition(tokens)
        if transposed:
            row = self.bracketed(transposed)
            is_row = isinstance(row, tuple) and row[0] == "sequence"
            return ("matrix", tuple((cell,) for cell in row[2:-1])) if is_row else None  # type: ignore[index]
        if tokens[0] not in ("(", "[") or tokens[-1] not in (")", "]") or not enclosed(tokens):
            return None
        inside = tokens[1:-1]
        items = split(inside, (",", ";"))
        if len(items) == 1:
            return self.read(inside) if inside and (tokens[0], tokens[-1]) in (("(", ")"), ("[", "]")) else None
        if not all(items):
            return None
        keys = map(self.read, items)
        if len(items) == 2:
            return ("sequence", tokens[0], *keys, tokens[-1])
        return ("sequence", "(", *keys, ")")

    def matrix(self, tokens: list[str]) -> Hashable | None:
        starts = [i for i, token in enumerate(tokens) if token.startswith(r"\begin:")]
        if len(starts) != 1 or tokens[-1] != r"\end":
            return None
        start = starts[0]
        kind, factor = tokens[start], tokens[:start]
        rows = [row for row in split(tokens[start + 1 : -1], (r"\\",)) if row]
        cells = [split(row, ("&",)) for row in rows]
        if not rows or (kind not in _MATRICES and kind != r"\begin:vmatrix"):
            return None
        if factor:
            if tree_of(factor) is None and factor != ["-"]:
                return None
            factor = ["-", "1"] if factor == ["-"] else factor
            cells = [[["(", *factor, ")", "(", *cell, ")"] for cell in row] for row in cells]
        keys = tuple(tuple(map(self.read, row)) for row in cells)
        return ("determinant" if kind == r"\begin:vmatrix" else "matrix", keys)

    # --- what has no parts --------------------------------------------------------------------------------

    def simple(self, tokens: list[str]) -> Hashable | None:
        """Infinity, a set's name, a number in a base, a time, a ratio."""
        sign = tokens[0] if tokens[0] in "+-" else ""
        rest = tokens[len(sign) :]
        if len(rest) == 1 and rest[0] in (r"\infty", "infinity", "inf", "infty", "oo"):
            return ("infinity", sign or "+")
        if tokens == [r"\emptyset"]:
            return collection(())
        if len(tokens) == 1 and tokens[0].startswith(r"\set"):
            return sets.set_key(sets.REALS) if tokens[0] == r"\setR" else ("set", tokens[0])
        return self.based(tokens) or self.ratio(tokens)

    def based(self, tokens: list[str]) -> Hashable | None:
        """A number in a stated base equals only itself."""
        names = list(map(word, tokens))
        if "_" in tokens:
            i = len(tokens) - 1 - tokens[::-1].index("_")
            digits, base = tokens[:i], [token for token in tokens[i + 1 :] if token not in "{}()"]
        elif "base" in names[1:-1]:
            i = names.index("base")
            digits, base = tokens[:i], tokens[i + 1 :]
            if digits[-1] in ("(", "_"):
                return None
            if word(digits[-1]) == "in":
                digits = digits[:-1]
        else:
            return None
        if base and word(base[0]) == "base":
            base = base[1:]
        if len(base) != 1 or not digits:
            return None
        radix = int(base[0]) if base[0].isdigit() and len(base[0]) < 3 else _NUMBERS_IN_WORDS.get(word(base[0]), 0)
        written = "".join(token.lstrip('"') for token in digits if token not in ("(", ")", "{", "}"))
        values = [int(digit, 36) if digit.isascii() and digit.isalnum() else 99 for digit in written]
        if not 2 <= radix <= 36 or not values or max(values) >= radix or written != written.upper():
            return None
        if not written[0].isdigit() and len(written) == 1:
            return None
        return ("base", written.lstrip("0") or "0", radix)

    def ratio(self, tokens: list[str]) -> Hashable | None:
        """``3:4`` in its order; ``3:45 PM``."""
        parts = split(tokens, (":",))
        if len(parts) < 2 or not all(parts):
            return None
        if len(parts[0]) == 1 and parts[0][0].isdigit() and len(parts[-1]) > 1:
            half = "".join(token.lstrip('"') for token in parts[-1][1:] if token != ".").casefold()
            if half in ("am", "pm") and all(part[0].isdigit() for part in parts):
                return ("time", *(part[0].lstrip("0") for part in parts), half)
        return ("ratio", *(text_key(part) if len(part) == 1 else self.read(part) for part in parts))

    def quantity(self, tokens: list[str]) -> Hashable | None:
        """An expression, with a unit, a percent sign or a power of ten in words."""
        value, power, unit = measured(tokens)
        if (unit or power) and not value:
            return None
        if value != tokens and "%" not in value and not power and tree_of(value) is None:
            return self.read(value) if value and enclosed(value) else None
        percent = value[-1:] == ["%"]
        tree = tree_of(value[:-1] if percent else value)
        if tree is None:
            return None
        factor = Fraction(10) ** power / (100 if percent and not self.percent_is_unit else 1)
        return self.tree_key(tree if factor == 1 else ("mul", tree, ("num", factor)))

    _KINDS = (
        word,
        labelled,
        qualified,
        listed,
        related,
        united,
        braced_set,
        signed,
        bracketed,
        matrix,
        simple,
        quantity,
    )


def read_answer(tokens: list[str], *, percent_is_unit: bool) -> Hashable:
    """The key of an answer's tokens."""
    tokens = with_percent_signs(tokens)
    try:
        return Reading(percent_is_unit=percent_is_unit).read(tokens)
    except RefusedError:
        return text_key(tokens)


def _is_formula(run: str) -> bool:
    """Whether a run of letters that stands alone is a formula, and not a word or a Roman numeral."""
    if len(run) == 1 or run in GREEK or run in ("pi", "inf", "infinity", "infty", "oo"):
        return run.isascii()
    if not run.isascii() or run.casefold() == "no" or re.fullmatch("[IVXLCDM]{2,9}", run):
        return False
    if len(run) == 2 or is_call_without_space(run):
        return not run.isupper()  # HT and TH are two outcomes
    return (
        run.islower() and is_product_of_letters(run) and (not set(run) & set("aeiou") or set(run) <= set("abcd"))
    )


def _statement_key(tokens: list[str]) -> Hashable:
    """The key of a statement in words or in signs that are not read; 'no solutions' is 'no solution'."""
    kind, text = text_key(tokens)
    return kind, text.removesuffix("s") if text.startswith("no ") else text


def _separators(tokens: Sequence[str], separators: Sequence[str]) -> set[str]:
    return set(_in_order(tokens, separators))


def _in_order(tokens: Sequence[str], wanted: Sequence[str] | frozenset[str]) -> list[str]:
    """The wanted tokens that stand outside all brackets."""
    found, depth = [], 0
    for token in tokens:
        depth += (token in ("(", "[", "{", r"\{", r"\lfloor", r"\lceil") or token.startswith(r"\begin")) - (
            token in (")", "]", "}", r"\}", r"\rfloor", r"\rceil", r"\end")
        )
        if depth == 0 and token in wanted:
            found.append(token)
    return found


def _joined(sides: list[list[str]], relations: list[str]) -> list[str]:
    tokens = list(sides[0])
    for relation, side in zip(relations, sides[1:], strict=True):
        tokens += [relation, *side]
    return tokens


def _split_once(tokens: list[str], separators: tuple[str, ...]) -> tuple[list[str], list[str]] | None:
    parts = split(tokens, separators)
    if len(parts) < 2 or not all(parts):
        return None
    return parts[0], tokens[len(parts[0]) + 1 :]


def _domain(tokens: list[str]) -> tuple[str, str] | None:
    r"""The name and the set of ``k \in \mathbb{Z}``, ``k is an integer``, ``integers k``."""
    words = [word(token) for token in tokens]
    if len(tokens) == 3 and tokens[1] == r"\in" and tokens[2].startswith(r"\set") and _is_variable(tokens[0]):
        return tokens[0], tokens[2].removeprefix(r"\set")
    if len(tokens) == 3 and tokens[1] == r"\in" and tokens[2] in ("Z", "N", "R", "Q") and _is_variable(tokens[0]):
        return tokens[0], tokens[2]
    plain = [
        token
        for token, name in zip(tokens, words, strict=True)
        if name not in ("is", "an", "any", "a", "the", "some", "all")
    ]
    if len(plain) == 2 and {word(plain[0]), word(plain[1])} & _INTEGERS:
        name = plain[0] if word(plain[1]) in _INTEGERS else plain[1]
        return (name, "Z") if _is_variable(name) else None
    return None


def _is_variable(token: str) -> bool:
    return (len(token) == 1 and token.isalpha()) or token.lstrip("\\") in GREEK


def _is_natural_domain(tokens: list[str]) -> bool:
    r"""``n \ge 1``, ``real x``, ``positive integers n``: the domain that goes without saying."""
    if (
        len(tokens) == 3
        and _is_variable(tokens[0])
        and (tokens[1], tokens[2]) in (("≥", "0"), ("≥", "1"), (">", "0"))
    ):
        return True
    words = {word(token) for token in tokens if not _is_variable(token)}
    return words <= {
        "real",
        "reals",
        "number",
        "numbers",
        "natural",
        "positive",
        "integer",
        "integers",
        "values",
        "of",
    }


def _defines_function(tokens: list[str]) -> bool:
    sides = split(tokens, ("=",))
    return len(sides) > 1 and "(" in sides[0] and is_name(sides[0])


def _name_before_equals(tokens: list[str]) -> str:
    """The name of x=1, without the number of x_1=2, which tells roots apart; '' if there is none."""
    sides = split(tokens, ("=",))
    if len(sides) < 2 or not is_name(sides[0]):
        return ""
    name = sides[0]
    if name[0] in _ROOT_NAMES and len(name) > 1 and name[1] == "_":
        subscript = [token for token in name[2:] if token not in "{}"]
        if len(subscript) == 1 and subscript[0].isdigit():
            return name[0]
    return " ".join(token for token in name if token not in "{}")


def _variables(tokens: list[str]) -> frozenset[str] | None:
    tree = tree_of(tokens)
    return None if tree is None else variables(tree)


def _constant(tokens: list[str]) -> bool:
    return _variables(tokens) == frozenset()


def _is_sum_or_product_of_names(tree: Tree) -> bool:
    return tree[0] in ("add", "mul") and all(part[0] == "var" for part in tree[1:])


def _of_magnitude(tree: Tree, name: str) -> int | None:
    """1 for ``|x|``, 2 for ``x^2``, None for other trees."""
    if tree == ("call", "abs", ("var", name)):
        return 1
    return 2 if tree == ("pow", ("var", name), ("num", Fraction(2))) else None


def _ray(relation: str, limit: sets.Bound) -> list[sets.Interval]:
    if relation == "≠":
        return sets.complement([(limit, True, limit, True)])
    if relation in "<≤":
        return [(sets.LOWEST, False, limit, relation == "≤")]
    return [(limit, relation == "≥", sets.HIGHEST, False)]


def _without_transposition(tokens: list[str]) -> list[str] | None:
    for ending in (["^", "T"], ["^", "{", "T", "}"], ["^", r"\top"], ["^", "{", r"\top", "}"]):
        if tokens[-len(ending) :] == ending and tokens[0] in ("(", "["):
            return tokens[: -len(ending)]
    return None
