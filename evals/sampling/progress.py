"""Progress of a run: questions, tokens per second, share pruned, time left, accuracy so far."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from arrol_tts.trace import Trace


class RunProgress:
    """A line for each pass of each benchmark and seed; a context manager.

    Args:
        console: where to draw; nothing but the final state is drawn when it is no terminal.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("questions"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[words]}"),
            console=console,
        )
        self._lines: dict[str, _Line] = {}

    def __enter__(self) -> RunProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, label: str, questions: int, n: int, stored: int) -> None:
        """A line, before its first trace; ``stored`` traces are there from earlier sessions."""
        task = self._progress.add_task(label, total=questions, completed=stored // n, words="")
        self._lines[label] = _Line(task, n, stored)

    def add(self, label: str, trace: Trace) -> None:
        """A trace has ended."""
        line = self._lines[label]
        line.add(trace)
        self._progress.update(line.task, completed=(line.stored + line.done) / line.n, words=line.words())


class _Line:
    def __init__(self, task: TaskID, n: int, stored: int) -> None:
        self.task, self.n, self.stored = task, n, stored
        self.done = self.tokens = self.graded = self.right = 0
        self._began = time.monotonic()
        self._ended: Counter[str] = Counter()

    def add(self, trace: Trace) -> None:
        if not self.done:
            self._began = time.monotonic()
        self.done += 1
        self.tokens += trace.num_tokens
        self._ended[trace.finish_reason] += 1
        self.graded += trace.correct is not None
        self.right += bool(trace.correct)

    def words(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-3)
        parts = [f"{self.tokens / seconds:,.0f} tokens/s"]
        for reason in ("pruned", "cancelled"):
            if self._ended[reason]:
                parts.append(f"{self._ended[reason] / self.done:.0%} {reason}")
        if self.graded:
            parts.append(f"{self.right / self.graded:.0%} of traces right")
        return ", ".join(parts)
