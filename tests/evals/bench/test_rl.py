"""The reinforcement benchmark: what it asks to be run can be run, and its figures are what the logs say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arrol_train.rl.config import RunConfig
from arrol_train.rl.tasks import load_task
from arrol_tts.pocket.task import parse
from evals.bench import rl

ARMS = [*rl.STANDARD, *rl.SECOND_TASK, *rl.ALL_SLOTS, *rl.BY_POLICY, *rl.BY_KEEP, *rl.BY_POSITION]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_run_has_a_valid_configuration(arm: rl.Arm) -> None:
    config = RunConfig.model_validate(arm.config(seed=1, steps=20, questions=10))
    assert config.rollout.group == rl.GROUP
    assert config.seed == 1


def test_names_of_runs_are_distinct() -> None:
    assert len({arm.name for arm in ARMS}) == len(ARMS)


def test_the_second_task_speaks_the_pocket_language_and_shares_no_question() -> None:
    config = RunConfig.model_validate(rl.SECOND_TASK[0].config(seed=0, steps=20, questions=40))
    task = load_task(config.task.model_copy(update={"train": 60}))
    assert len(task.test) == 40
    for row in task.test:
        numbers, operators = parse(row["prompt"])
        assert 7 <= len(numbers) <= 9
        result = numbers[0]
        for operator, number in zip(operators, numbers[1:], strict=True):
            result = {"+": result + number, "-": result - number, "*": result * number}[operator]
        assert row["answer"] == str(result)  # from left to right
        assert task.reward(row, f"answer {row['answer']}") == 1.0
        assert task.reward(row, f"answer {result + 1}") == 0.0
    assert not {row["prompt"] for row in task.test} & {row["prompt"] for row in task.train}


def log(folder: Path, seconds: float, accuracies: tuple[float, ...], **fields: float) -> rl.Log:
    """The log of ten steps of that many seconds each, tested before, halfway and at the end."""
    folder.mkdir()
    lines: list[dict[str, Any]] = [{"step": 0}]
    for step in range(1, 11):
        shares = {"rollout": seconds / 2, "logprob": seconds / 8, "update": seconds * 3 / 8, "step": seconds}
        clocks = {f"{clock}/{name}": value for clock in ("cpu", "time") for name, value in shares.items()}
        lines.append({"step": step, **clocks, **fields})
    for step, accuracy in zip((0, 5, 10), accuracies, strict=True):
        lines[step] |= {"eval/accuracy": accuracy, "eval/right": [round(4 * accuracy)], "eval/samples": 4}
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return rl.Log.read(folder, rl.STANDARD[1])


def test_figures_follow_from_the_logs(tmp_path: Path) -> None:
    tokens = "rollout/generated_tokens"
    pairs = [
        (
            log(tmp_path / f"a{i}", 4.0, (0.25, 0.5, 0.75), **{tokens: 100.0}),
            log(tmp_path / f"b{i}", 2.0, (0.25, 0.5, 1.0), **{tokens: 50.0}),
        )
        for i in range(2)
    ]
    del pairs[0][1].steps[0][tokens]
    figures = rl._comparison(pairs)
    assert figures["speedup_total"] == pytest.approx(2.0)
    assert figures["speedup_update"] == pytest.approx(2.0)
    assert figures["tokens_ratio"] == pytest.approx(2.0)
    assert figures["accuracy_gain"] == pytest.approx(0.25)
    assert figures["accuracy_gain_per_seed"] == pytest.approx([0.25, 0.25])
    # The pruned run ends after 20 seconds, when the unpruned one is halfway.
    assert figures["accuracy_gain_at_equal_time"] == pytest.approx(0.5)
    assert figures["speedup_total_interval"] == pytest.approx([2.0, 2.0])


def test_the_cold_start_is_left_out_of_times(tmp_path: Path) -> None:
    read = log(tmp_path / "a", 4.0, (0.25, 0.5, 0.75))
    assert [line["step"] for line in read.steps] == [5, 6, 7, 8, 9, 10]
    assert read.curve()[:, 1].tolist() == [0.0, 20.0, 40.0]


def test_one_seed_has_no_interval() -> None:
    assert rl._figure("x", [0.5]) == {"x": 0.5, "x_interval": None, "x_per_seed": [0.5]}


def test_an_interval_is_student_s() -> None:
    figure = rl._figure("x", [1.0, 2.0, 3.0])
    assert figure["x_interval"] == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-3)
