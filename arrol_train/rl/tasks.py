"""Tasks: where questions come from, split into training and test, and how answers are graded."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arrol_train.questions import labelled_rows
from arrol_train.rewards import Reward, Row, load_reward, math_reward, pocket_reward, reasoning_gym_reward
from arrol_train.rl.config import ConfigError, TaskConfig
from arrol_tts.pocket import questions
from arrol_tts.rows import numbered_rows


@dataclass(frozen=True, slots=True)
class Task:
    """Questions and their reward.

    Attributes:
        train, test: rows with ``prompt`` (what is asked), ``question`` and ``answer``; no prompt is in both.
        reward: grades a row's rollout.
    """

    train: list[Row]
    test: list[Row]
    reward: Reward


def load_task(config: TaskConfig) -> Task:
    """Load a task.

    Raises:
        ConfigError: when there is no such source, or its rows lack questions or answers.
    """
    kind, _, name = config.source.partition(":")
    if config.source == "pocket":
        reward: Reward = pocket_reward
        train, test = _pocket(config, "train"), _pocket(config, "test")
    elif kind == "reasoning_gym":
        reward = reasoning_gym_reward
        train = _reasoning_gym(name, config, config.seed)
        test = _reasoning_gym(name, config, config.seed + 1_000_003)
    else:
        reward = math_reward
        train = iter(_shuffled(_table(config.source, config), config.seed))
        test = iter(_table(config.test_source, config)) if config.test_source else train
    # Test questions come first, so that they stay the same whatever the number of training questions.
    test_rows = _distinct(test, config.test, set(), config)
    known = {row["prompt"] for row in test_rows}
    train_rows = _distinct(train, config.train, known, config)
    if not train_rows or (config.test and not test_rows):
        raise ConfigError(
            f"task {config.source!r} gives {len(train_rows)} training and {len(test_rows)} test questions: ask "
            "for fewer test questions, or give it more"
        )
    return Task(train_rows, test_rows, load_reward(config.reward) if config.reward else reward)


def _distinct(rows: Iterable[Row], wanted: int, known: set[str], config: TaskConfig) -> list[Row]:
    """The first rows with distinct prompts that are not known; short of ``wanted`` where the source ends."""
    found: dict[str, Row] = {}
    for row in itertools.islice(rows, 20 * wanted) if wanted else ():
        asked = str(row["question"])
        for pattern, replacement in config.rewrite:
            asked = re.sub(pattern, replacement, asked)
        prompt = config.prompt.replace("{question}", asked)
        if prompt not in known and prompt not in found:
            found[prompt] = {**row, "prompt": prompt}
            if len(found) == wanted:
                break
    return list(found.values())


def _pocket(config: TaskConfig, split: Any) -> Iterator[Row]:
    for question in questions(split, config.seed):
        yield {"question": question.text, "answer": question.answer}


def _reasoning_gym(name: str, config: TaskConfig, seed: int) -> Iterator[Row]:
    import reasoning_gym

    try:
        # Entries are made one by one: a size beyond what is needed costs nothing.
        dataset = reasoning_gym.create_dataset(
            name, size=20 * (config.train + config.test), seed=seed, **config.options
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"reasoning-gym has no dataset {name!r} with these options: {error}") from None
    for i in range(len(dataset)):
        entry = dataset[i]
        row = {"question": entry["question"], "answer": entry["answer"]}
        yield {**row, "dataset": name, "entry": json.dumps(entry)}


def _table(source: str, config: TaskConfig) -> list[Row]:
    """Rows of a file or of a dataset on the hub."""
    kind, _, name = source.partition(":")
    rows: Iterable[tuple[int, Row]]
    if kind == "hub":
        from datasets import load_dataset

        rows = enumerate(load_dataset(name, split="train"), start=1)
    elif Path(source).is_file():
        rows = numbered_rows(Path(source))
    else:
        raise ConfigError(
            f"task {source!r} cannot be read (there is no such file): it must be 'pocket', 'reasoning_gym:NAME', "
            "'hub:OWNER/NAME' or the path of a JSON lines, JSON, CSV or Parquet file"
        )
    options = ("task.question", "task.answer")
    try:
        return [row for _, row in labelled_rows(rows, source, config.question, config.answer, options=options)]
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _shuffled(rows: list[Row], seed: int) -> list[Row]:
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
