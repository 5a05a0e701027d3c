"""The letter of a multiple-choice answer."""

# ruff: noqa: RUF001 - signs and letters of other scripts are meant

from __future__ import annotations

import re

from arrol_tts.answers.statements import statement_texts

_LETTER = re.compile(
    r"(?<![a-zA-Z'’\\])\(?([A-HJ]|I(?!\s[a-z]|['’]))\)?(?![a-zA-Z'’]|\s?[=<>^_])"  # "I don't know" names no option
)
_SMALL = re.compile(
    r"[\s(*]{0,9}(?:(?:option|choice|letter)\s{1,9}\(?)?([a-hj])(?:[).:]|\*|\s{0,9}$)", re.IGNORECASE
)
_CHOICE = re.compile(  # a whole box, tag or line that is a choice, with or without the option's text
    r"(?:\\(?:text|textbf|mathbf|mathrm|mathsf|textsf)\s?\{|[\s$({\[*:：]|\\[,; ]|\\left|the\b|correct\b|final\b"
    r"|best\b|option\b|choice\b|answer\b|letter\b|is\b){0,12}"
    r"([A-Ja-j])(?:[^a-zA-Z=^_0-9<>'’+*/-]|\*\*|$)(?!\s?(?:[=<>^_+*/-]|\\[lg]|\\times))",
    re.IGNORECASE,
)
_RULED_OUT = re.compile(
    r"\b(?:not|rules? out|ruled out|eliminat\w{1,4}|exclud\w{1,4}|instead of|rather than|isn[’']t|except)"
    r"\s(?:option\s)?\(?$",
    re.I,
)
_REFUSAL = re.compile(
    r"\W{0,9}(?:I\s)?(?:don['’]?t know|do not know|none of|unknown|unsure|not sure|no idea|cannot|can['’]t)", re.I
)
_CHOSEN = re.compile(
    r"(?:选|選|选择|選擇|選択)(?:项|項)?(?:是|为|為)?\s?[:：]?\s?[(（]?([A-J])(?![a-zA-Z])"
    r"|\b(?:option|choice)\s(?:is|:)\s?\(?([A-J])(?![a-zA-Z'’])"
    r"|\b(?i:answer|therefore|thus|hence|so|it['’]s|(?:chose|choose|pick|select|go with)(?:\soption)?),?"
    r"\s\(?([A-J])\)?(?=\s{0,9}(?:[.!,]|$))",
)
_MARKED = re.compile(
    r"\(([A-J])\)|\*\*([A-J])\b|^\s?([A-J])[.)]?\s*$|\A\s?\(?([A-Ja-h])[.):](?=\s|$)", re.MULTILINE
)
_MAX_TAIL = 2000


def choice_of(content: str) -> str | None:
    """The letter of a box, a tag or a line that names a choice; a formula names none."""
    letter = _CHOICE.match(content[:_MAX_TAIL])
    return letter[1].upper() if letter else None


def choice_in(text: str) -> str | None:
    """The letter that a text states, the last statement first, or the last one that it sets apart."""
    for statement in statement_texts(text):
        if _REFUSAL.match(statement):
            return None
        line = statement.split("\n\n")[0]
        for letter in _LETTER.finditer(line):
            if not _RULED_OUT.search(line[max(letter.start() - 20, 0) : letter.start()]):
                return letter[1]
        small = _SMALL.match(statement)
        if small:
            return small[1].upper()
    chosen: list[str] = [next(filter(None, match.groups())) for match in _CHOSEN.finditer(text[-_MAX_TAIL:])]
    if chosen:
        return chosen[-1]
    marked = _MARKED.findall(text if len(text) <= _MAX_TAIL else text[-_MAX_TAIL:])
    return "".join(marked[-1]).upper() if marked else None
