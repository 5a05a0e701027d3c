"""The replay buffers: what the head on the fly learns from.

`ReplayBuffer` has the states at the detection positions and at the end of finished rollouts: what calibration is
fitted on, and a head learns from that reads one state at a time. `SequenceBuffer` has the states from a rollout's
first to its last: what a head learns from that pools over them. Both hold survivors only, so each rollout carries
its inclusion probability. Each row carries the score that the head of its time gave it, before it learned from the
rollout, which is what a posterior has to be fitted on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arrol_train.positions import FINISH
from arrol_train.rl.config import OnlineTraining
from arrol_train.rl.posterior import check_rows
from arrol_tts.errors import InputError
from arrol_tts.files import write_atomic

_COLUMNS = {
    "features": np.float16,
    "labels": np.float32,
    "groups": np.int64,
    "positions": np.int64,
    "inclusion": np.float32,
    "scores": np.float32,
    "steps": np.int64,
}


_SEQUENCE_COLUMNS = {"labels": np.float32, "groups": np.int64, "inclusion": np.float32}

SAMPLED_STATES = 1 << 12
"""States that the moments of a `SequenceBuffer` are taken of, about."""


class BufferFileError(InputError):
    """A file that holds no replay buffer."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a head learns from in one step: parts of rollouts, each to be scored by its own states.

    Attributes:
        states: float16 ``[rows, hidden_size]``.
        starts, ends: int64 ``[parts]``: a part's first row, and the row after its last.
        labels: float32 ``[parts]``, 0 or 1.
        groups: int64 ``[parts]``; parts of one number are ranked among each other: rollouts of a prompt, up to
            the same position.
        inclusion: float32 ``[parts]``.
    """

    states: NDArray[np.float16]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    labels: NDArray[np.float32]
    groups: NDArray[np.int64]
    inclusion: NDArray[np.float32]


class ReplayBuffer:
    """The newest rows, the oldest leaving first.

    Args:
        capacity: rows kept.
        hidden_size: width of the hidden states.

    Attributes:
        features: float16 ``[n, hidden_size]``.
        labels: float32 ``[n]``, 0 or 1.
        groups: int64 ``[n]``, the group (prompt and step) of the rollout.
        positions: int64 ``[n]``, in generated tokens, or `FINISH`.
        inclusion: float32 ``[n]``, in (0, 1].
        scores: float32 ``[n]``, in [0, 1].
        steps: int64 ``[n]``, when the row came.
    """

    features: NDArray[np.float16]
    labels: NDArray[np.float32]
    groups: NDArray[np.int64]
    positions: NDArray[np.int64]
    inclusion: NDArray[np.float32]
    scores: NDArray[np.float32]
    steps: NDArray[np.int64]

    def __init__(self, capacity: int, hidden_size: int) -> None:
        if capacity < 1 or hidden_size < 1:
            raise InputError(f"capacity is {capacity} and hidden_size {hidden_size}; both must be at least 1")
        self.capacity = capacity
        self.hidden_size = hidden_size
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.empty((0, hidden_size) if name == "features" else 0, dtype))

    def __len__(self) -> int:
        return len(self.labels)

    def append(
        self,
        features: ArrayLike,
        labels: ArrayLike,
        groups: ArrayLike,
        positions: ArrayLike,
        inclusion: ArrayLike,
        scores: ArrayLike,
        step: int,
    ) -> None:
        """Add rows; shapes as the attributes', any float type.

        Raises:
            InputError: labels other than 0/1, scores outside [0, 1], inclusion outside (0, 1], features that are
                not finite or of another width, lengths that differ.
        """
        if not np.size(labels):
            return
        check_rows(scores, labels)
        rows: dict[str, NDArray[np.generic]] = {
            "features": np.asarray(features),
            "labels": np.asarray(labels),
            "groups": np.asarray(groups),
            "positions": np.asarray(positions),
            "inclusion": np.asarray(inclusion),
            "scores": np.asarray(scores),
        }
        rows["steps"] = np.full(len(rows["labels"]), step)
        lengths = {name: column.shape[:1] for name, column in rows.items()}
        if len(set(lengths.values())) != 1 or rows["features"].shape[1:] != (self.hidden_size,):
            raise InputError(
                f"features have shape {rows['features'].shape}, this buffer takes [n, {self.hidden_size}], and "
                f"as many of everything: {lengths}"
            )
        largest = np.finfo(np.float16).max
        if not (abs(rows["features"].astype(np.float32)) <= largest).all():
            raise InputError(f"features must be finite and within float16's {largest:g}")
        _check_inclusion(rows["inclusion"])
        for name, dtype in _COLUMNS.items():
            joined = np.concatenate([getattr(self, name), rows[name].astype(dtype)])
            setattr(self, name, joined[-self.capacity :])

    def moments(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation of the states: float32 ``[hidden_size]`` each."""
        states = self.features.astype(np.float32)
        return states.mean(axis=0), states.std(axis=0)

    def batches(self, rng: np.random.Generator, training: OnlineTraining) -> Iterator[Batch]:
        """Endless batches of whole groups in random order, each group once in a pass; every row is a part.

        Raises:
            InputError: when the buffer is empty.
        """
        pairs = np.stack([self.groups, self.positions])
        ranked = np.unique(pairs, axis=1, return_inverse=True)[1].reshape(-1)
        for rows in _whole_groups(self.groups, rng, training.groups_per_batch):
            yield self._parts(rows, ranked[rows])

    def subset(self, rows: NDArray[np.bool_]) -> ReplayBuffer:
        """The rows that are chosen: bool ``[n]``."""
        buffer = ReplayBuffer(self.capacity, self.hidden_size)
        for name in _COLUMNS:
            setattr(buffer, name, getattr(self, name)[rows])
        return buffer

    def whole(self) -> Batch:
        """The rows that were read at the end of their rollouts."""
        rows = np.flatnonzero(self.positions == FINISH)
        return self._parts(rows, self.groups[rows])

    def _parts(self, rows: NDArray[np.int64], groups: NDArray[np.int64]) -> Batch:
        """Rows as parts of one state each, to be ranked by these groups."""
        first = np.arange(len(rows))
        return Batch(
            states=self.features[rows],
            starts=first,
            ends=first + 1,
            labels=self.labels[rows],
            groups=groups,
            inclusion=self.inclusion[rows],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all."""
        about = {"capacity": self.capacity, "hidden_size": self.hidden_size}
        _save(path, about, {name: getattr(self, name) for name in _COLUMNS})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReplayBuffer:
        """Read what `save` wrote.

        Raises:
            BufferFileError: when the file is missing, broken, or something else.
        """
        about, columns = _load(path, _COLUMNS)
        buffer = cls(about["capacity"], about["hidden_size"])
        for name, column in columns.items():
            setattr(buffer, name, column)
        return buffer


class SequenceBuffer:
    """The states of the newest finished rollouts, the oldest leaving first.

    Args:
        capacity: rollouts kept.
        max_bytes: that their states may take; the newest rollout stays whatever it takes.
        hidden_size: width of the hidden states.

    Attributes:
        states: of each rollout, float16 ``[rows, hidden_size]``, with rows in the order of their tokens.
        labels, groups, inclusion: as in `ReplayBuffer`, one for each rollout.
    """

    states: list[NDArray[np.float16]]
    labels: NDArray[np.float32]
    groups: NDArray[np.int64]
    inclusion: NDArray[np.float32]

    def __init__(self, capacity: int, max_bytes: int, hidden_size: int) -> None:
        if capacity < 1 or hidden_size < 1:
            raise InputError(f"capacity is {capacity} and hidden_size {hidden_size}; both must be at least 1")
        self.capacity = capacity
        self.max_bytes = max_bytes
        self.hidden_size = hidden_size
        self.states = []
        for name, dtype in _SEQUENCE_COLUMNS.items():
            setattr(self, name, np.empty(0, dtype))

    def __len__(self) -> int:
        return len(self.states)

    def append(
        self,
        states: Sequence[NDArray[np.float16]],
        labels: ArrayLike,
        groups: ArrayLike,
        inclusion: ArrayLike,
    ) -> None:
        """Add rollouts; shapes as the attributes'.

        Raises:
            InputError: labels other than 0/1, inclusion outside (0, 1], states that are not finite, of another
                width or of no token, lengths that differ.
        """
        if not len(states):
            return
        columns = {"labels": np.asarray(labels), "groups": np.asarray(groups), "inclusion": np.asarray(inclusion)}
        check_rows(np.zeros(len(states)), columns["labels"])
        _check_inclusion(columns["inclusion"])
        if not all(each.ndim == 2 and len(each) and each.shape[1] == self.hidden_size for each in states):
            shapes = sorted({each.shape for each in states})
            raise InputError(f"states have shapes {shapes[:3]}, this buffer takes [rows, {self.hidden_size}]")
        if not all(np.isfinite(each).all() for each in states):
            raise InputError(f"states must be finite and within float16's {np.finfo(np.float16).max:g}")
        kept = [*self.states, *states][-self.capacity :]
        held = np.cumsum([each.nbytes for each in reversed(kept)])
        kept = kept[-max(1, int((held <= self.max_bytes).sum())) :]
        for name, dtype in _SEQUENCE_COLUMNS.items():
            joined = np.concatenate([getattr(self, name), columns[name].astype(dtype)])
            setattr(self, name, joined[-len(kept) :])
        self.states = kept

    def moments(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation of every k-th state: float32 ``[hidden_size]`` each."""
        lengths = np.array([len(each) for each in self.states])
        every = -(-int(lengths.sum()) // SAMPLED_STATES)
        firsts = -(lengths.cumsum() - lengths) % every
        sample = np.concatenate([each[first::every] for each, first in zip(self.states, firsts, strict=True)])
        sample = sample.astype(np.float32)
        return sample.mean(axis=0), sample.std(axis=0)

    def batches(self, rng: np.random.Generator, training: OnlineTraining) -> Iterator[Batch]:
        """Endless batches of whole groups in random order, each group once in a pass.

        The parts of a rollout are the whole of it, and what it had written up to random positions: those of its
        group, each drawn from the length of one of the group's rollouts, where it was so long itself.

        Raises:
            InputError: when the buffer is empty.
        """
        all_lengths = np.array([len(each) for each in self.states])
        for rollouts in _whole_groups(self.groups, rng, training.groups_per_batch):
            lengths = all_lengths[rollouts]
            _, firsts, group, sizes = np.unique(
                self.groups[rollouts], return_index=True, return_inverse=True, return_counts=True
            )
            shape = (len(sizes), training.positions)
            drawn = firsts[:, None] + (rng.random(shape) * sizes[:, None]).astype(np.int64)
            upto = 1 + (rng.random(shape) * lengths[drawn]).astype(np.int64)
            rows = np.concatenate([upto[group], lengths[:, None]], axis=1)
            rollout, position = np.nonzero(rows <= lengths[:, None])
            starts = (lengths.cumsum() - lengths)[rollout]
            yield Batch(
                states=np.concatenate([self.states[i] for i in rollouts]),
                starts=starts,
                ends=starts + rows[rollout, position],
                labels=self.labels[rollouts][rollout],
                groups=group[rollout] * rows.shape[1] + position,
                inclusion=self.inclusion[rollouts][rollout],
            )

    def subset(self, rollouts: NDArray[np.bool_]) -> SequenceBuffer:
        """The rollouts that are chosen: bool ``[n]``."""
        buffer = SequenceBuffer(self.capacity, self.max_bytes, self.hidden_size)
        buffer.states = [self.states[i] for i in np.flatnonzero(rollouts)]
        for name in _SEQUENCE_COLUMNS:
            setattr(buffer, name, getattr(self, name)[rollouts])
        return buffer

    def whole(self) -> Batch:
        """Every rollout from its first state to its last."""
        lengths = np.array([len(each) for each in self.states], np.int64)
        ends = lengths.cumsum()
        return Batch(
            states=np.concatenate([np.empty((0, self.hidden_size), np.float16), *self.states]),
            starts=ends - lengths,
            ends=ends,
            labels=self.labels,
            groups=self.groups,
            inclusion=self.inclusion,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all."""
        about = {"capacity": self.capacity, "max_bytes": self.max_bytes, "hidden_size": self.hidden_size}
        empty = np.empty((0, self.hidden_size), np.float16)
        columns = {name: getattr(self, name) for name in _SEQUENCE_COLUMNS}
        columns["states"] = np.concatenate([empty, *self.states])
        columns["lengths"] = np.array([len(each) for each in self.states], np.int64)
        _save(path, about, columns)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SequenceBuffer:
        """Read what `save` wrote.

        Raises:
            BufferFileError: when the file is missing, broken, or something else.
        """
        about, columns = _load(path, ("states", "lengths", *_SEQUENCE_COLUMNS))
        if "max_bytes" not in about:
            raise BufferFileError(f"{path} holds no replay buffer of whole rollouts")
        buffer = cls(about["capacity"], about["max_bytes"], about["hidden_size"])
        states, ends = columns.pop("states"), columns.pop("lengths").cumsum()
        buffer.states = np.split(states, ends)[:-1]
        for name, column in columns.items():
            setattr(buffer, name, column)
        return buffer


def _whole_groups(
    groups: NDArray[np.int64], rng: np.random.Generator, per_batch: int
) -> Iterator[NDArray[np.int64]]:
    """Endless batches of indices: whole groups in random order, each group once in a pass."""
    if not len(groups):
        raise InputError("the replay buffer is empty: append rows first")
    _, group = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(group, kind="stable"), np.bincount(group).cumsum()[:-1])
    while True:
        order = rng.permutation(len(members))
        for first in range(0, len(order), per_batch):
            yield np.concatenate([members[i] for i in order[first : first + per_batch]])


def _check_inclusion(inclusion: NDArray[np.generic]) -> None:
    share = inclusion.astype(np.float64)
    if not ((share > 0) & (share <= 1)).all():
        raise InputError("inclusion probabilities must lie in (0, 1]")


def _save(path: str | os.PathLike[str], about: Mapping[str, int], columns: Mapping[str, NDArray[Any]]) -> None:
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    write_atomic(Path(path), save(tensors, {"replay_buffer": json.dumps(about)}))


def _load(path: str | os.PathLike[str], names: Iterable[str]) -> tuple[dict[str, int], dict[str, NDArray[Any]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["replay_buffer"])
            return about, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, KeyError) as error:
        raise BufferFileError(f"{path} holds no replay buffer: {error}") from None
