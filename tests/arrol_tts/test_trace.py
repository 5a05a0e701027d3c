"""Traces refuse early what would fail later, in a vote."""

from __future__ import annotations

from typing import Any

import pytest

from arrol_tts.trace import Trace


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": 1}, r"answer of sample 3 of question 'a' is 1 \(int\); it must be text or None: pass str"),
        ({"answer": ["1"]}, r"answer of sample 3 of question 'a' is \['1'\] \(list\)"),
        ({"text": None}, r"text of sample 3 of question 'a' is None \(NoneType\); it must be text"),
        ({"question_id": 7}, r"question_id of sample 3 of question 7 is 7 \(int\); it must be text: pass str"),
    ],
)
def test_a_field_of_another_type_is_named_with_its_trace(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Trace(**{"question_id": "a", "sample_id": 3, **fields})


def test_an_unknown_finish_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="finish_reason is 'eos'; it must be one of stop, length"):
        Trace("a", 0, finish_reason="eos")  # type: ignore[arg-type]


def test_what_a_trace_wrote_is_its_thinking_and_its_text() -> None:
    assert Trace("q", 0, text="5").written == "5"
    assert Trace("q", 0, text="5", reasoning="2+3").written == "2+3\n\n5"
    assert Trace("q", 0, reasoning="2+").written == "2+"
