"""The clock of a step, and the log's lines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("accelerate")

from arrol_train.rl.run_log import RunLog, StepClock, read_log


def test_phases_add_up_to_the_step_and_a_step_begins_once() -> None:
    clock = StepClock()
    clock.begin(3)
    time.sleep(0.02)
    clock.lap("rollout")
    clock.begin(3)  # the trainer's callback and the rollouts both say so
    time.sleep(0.01)
    clock.lap("update")
    clock.end()
    seconds = clock.seconds
    assert seconds["time/rollout"] >= 0.02
    assert seconds["time/update"] >= 0.01
    assert seconds["time/step"] == pytest.approx(seconds["time/rollout"] + seconds["time/update"], abs=1e-3)
    assert seconds["cpu/step"] < seconds["time/step"]
    clock.begin(4)
    assert clock.seconds == {}


def drive(log: RunLog, step: int, *, of: int) -> None:
    """What transformers' trainer calls, for the step that leads to ``step``."""

    def state(at: int) -> Any:
        return SimpleNamespace(global_step=at, is_world_process_zero=True)

    if step == of:
        log.on_train_begin(None, state(step - 1), None)
    log.on_step_begin(None, state(step - 1), None)
    log.on_step_end(None, state(step), None)
    log.on_log(None, state(step), None, logs={"loss": 0.5})


def test_a_run_that_goes_on_drops_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "train_s": float(step)}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "lo')
    drive(RunLog(path, StepClock(), lambda: {}, every=0, steps=9), 3, of=3)
    found = read_log(path)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert found[-1]["loss"] == 0.5
    assert found[-1]["train_s"] > 2.0


def test_the_policy_is_tested_after_every_few_steps_and_the_last(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", StepClock(), lambda: {"eval/accuracy": 0.25}, every=2, steps=5)
    for step in range(1, 6):
        drive(log, step, of=1)
    tested = [line["step"] for line in read_log(tmp_path / "log.jsonl") if "eval/accuracy" in line]
    assert tested == [0, 2, 4, 5]
