"""Recordings: scrubbed, saved, read back, forgotten."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from arrol_tts.recorded import read_traces
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from arrol_tts.voting import vote
from demo.picture import picture
from demo.recording import RecordedRun, Recording, Recordings, read_recordings

TRACES = (
    Trace("q0", 0, "abcdefghij", "7", 10, scores={2: 0.4, 9: 0.8}, confidence=np.arange(10, dtype=np.float32)),
    Trace("q0", 3, "abc", None, 3, "pruned", "score too low", scores={2: 0.1}),
)
RUN = RecordedRun("keep half", TRACES, at=2, reference="7")
RECORDING = Recording("3+4", (RUN,))


def test_at_a_tick_every_trace_has_written_as_much() -> None:
    shown = RUN.state_at(5, vote).payload()
    assert [(t["sample"], t["tokens"], t["text"], t["status"], t["score"]) for t in shown["traces"]] == [
        (0, 5, "abcde", "running", 0.4),
        (3, 3, "abc", "pruned", 0.1),
    ]
    assert shown["seconds"] is None


def test_at_the_last_tick_it_is_over() -> None:
    shown = RUN.state_at(10, vote).payload()
    assert shown["phase"] == "done"
    assert shown["tally"][0]["right"] is True


def test_saved_traces_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(RECORDING.jsonl())
    back = list(read_traces(file))
    for before, after in zip(TRACES, back, strict=True):
        for name in ("sample_id", "text", "answer", "num_tokens", "finish_reason", "detail", "scores", "correct"):
            assert getattr(after, name) == getattr(before, name)
    np.testing.assert_allclose(back[0].confidence, TRACES[0].confidence)  # type: ignore[arg-type]


def test_a_saved_recording_opens_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(RECORDING.jsonl())
    (opened,) = read_recordings(file)
    assert (opened.question, opened.runs[0].label, opened.runs[0].at) == ("3+4", "keep half", 2)
    assert opened.runs[0].reference == "7"


def test_two_compared_runs_are_saved_apart(tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(Recording("3+4", (RUN, RUN)).jsonl())
    assert [opened.question for opened in read_recordings(file)] == ["3+4", "3+4 (second setting)"]


def test_the_detection_position_is_read_off_foreign_traces(tmp_path: Path) -> None:
    file = tmp_path / "foreign.jsonl"
    file.write_text(
        '{"question_id": 1, "text": "ab", "num_tokens": 33, "finish_reason": "pruned"}\n'
        '{"question_id": 1, "text": "abcd", "num_tokens": 90}\n'
    )
    assert read_recordings(file)[0].runs[0].at == 32


def test_old_recordings_are_forgotten() -> None:
    kept = Recordings([RECORDING], size=2)
    names = [kept.add([RECORDING])[0] for _ in range(3)]
    assert [kept.get(name) is None for name in names] == [True, False, False]
    assert kept.get("opened/0") is RECORDING


@pytest.mark.parametrize("name", ["", "opened/1", "opened/-1", "opened/²", "../x", None, 7])
def test_unknown_ids_give_nothing(name: object) -> None:
    assert Recordings([RECORDING]).get(name) is None


def test_the_picture_is_well_formed_whatever_the_question() -> None:
    hostile = Recording("<script>alert(1)</script> & 'x'", (RUN, RUN))
    svg = ElementTree.fromstring(picture(hostile, WeightedVoter()))
    assert not list(svg.iter("{http://www.w3.org/2000/svg}script"))
    assert any("<script>" in (text.text or "") for text in svg.iter("{http://www.w3.org/2000/svg}text"))
