"""Rewards are 0 or 1, and one bad call does not end a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from arrol_train.rewards import Grader, load_reward, math_reward, pocket_reward, reasoning_gym_reward
from tests.paths import ROOT

ROW = {"question": "2+3*4", "answer": "14"}


@pytest.mark.parametrize(
    ("text", "reward"),
    [("3*4=12, 2+12\n2+12=14\nanswer 14", 1.0), ("2+3=5, 5*4\n5*4=20\nanswer 20", 0.0), ("", 0.0), ("1+", 0.0)],
)
def test_pocket_reward(text: str, reward: float) -> None:
    assert pocket_reward(ROW, text) == reward


@pytest.mark.parametrize(
    ("answer", "text", "reward"),
    [
        ("1/2", r"so the answer is \boxed{0.5}", 1.0),
        (r"\frac{1}{2}", r"\boxed{\dfrac12}", 1.0),
        ("2", r"\boxed{3}", 0.0),
        ("2", "no idea", 0.0),
    ],
)
def test_math_reward(answer: str, text: str, reward: float) -> None:
    assert math_reward({"answer": answer}, text) == reward


def test_reasoning_gym_reward_gives_no_partial_credit() -> None:
    import reasoning_gym

    dataset = reasoning_gym.create_dataset("fraction_simplification", size=1, seed=0)
    row = {"dataset": "fraction_simplification", "entry": json.dumps(dataset[0])}
    assert 0 < dataset.score_answer("7", dataset[0]) < 1
    assert reasoning_gym_reward(row, "answer: 7") == 0.0
    row = {
        "dataset": "chain_sum",
        "entry": json.dumps({"question": "What is 2+3?", "answer": "5", "metadata": {}}),
    }
    assert reasoning_gym_reward(row, "answer 5") == 1.0


def test_a_rollout_on_which_the_reward_function_raises_has_no_reward_and_a_warning_says_so() -> None:
    def reward(row: Mapping[str, Any], text: str) -> float:
        return float(1 / int(text))

    grade = Grader(reward, timeout=10)
    assert grade(ROW, "1") == 1.0
    with pytest.warns(UserWarning, match="raised ZeroDivisionError: .* it has no reward and is left out"):
        assert grade(ROW, "0") is None
    assert grade(ROW, "1") == 1.0
    assert (grade.calls, grade.failures) == (3, 1)
    assert list(grade.reasons) == ["raised ZeroDivisionError: division by zero"]


def test_a_rollout_on_which_the_reward_function_hangs_has_no_reward_and_a_warning_says_so() -> None:
    def reward(row: Mapping[str, Any], text: str) -> float:
        time.sleep(60 if text == "hang" else 0)
        return 1.0

    grade = Grader(reward, timeout=0.2)
    with pytest.warns(UserWarning, match="took longer than 0.2 s"):
        assert grade(ROW, "hang") is None
    assert grade(ROW, "fine") == 1.0
    assert grade.failures == 1


@pytest.mark.parametrize("value", [0.5, -1, None, "1", float("nan")])
def test_a_reward_other_than_0_and_1_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="rewards that are 0 or 1"):
        Grader(lambda row, text: value, timeout=10)(ROW, "text")


@pytest.mark.parametrize("value", [True, 1, 1.0])
def test_a_reward_may_be_any_number_that_is_1(value: Any) -> None:
    assert Grader(lambda row, text: value, timeout=10)(ROW, "text") == 1.0


def test_a_reward_is_imported_by_name() -> None:
    assert load_reward("arrol_train.rewards:math_reward") is math_reward
    for name in ("arrol_train.rewards:nothing", "no_such_module:f", "arrol_train.rewards", ""):
        with pytest.raises(ValueError, match="cannot be imported as module:function"):
            load_reward(name)


def test_a_reward_is_imported_from_the_working_directory_by_a_command_too(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text("def right(row, text):\n    return 1\n")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "command"  # an installed one, before whose modules comes its own folder
    command.write_text(
        "from arrol_train.rewards import load_reward\nprint(load_reward('my_rewards:right')({}, ''))"
    )
    found = subprocess.run(
        [sys.executable, str(command)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.stdout == "1\n", found.stderr
