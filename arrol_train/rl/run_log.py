"""The one clock of a training step, and ``log.jsonl``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from arrol_tts.files import write_atomic

LOG_FILE = "log.jsonl"
"""In a run's folder."""


class StepClock:
    """Seconds of each phase of a step, on the wall (``time/``) and of this process's processors (``cpu/``).

    PrunedRollout laps the phases up to the update; `RunLog` begins steps, laps the update, and reads the whole.

    Attributes:
        seconds: of the present step's phases so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._step: int | None = None
        self._began = self._last = _now()

    def begin(self, step: int) -> None:
        """A step begins; nothing happens where it has begun already."""
        if step != self._step:
            self._step, self.seconds = step, {}
            self._began = self._last = _now()

    def lap(self, phase: str) -> None:
        """A phase has ended; the next begins."""
        now = _now()
        self._note(phase, self._last, now)
        self._last = now

    def end(self) -> None:
        """The step has ended: the phase ``step`` is the whole of it."""
        self._note("step", self._began, _now())

    def _note(self, phase: str, since: tuple[float, float], now: tuple[float, float]) -> None:
        self.seconds[f"time/{phase}"] = now[0] - since[0]
        self.seconds[f"cpu/{phase}"] = now[1] - since[1]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class RunLog(TrainerCallback):
    """Writes ``log.jsonl``, and has the policy tested.

    A line has the ``step``, what TRL and PrunedRollout report of it, seconds of its phases and of the whole step,
    ``train_s`` (on the wall, in steps so far), and after a test what that found.

    Args:
        path: of the file.
        clock: of the steps.
        test: tests the policy; its figures go into the log.
        every: steps between tests, the first before training; 0: only after the last step.
        steps: of the run.
        advise: says of the log's lines how the run might spend its seconds better.
        advise_at: the step after which it is asked; its answer is that line's ``advice``.
    """

    def __init__(
        self,
        path: Path,
        clock: StepClock,
        test: Callable[[], dict[str, Any]],
        *,
        every: int,
        steps: int,
        advise: Callable[[list[dict[str, Any]]], str] | None = None,
        advise_at: int = 0,
    ) -> None:
        self._path, self._clock, self._test = path, clock, test
        self._every, self._steps = every, steps
        self._advise, self._advise_at = advise, advise_at
        self._seconds = 0.0
        self._news: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget steps that came after the checkpoint which the run goes on from."""
        kept = [line for line in read_log(self._path) if line["step"] <= state.global_step]
        kept = kept if state.global_step else []
        self._seconds = kept[-1].get("train_s", 0.0) if kept else 0.0
        if state.is_world_process_zero:
            write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        if state.global_step == 0 and self._every:
            self._news |= self._test()
            self._write(state, {})

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts."""
        self._clock.begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The update has ended, and with it the step."""
        clock = self._clock
        clock.lap("update")
        clock.end()
        self._seconds += clock.seconds["time/step"]
        self._news |= clock.seconds | {"train_s": self._seconds}
        if state.global_step == self._steps or (self._every and state.global_step % self._every == 0):
            self._news |= self._test()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write the step's line."""
        if logs is None or "loss" not in logs:  # the summary at the end of training
            return
        # In place, so that TensorBoard gets them too.
        logs |= {name: value for name, value in self._news.items() if not isinstance(value, list)}
        self._write(state, logs)

    def _write(self, state: Any, logs: dict[str, Any]) -> None:
        line = {"step": state.global_step, "processes": PartialState().num_processes, **logs, **self._news}
        self._news = {}
        if state.is_world_process_zero:
            if self._advise is not None and state.global_step == self._advise_at:
                line["advice"] = self._advise([*read_log(self._path), line])
                print(line["advice"], flush=True)
            with open(self._path, "a") as file:
                file.write(json.dumps(line) + "\n")


def add_to_last(path: Path, figures: dict[str, float]) -> None:
    """Add figures to the last line of a log; nothing happens where there is none."""
    if lines := read_log(path):
        lines[-1] |= figures
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without one that was being written when the run was killed; none without a file."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
