"""Recordings: runs that are over, to scrub through, to save and to draw."""

from __future__ import annotations

import json
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

from arrol_tts.events import Ended, Event, Progress
from arrol_tts.recorded import read_traces
from arrol_tts.trace import Trace

from .run_state import RunState, Vote

MAX_TRACES = 4096
"""Traces that are read from a file; what comes after is left out."""
MAX_SHOWN = 256
"""Traces of one question that are shown."""


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """The traces of one question under one setting, in the order they are shown.

    Attributes:
        label: the setting in words.
        traces: all of them, ended.
        at: detection position, None when nothing was pruned at one.
        reference: the right answer, None when it is not known.
    """

    label: str
    traces: tuple[Trace, ...]
    at: int | None = None
    reference: str | None = None

    @property
    def num_tokens(self) -> int:
        """Length of the longest trace."""
        return max((trace.num_tokens for trace in self.traces), default=0)

    def state_at(self, tick: int, vote: Vote) -> RunState:
        """The run when every trace has written ``tick`` tokens, or ended before."""
        state = RunState(
            [trace.sample_id for trace in self.traces],
            label=self.label,
            vote=vote,
            at=self.at,
            reference=self.reference,
            timed=False,
        )
        for trace in self.traces:
            state.apply(_event(trace, tick))
        if tick >= self.num_tokens:
            state.finish()
        return state


def _event(trace: Trace, tick: int) -> Event:
    """What a trace had come to after a number of tokens. Its text is cut in proportion."""
    if tick >= trace.num_tokens:
        return Ended(trace)
    return Progress(
        trace.question_id,
        trace.sample_id,
        num_tokens=tick,
        text=trace.written[: round(len(trace.written) * tick / trace.num_tokens)],
        scores={position: score for position, score in trace.scores.items() if position < tick},
    )


@dataclass(frozen=True, slots=True)
class Recording:
    """One question and its runs: one, or two that are compared."""

    question: str
    runs: tuple[RecordedRun, ...]

    @property
    def num_tokens(self) -> int:
        """Length of the longest trace."""
        return max(run.num_tokens for run in self.runs)

    def jsonl(self) -> str:
        """The traces as JSON lines that ``arrol_tts.read_traces`` reads."""
        lines = []
        for number, run in enumerate(self.runs):
            # Two compared runs hold the same samples: ids must tell them apart.
            name = self.question if number == 0 else f"{self.question} (second setting)"
            lines += [json.dumps(_row(name, run, trace)) for trace in run.traces]
        return "\n".join(lines) + "\n"


def _row(question_id: str, run: RecordedRun, trace: Trace) -> dict[str, Any]:
    confidence = trace.confidence
    return {
        "question_id": question_id,
        "sample_id": trace.sample_id,
        "text": trace.text,
        "reasoning": trace.reasoning,
        "answer": trace.answer,
        "num_tokens": trace.num_tokens,
        "finish_reason": trace.finish_reason,
        "detail": trace.detail,
        "scores": {str(position): score for position, score in trace.scores.items()},
        "confidence": None if confidence is None else [round(float(value), 6) for value in confidence],
        "correct": trace.correct,
        "reference": run.reference,
        "meta": {"label": run.label, "at": run.at},
    }


def read_recordings(path: Path) -> list[Recording]:
    """The questions of a trace file or store, each as a recording of one run.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read; the message says what to change.
    """
    groups: dict[str, list[Trace]] = {}
    for trace in islice(read_traces(path), MAX_TRACES):
        for name in ("question_id", "text", "answer", "detail"):
            setattr(trace, name, _unicode(getattr(trace, name)))
        groups.setdefault(trace.question_id, []).append(trace)
    return [_recording(name, group[:MAX_SHOWN], path.name) for name, group in groups.items()]


def _unicode(text: str | None) -> str | None:
    """Text that can be sent: JSON files may hold halves of surrogate pairs."""
    return None if text is None else text.encode("utf-8", "replace").decode()


def _recording(question: str, traces: Sequence[Trace], source: str) -> Recording:
    meta = traces[0].meta
    label, at, reference = meta.get("label"), meta.get("at"), meta.get("reference")
    run = RecordedRun(
        label=label if isinstance(label, str) else f"recorded in {source}",
        traces=tuple(traces),
        at=at if isinstance(at, int) else _pruned_at(traces),
        reference=None if reference is None else str(reference),
    )
    return Recording(question, (run,))


def _pruned_at(traces: Iterable[Trace]) -> int | None:
    """Where a recorded run was pruned: the position after which its pruned traces end."""
    ends = {trace.num_tokens - 1 for trace in traces if trace.finish_reason == "pruned"}
    return ends.pop() if len(ends) == 1 else None


class Recordings:
    """The last runs and uploads of all users, under ids that nobody can guess; older ones are forgotten.

    ``added`` counts all there ever were.

    Args:
        opened: recordings that every visitor finds, as ``opened/0``, ``opened/1`` ...; never forgotten.
        size: how many runs and uploads are kept.
    """

    def __init__(self, opened: Sequence[Recording] = (), size: int = 64) -> None:
        self.opened = opened
        self.added = 0
        self._size = size
        self._kept: OrderedDict[str, Sequence[Recording]] = OrderedDict()
        self._lock = Lock()

    def add(self, recordings: Sequence[Recording]) -> list[str]:
        """Keep recordings together; returns an id for each."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self.added += 1
            self._kept[name] = recordings
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return [f"{name}/{number}" for number in range(len(recordings))]

    def get(self, identity: object) -> Recording | None:
        """A recording by its id, None when it is forgotten or never was."""
        name, _, number = str(identity).partition("/")
        with self._lock:
            kept = self.opened if name == "opened" else self._kept.get(name, ())
        return kept[int(number)] if number.isdecimal() and int(number) < len(kept) else None
