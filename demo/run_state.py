"""RunState: everything the page shows of one run, reduced from the engine's events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from arrol_tts.answers import answers_equal
from arrol_tts.events import Ended, Event, Progress, Voted
from arrol_tts.trace import Trace
from arrol_tts.voting import METHODS, TokenLedger, VoteResult, answered

from .charts import score_chart

SHOWN_METHODS = {"majority": "Majority", "deepconf": "DeepConf", "quality": "Quality head"}
"""Voting methods of the tally, and what the page calls them."""

TAIL = 240
"""Characters of a trace's text that are sent while it is being written."""
MAX_TEXT = 20_000
"""Characters of its text that are sent when the run is over."""
MAX_ROWS = 6
"""Answers of a tally that are shown."""

Vote = Callable[[Sequence[Trace], str], VoteResult]


@dataclass(slots=True)
class TraceView:
    """One trace as far as it is known: the fields of ``Progress``, added up, and its end."""

    num_tokens: int = 0
    text: str = ""
    scores: dict[int, float] = field(default_factory=dict)
    trace: Trace | None = None

    @property
    def status(self) -> str:
        """``waiting``, ``running``, or a finish reason."""
        if self.trace is not None:
            return self.trace.finish_reason
        return "running" if self.num_tokens else "waiting"

    @property
    def score(self) -> float | None:
        """The last score, None before the first."""
        return self.scores[max(self.scores)] if self.scores else None


class RunState:
    """One run: N traces of one question under one setting.

    Args:
        samples: sample ids of the traces, in the order they are shown.
        label: the choices in words.
        vote: votes over traces by a method's name, such as ``WeightedVoter.vote``.
        at: detection position, None when nothing is pruned there.
        reference: the right answer, None when it is not known.
        timed: whether the time since it was made means something.
        request: what an app would send for the same answer, in words; "" where nothing would do.
    """

    def __init__(
        self,
        samples: Iterable[int],
        *,
        label: str,
        vote: Vote,
        at: int | None = None,
        reference: str | None = None,
        timed: bool = True,
        request: str = "",
    ) -> None:
        self.label, self.at, self.reference, self.request = label, at, reference, request
        self.views = {sample_id: TraceView() for sample_id in samples}
        self.question_id = ""
        self.phase = "waiting"
        self.note = ""
        self._vote = vote
        self._began = time.monotonic()
        self._timed = timed
        self._seconds: float | None = None
        self._tally: list[dict[str, Any]] | None = []
        self._chart = ""

    def apply(self, event: Event) -> None:
        """Take one event in. Votes are not read from ``Voted``: the tally shows several methods."""
        if isinstance(event, Voted):
            return
        self.phase = "running"
        if isinstance(event, Progress):
            view = self.views[event.sample_id]
            if view.trace is None:
                view.num_tokens = event.num_tokens
                view.text += event.text
                view.scores |= event.scores
        elif isinstance(event, Ended):
            trace = event.trace
            if trace.correct is None and trace.answer is not None and self.reference is not None:
                trace.correct = answers_equal(trace.answer, self.reference)
            self.question_id = trace.question_id
            self.views[trace.sample_id] = TraceView(trace.num_tokens, trace.written, dict(trace.scores), trace)
            self._tally = None
            if trace.finish_reason == "cancelled" and not self.note:
                self.note = f"The rest was cancelled: {trace.detail}."

    def finish(self, why: str = "") -> None:
        """The run is over; traces that have not ended are cancelled for the reason given."""
        for sample_id, view in list(self.views.items()):
            if view.trace is None:
                self.apply(
                    Ended(
                        Trace(
                            self.question_id or "q0",
                            sample_id,
                            text=view.text,
                            num_tokens=view.num_tokens,
                            finish_reason="cancelled",
                            detail=why,
                            scores=view.scores,
                        )
                    )
                )
        if self.phase not in ("done", "stopped"):
            self.phase = "stopped" if why else "done"
            self._seconds = time.monotonic() - self._began

    @property
    def traces(self) -> list[Trace]:
        """The traces that have ended, by sample id."""
        return [view.trace for view in self.views.values() if view.trace is not None]

    def payload(self, *, chart: bool = True) -> dict[str, Any]:
        """The run as plain JSON for the page; the model's text in it is plain text, not HTML.

        Args:
            chart: whether to draw the chart anew; it is the costly part.
        """
        over = self.phase in ("done", "stopped")
        if self._tally is None:
            self._tally = self._tallies()
        if chart or over:
            self._chart = score_chart(
                [(view.scores, view.status, _right(view)) for view in self.views.values()], at=self.at
            )
        statuses = [view.status for view in self.views.values()]
        ledger = TokenLedger.of(self.traces) if self.traces else None
        seconds = time.monotonic() - self._began if self._seconds is None else self._seconds
        return {
            "label": self.label,
            "phase": self.phase,
            "note": self._summary() if over else self.note,
            "reference": self.reference,
            "request": self.request,
            "tokens": sum(view.num_tokens for view in self.views.values()),
            "saved": ledger.saved if ledger else 0,
            "seconds": round(seconds, 1) if self._timed else None,
            "counts": {
                "writing": statuses.count("running") + statuses.count("waiting"),
                "finished": statuses.count("stop") + statuses.count("length"),
                "pruned": statuses.count("pruned"),
                "cancelled": statuses.count("cancelled"),
            },
            "tally": self._tally,
            "traces": [
                {"sample": sample_id, **_card(view, MAX_TEXT if over else TAIL)}
                for sample_id, view in self.views.items()
            ],
            "chart": self._chart,
        }

    def _tallies(self) -> list[dict[str, Any]]:
        """The votes so far by every method whose signals the traces carry."""
        votes = list(filter(answered, self.traces))
        tallies = []
        for method, name in SHOWN_METHODS.items():
            if not votes or not all(_carries(trace, METHODS[method].needs) for trace in votes):
                continue
            result = self._vote(votes, method)
            tallies.append(
                {
                    "method": name,
                    "answer": result.answer,
                    "right": self._is_right(result, 0),
                    "rows": [
                        {
                            "answer": row.answer,
                            "votes": row.votes,
                            "share": round(row.share, 4),
                            "right": self._is_right(result, i),
                        }
                        for i, row in enumerate(result.table[:MAX_ROWS])
                    ],
                }
            )
        return tallies

    def _summary(self) -> str:
        """The outcome in words."""
        parts = [self.note] if self.note else []
        right = {tally["method"]: tally["right"] for tally in self._tally or ()}
        head, majority = right.get(SHOWN_METHODS["quality"]), right.get(SHOWN_METHODS["majority"])
        words = {True: "right", False: "wrong"}
        if head is not None and majority is not None:
            if head == majority:
                parts.append(f"The quality head's vote and the majority's are both {words[head]}.")
            else:
                parts.append(f"The quality head's vote is {words[head]}, the majority's is {words[majority]}.")
        return " ".join(parts)

    def _is_right(self, result: VoteResult, row: int) -> bool | None:
        if self.reference is not None:
            return answers_equal(result.table[row].answer, self.reference)
        labels = {t.correct for t, choice in zip(result.traces, result.choices, strict=True) if choice == row}
        return labels.pop() if len(labels) == 1 else None


def _carries(trace: Trace, needs: Sequence[str]) -> bool:
    """Whether a trace has the signals that a voting method reads."""
    return all(getattr(trace, need, None) is not None and len(getattr(trace, need)) > 0 for need in needs)


def _right(view: TraceView) -> bool | None:
    return view.trace.correct if view.trace is not None else None


def _card(view: TraceView, limit: int) -> dict[str, Any]:
    trace, score = view.trace, view.score
    return {
        "tokens": view.num_tokens,
        "score": None if score is None else round(score, 3),
        "text": view.text[-limit:],
        "status": view.status,
        "answer": trace.answer if trace else None,
        "right": _right(view),
        "why": trace.detail if trace else "",
    }
