"""The head on the fly at work: it learns from each step's graded rollouts, and keeps them to learn from again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrol_train.positions import FINISH
from arrol_train.rl.buffer import ReplayBuffer
from arrol_train.rl.group import Group
from arrol_train.rl.online_head import OnlineHead
from arrol_tts.head import QualityHead

HEAD_FILE = "head.safetensors"
BUFFER_FILE = "buffer.safetensors"


class HeadLearner:
    """A head on the fly with its replay buffer.

    Args:
        head: what learns.
        buffer_rows: rows of the replay buffer.
        updates: optimiser steps of the head in each step of the policy.

    Attributes:
        buffer: what it learns from.
    """

    def __init__(self, head: OnlineHead, *, buffer_rows: int = 8192, updates: int = 8) -> None:
        self.head = head
        self.buffer = ReplayBuffer(buffer_rows, head.head.config.hidden_size)
        self._updates = updates

    def learn(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Say how good the head is on rollouts that are new to it, then learn from them.

        On several processes every one is given all groups, in the same order: their heads stay the same.
        """
        rows = buffer_rows(groups, self.buffer.hidden_size)
        metrics: dict[str, float] = {}
        for position in np.unique(rows["positions"]).tolist():
            here = {name: column[rows["positions"] == position] for name, column in rows.items()}
            tracked = self.head.track(here["scores"], here["labels"], here["groups"], here["inclusion"], position)
            name = "finish" if position == FINISH else str(position)
            metrics |= {f"head/{name}/{key}": value for key, value in tracked.items()}
        self.buffer.append(**rows, step=step)
        metrics |= {f"head/{k}": v for k, v in self.head.update(self.buffer, self._updates).items()}
        self.head.fit_posterior(self.buffer)
        return metrics

    def export(self) -> QualityHead:
        """The head for voting; see `OnlineHead.export`."""
        return self.head.export(self.buffer)

    def save(self, folder: Path) -> None:
        """Write head, calibration and buffer into a folder."""
        self.head.save(folder / HEAD_FILE)
        self.buffer.save(folder / BUFFER_FILE)

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            HeadError, BufferFileError: when a file is missing, broken, or of another head.
        """
        self.head.load(folder / HEAD_FILE)
        self.buffer = ReplayBuffer.load(folder / BUFFER_FILE)


def buffer_rows(groups: Sequence[Group], hidden_size: int) -> dict[str, NDArray[Any]]:
    """Columns of the replay buffer, with a row for each state of a graded rollout, in the order of the groups."""
    states = [
        (group, rollout, position, state)
        for group in groups
        for rollout in group.graded
        for position, state in rollout.states.items()
    ]
    return {
        "features": np.array([state.features for *_, state in states], np.float16).reshape(-1, hidden_size),
        "labels": np.array([rollout.reward for _, rollout, *_ in states], np.float32),
        "groups": np.array([group.id for group, *_ in states], np.int64),
        "positions": np.array([position for *_, position, _ in states], np.int64),
        "inclusion": np.array([rollout.inclusion for _, rollout, *_ in states], np.float32),
        "scores": np.array([state.score for *_, state in states], np.float32),
    }
