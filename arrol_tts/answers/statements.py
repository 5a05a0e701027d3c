"""Answers in running text: "the answer is X" in several languages, and what a last sentence ends in."""

# ruff: noqa: RUF001 - signs and letters of other scripts are meant

from __future__ import annotations

import re
from collections.abc import Iterator

_STATED = re.compile(
    # English: a verb or a colon, or "answer of 12"; with a clause between, as in "the answer to the question is".
    r"\banswers?(?:\*\*|_)?\s{0,9}(?:(?:is|are|was|were|will|would|should|must|can|could|may|might|then|therefore|thus"
    r"|only|now|seems?|appears?|to|comes|out|be)\s{1,9}){0,3}?(?:is|are|was|were|be|equals|=|(?:\*\*)?[:：])"
    r"(?=\W)[:：*\s]{0,40}+"
    r"|\banswer\s{1,9}(?:to|of|for)\b[^\n.:]{0,100}?\s(?:is|are|:)[:*\s]{0,40}+"
    r"|\b(?:an|the|our|my|final) answer of[:\s]{1,9}+(?=[-+−$\\(\[{0-9])"
    r"|^[#*_ ]{0,9}(?:the\s)?(?:final\s{1,9})?answer[*_ \t]{0,9}+(?::\s{0,40}+|\n\s{0,40}+|(?=[-+−$\\(\[{0-9]))"
    # Chinese and Japanese; German, Spanish, French, Italian, Portuguese; Korean, Russian.
    r"|(?:答案|答え|答)】?[^\S\n]{0,3}(?:应该|應該|应|應|就)?(?:是|为|為|选|選|:|：|は|】)\s{0,9}[:：]?\s{0,9}"
    r"|\b(?:die\s+)?(?:antwort|lösung|ergebnis)\s{0,3}(?:ist|lautet|beträgt|wäre|:)[:*\s]{0,40}+"
    r"|\b(?:respuesta|réponse|risposta|resposta)(?:\s(?:final|finale|correcta|correcte|corretta|correta))?\s{0,3}"
    r"(?:est|es|è|é|:)(?=\W)[:*\s]{0,40}+"
    r"|정답[은:]?\s{0,3}:?\s{0,3}|\bответ\s{0,3}[:—-]\s{0,9}",
    re.IGNORECASE | re.MULTILINE,
)
_HEDGES = re.compile(
    r"(?:(?:thus|therefore|hence|then|so|indeed|approximately|about|around|roughly|exactly|precisely|equal to"
    r"|simply|just|only|clearly|given by|found to be|option|choice)\b:?,?\s{0,9})+",
    re.I,
)
_NO_ANSWER = re.compile(  # "the answer is consistent", "the answer is an integer", "the answer is to be found"
    r"(?:(?:also|indeed|not|still|very|quite|obviously|probably)\s)?(?:consistent|correct|right|wrong|incorrect|clear"
    r"|unique|same|given|found|obtained|as|to|that|what|which|based|reasonable|valid|invalid|plausible|likely|unlikely"
    r"|supposed|expected|this|it|we|if|in|of|because|since|obvious|known|unknown|required|needed|below|above|here|there"
    r"|the\s(?:same|following|one)|an?\s(?:[a-z-]+\s){0,3}(?:integer|number|fraction|letter|value|function|expression)s?)\b"
    r"|[,;)\]}?!]|\.(?![0-9])",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(r"not\s[^\s]{1,40}\s(?:\\?\S{1,20}\s)?but\s", re.I)
_MATH = re.compile(r"\$\$(.{1,2000}?)\$\$|\$([^$]{1,2000})\$|\\\((.{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]", re.DOTALL)
_TWO_WORDS = re.compile(r"[a-z]{2}\s[a-z]{2}")
_AND = re.compile(
    r"\s?(?:,\s?(?:and\b|or\b|und\b|oder\b)?|、|;|\band\b|\bor\b|\bund\b|\boder\b|和|或|及)\s?(?=\$|\\\(|\\\[)"
)
_COMPOUND = re.compile(r"\s[a-z]{1,20}\s(?:and\s)?\$[0-9.,]{1,20}\$\s[a-z]{1,20}")  # $12$ dollars and $50$ cents
_VERB = re.compile(
    r"[^\S\n]{0,3}(?:is|are|was|were|has|have|holds?|gives?|equals?|satisf\w{1,5}|do|does|works?|=)\b"
)
_PERCENT = re.compile(r"\s?(?:\\?%|per\s?cent\b)")
_REASON = re.compile(r",?\s(?:since|because|as|so|which|where|when|if|weil|da|denn|con|avec)\b", re.IGNORECASE)
_ASIDE = re.compile(
    r"(?<=[0-9.%}$a-zäöü])\s(?:(?:from|for|with|after|of\s(?:the|a|an|all|his|her|their)|aus|für|von)\s|\([a-z]{2})"
    r"|,?\s(?:and\s)?not\s|,\s(?:I\s|(?!and\b|or\b|und\b|oder\b)[a-zà-ÿ]{2,20}\s)",
    re.IGNORECASE,
)  # "12 apples from 3 trees", "12 for 3 people", "7 (seven)", "17, I think"
_SENTENCE_END = re.compile(r"(?<!\.\.)[.!?](?=\s|\*|$)|\n|[。；！？．](?![0-9])|[，,](?=\s?[^\x00-\u02ff])")
_IS = re.compile(
    r"\s(?:is|are|equals|=|was|were|be|ist|sind|beträgt|makes|gives|takes|gets?|has|have)\s(?=[^a-z])"
)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit|mbox|texttt)\s?\{([^{}\\]*)\}")
_PROSE = re.compile(
    r"(?:the|so|thus|therefore|hence|it|there|she|he|they|we)\b[^=]{0,200}\s(?:is|are|equals|has|have|gets?|pays?|costs?)\s"
    r"(?=[-+−$\\(\[{0-9])",
    re.IGNORECASE,
)
_PLURAL = re.compile(
    r"\b(?:solutions?|roots?|values?|numbers?|integers?|primes?|zeros?|points?|pairs?|intervals?"
    r"|domain|range|set|coordinates)\b[^.\n]{0,60}?\s(?:are|is)[:\s]\s{0,9}(?=[-−$\\(\[{0-9]|[a-zA-Z]\s?=)"
)
_DEFINITE = re.compile(
    r"\b(?:the|all|these|those|both|my|our|her|his|their|its|first|last|next|other|step|question|problem|part|case|example"
    r"|equation|figure|table|to|every|each)\s$",
    re.IGNORECASE,
)
_MONTHS = (
    "(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    "|Nov(?:ember)?|Dec(?:ember)?)"
)
_DIGITS = (
    r"(?:(?<![0-9.,])[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}(?![0-9,])"
    r"|[0-9]{1,3}(?:(?:,|['’](?=[0-9]{3}(?![0-9]))|\{,\}|,\\!|\\,|"
    r"(?<=[0-9])[ \u00a0\u202f](?=[0-9]{3}(?![0-9/])))[0-9]{3})+(?![0-9])"
    r"(?:\.[0-9]+)?"
    r"|[0-9]++(?:\.[0-9]+)?|\.[0-9]+)"
)
_GROUP = r"\{(?:[^{}]{1,50}+|\{[^{}]{0,50}+\}){0,9}+\}"
_RADICAL = r"(?:\\sqrt(?:\[[0-9]\])?\s?\{[^{}]{1,50}\}|√\s?[0-9]+|\\pi\b|π)"
_VALUE = re.compile(
    rf"{_MONTHS}\.?\s[0-9]{{1,2}}(?:st|nd|rd|th)?(?:,?\s[0-9]{{4}})?(?![0-9])|[0-9]{{1,2}}\s{_MONTHS}\s[0-9]{{4}}(?![0-9])"
    r"|(?<![0-9/])[0-9]{1,4}/[0-9]{1,2}/[0-9]{1,4}(?![0-9/])|(?<![0-9])[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9])"
    r"|(?<![0-9:])[0-9]{1,9}(?::[0-9]{1,9}){1,9}(?!:?[0-9])"
    r"|(?:(?<![0-9a-zA-Z)}\]])[-−–]|负|負)?(?:\\[dt]?frac\s?\{-?[0-9]{1,50}\}\s?\{[0-9]{1,50}\}"
    rf"|(?:\\[dt]?frac\s?{_GROUP}\s?{_GROUP}|{_DIGITS}\s?{_RADICAL}|{_RADICAL})(?:/[0-9]+)?"
    rf"|(?<![0-9.,])[0-9]{{1,9}}\s[0-9]{{1,9}}/[0-9]{{1,9}}(?![0-9])|{_DIGITS}"
    r"(?:[eE][-+]?[0-9]+(?![0-9a-zA-Z])|/[0-9]+(?:\.[0-9]+)?"
    r"|\^(?:\{[^{}]{1,20}\}|-?[0-9]{1,9})|\s?(?:×|\\times|\\cdot|\*|x|·)\s?10\s?(?:\^\s?(?:\{\s?[-−]?[0-9]+\s?\}|[-−]?[0-9]+)|[⁻]?[⁰¹²³⁴-⁹]+))?"
    r")(?:\s?(?:\\?%|per\s?cent\b))?"
)
_ANY_VALUE = re.compile(r"[0-9√π]|\\(?:pi|sqrt|[dt]?frac)")
_EUROPEAN = re.compile(
    r"(?<![0-9.,])(-?[0-9]{1,9}),([0-9]{1,2})(?=\s?(?:[a-zA-ZäöüÄÖÜ]{2,20}\b(?<!and)(?<!or)|€|%))"
)
_HAS_VALUE = re.compile(r"[0-9∞π]|\\(?:infty|pi|frac|sqrt)|=")
_WORD = re.compile(r"(?<![\\a-zA-Z])(?!(?:and|or)\b)[a-zA-Z]{2,}")
_FORMULA_END = re.compile(
    r"\$|\\[)\]]|(?<![\\a-zA-Z])[a-zA-Z]{2,}|[<>,]\s"
)  # or words: not one side of an equation
_MAX_STATEMENT = 2000
_MAX_TRIES = 50


def statements(text: str) -> Iterator[str]:
    """The answers that the text states, the last one first."""
    return filter(None, map(_short, statement_texts(text)))


def statement_texts(text: str) -> Iterator[str]:
    """What follows "the answer is", as it stands, the last one first."""
    ends = [match.end() for match in _STATED.finditer(text)][-_MAX_TRIES:]
    return (text[end : end + _MAX_STATEMENT] for end in reversed(ends) if text[end : end + 1].strip())


def answer_in(content: str) -> str | None:
    r"""The answer in a sentence that someone put in a box or a tag, or None when it is no sentence.

    ``\text{The answer is 460}`` gives 460. What is wrapped as a whole is unwrapped: ``\text{460 dollars}``.
    """
    if len(content) > _MAX_STATEMENT:
        return None
    wrapped = _WRAPPED.fullmatch(content)
    plain = (wrapped[1] if wrapped else _WRAPPED.sub(r"\1", content)).strip()
    stated = next(statements(plain), None)
    if stated:
        return stated
    prose = _PROSE.match(plain)
    if prose and " such that " not in plain and " for all " not in plain:
        return _short(plain[prose.end() :])
    return plain if wrapped and len(plain.split()) > 1 and plain[0].isdigit() else None


def conclusion(text: str) -> str | None:
    """The value that a text ends in, which marks no answer: the last one of its last sentence with a value.

    A list of solutions or the right side of an equation is taken whole; numbers that only count what the sentence
    is about ("for the 3 kinds") are passed over.
    """
    last = _last_value(text)
    if last is None:
        return None
    start, end = last
    european = _EUROPEAN.search(text, max(start - 30, 0), end + 30)
    if european and european.end(2) >= start:
        return f"{european[1]}.{european[2]}"
    begin = max(text.rfind("\n\n", 0, start) + 1, start - _MAX_STATEMENT, 0)
    paragraph, stop = text[begin : end + 200], end - begin
    values = list(_values(paragraph, stop))
    if not values:
        return text[start:end].strip()
    sentence = max((m.end() for m in _SENTENCE_END.finditer(paragraph, 0, values[-1][0])), default=0)
    whole = _listed(paragraph, sentence, values[-1][0]) or _equated(paragraph, sentence, values[-1][0], stop)
    if whole:
        return whole
    inside = [item for item in values if item[0] >= sentence]
    free = [item for item in inside if not _DEFINITE.search(paragraph[max(item[0] - 12, 0) : item[0]])]
    return _clean_value((free or inside or values)[-1][1])


def _listed(paragraph: str, sentence: int, value: int) -> str | None:
    """What a sentence that ends in a value names as solutions, values, points or the like."""
    plural = _PLURAL.search(paragraph, sentence)
    listed = _short(paragraph[plural.end() :]) if plural and plural.end() <= value else None
    return listed if listed and _HAS_VALUE.search(listed) else None


def _equated(paragraph: str, sentence: int, value: int, stop: int) -> str | None:
    """The right side of an equation without dollar signs that a sentence ends in."""
    sign = paragraph.rfind("=", sentence, stop)
    right = _SENTENCE_END.split(paragraph[sign + 1 :], maxsplit=1)[0].strip(" $*")
    return right if 0 <= sign <= value and len(right) < 100 and not _FORMULA_END.search(right) else None


def _last_value(text: str) -> tuple[int, int] | None:
    """Where the last value of a text stands, looked for from its end."""
    if not _ANY_VALUE.search(text):
        return None
    size = _MAX_STATEMENT
    while True:
        base = max(len(text) - size, 0)
        found = None
        for match in _VALUE.finditer(text, base):
            found = match
        if found and (found.start() > base + 200 or not base):
            return found.span()
        if not base:
            return None
        size *= 8


def _values(paragraph: str, stop: int) -> Iterator[tuple[int, str]]:
    """Formulas and numbers of a paragraph in order, those that start before ``stop``."""
    position, formula = 0, _MATH.search(paragraph)
    while True:
        while formula and (formula.start() < position or _is_money(formula)):
            formula = _MATH.search(paragraph, max(formula.start() + 1, position))
        value = _VALUE.search(paragraph, position)
        if formula and (not value or formula.start() <= value.start()):
            content = _content(formula)
            if _HAS_VALUE.search(content):
                percent = r"\%" if _PERCENT.match(paragraph, formula.end()) else ""
                yield formula.start(), _right_side(content) + percent
            position = formula.end()
        elif value and value.start() < stop:
            yield value.start(), value[0]
            position = value.end()
        else:
            return


def _is_money(formula: re.Match[str]) -> bool:
    """Whether two dollar signs enclose running text between two amounts, rather than a formula."""
    content = formula[2]
    if content is None or not content[0].isdigit() or "\\" in content:
        return False
    return content[-1].isspace() or bool(_TWO_WORDS.search(content))


def _right_side(content: str) -> str:
    """What follows the last equality sign of one equation; several equations stay."""
    if "," in content or r"\\" in content or r"\text" in content:
        return content
    before, _, after = content.rpartition("=")
    is_equation = after.strip() and not before.rstrip().endswith(("<", ">", "!", "&", "\\"))
    if not is_equation or before.count("{") != before.count("}"):
        return content
    return after.strip()


def _clean_value(value: str) -> str:
    value = value.strip().rstrip(".,;").strip()
    return "-" + value[1:] if value[:1] in "–−负負" and value[1:] else value


def _short(statement: str) -> str | None:
    """The answer in a statement: its leading formulas, or the words up to the end of the sentence."""
    statement = statement.lstrip(" \t\n}`'\"“*_:：")
    hedge = _HEDGES.match(statement) or _NOT_BUT.match(statement)
    statement = statement[hedge.end() :].lstrip(" \t\n`*") if hedge else statement
    listed = list_of(statement)
    if listed:
        return listed
    if _NO_ANSWER.match(statement):
        return None
    for ending in (_SENTENCE_END, _REASON):
        end = ending.search(statement)
        statement = statement[: end.start()] if end else statement
    prose = _PROSE.match(statement)
    statement = statement[prose.end() :] if prose else statement
    aside = _ASIDE.search(statement)
    if aside and _VALUE.match(statement):
        statement = statement[: aside.start()]
        numbers = _VALUE.findall(statement)
        statement = numbers[0] if len(numbers) == 1 and len(statement.split()) > 2 else statement
    statement = statement.strip().strip("*`\"'”").strip()
    european = _EUROPEAN.match(statement)
    if european:
        return f"{european[1]}.{european[2]}"
    value = _VALUE.search(statement) if statement[:1] > "\u3000" else _VALUE.match(statement)
    if value and max(statement[:1], statement[value.end() : value.end() + 1]) > "\u3000":  # with words in Chinese
        return _clean_value(value[0])
    if len(statement.split()) <= 5 or (len(statement) <= 300 and not _WORD.search(statement)):
        return statement or None
    # A sentence rather than an answer: its formula, else the number that something is said to be, else the first.
    formula, verb = _MATH.search(statement), _IS.search(statement)
    if formula and not _is_money(formula):
        return _content(formula)
    number = (_VALUE.search(statement, verb.end()) if verb else None) or _VALUE.search(statement)
    return _clean_value(number[0]) if number else None


def list_of(statement: str) -> str | None:
    """The formulas that a statement begins with: ``$1$, $2$, and $3$`` is one answer, ``1, 2, 3``."""
    position = 0
    found: list[str] = []
    while True:
        formula = _MATH.match(statement, position)
        if not formula or _is_money(formula) or (found and _VERB.match(statement, formula.end())):
            break
        position = formula.end()
        percent = _PERCENT.match(statement, position)
        found.append(_content(formula).rstrip(".") + (r"\%" if percent else ""))
        separator = _AND.match(statement, percent.end() if percent else position)
        if not separator:
            return None if _COMPOUND.match(statement, position) else ", ".join(found)
        position = separator.end()
    return ", ".join(found) or None


def _content(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()
