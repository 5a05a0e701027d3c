"""The answer of a trace that calls tools, whatever a model or a server makes of the arguments."""

from __future__ import annotations

from typing import Any

import pytest

from arrol_tts.answers.of_trace import answer_of
from arrol_tts.trace import Trace


def called(arguments: Any) -> str | None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    return answer_of(Trace("q", 0, tool_calls=[call]), lambda text: None)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ('{"a": 1}', '[{"name": "add", "arguments": {"a": 1}}]'),
        ({"a": 1}, '[{"name": "add", "arguments": {"a": 1}}]'),
        ("", '[{"name": "add", "arguments": {}}]'),
        (None, '[{"name": "add", "arguments": {}}]'),
        ('{"a": ', '[{"name": "add", "arguments": "{\\"a\\": "}]'),
        ("[" * 100_000, None),
        ("[" * 100_000 + "]" * 100_000, None),
    ],
)
def test_calls_are_an_answer(arguments: Any, answer: str | None) -> None:
    assert called(arguments) == answer


@pytest.mark.parametrize("depth", range(940, 1000))
def test_arguments_of_any_depth_raise_nothing(depth: int) -> None:
    called("[" * depth + "]" * depth)
