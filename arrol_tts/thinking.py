"""Thinking: what a reasoning model writes before its answer, told apart from it by the delimiters around it."""

from __future__ import annotations

import re
from typing import NamedTuple

_TAGS = r"think(?:ing)?(?::[^\s<>]{1,40})?|thoughts?|reasoning|(?:seed|mm):think|ifm\|think(?:_fast|_faster)?"
PAIRS = (
    (rf"<(?:{_TAGS})>", rf"</(?:{_TAGS})>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|channel>thought", r"<channel\|>"),
    (r"<\|open\|>think<\|sep\|>", r"<\|close\|>think<\|sep\|>"),
    (r"<\|content_thinking\|>", r"<\|end_message\|>"),
    (r"<\|channel\|>(?:analysis|commentary)<\|message\|>", r"<\|end\|>"),
    (r"(?:<\|start\|>assistant )?to=self<\|message\|>", r"<\|eom\|>"),
    (r"Here(?:'s| is) my thought process:", r"Here(?:'s| is) my response:"),
)
"""What begins a thinking and what ends it, as models and vLLM's reasoning parsers have them."""

DELIMITER_TOKENS = (
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>", "<channel|>"),
    ("<|open|>", "<|close|>", "<|sep|>"),
    ("<|content_thinking|>", "<|content_text|>", "<|message_model|>", "<|end_message|>"),
    ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
)
"""Special tokens of which delimiters are made, together in the models that have them."""

_STARTS = tuple((re.compile(rf"\s*{start}"), re.compile(end)) for start, end in PAIRS)
_ANY_START = re.compile("|".join(start for start, _ in PAIRS))
_ANY_END = re.compile("|".join(end for _, end in PAIRS))
SAYING_END = re.compile("|".join(end for _, end in PAIRS[:7]))
"""Ends that say so: a thinking that the prompt began is known by them alone."""
_AROUND_ANSWER = re.compile(
    r"<\|start\|>assistant(?: to=user<\|message\|>)?|<\|channel\|>final<\|message\|>"
    r"|<\|(?:START|END)_(?:RESPONSE|TEXT)\|>|<\|(?:begin|end)_of_solution\|>|<\|(?:open|close)\|>(?:response|message)<\|sep\|>|</?response>"
    r"|<\|message_model\|>|<\|content_text\|>|<\|end_message\|>"
)
"""What models write around their answers."""


class Split(NamedTuple):
    """What a model wrote, taken apart.

    Attributes:
        reasoning: its thinking, without delimiters; None when there is none.
        text: its answer.
        is_open: the thinking has no end; there is no answer then.
    """

    reasoning: str | None
    text: str
    is_open: bool


def split_thinking(text: str, *, opened: bool = False) -> Split:
    """Tell a model's thinking from its answer.

    The thinking stands at the beginning, and goes to the first delimiter that ends it; several may follow one
    another. Delimiters elsewhere are text like any other.

    Args:
        text: all that was written.
        opened: the prompt ended with the delimiter that begins a thinking.
    """
    thoughts: list[str] = []
    at = 0
    while True:
        begun = next(((m.end(), end) for start, end in _STARTS if (m := start.match(text, at))), None)
        if begun is not None:
            start, ends = begun
        elif not thoughts and opened:
            start, ends = 0, _ANY_END
        elif not thoughts and (stray := SAYING_END.search(text)) and not _ANY_START.search(text, 0, stray.end()):
            start, ends = 0, SAYING_END
        else:
            break
        end = ends.search(text, start)
        thoughts.append(text[start : end.start() if end else len(text)].strip())
        if end is None:
            return Split(_joined(thoughts), "", True)
        at = end.end()
        around = re.compile(rf"(?:\s*(?:{_AROUND_ANSWER.pattern}))+").match(text, at)
        if around and any(start.match(text, around.end()) for start, _ in _STARTS):
            at = around.end()
    if not thoughts and not _AROUND_ANSWER.match(text):
        return Split(None, text, False)
    return Split(_joined(thoughts), _AROUND_ANSWER.sub("", text[at:]).lstrip(), False)


def opens_thinking(prompt: str) -> bool:
    """Whether the text of a prompt ends inside a thinking, which the model then goes on with."""
    tail = prompt[-200:]
    last = max((match.end() for match in _ANY_START.finditer(tail)), default=-1)
    return last >= 0 and not tail[last:].strip()


def _joined(thoughts: list[str]) -> str | None:
    return "\n\n".join(filter(None, thoughts)) or None
