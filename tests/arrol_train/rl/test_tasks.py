"""Tasks: questions that are split, and what cannot be trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arrol_train.rl.config import ConfigError, TaskConfig
from arrol_train.rl.tasks import load_task

if TYPE_CHECKING:
    pass


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "1+1"}], "row 1 has no 'answer'; it has 'question': name the column with task.answer"),
        ([{"question": "1+1", "answer": "2"}, {"question": "1+2", "answer": ""}], "row 2 has no 'answer'"),
        ([{"text": "1+1", "answer": "2"}], "row 1 has no 'question'"),
        (["x"], "row 1 is a str; a row must be an object"),
        ([{"question": "1+1", "answer": "2"}], "gives 0 training and 1 test questions"),
    ],
)
def test_a_dataset_that_cannot_be_trained_on_is_refused(rows: list[Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ConfigError, match=message):
        load_task(TaskConfig(source=str(file), train=4, test=1))


def test_a_source_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be 'pocket', 'reasoning_gym:NAME'"):
        load_task(TaskConfig(source="nowhere.jsonl"))
    with pytest.raises(ConfigError, match="no dataset 'no_such'"):
        load_task(TaskConfig(source="reasoning_gym:no_such"))


@pytest.mark.parametrize("source", ["pocket", "reasoning_gym:chain_sum", "file"])
def test_training_and_test_questions_are_disjoint_and_seeded(source: str, tmp_path: Path) -> None:
    if source == "file":
        source = str(tmp_path / "task.jsonl")
        rows = [{"question": f"{i}+1", "answer": i + 1} for i in range(40)]
        Path(source).write_text("\n".join(json.dumps(row) for row in rows))
    first, again = (load_task(TaskConfig(source=source, train=30, test=10)) for _ in range(2))
    train, test = ({row["prompt"] for row in rows} for rows in (first.train, first.test))
    assert (len(train), len(test)) == (30, 10)
    assert not train & test
    assert first.train == again.train
    row = first.test[0]
    assert first.reward(row, f"answer {row['answer']}") == 1.0
    assert first.reward(row, "answer 123456") == 0.0


def test_questions_are_rewritten_into_the_models_language() -> None:
    rewrite = ((r".*problem: ", ""), (" =$", ""), (" ", ""))
    task = load_task(
        TaskConfig(source="reasoning_gym:chain_sum", train=3, test=0, rewrite=rewrite, prompt="{question}?")
    )
    for row in task.train:
        assert set(row["prompt"]) <= set("0123456789+-?")
