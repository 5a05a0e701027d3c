"""The answer of a trace: read off its text, or the tools that it calls."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Hashable
from typing import Any

from arrol_tts.answers.canonical import PercentSign
from arrol_tts.answers.equality import Equality, key_function
from arrol_tts.trace import Trace


def answer_of(trace: Trace, extract: Callable[[str], str | None]) -> str | None:
    """The answer of a trace that ended by itself.

    Args:
        trace: its tool calls, as JSON, are an answer themselves: ``[{"name": ..., "arguments": {...}}]``.
        extract: reads it off the text of any other.

    Returns:
        None when there is none, as in a trace that ended inside its thinking, or whose calls are nested too deep.
    """
    if trace.tool_calls:
        try:
            return json.dumps([_called(call) for call in trace.tool_calls], ensure_ascii=False)
        except RecursionError:
            return None
    if trace.reasoning is not None and not trace.text.strip():
        return None
    return extract(trace.text)


def calls_or(equality: Equality, percent: PercentSign) -> Callable[[str], Hashable]:
    """An equality for answers of which some are calls of tools.

    Calls are compared as structures, as by ``json``; what the other traces say, by the equality.

    Raises:
        InputError: as ``key_function``.
    """
    of_calls, of_texts = key_function("json"), key_function(equality, percent)
    return lambda answer: of_calls(answer) if answer.startswith(_CALLS) else of_texts(answer)


_CALLS = '[{"name": '
"""How ``answer_of`` begins calls."""


def _called(call: dict[str, Any]) -> dict[str, Any]:
    """What of a call counts when calls are compared: not its id."""
    function = call.get("function") or {}
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # a model may write what is no JSON
            arguments = json.loads(arguments)
    return {"name": function.get("name"), "arguments": arguments}
