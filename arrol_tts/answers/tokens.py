r"""From an answer's characters to its tokens, in one pass.

A token is a string, and its first character says what it is:

- a digit or a point: a number (``12``, ``.5``, ``1.5e3``), its thousands already joined;
- a letter: a run of letters of a formula (``x``, ``mgh``, ``cm``);
- ``"``: a word in upright type or in another script (``"cm`` for ``\text{cm}``, ``"元``);
- a backslash: a command (``\frac``, ``\{``), layout and spacing commands left out;
- anything else stands for itself; ``°`` is a degree sign, ``≤`` ``≥`` ``≠`` are comparisons.

Every pattern is a choice between alternatives that start differently and repeat possessively, so that no
text makes one backtrack, and each character is looked at a bounded number of times.
"""

# ruff: noqa: RUF001 - signs and letters of other scripts are meant

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container
from functools import lru_cache


def vocabulary(text: str) -> frozenset[str]:
    """The words of a text, parted by spaces."""
    return frozenset(text.split())


# --- characters of other scripts and of typeset text ----------------------------------------------

_PLAIN = {
    **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d", "-"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
    **dict.fromkeys("\u2018\u2019\u2032", "'"),
    **{"\u2033": "''", "\u201c": '"', "\u201d": '"', "\u2044": "/", "\u2215": "/", "\u2236": ":"},
    **dict.fromkeys("×✕⨯", r"\times "),
    **dict.fromkeys("·⋅•∙∗", r"\cdot "),
    **{"÷": r"\div ", "±": r"\pm ", "∓": r"\mp ", "√": r"\sqrt ", "∞": r"\infty ", "∅": r"\emptyset "},
    **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∀": r"\forall ", "∖": r"\setminus ", "≈": r"\approx "},
    **{"≡": r"\equiv ", "≠": "≠", "≤": "≤", "≥": "≥", "⩽": "≤", "⩾": "≥", "∠": r"\angle ", "△": r"\triangle "},
    **{"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": "(", "⟩": ")", "…": r"\ldots "},
    **{
        "°": "°",
        "º": "°",
        "˚": "°",
        "℃": r"°\text{C}",
        "℉": r"°\text{F}",
        "Å": r"\text{A}",
        "µ": r"\mu ",
        "Ω": r"\Omega ",
    },
    **{"ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}"},
    **{"、": ",", "，": ",", "；": ";", "：": ":", "。": ".", "（": "(", "）": ")", "【": "[", "】": "]"},
    **{"或": " or ", "和": " and ", "且": " and ", "与": " and ", "及": " and ", "ℓ": r"\ell "},
}
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho - sigma tau upsilon"
)
_GREEK += " phi chi psi omega"
for _i, _name in enumerate(_GREEK.split()):
    _PLAIN[chr(0x3B1 + _i)] = rf"\{_name} "
    _PLAIN.setdefault(chr(0x391 + _i), rf"\{_name.capitalize()} ")
del _PLAIN["\u03c2"]
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣᵀ", "0123456789+-=()nixT", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₙₓᵢⱼₖₘ", "0123456789+-=()aenxijkm", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]++")
_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]++")


@lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    if character.isspace():
        return " "
    decimal = unicodedata.decimal(character, None)
    if decimal is not None:
        return str(decimal)
    if "\u2150" <= character <= "\u215e" or character in "¼½¾":
        over, under = unicodedata.normalize("NFKC", character).split("\u2044")
        return rf"\frac{{{over}}}{{{under}}}"
    # Full-width and mathematical letters; not ligatures or units, which are several characters.
    folded = unicodedata.normalize("NFKC", character)
    return _PLAIN.get(folded, folded) if len(folded) == 1 else character


def plain(text: str) -> str:
    """The text with typeset and full-width characters, and digits of any script, as LaTeX in ASCII."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda match: f"^{{{''.join(map(_SUPERSCRIPTS.__getitem__, match[0]))}}}", text)
    text = _LOWERED.sub(lambda match: f"_{{{''.join(map(_SUBSCRIPTS.__getitem__, match[0]))}}}", text)
    return "".join(character if character < "\x80" else _plain(character) for character in text)


# --- tokens ---------------------------------------------------------------------------------------

_THIN = r"(?:, ?\\! ?|\\[,!:; ] ?|~|\{,\} ?(?:\\! ?)?| )"
_ELLIPSIS = r"(?:\.\.\.++| ?\\[lc]?dots(?![A-Za-z]))"
_LEXEME = re.compile(
    r"(?P<repeating>(?P<fixed>[0-9]*+\.[0-9]*+)"
    r"(?:\\(?:overline|bar) ?\{? ?(?P<bar>[0-9]++) ?\}?|\((?P<round>[0-9]++)\)"
    r"|\\dot ?\{?(?P<first>[0-9])\}?(?:(?P<middle>[0-9]*+)\\dot ?\{?(?P<last>[0-9])\}?)?+))"
    rf"|(?P<trailing>[0-9]*+\.[0-9]++(?={_ELLIPSIS})){_ELLIPSIS}"
    # 10,\!080, 10{,}080, 10\,080 and 10 080 are one number anywhere; 10,080 is where no bracket is open.
    rf"|(?P<spaced>[0-9]{{1,3}}+(?:{_THIN}[0-9]{{3}}(?![0-9]))++(?! ?/)(?:[.,][0-9]++)?+)(?![0-9])"
    r"|(?P<grouped>[0-9]{1,3}+(?:,[0-9]{3}(?![0-9]))++(?!,[0-9])(?:\.[0-9]++)?+)"
    r"|(?P<european>[0-9]{1,3}+(?:(?:\.[0-9]{3}(?![0-9]))++,[0-9]++|\.[0-9]{3}(?:\.[0-9]{3}(?![0-9]))++))(?![0-9.])"
    r"|(?P<number>(?:[0-9]++(?:\{,\}[0-9]++|\.(?!\.)[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?[0-9]++(?![0-9A-Za-z]|\.[0-9]))?+)"
    r"|(?P<dropped>(?:np|math|sp|sympy|numpy)\.(?=[a-z])|(?:US|HK|NT|AU|CA|A|C|S|R)\\?\$(?= ?[0-9])"
    r"|\\(?:text)?color ?\{[a-zA-Z]*+\}|\\[hv]space\*? ?\{[^{}]*+\}|\\(?:left|right) ?\.)"
    r"|(?P<begin>\\begin ?\{ ?[a-zA-Z]*+\*? ?\}(?: ?\{[lcr| ]*+\})?+)|(?P<end>\\end ?\{ ?[a-zA-Z]*+\*? ?\})"
    r"|(?P<styled>\\(?:mathbf|boldsymbol|bm|mathit|pmb|mathbb|Bbb|mathcal|mathscr|mathfrak) ?"
    r"(?:\{ ?[a-zA-Z] ?\}|[a-zA-Z]))"
    r"|(?P<letters>[A-Za-z]++)"
    r"|(?P<command>\\[A-Za-z]++)"
    r"|(?P<row>\\\\(?:\[[^\]]{0,9}\])?)"
    r"|(?P<escaped>\\.)"
    rf"|(?P<space>[\s~]++)|(?P<ellipsis>{_ELLIPSIS})"
    r"|(?P<pair>\*\*|<=|>=|==|(?<![0-9A-Za-z)}\]])!=|(?<=[A-Za-z]) !=)"
    r"|(?P<other>[^\W\d_A-Za-z]++)"
    r"|(?P<symbol>.)",
    re.DOTALL,
)
_UPRIGHT = vocabulary(
    r"""
    \text \textbf \textit \textrm \textnormal \textsf \texttt \textup \emph \mbox \hbox \mathrm \mathsf
    \mathtt \operatorname \mathbf \boldsymbol \bm \mathit \pmb
    """
)
_LAYOUT = vocabulary(
    r"""
    \displaystyle \textstyle \scriptstyle \limits \nolimits \left \right \middle \big \Big \bigg \Bigg \bigl
    \bigr \Bigl \Bigr \biggl \biggr \Biggl \Biggr \bigm \quad \qquad \thinspace \enspace \medspace \space
    \boxed \fbox \bf \rm \it \sf \underline \ensuremath \mathop \mathbin \mathrel \mathord \small \large
    \Large \normalsize \bold \negthinspace \,
    """
)
_RENAMED = {
    **dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac", r"\nicefrac", r"\sfrac"), r"\frac"),
    **dict.fromkeys((r"\dbinom", r"\tbinom"), r"\binom"),
    **dict.fromkeys((r"\dots", r"\cdots", r"\dotsc", r"\dotsb"), r"\ldots"),
    **dict.fromkeys((r"\lvert", r"\rvert", r"\vert", r"\mid", r"\lVert", r"\rVert", r"\Vert"), "|"),
    **{r"\langle": "(", r"\rangle": ")", r"\lbrack": "[", r"\rbrack": "]", r"\lparen": "(", r"\rparen": ")"},
    **{r"\lbrace": r"\{", r"\rbrace": r"\}", r"\degree": "°", r"\degrees": "°", r"\prime": "'", r"\colon": ":"},
    **dict.fromkeys((r"\le", r"\leq", r"\leqslant", r"\leqq"), "≤"),
    **dict.fromkeys((r"\ge", r"\geq", r"\geqslant", r"\geqq"), "≥"),
    **dict.fromkeys((r"\ne", r"\neq"), "≠"),
    **dict.fromkeys((r"\cdot", r"\times", r"\ast", r"\bullet", r"\cdotp"), "*"),
    **dict.fromkeys((r"\simeq", r"\doteq", r"\approxeq", r"\thickapprox"), r"\approx"),
    **{r"\lt": "<", r"\gt": ">", r"\div": "/", r"\backslash": r"\setminus", r"\smallsetminus": r"\setminus"},
    **{r"\varnothing": r"\emptyset", r"\wedge": r"\land", r"\vee": r"\lor"},
    **{r"\tg": r"\tan", r"\ctg": r"\cot", r"\arctg": r"\arctan", r"\varphi": r"\phi"},
    **{r"\varepsilon": r"\epsilon", r"\vartheta": r"\theta", r"\varrho": r"\rho", r"\cr": r"\\"},
}
_PAIRS = {"**": "^", "<=": "≤", ">=": "≥", "==": "=", "!=": "≠"}
_DROPPED_SYMBOLS = frozenset("$€£₹¥₩¢")
_UNIT_CAPITALS = frozenset("NJWVKL")
"""Letters that are a unit where a space parts them from a number: ``5 N``."""


class _Reader:
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.open_brackets = 0  # round, square and set brackets: inside them a comma parts items
        self.braces: list[tuple[bool, bool]] = []  # of open braces: whether they group, whether text is upright
        self.text_follows = False  # a command for upright text has been read, its brace not yet

    def read(self, text: str) -> list[str]:
        position = 0
        while position < len(text):
            match = _LEXEME.match(text, position)
            assert match is not None  # the last alternative takes any character
            kind, lexeme = str(match.lastgroup), match[0]
            if match["repeating"] or match["trailing"]:
                self._repeating(match)
            elif kind in ("spaced", "grouped", "european", "number"):
                position = self._number(match, text)
                continue
            elif kind == "letters":
                self._letters(lexeme, text, match.start(), match.end())
            elif kind == "command":
                self._command(lexeme)
            elif kind == "symbol":
                self._symbol(lexeme)
            elif kind == "escaped":
                self._escaped(lexeme[1])
            elif kind == "styled":
                self._styled(lexeme)
            elif kind == "begin":
                self.tokens.append("\\begin:" + "".join(filter(str.isalpha, lexeme.split("}")[0][6:])))
            elif kind in ("end", "row", "ellipsis"):
                self.tokens.append({"end": r"\end", "row": r"\\", "ellipsis": r"\ldots"}[kind])
            elif kind == "pair":
                self.tokens.append(_PAIRS[lexeme.strip()])
            elif kind == "other":
                self.tokens.append('"' + lexeme)
            position = match.end()
        return self.tokens

    def _repeating(self, match: re.Match[str]) -> None:
        """``0.1\\overline{6}``, ``0.1(6)``, ``0.1\\dot{6}`` and ``0.1666...`` as the quotient that they are."""
        if match["repeating"]:
            fixed, period = match["fixed"], match["bar"] or match["round"]
            period = period or match["first"] + (match["middle"] or "") + (match["last"] or "")
        else:
            fixed, period = split_period(match["trailing"])
            if not period:
                self.tokens += [match["trailing"], r"\ldots"]
                return
        whole, _, start = fixed.partition(".")
        nines = (10 ** len(period) - 1) * 10 ** len(start)
        value = int((whole or "0") + start or "0") * (10 ** len(period) - 1) + int(period)
        self.tokens += ["(", str(value), "/", str(nines), ")"]

    def _number(self, match: re.Match[str], text: str) -> int:
        """Append a number; the position after it."""
        kind, lexeme, end = match.lastgroup, match[0], match.end()
        if kind == "grouped" and (self.open_brackets or _after_item(text, match.start())):
            kind, lexeme = "number", lexeme.partition(",")[0]
            end = match.start() + len(lexeme)
        if kind == "european":
            lexeme = lexeme.replace(".", "").replace(",", ".")
        elif kind == "grouped":
            lexeme = lexeme.replace(",", "")
        elif kind == "spaced":
            comma = "." in lexeme or re.fullmatch(r".*[0-9],[0-9]{1,99}", lexeme, re.DOTALL) is not None
            digits = re.findall("[0-9]+", lexeme)
            lexeme = "".join(digits[:-1]) + "." + digits[-1] if comma else "".join(digits)
        else:
            lexeme = lexeme.replace("{,}", ".").removesuffix(".")
        suffix = text[end : end + 2]
        if lexeme.isdigit() and suffix == _ordinal(lexeme) and not text[end + 2 : end + 3].isalpha():
            end += 2
        self.tokens.append(lexeme)
        return end

    def _letters(self, run: str, text: str, start: int, end: int) -> None:
        tokens, upright = self.tokens, bool(self.braces) and self.braces[-1][1]
        after_letter = start > 1 and text[start - 1] == "-" and text[start - 2].isalpha()
        if after_letter and (upright or len(run) > 2) and tokens[-1] == "-":
            tokens.pop()  # a hyphen
        if run.casefold() in ("and", "or") and (len(run) == 3 or run == "or" or upright):
            tokens.append('"' + run.casefold())
        elif run == "x" and tokens and tokens[-1][0].isdigit() and _TIMES.match(text, end):
            tokens.append("*")
        elif run in _UNIT_CAPITALS and tokens and tokens[-1][0].isdigit() and text[start - 1] in " ,~":
            tokens.append('"' + run)
        else:
            tokens.append('"' + run if upright else run)

    def _command(self, command: str) -> None:
        if command in _UPRIGHT:
            self.text_follows = True
        elif command not in _LAYOUT:
            self.tokens.append(_RENAMED.get(command, command))

    def _styled(self, lexeme: str) -> None:
        letter = lexeme.rstrip("} ")[-1]
        if lexeme.startswith((r"\mathbb", r"\Bbb")):
            self.tokens.append(rf"\set{letter}")
        else:
            self.tokens.append(
                rf"\cal{letter}" if lexeme.startswith((r"\mathcal", r"\mathscr", r"\mathf")) else letter
            )

    def _escaped(self, character: str) -> None:
        if character in "{}":
            self.open_brackets += 1 if character == "{" else -1
            self.tokens.append("\\" + character)
        elif character in "%&_|":
            self.tokens.append(character)
        elif character not in ",!:; ()[]$\n\t/":
            self.tokens.append("\\" + character)

    def _symbol(self, character: str) -> None:
        tokens = self.tokens
        if character == "{":
            # The braces of \\text{...} group nothing, except as the argument of a command.
            groups = not self.text_follows or (bool(tokens) and tokens[-1] in ("_", "^", r"\frac", r"\sqrt"))
            self.braces.append((groups, self.text_follows or (bool(self.braces) and self.braces[-1][1])))
            if groups:
                tokens.append("{")
        elif character == "}":
            if not self.braces or self.braces.pop()[0]:
                tokens.append("}")
        elif character not in _DROPPED_SYMBOLS:
            self.open_brackets += (character in "([") - (character in ")]")
            tokens.append("''" if character == '"' else character)
        if character != "*":
            self.text_follows = False


_TIMES = re.compile(r" ?10 ?\^| [0-9]")


def _after_item(text: str, position: int) -> bool:
    """Whether a number and a comma stand right before a position, as in 1,2,300."""
    return position > 1 and text[position - 1] == "," and text[position - 2].isdigit()


def _ordinal(digits: str) -> str:
    return {"1": "st", "2": "nd", "3": "rd"}.get(digits[-1], "th") if digits[-2:-1] != "1" else "th"


def split_period(decimal: str) -> tuple[str, str]:
    """A decimal with an ellipsis after it as its fixed part and its period, '' when it shows none."""
    whole, _, digits = decimal.partition(".")
    for length in range(1, len(digits) // 2 + 1):
        period = digits[-length:]
        count = 1
        while digits[: len(digits) - count * length].endswith(period):
            count += 1
        if count >= (3 if length == 1 else 2):
            return f"{whole}.{digits[: len(digits) - count * length]}", period
    return decimal, ""


_WRAPPERS = (("**", "**"), ("$", "$"), ("`", "`"), ('"', '"'), ("*", "*"), ("__", "__"))


def tokenise(text: str) -> list[str]:
    """The tokens of an answer, without the layout around and in it."""
    text = plain(text).strip()
    for _ in range(3):
        text = _unboxed(text)
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and opening not in inner:
                text = inner.strip()
    tokens = _without_marks(_Reader().read(text))
    while tokens and tokens[-1] in (".", ",", ";"):
        tokens.pop()
    return tokens


def _unboxed(text: str) -> str:
    """The text without the one box that it stands in."""
    match = _BOX.match(text)
    if not match or not text.endswith("}"):
        return text
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0 and character == "}":
            return text[match.end() : -1].strip().rstrip(".,;") if i == len(text) - 1 else text
    return text


_BOX = re.compile(r"\\(?:boxed|fbox) ?\{")
_ORDINALS = frozenset(("st", "nd", "rd", "th"))


def _without_marks(tokens: list[str]) -> list[str]:
    """The tokens with degree signs as one, and without the marks of ordinal numbers."""
    result: list[str] = []
    i = 0
    while i < len(tokens):
        raised = tokens[i] == "^" and i + 1 < len(tokens)
        braced = raised and tokens[i + 1] == "{" and tokens[i + 3 : i + 4] == ["}"]
        mark = tokens[i + 1 + braced] if raised else tokens[i]
        length = 1 + raised + 2 * braced
        if tokens[i : i + 3] in (["{", "-", "}"], ["{", "+", "}"]):
            result.append(tokens[i + 1])
            i += 3
            continue
        after_number = bool(result) and result[-1].isdigit()
        if raised and mark in (r"\circ", "o", '"o') and (mark == r"\circ" or after_number):
            result.append("°")
        elif not (after_number and mark.lstrip('"') in _ORDINALS and (raised or mark[0] == '"')):
            result.append(tokens[i])
            length = 1
        i += length
    return result


def word(token: str) -> str:
    """A token's letters in lower case if it is a word, otherwise ''."""
    return token.lstrip('"').casefold() if token[0] == '"' or token[0].isalpha() else ""


def text_key(tokens: list[str]) -> tuple[str, str]:
    """The key of what is compared as text: words in any case, formulas letter by letter."""
    parts = []
    for i, token in enumerate(tokens):
        if token in "{}" and _around_one(tokens, i, token):
            continue
        bare = token.lstrip('"')
        is_word = bare.isalpha() and (len(bare) > 2 or (len(bare) == 2 and not bare.isupper()))
        parts.append(bare.casefold() if is_word else bare)
    return "text", " ".join(parts)


def _around_one(tokens: list[str], i: int, brace: str) -> bool:
    """Whether a brace is one of a pair around a single token, as in x^{2}."""
    partner = i + 2 if brace == "{" else i - 2
    return 0 <= partner < len(tokens) and tokens[partner] == ("}" if brace == "{" else "{")


def split(tokens: list[str], separators: Container[str]) -> list[list[str]]:
    """Split at separators that stand outside all brackets; in one piece if brackets do not match.

    Any closing bracket closes the last one opened, as intervals need.
    """
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        if token in OPENING or token.startswith(r"\begin"):
            depth += 1
        elif token in CLOSING or token == r"\end":
            depth -= 1
            if depth < 0:
                return [tokens]
        if depth == 0 and token in separators:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts if depth == 0 else [tokens]


def enclosed(tokens: list[str]) -> bool:
    """Whether one pair of brackets encloses all tokens."""
    if len(tokens) < 2 or tokens[0] not in OPENING or tokens[-1] not in CLOSING:
        return False
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token in OPENING or token.startswith(r"\begin")) - (token in CLOSING or token == r"\end")
        if depth == 0 and i < len(tokens) - 1:
            return False
    return depth == 0


OPENING = frozenset(("(", "[", "{", r"\{", r"\lfloor", r"\lceil"))
CLOSING = frozenset((")", "]", "}", r"\}", r"\rfloor", r"\rceil"))
