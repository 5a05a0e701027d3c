"""RunState: events in, what the page shows out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from arrol_tts.events import Ended, Progress
from arrol_tts.trace import Trace
from arrol_tts.voting import vote
from demo.run_state import TAIL, RunState


def trace(sample: int, answer: str | None, score: float, **more: object) -> Trace:
    fields = {"num_tokens": 10, "scores": {4: score}, "confidence": np.full(10, 1.0, np.float32)} | more
    return Trace("q0", sample, text=f"answer {answer}", answer=answer, **fields)  # type: ignore[arg-type]


def state(n: int = 3, **more: object) -> RunState:
    return RunState(range(n), label="a run", vote=vote, **more)  # type: ignore[arg-type]


def test_progress_adds_up() -> None:
    run = state(2)
    run.apply(Progress("q0", 1, 3, "1+1", {2: 0.25}))
    run.apply(Progress("q0", 1, 5, "=2", {4: 0.75}))
    shown = run.payload()["traces"]
    assert (shown[1]["text"], shown[1]["tokens"], shown[1]["score"]) == ("1+1=2", 5, 0.75)
    assert [row["status"] for row in shown] == ["waiting", "running"]


def test_live_text_is_cut_and_the_end_has_all_of_it() -> None:
    run = state(1)
    run.apply(Progress("q0", 0, 900, "x" * 900))
    assert run.payload()["traces"][0]["text"] == "x" * TAIL
    run.finish("stopped by you")
    assert run.payload()["traces"][0]["text"] == "x" * 900


def test_the_tally_is_the_librarys_vote() -> None:
    traces = [trace(0, "1", 0.9), trace(1, "2", 0.2), trace(2, "2", 0.3)]
    run = state(3)
    for one in traces:
        run.apply(Ended(one))
    tally = {row["method"]: row for row in run.payload()["tally"]}
    for name, method in {"Majority": "majority", "DeepConf": "deepconf", "Quality head": "quality"}.items():
        expected = vote(traces, method)
        assert tally[name]["answer"] == expected.answer
        assert [(r["answer"], r["votes"]) for r in tally[name]["rows"]] == [
            (r.answer, r.votes) for r in expected.table
        ]
    assert tally["Majority"]["answer"] == "2"
    assert tally["Quality head"]["answer"] == "1"


def test_answers_are_graded_against_the_reference_by_equality() -> None:
    run = state(2, reference="1/2")
    run.apply(Ended(trace(0, "0.5", 0.9)))
    run.apply(Ended(trace(1, "2", 0.1)))
    run.finish()
    assert [row["right"] for row in run.payload()["traces"]] == [True, False]
    assert run.payload()["tally"][-1]["right"] is True


def test_methods_without_their_signals_are_left_out() -> None:
    run = state(1)
    run.apply(Ended(trace(0, "1", 0.5, scores={}, confidence=None)))
    assert [row["method"] for row in run.payload()["tally"]] == ["Majority"]


def test_a_blank_answer_is_no_vote() -> None:
    run = state(2)
    run.apply(Ended(trace(0, " ", 0.9)))
    assert run.payload()["tally"] == []
    run.apply(Ended(trace(1, "2", 0.5)))
    assert {row["answer"] for row in run.payload()["tally"]} == {"2"}


def test_counters() -> None:
    run = state(3)
    run.apply(Ended(trace(0, "1", 0.9, num_tokens=30)))
    run.apply(Ended(trace(1, None, 0.1, finish_reason="pruned", detail="low")))
    run.apply(Progress("q0", 2, 5, "..."))
    shown = run.payload()
    assert shown["counts"] == {"writing": 1, "finished": 1, "pruned": 1, "cancelled": 0}
    assert (shown["tokens"], shown["saved"]) == (45, 20)
    assert shown["traces"][1]["why"] == "low"


def test_what_has_not_ended_is_cancelled_at_the_end() -> None:
    run = state(2)
    run.apply(Progress("q0", 0, 5, "..."))
    run.finish("stopped by you")
    shown = run.payload()
    assert shown["phase"] == "stopped"
    assert shown["counts"]["cancelled"] == 2
    assert "stopped by you" in shown["note"]


def test_the_outcome_is_said_in_words() -> None:
    run = state(3, reference="1")
    for one in (trace(0, "1", 0.9), trace(1, "2", 0.2), trace(2, "2", 0.3)):
        run.apply(Ended(one))
    run.finish()
    assert run.payload()["note"] == "The quality head's vote is right, the majority's is wrong."


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "${1}", "\x00\ud800"]
)
def test_a_models_text_reaches_the_page_as_it_is(text: str) -> None:
    run = state(1)
    run.apply(Progress("q0", 0, 1, text))
    assert json.loads(json.dumps(run.payload()))["traces"][0]["text"] == text
    assert text not in run.payload()["chart"]
