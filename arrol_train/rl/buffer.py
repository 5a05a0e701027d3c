"""The replay buffer: what the head on the fly learns from.

One row is one hidden state of a finished rollout with its reward. Rows come from survivors only, so each
carries its inclusion probability; and each carries the score that the head of its time gave it, before it learned
from the row, which is what a posterior has to be fitted on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


class BufferFileError(InputError):
    """A file that holds no replay buffer."""


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
        share = rows["inclusion"].astype(np.float64)
        if not ((share > 0) & (share <= 1)).all():
            raise InputError("inclusion probabilities must lie in (0, 1]")
        for name, dtype in _COLUMNS.items():
            joined = np.concatenate([getattr(self, name), rows[name].astype(dtype)])
            setattr(self, name, joined[-self.capacity :])

    def batches(self, rng: np.random.Generator, groups_per_batch: int) -> Iterator[NDArray[np.int64]]:
        """Endless batches of row indices: whole groups in random order, each group once in a pass.

        Raises:
            InputError: when the buffer is empty.
        """
        if not len(self):
            raise InputError("the replay buffer is empty: append rows first")
        _, group = np.unique(self.groups, return_inverse=True)
        rows_of = np.split(np.argsort(group, kind="stable"), np.bincount(group).cumsum()[:-1])
        while True:
            order = rng.permutation(len(rows_of))
            for first in range(0, len(order), groups_per_batch):
                yield np.concatenate([rows_of[i] for i in order[first : first + groups_per_batch]])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all."""
        from safetensors.numpy import save

        about = {"capacity": self.capacity, "hidden_size": self.hidden_size}
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _COLUMNS}
        write_atomic(Path(path), save(tensors, {"replay_buffer": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReplayBuffer:
        """Read what `save` wrote.

        Raises:
            BufferFileError: when the file is missing, broken, or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {})["replay_buffer"])
                buffer = cls(about["capacity"], about["hidden_size"])
                for name in _COLUMNS:
                    setattr(buffer, name, file.get_tensor(name))
        except (SafetensorError, OSError, KeyError) as error:
            raise BufferFileError(f"{path} holds no replay buffer: {error}") from None
        return buffer
