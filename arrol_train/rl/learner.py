"""The head on the fly at work: it learns from each step's graded rollouts, and keeps them to learn from again."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrol_train.positions import FINISH
from arrol_train.rl.buffer import ReplayBuffer, SequenceBuffer
from arrol_train.rl.detection import MEMORY, Pairs, ranked_pairs, stands_for
from arrol_train.rl.group import Group, Rollout
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.refit import refit as refit_head
from arrol_tts.files import write_json
from arrol_tts.head import QualityHead
from arrol_tts.metrics import within_question_auroc

HEAD_FILE = "head.safetensors"
BUFFER_FILE = "buffer.safetensors"
SEQUENCES_FILE = "sequences.safetensors"
LAST_FILE = "last_head.safetensors"
PAIRS_FILE = "pairs.json"

HOPED = 0.75
"""AUROC within groups of a head of which little is known."""


class HeadLearner:
    """A head on the fly with its replay buffers.

    Beside a head that pools, one that does not learns from the same rollouts, as heads did before: nothing is
    chosen by it, and only how well it ranks is logged.

    Args:
        head: what learns.
        buffer_rows: rows of the replay buffer.
        buffer_mib: MiB that the states of whole rollouts may take, of which a head that pools learns.
        updates: optimiser steps of the head in each step of the policy.

    Attributes:
        buffer: the states at the detection positions and the end.
        sequences: whole rollouts, for a head that pools.
        last: the head that is only compared with, beside one that pools.
        pairs: at each position, how the head has ranked within groups so far, older steps counting less.
    """

    def __init__(
        self, head: OnlineHead, *, buffer_rows: int = 8192, buffer_mib: int = 1024, updates: int = 8
    ) -> None:
        config = head.head.config
        self.head = head
        self.buffer = ReplayBuffer(buffer_rows, config.hidden_size)
        self.sequences: SequenceBuffer | None = None
        self.last: OnlineHead | None = None
        self.pairs: dict[int, Pairs] = {}
        if head.stride:
            # The rollouts that the rows are of, where each has one for each position and one for its end.
            rollouts = max(1, buffer_rows // (1 + len(config.positions)))
            self.sequences = SequenceBuffer(rollouts, buffer_mib << 20, config.hidden_size)
            plain = replace(config, pooling="last", stride=1, inner_size=128)
            self.last = OnlineHead(plain, head.training)
        self._updates = updates
        self._start = copy.deepcopy(head.head)

    def learn(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Say how good the head is on rollouts that are new to it, then learn from them.

        On several processes every one is given all groups, in the same order: their heads stay the same.
        """
        rows = buffer_rows(groups, self.head)
        metrics = self._track(rows, groups)
        self.buffer.append(**rows, step=step)
        learned: ReplayBuffer | SequenceBuffer = self.buffer
        if self.sequences is not None and self.last is not None:
            self.sequences.append(**sequence_rows(groups))
            self.last.update(self.buffer, self._updates)
            learned = self.sequences
        metrics |= {f"head/{k}": v for k, v in self.head.update(learned, self._updates).items()}
        self.head.fit_posterior(self.buffer)
        return metrics

    def _track(self, rows: dict[str, NDArray[Any]], groups: Sequence[Group]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for position in np.unique(rows["positions"]).tolist():
            here = {name: column[rows["positions"] == position] for name, column in rows.items()}
            tracked = self.head.track(here["scores"], here["labels"], here["groups"], here["inclusion"], position)
            weights = [stands_for(group, rollout) for group, rollout in marked_at(position, groups)]
            pairs = ranked_pairs(here["labels"], here["scores"], here["groups"], weights)
            self.pairs[position] = self.pairs.get(position, Pairs()).followed_by(pairs, MEMORY)
            if pairs.total:
                tracked["auroc_within_all"] = pairs.auroc
            if self.last is not None and "auroc_within" in tracked:
                scores = scores_at(position, groups, self.last)
                tracked["auroc_within_last"] = within_question_auroc(here["labels"], scores, here["groups"])
            name = "finish" if position == FINISH else str(position)
            metrics |= {f"head/{name}/{key}": value for key, value in tracked.items()}
        return metrics

    def auroc_within(self, position: int) -> float:
        """Of all rollouts that come to a position, as far as it is known; nan before."""
        return self.pairs.get(position, Pairs()).auroc

    def hoped_auroc(self, position: int, pairs: float) -> float:
        """`auroc_within`, as though so many pairs more had been seen, which the head ranks at `HOPED`.

        What is spent goes by it, so a head that ranked its first few pairs badly must not be given up for good.
        """
        seen = self.pairs.get(position, Pairs())
        return seen.followed_by(Pairs(pairs, HOPED * pairs), 1.0).auroc if seen.total else float("nan")

    def put_first(self, position: int) -> None:
        """Make a position the first of the head's, at which a vote prunes by default."""
        config = self.head.head.config
        config.positions = [position, *(each for each in config.positions if each != position)]

    def export(self, *, refit: bool = True, seed: int = 0) -> QualityHead:
        """The head for voting, calibrated; its ``config.metrics`` say how it was refitted.

        Args:
            refit: train a head once more on all that the buffer holds, and take it where it is better on groups
                that it did not see (`arrol_train.rl.refit`); otherwise the head on the fly, see
                `OnlineHead.export`.
            seed: of the refit.
        """
        head = self.head.export(self.buffer)
        if refit:
            rollouts = self.buffer if self.sequences is None else self.sequences
            found = refit_head(self._start, self.head.head, rollouts, self.head.training, seed=seed)
            head = found.head or head
            head.config.positions = [*self.head.head.config.positions]  # the refitted one's are those of the start
            head.config.metrics |= {"refit": found.figures()}
        return head

    def save(self, folder: Path) -> None:
        """Write head, calibration and buffers into a folder."""
        self.head.save(folder / HEAD_FILE)
        self.buffer.save(folder / BUFFER_FILE)
        write_json(folder / PAIRS_FILE, {str(position): list(pairs) for position, pairs in self.pairs.items()})
        if self.sequences is not None and self.last is not None:
            self.sequences.save(folder / SEQUENCES_FILE)
            self.last.save(folder / LAST_FILE)

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            HeadError, BufferFileError: when a file is missing, broken, or of another head.
        """
        self.head.load(folder / HEAD_FILE)
        self.buffer = ReplayBuffer.load(folder / BUFFER_FILE)
        if (pairs := folder / PAIRS_FILE).exists():  # older checkpoints have none
            self.pairs = {int(at): Pairs(*sums) for at, sums in json.loads(pairs.read_text()).items()}
        if self.sequences is not None and self.last is not None:
            self.sequences = SequenceBuffer.load(folder / SEQUENCES_FILE)
            self.last.load(folder / LAST_FILE)


def buffer_rows(groups: Sequence[Group], head: OnlineHead) -> dict[str, NDArray[Any]]:
    """Columns of the replay buffer, with a row for each mark of a graded rollout, in the order of the groups.

    Args:
        groups: whose rollouts have ended.
        head: gives the scores.
    """
    marked = [
        (group, rollout, position) for group in groups for rollout in group.graded for position in rollout.marks
    ]
    positions = np.array([position for *_, position in marked], np.int64)
    scores = np.empty(len(marked), np.float32)
    for position in set(positions.tolist()):
        scores[positions == position] = scores_at(position, groups, head)
    features = [rollout.marks[position] for _, rollout, position in marked]
    return {
        "features": np.array(features, np.float16).reshape(-1, head.head.config.hidden_size),
        "labels": np.array([rollout.reward for _, rollout, _ in marked], np.float32),
        "groups": np.array([group.id for group, *_ in marked], np.int64),
        "positions": positions,
        "inclusion": np.array([rollout.inclusion for _, rollout, _ in marked], np.float32),
        "scores": scores,
    }


def marked_at(position: int, groups: Sequence[Group]) -> list[tuple[Group, Rollout]]:
    """The graded rollouts that have a mark at a position, in the order of the groups."""
    return [(group, rollout) for group in groups for rollout in group.graded if position in rollout.marks]


def scores_at(position: int, groups: Sequence[Group], head: OnlineHead) -> NDArray[np.float64]:
    """A head's scores of the rollouts of `marked_at`."""
    return head.scores([rollout for _, rollout in marked_at(position, groups)], position)


def sequence_rows(groups: Sequence[Group]) -> dict[str, Any]:
    """What a `SequenceBuffer` takes, of the graded rollouts that have states, in the order of the groups."""
    graded = [(group, rollout) for group in groups for rollout in group.graded if rollout.states is not None]
    return {
        "states": [rollout.states for _, rollout in graded],
        "labels": [rollout.reward for _, rollout in graded],
        "groups": [group.id for group, _ in graded],
        "inclusion": [rollout.inclusion for _, rollout in graded],
    }
