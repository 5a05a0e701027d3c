"""What the project raises by itself is an ArrolError, and the built-in error that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arrol_tts.answers import answers_equal, canonical_answer, extract_answer
from arrol_tts.errors import ArrolError, InputError
from arrol_tts.recorded import read_traces
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from arrol_tts.voting import vote

HERE = Path(__file__)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: Trace("q", 0, text=None), TypeError),  # type: ignore[arg-type]
        (lambda: Trace("q", 0, finish_reason="eos"), ValueError),  # type: ignore[arg-type]
        (lambda: TraceStore(HERE), NotADirectoryError),
        (lambda: list(read_traces(HERE.with_name("missing"))), FileNotFoundError),
        (lambda: extract_answer(None), TypeError),  # type: ignore[arg-type]
        (lambda: answers_equal("1", 1), TypeError),  # type: ignore[arg-type]
        (lambda: canonical_answer([]), ValueError),
        (lambda: vote([Trace("q", 0, answer="1")], "magic"), InputError),
        (lambda: vote([Trace("q", 0, answer="1")], equality="magic"), InputError),  # type: ignore[arg-type]
    ],
)
def test_errors_are_ours_and_built_in_ones_too(call: Callable[[], Any], kind: type[Exception]) -> None:
    with pytest.raises(ArrolError) as error:
        call()
    assert isinstance(error.value, kind)
    assert str(error.value)
