"""Keys for answers: the kinds of answer that models write, and what each is equal by.

A key is a hashable value, computed from one spelling alone; answers are equal when their keys are. That
makes equality an equivalence by construction: reflexive, symmetric, transitive, and independent of the
order or the company in which answers are seen.

The kinds, tried in this order: plain numbers, lists, unions, inequalities, assignments and equations,
plus-minus pairs, sets, tuples and intervals, matrices, numbers in a stated base, words, algebra
(``expression.py``), and text as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from arrol_tts.answers.expression import equation_key, expression_key

PercentSign = Literal["fraction", "unit"]

MAX_CHARACTERS = 1000
"""Longer answers are compared as text: no answer is so long, and text costs nothing."""

MAX_NESTING = 8


def answer_key(answer: str, percent: PercentSign = "fraction") -> Hashable:
    """The key of an answer's equivalence class.

    Args:
        answer: one spelling, as extracted.
        percent: what ``50%`` means: a ``fraction`` (1/2) or a ``unit`` that is dropped (50).
    """
    if len(answer) > MAX_CHARACTERS:
        return _text_key(answer)
    return _cached_key(answer, percent)


@lru_cache(maxsize=1 << 15)
def _cached_key(answer: str, percent: PercentSign) -> Hashable:
    return _number_key(answer, percent) or _read(_tidy(answer), percent, 0)


def _text_key(text: str) -> Hashable:
    return ("text", " ".join(text.split()))


# --- plain numbers: most answers, read without LaTeX ----------------------------------------------

_DECIMAL = re.compile(
    r"([-+]?) ?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]*)(?:\.[0-9]*)?)"
    r"(?:[eE]([-+]?[0-9]{1,4})|(?: ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?\{? ?([-+]?[0-9]{1,4}) ?\}?))? ?(%?)"
)
_FRACTION = re.compile(
    r"([-+]?) ?(?:([0-9]+) ?(?=\\frac)|([0-9]+) (?=[0-9]+ ?/))?"
    r"(?:\\frac ?(?:\{ ?([-+]?[0-9.]+) ?\}|([0-9])) ?(?:\{ ?([-+]?[0-9.]+) ?\}|([0-9]))"
    r"|([0-9.]+) ?/ ?([0-9.]+)) ?(%?)"
)


def _number_key(text: str, percent: PercentSign) -> Hashable | None:
    """The key of a decimal, scientific, mixed or common fraction; None for anything else."""
    try:
        value = _decimal(text, percent) or _fraction(text, percent) or _repeating(text)
    except (ValueError, ZeroDivisionError):  # two decimal points, no digits at all, 1/0
        return None
    return value and ("number", value[0])


_REPEATING = re.compile(r"([-+]?)([0-9]*)\.([0-9]*)\\overline ?\{?([0-9]+)\}?")


def _repeating(text: str) -> tuple[Fraction] | None:
    match = _REPEATING.fullmatch(text)
    if not match:
        return None
    sign, whole, start, period = match.groups()
    value = Fraction(f"{whole or 0}.{start or 0}")
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(start))
    return (-value if sign == "-" else value,)


def _decimal(text: str, percent: PercentSign) -> tuple[Fraction] | None:
    match = _DECIMAL.fullmatch(text)
    if not match or not any(map(str.isdigit, match[2])):
        return None
    sign, digits, e, power, sign_of_percent = match.groups()
    digits = digits.replace(",", "").replace(" ", "").removesuffix(".")
    value = Fraction(sign + digits) * Fraction(10) ** int(e or power or 0)
    return (value / 100 if sign_of_percent and percent == "fraction" else value,)


def _fraction(text: str, percent: PercentSign) -> tuple[Fraction] | None:
    match = _FRACTION.fullmatch(text)
    if not match:
        return None
    sign, whole, whole_too, *parts, sign_of_percent = match.groups()
    over, under = (Fraction(part.removesuffix(".")) for part in parts if part is not None)
    value = Fraction(whole or whole_too or 0) + over / under
    value = -value if sign == "-" else value
    return (value / 100 if sign_of_percent and percent == "fraction" else value,)


# --- tidying LaTeX and units away -------------------------------------------------------------------

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2013\u2014", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f\t\n~", " "),
        **{"\u00d7": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "*": r"\cdot "},
        **{"π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "\u222a": r"\cup ", "∈": r"\in ", "±": r"\pm "},
        **{"°": r"^\circ ", "²": "^2", "³": "^3", "½": r"\frac12", "¼": r"\frac14", "¾": r"\frac34"},
        **{"θ": r"\theta ", "\u03b1": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "∅": r"\emptyset "},
        **{
            "\uff08": "(",
            "\uff09": ")",
            "\uff0c": ",",
            "\u3002": ".",
            "\u2019": "'",
            "\u200b": "",
            "\ufeff": "",
        },
    }
)

_TEXT = r"\\(?:text(?:bf|it|rm|normal)?|mbox|math(?:rm|bf|it|sf)|boldsymbol|operatorname\*?)"

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\cdot +\\cdot ", "^"),  # ** of programming languages
        (r"\^\s*(-?[0-9]{2,})", r"^{\1}"),  # 2^10 means 2^{10}, whatever LaTeX makes of it
        (r"\\sqrt\s+([0-9]{2,})(?=[^0-9]|$)", r"\\sqrt{\1}"),
        (r",\s*\\!\s*|\{,\}\s*\\!\s*", ","),  # 10,\!080
        (r"(?<=[0-9])\{,\}(?=[0-9]{3}(?![0-9]))", ","),  # 10{,}000
        (r"(?<=[0-9])\{,\}(?=[0-9])", "."),  # 0{,}5 is a decimal comma
        (r"\\(?:displaystyle|textstyle|limits|nolimits|boxed|fbox|bf|rm|it)(?![a-zA-Z])", " "),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", " "),
        (r"\\!", ""),
        (r"(?<!\\)\\[,;: ]|\\(?:quad|qquad|thinspace|enspace|medspace)(?![a-zA-Z])", " "),
        (r"(?<!\\)\\[()\[\]]|\\?\$|€|£|(?:" + _TEXT + r"\{ ?)?\b(?:Rs|USD)\b\.?(?: ?\})?", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\dbinom|\\tbinom", r"\\binom"),
        (r"\\(?:l|c)?dots(?![a-zA-Z])|\.\.\.|…", r"\\ldots "),
        (r"\\lbrace", r"\\{"),
        (r"\\rbrace", r"\\}"),
        (r"\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])", "|"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\(?:leqslant|leq|le)(?![a-zA-Z])|<=", "≤"),
        (r"\\(?:geqslant|geq|ge)(?![a-zA-Z])|>=", "≥"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:varnothing|emptyset)(?![a-zA-Z])", r"\\{\\}"),
        (r"\\(?:simeq|doteq)(?![a-zA-Z])|≈", r"\\approx "),
        (r"\\(?:mathbb|mathcal)\s*(?:\{\s*([A-Z])\s*\}|([A-Z]))", r"\\set\1\2 "),
        (r"\\%|\\?\bper ?cent(?:age)?\b|" + _TEXT + r"\{\s*(?:\\?%|per ?cent)\s*\}", "%"),
        (
            r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))\s*(?:"
            + _TEXT
            + r"\{\s*[CF]\s*\}|[CF](?![a-zA-Z]))?",
            "",
        ),
        (r"\\degrees?(?![a-zA-Z])", ""),
        (r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![a-zA-Z]))", "'"),
        (r"(" + _TEXT + r")\{([^{}]*)\b(?:and|or)\b([^{}]*)\}", r"\1{\2} , \1{\3}"),
        (r"(?:,\s*)?(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])", " , "),
        (_TEXT + r"\{[\s,]*\}", " "),
        (_TEXT + r"\{\s*i\s*\}", " i "),
        (r"\\operatorname\*?\{\s*(arc)?(sin|cos|tan|cot|sec|csc|ln|log|exp)\s*\}", r"\\\1\2 "),
        (r"(?:np|math|sp|sympy)\.", ""),
        (r"(?<![\\a-zA-Z])(arc)?(sqrt|sin|cos|tan|cot|ln|log|exp|pi|alpha|theta)(?![a-zA-Z])", r"\\\1\2 "),
        (r"(?<![\\a-zA-Z])(?:inf|infinity)(?![a-zA-Z])", r"\\infty "),
    ]
]

_UNIT_IN_TEXT = re.compile(
    r"(?<=[0-9})i%])(?:(?:[\s/]|\\cdot\s?|per\b)*" + _TEXT + r"\s*\{[^{}]*\}"
    r"(?:\s*\^\s*(?:\{\s*-?[0-9]\s*\}|-?[0-9]))?)+\s*$"
)
_KNOWN_UNITS = (
    "day|men|cup|cm|mm|km|dm|nm|kg|mg|ml|mL|ft|in|hr|hrs|yd|lb|lbs|oz|mph|kph|Hz|kHz|MHz|eV|keV|MeV|GeV|Pa|kPa|km/h|m/s|"
    "cm/s|min|sec|deg|sq|cu|rad|erg|erg/s|AU|pc|Mpc|kpc"
)
_UNIT_IN_WORDS = re.compile(
    rf"(?<=[0-9}})])(?:\s*(?:{_KNOWN_UNITS})|\s+[a-z]{{4,}})(?:(?:[\s/.]+(?:[a-z]+|{_KNOWN_UNITS}))*)"
    r"(?:\s*\^\s*\{?\s*-?[0-9]\s*\}?)?\s*$"
)
_NO_UNIT = re.compile(
    r"\b(?:if|for|when|where|with|mod|base|even|odd|not|is|to|hundred|thousand|million|billion|trillion|"
    r"dozen|pi|sqrt|sin|cos|tan|log|mod|a\.?m|p\.?m)\b|[ap]\. ?m\."
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def _tidy(answer: str) -> str:
    text = answer.translate(_CHARACTERS).strip()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".,;").strip().removeprefix(r"\approx").strip()
    enclosed = _enclosed(text)
    if enclosed and enclosed[0] == "{" and enclosed[2] == "}":  # of a box
        text = enclosed[1].rstrip(".,; ")
    text = ",".join(map(_without_units, text.split(",")))
    text = re.sub(_TEXT + r"\s*\{([^{}]*)\}", _words, text)
    text = re.sub(r"\{\s*\{([^{}]*)\}\s*\}", r"{\1}", text)
    text = re.sub(r"\\sqrt\s*(?=\()", r"\\sqrt", text)
    for head in (r"\sqrt", "^"):
        text = _braced_after(text, head)
    text = re.sub(r"\s+", " ", text).strip()
    # 1,000\pi: with one comma, a group of three digits is a thousand, not the second item of a list.
    if re.match(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])[^,;]*$", text):
        text = text.replace(",", "")
    return text


def _words(match: re.Match[str]) -> str:
    """Text in a formula: letters and labels are part of it, words are not algebra, save as subscripts."""
    is_word = re.search("[a-zA-Z]{3}", match[1]) and match.string[: match.start()].rstrip(" {")[-1:] != "_"
    return rf"\text{{{match[1].strip()}}}" if is_word else f" {{{match[1]}}} "


def _without_units(text: str) -> str:
    match = _UNIT_IN_TEXT.search(text)
    if match and not _NO_UNIT.search(match[0]) and r"\text" not in text[: match.start()]:
        return text[: match.start()]
    scaled = re.fullmatch(rf"([-+]?[0-9.,]+) ?(?:{_TEXT}\{{ ?)?({'|'.join(_SCALES)})(?: ?\}})?(?: [a-z]+)?", text)
    if scaled:
        return f"{scaled[1]}e{_SCALES[scaled[2]]}"
    match = _UNIT_IN_WORDS.search(text)
    if match and not _NO_UNIT.search(match[0]):
        return text[: match.start()]
    return text


def _braced_after(text: str, head: str) -> str:
    """``\\sqrt(...)`` and ``x^(...)`` as models write them in plain text, with braces."""
    start = text.find(head + "(")
    while start >= 0:
        opening = start + len(head)
        depth = 0
        for end in range(opening, len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if depth == 0:
                text = f"{text[:opening]}{{{text[opening + 1 : end]}}}{text[end + 1 :]}"
                break
        start = text.find(head + "(", opening)
    return text


# --- kinds ----------------------------------------------------------------------------------------

_ITEM = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
_NAME = r"(?:[a-zA-Z]|\\(?!frac|sqrt|infty|pi)[a-zA-Z]+)(?: ?_ ?(?:\{[^{}]*\}|[a-zA-Z0-9]))?'*"
_LEFT_SIDE = re.compile(
    rf" ?(?:{_NAME}(?: ?\( ?{_NAME}(?: ?, ?{_NAME})* ?\))?|\((?: ?{_NAME} ?,?)+\)|[a-zA-Z]{{2,12}}"
    r"|\\frac ?\{ ?d ?[a-zA-Z] ?\} ?\{ ?d ?[a-zA-Z] ?\}|\\angle[A-Z0-9_{} ]+) ?"
)
_COMPARISON = re.compile("([<>≤≥])")
_FLIPPED = str.maketrans("<>≤≥", "><≥≤")
_MATRIX = re.compile(r"\\begin ?\{([pbBv]?matrix|array)\}(?: ?\{[lcr| ]*\})?(.*)\\end ?\{\1\}", re.DOTALL)
_BASED = re.compile(r"([0-9A-Fa-f]+) ?_ ?(?:\{ ?(?:base ?)?([0-9]{1,2}) ?\}|([0-9]{1,2}))")


def _split(text: str, *separators: str) -> list[str]:
    """Split at separators that stand outside all brackets; the text whole if brackets do not match."""
    parts, depth = [""], 0
    for item in _ITEM.findall(text):
        depth += item in ("(", "[", "{", r"\{", r"\lfloor", r"\lceil")
        depth -= item in (")", "]", "}", r"\}", r"\rfloor", r"\rceil")
        if depth < 0:
            return [text]
        if depth == 0 and item in separators:
            parts.append("")
        else:
            parts[-1] += item
    return [part.strip() for part in parts] if depth == 0 else [text]


def _enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) when one pair of brackets encloses the whole text."""
    items = _ITEM.findall(text)
    if len(items) < 2 or items[0] not in ("(", "[", "{", r"\{") or items[-1] not in (")", "]", "}", r"\}"):
        return None
    depth = 0
    for i, item in enumerate(items):
        depth += item in ("(", "[", "{", r"\{")
        depth -= item in (")", "]", "}", r"\}")
        if depth == 0 and i < len(items) - 1:
            return None
    return (items[0], "".join(items[1:-1]).strip(), items[-1]) if depth == 0 else None


def _collection(kind: str, keys: list[Hashable]) -> Hashable:
    return keys[0] if len(keys) == 1 else (kind, tuple(sorted(keys, key=repr)))


def _members(keys: list[Hashable]) -> list[Hashable]:
    """The keys with lists among them opened: 1 \\pm \\sqrt 5 in a list is two of its members."""
    members: list[Hashable] = []
    for key in keys:
        if isinstance(key, tuple) and key[0] == "list":
            members.extend(key[1])
        else:
            members.append(key)
    return members


def _read(text: str, percent: PercentSign, depth: int) -> Hashable:
    """The key of tidied text; each kind returns None for what it is not."""
    if depth > MAX_NESTING:
        return _text_key(text)
    key = _number_key(text, percent)
    for kind in (_list, _relation, _set, _plus_minus, _brackets, _matrix, _simple):
        if key is None:
            key = kind(text, percent, depth + 1)
    if key is None:
        key = _text_key(re.sub(r"(?<!\\)\{(\w)\}", r"\1", text.casefold().replace(" ", "")))
    return key


def _list(text: str, percent: PercentSign, depth: int) -> Hashable | None:
    """``2, 3``, ``x=1 or x=2``, ``(0,1) \\cup (2,3)``: in any order, repetitions counted."""
    parts = [part for part in _split(text, ",", ";") if part]
    if len(parts) < 2:
        members = _split(text, r"\cup")
        if len(members) < 2 or not all(members):
            return None
        return _collection("union", [_read(member, percent, depth) for member in members])
    sides = [_split(part, "=") for part in parts]
    named = (len(side) > 1 and _LEFT_SIDE.fullmatch(side[0]) for side in sides)
    names = [side[0].replace(" ", "") if name else "" for side, name in zip(sides, named, strict=True)]
    keys = [_read(part, percent, depth) for part in parts]
    if len(set(names) - {""}) > 1:  # x=1, y=2: here the names matter
        keys = [(name, key) for name, key in zip(names, keys, strict=True)]
    intervals = all(_COMPARISON.search(part) for part in parts)
    return _collection("union", keys) if intervals else _collection("list", _members(keys))


def _relation(text: str, percent: PercentSign, depth: int) -> Hashable | None:
    """``x \\in S``, ``x = 5`` and ``1 < x`` are what they say of x; other equations stand for themselves."""
    members = _split(text, r"\in")
    if len(members) == 2 and all(members):
        return _read(members[1], percent, depth)
    estimates = _split(text, r"\approx")
    if len(estimates) > 1 and all(estimates):  # \sqrt 2 \approx 1.41: the exact side counts
        return _read(estimates[_LEFT_SIDE.fullmatch(estimates[0]) is not None], percent, depth)
    if _COMPARISON.search(text):
        return _inequality(text, percent, depth)
    sides = _split(text, "=")
    if len(sides) < 2 or not all(sides):
        return None
    left, right = sides[0], sides[-1]
    if len(left) > 1 and left.isalpha() and right.isalpha() and len(sides) == 2:  # MR=SRMC
        return ("equation", frozenset({left.casefold(), right.casefold()}))
    if len(sides) > 2 or _LEFT_SIDE.fullmatch(left):
        return _read(right, percent, depth)
    if re.fullmatch(_NAME, right):  # 2x + 1 = y
        return _read(left, percent, depth)
    key = _read(right, percent, depth)
    return key if _read(left, percent, depth) == key else equation_key(left, right)


def _inequality(text: str, percent: PercentSign, depth: int) -> Hashable | None:
    """An inequality in one variable is the interval of its values."""
    pieces = [piece.strip() for piece in _COMPARISON.split(text)]
    if len(pieces) == 3:
        if re.fullmatch(_NAME, pieces[2]):
            pieces = [pieces[2], pieces[1].translate(_FLIPPED), pieces[0]]
        if not re.fullmatch(_NAME, pieces[0]):
            return None
        bound = _read(pieces[2], percent, depth)
        if pieces[1] in "<≤":
            return ("sequence", "(", ("infinity", "-"), bound, ")" if pieces[1] == "<" else "]")
        return ("sequence", "(" if pieces[1] == ">" else "[", bound, ("infinity", "+"), ")")
    if len(pieces) != 5 or not re.fullmatch(_NAME, pieces[2]):
        return None
    if pieces[1] in ">≥" and pieces[3] in ">≥":
        pieces = [piece.translate(_FLIPPED) if len(piece) == 1 else piece for piece in reversed(pieces)]
    if pieces[1] not in "<≤" or pieces[3] not in "<≤":
        return None
    low, high = _read(pieces[0], percent, depth), _read(pieces[4], percent, depth)
    return ("sequence", "(" if pieces[1] == "<" else "[", low, high, ")" if pieces[3] == "<" else "]")


def _plus_minus(text: str, percent: PercentSign, depth: int) -> Hashable | None:
    if not re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text):
        return None
    keys = []
    for plus, minus in ("+-", "-+"):
        signed = re.sub(r"\\pm(?![a-zA-Z])", plus, text)
        signed = re.sub(r"\\mp(?![a-zA-Z])", minus, signed).strip().removeprefix("+")
        keys.append(_read(signed.strip(), percent, depth))
    return _collection("list", keys)


def _set(text: str, percent: PercentSign, depth: int) -> Hashable | None:
    enclosed = _enclosed(text)
    if enclosed is None or enclosed[0] != r"\{" or enclosed[2] != r"\}":
        return None
    described = re.fullmatch(rf"{_NAME} ?[|:] ?(.*)", enclosed[1])
    if described:  # {x | x > 2}
        return _read(described[1], percent, depth)
    keys = [_read(item, percent, depth) for item in _split(enclosed[1], ",", ";") if item]
    return _collection("list", list(dict.fromkeys(_members(keys))))


def _brackets(text: str, percent: PercentSign, depth: int) -> Hashable | None:
    """Tuples, intervals and superfluous brackets. (1,2) is one key, as a point or an interval."""
    enclosed = _enclosed(text)
    if enclosed is None:
        return None
    opening, inside, closing = enclosed
    if {opening, closing} & {r"\{", r"\}"}:
        return None
    items = _split(inside, ",", ";")
    if len(items) == 1:
        return _read(inside, percent, depth) if (opening, closing) in (("(", ")"), ("{", "}")) else None
    if not all(items) or opening == "{":
        return _read(inside, percent, depth) if opening == "{" and closing == "}" else None
    return ("sequence", opening, *(_read(item, percent, depth) for item in items), closing)


def _matrix(text: str, percent: PercentSign, depth: int) -> Hashable | None:
    match = _MATRIX.fullmatch(text)
    if not match or match[1] == "vmatrix":  # a determinant
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", match[2]) if row.strip()]
    return (
        "matrix",
        tuple(tuple(_read(cell.strip(), percent, depth) for cell in row.split("&")) for row in rows),
    )


def _simple(text: str, percent: PercentSign, depth: int) -> Hashable | None:
    """What has no parts: infinity, a number in a base, a word, a percentage, an expression."""
    infinity = re.fullmatch(r"([-+]?) ?\\infty", text)
    if infinity:
        return ("infinity", infinity[1] or "+")
    based = _BASED.fullmatch(text)
    if based:
        return ("base", based[1].upper(), based[2] or based[3])
    labelled = re.match(r"\{?\(([A-J])\)\}? ?[.:]? ?(?=[-+0-9\\])", text)
    if labelled:  # (C) 27
        return _read(text[labelled.end() :], percent, depth)
    word = re.fullmatch(r"(?:\\text)?[{( ]*([a-zA-Z]{3,}|[Nn]o)[}) ]*", text)
    if word:
        return ("text", word[1].casefold())
    if text.endswith("%"):
        return expression_key(rf"\frac{{{text[:-1]}}}{{100}}" if percent == "fraction" else text[:-1])
    return expression_key(text)
