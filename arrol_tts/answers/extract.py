"""Extracting the answer from the text of a solution."""

# ruff: noqa: RUF001 - signs and letters of other scripts are meant

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from arrol_tts.answers.letters import choice_in, choice_of
from arrol_tts.answers.statements import answer_in, conclusion, list_of, statements
from arrol_tts.errors import WrongTypeError
from arrol_tts.thinking import SAYING_END, split_thinking

Extractor = Callable[[str], str | None]
"""Solution text -> answer, or None when it holds none. ``extract_answer`` is one; so is your own."""

# Every pattern here is linear: bounded or possessive repeats, and none inside another.
_END = re.compile(
    r"<[|｜](?:im_end|im_start|endoftext|end_of_text|end▁of▁sentence|eot_id|eom_id|end_of_turn|end|eos|EOT|pad"
    r"|return|call|start_header_id|user|User)[|｜]>|</s>|<eos>|<pad>|<end_of_turn>|\[INST\]|\[PAD\]"
)
_SPECIAL = re.compile(r"<[|｜][\w▁]{1,40}[|｜]>")
_THOUGHT_END = re.compile(rf"{SAYING_END.pattern}|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_NEXT_QUESTION = re.compile(
    r"^[#* \t]{0,9}(?:Question|Problem|Exercise|Example|Q|Human|User|Instruction|问题|题目|问)"
    r"[ \t]{0,3}[0-9]{0,4}[ \t]{0,3}(?:\*\*)?[:：.]",
    re.MULTILINE,
)
_NEXT_ANSWER = re.compile(
    r"^[#* \t]{0,9}(?:Answer|A|Solution|Response|Assistant|答案|答)[ \t]{0,3}(?:\*\*)?[:：]", re.MULTILINE
)
_TAG = re.compile(r"<(/?)(?:final[_ ]?)?answer>", re.IGNORECASE)
_BOX = re.compile(
    r"\\(?:boxed|fbox|framebox)\s{0,20}(?:(?P<open>\{)|(?P<bare>-?[0-9][0-9.,/]{0,50}|[A-Za-z](?=\s{0,9}(?:[$.)\\]|$))))"
    r"|(?:(?<![\\a-zA-Z])boxed|\x08oxed)(?P<lost>\{)|\\[a-zA-Z]+|\\.|[{}]",
    re.DOTALL,
)
_PLACEHOLDER = re.compile(
    r"(?:\\text\s?\{)?\s?"
    r"(?:\.\.\.|…|\\[lc]?dots|(?:your |the |final ){0,3}(?:final )?answer(?: here)?)?\s?\}?",
    re.I,
)
_BETWEEN_BOXES = re.compile(
    r"(?:\\?[$)\]]|\s|\\q?quad\b|\\[,;]){0,30}+(?:,\s?)?(?:and|or|,|;|和|或|\\text\{\s?,?\s?(?:and|or)\s?\})"
    r"(?:\\?[$(\[]|\s|\\q?quad\b|\\[,;]){0,30}+(?P<name>[a-zA-Z](?:_\{?[0-9]\}?)?\s?=\s?)?"
)
_NAME_BEFORE = re.compile(r"([a-zA-Z](?:_\{?[0-9]\}?)?)\s?=\s?$")
_PERCENT = re.compile(r"\s?(?:\$\$?|\\\)|\\\])?\s?(?:\\,\s?)?(?:\\?%|per\s?cent\b)")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*+([^\n]*)")
_BEGIN = re.compile(r"\s{0,99}(?:<s>|<bos>|<\|begin_of_text\|>)")
_NUMBERED_HEADING = re.compile(
    r"(?:\d{1,9}[.)]|\([a-z0-9]{1,3}\))\s{1,9}\*{0,3}[A-Za-z]|(?:step|part|case|section)\b", re.I
)
_VALUE_START = re.compile(r"[`*]{0,4}(?:[a-zA-Z]\s?=)?\s?[-+−–$£€¥\\(\[{.]{0,4}\s?(?:[0-9\\({\[√π∞])")
_HEADINGS = re.compile(
    r"\W{0,9}(?:final|answer|conclusion|summary|solution|result|verification|check|explanation|note)\b", re.I
)
_CHAIN = re.compile(r"[^,=<>]{1,200}=[^,=<>a-zA-Z\\]{1,200}=\s{0,9}(-?[0-9][0-9.,/]{0,50})")  # m+n = 2+3 = 5
_MAX_TRIES = 50


def extract_answer(text: str, *, choices: bool = False, stated: bool = False) -> str | None:
    r"""The answer that a solution states, or None when there is none.

    What a reasoning model says after its thinking (``</think>``) goes before the thinking, and a text that ends
    inside it has no answer (`arrol_tts.thinking`). Text behind an end-of-text token is not read, nor what follows
    a stated answer once the text poses a question of its own, as base models do (``Question: ...``).

    Looked for in this order, the last occurrence of each: ``<answer>`` tags; ``\boxed{...}`` with balanced
    braces (a box that the text was cut off in does not count); ``#### N`` (GSM8K; a heading is none); "the (final)
    answer is X" or "answer: X", also in Chinese, German and other languages; and at last the value that the last
    sentence with a number ends in. Several answers given together stay together: ``x=1 or x=2``. The time is
    linear in the length of the text.

    Args:
        text: a solution, as generated.
        choices: the question is multiple choice: the answer is a letter from A to J.
        stated: only what the text marks or states as its answer, not the value that its last sentence ends in.

    Raises:
        WrongTypeError: ``text`` is no string.
    """
    if not isinstance(text, str):
        raise WrongTypeError(f"text is {type(text).__name__}; pass the solution as a string")
    if split_thinking(text).is_open:
        return None
    text = _before_end(text)
    thoughts = [match.end() for match in _THOUGHT_END.finditer(text)]
    for part in (text[thoughts[-1] :], text) if thoughts else (text,):
        part = _before_next_question(_SPECIAL.sub("\n", part))
        answer = _choice(part) if choices else _marked(part) or (None if stated else conclusion(part))
        if answer:
            chain = _CHAIN.fullmatch(answer)
            return chain[1] if chain else answer
    return None


def _before_end(text: str) -> str:
    """The text up to the first token that ends a turn after something was said."""
    text = _BEGIN.sub("", text, count=1)
    final = text.rfind("<|channel|>final<|message|>")  # gpt-oss ends its thinking with such a token, too
    for match in _END.finditer(text, max(final, 0)):
        if text[: match.start()].strip():
            return text[: match.start()]
    return text


def _before_next_question(text: str) -> str:
    """The text up to where it poses a question of its own, if an answer stands before that."""
    for count, match in enumerate(_NEXT_QUESTION.finditer(text)):
        before = text[: match.start()]
        if count == 3:
            break
        if before.strip() and (_marked(before) or (_NEXT_ANSWER.search(text, match.end()) and conclusion(before))):
            return before
    return text


def _marked(text: str) -> str | None:
    return next(_candidates(text), None)


def _candidates(text: str) -> Iterator[str]:
    """The answers that the text marks as such, in the order of what is believed first."""
    tagged = _last_tag(text)
    if tagged:
        yield _last_box(tagged) or answer_in(tagged) or tagged
    for found in (_last_box, _last_hashes):
        answer = found(text)
        if answer:
            yield answer
    yield from statements(text)


def _choice(text: str) -> str | None:
    """The letter of what the text marks as its answer, or the last letter that it sets apart as a choice."""
    tagged = _last_tag(text)
    for marked in (tagged, _last_box(text), _last_hashes(text)):
        letter = choice_of(marked) if marked else None
        if letter:
            return letter
    return choice_in(text)


def _last_tag(text: str) -> str | None:
    """What stands in the last pair of answer tags; the text may have been stopped at the closing one."""
    start, found = -1, None
    for match in _TAG.finditer(text):
        if match[1] and start >= 0:
            found, start = text[start : match.start()].strip() or found, -1
        elif not match[1]:
            start = match.end()
    return found if start < 0 else text[start:].strip() or found


def _last_box(text: str) -> str | None:
    """What is boxed last, with the boxes beside it in a list; one pass, however many boxes are open."""
    open_groups: list[tuple[int, int] | None] = []  # where a box and its content start; None for other braces
    found: list[tuple[int, int, int, int]] = []  # a box's start and end, its content's start and end
    for match in _BOX.finditer(text):
        token = match[0]
        if match["open"] or match["lost"]:
            open_groups.append((match.start(), match.end()))
        elif match["bare"]:
            found = [*found[-9:], (match.start(), match.end(), match.start("bare"), match.end())]
        elif token == "{":
            open_groups.append(None)
        elif token == "}" and open_groups:
            box = open_groups.pop()
            if box is not None and not _PLACEHOLDER.fullmatch(text[box[1] : match.start()].strip()):
                inner = [item for item in found if item[0] < box[0]]  # a box in a box is one
                found = [*inner[-9:], (box[0], match.end(), box[1], match.start())]
    if not found:
        return None
    answers = [_boxed(text, *found[-1][1:])]
    names = {match[1] for match in [_NAME_BEFORE.search(text[max(found[-1][0] - 20, 0) : found[-1][0]])] if match}
    for before, after in zip(reversed(found[:-1]), reversed(found[1:]), strict=True):
        between = _BETWEEN_BOXES.fullmatch(text[before[1] : min(after[0], before[1] + 60)])
        name = _NAME_BEFORE.search(text[max(before[0] - 20, 0) : before[0]])
        names |= {name[1]} if name else set()
        if not between or after[0] > before[1] + 60 or len(names) > 1:
            break
        answers.append(_boxed(text, *before[1:]))
    return ", ".join(reversed(answers))


def _boxed(text: str, end: int, start: int, stop: int) -> str:
    content = text[start:stop].strip()
    content = answer_in(content) or list_of(content) or content
    percent = _PERCENT.match(text, end)
    return content + r"\%" if percent and not content.endswith("%") else content


def _last_hashes(text: str) -> str | None:
    """What follows ``####`` in its line, where that is an answer and no heading."""
    for match in reversed(list(_HASHES.finditer(text))[-_MAX_TRIES:]):
        line = match[1].strip().strip("`*").rstrip(".,;:").strip()
        if _NUMBERED_HEADING.match(line):
            continue
        if _VALUE_START.match(line):
            return line
        stated = answer_in(line)
        if stated:
            return stated
        if line and not _HEADINGS.match(line) and len(line.split()) <= 5 and not text[match.end() :].strip():
            return line
    return None
