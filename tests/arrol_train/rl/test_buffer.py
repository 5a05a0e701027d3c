"""The replay buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrol_train.rl.buffer import BufferFileError, ReplayBuffer


def rows(n: int = 4, **changes: Any) -> dict[str, Any]:
    given = {
        "features": np.arange(3.0 * n).reshape(n, 3),
        "labels": np.arange(n) % 2,
        "groups": np.arange(n) // 2,
        "positions": np.full(n, 32),
        "inclusion": np.full(n, 0.5),
        "scores": np.full(n, 0.25),
        "step": 7,
    }
    return given | changes


def filled(**changes: Any) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity=6, hidden_size=3)
    buffer.append(**rows(**changes))
    return buffer


def test_the_oldest_rows_leave_first() -> None:
    buffer = filled()
    buffer.append(**rows(groups=[2, 2, 3, 3], step=8))
    assert buffer.groups.tolist() == [1, 1, 2, 2, 3, 3]
    assert buffer.steps.tolist() == [7, 7, 8, 8, 8, 8]
    assert len(buffer) == 6


def test_a_pass_visits_every_group_whole_and_once() -> None:
    buffer = filled(n=6, groups=[0, 1, 0, 2, 1, 2])
    batches = buffer.batches(np.random.default_rng(0), groups_per_batch=2)
    first, second = next(batches), next(batches)
    assert sorted(np.concatenate([first, second]).tolist()) == list(range(6))
    assert {len(set(buffer.groups[batch])) for batch in (first, second)} == {1, 2}


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    buffer = filled()
    buffer.save(tmp_path / "buffer.safetensors")
    again = ReplayBuffer.load(tmp_path / "buffer.safetensors")
    assert (again.capacity, again.hidden_size) == (6, 3)
    for name in ("features", "labels", "groups", "positions", "inclusion", "scores", "steps"):
        assert np.array_equal(getattr(again, name), getattr(buffer, name))
        assert getattr(again, name).dtype == getattr(buffer, name).dtype


def test_an_empty_buffer_can_be_saved(tmp_path: Path) -> None:
    ReplayBuffer(6, 3).save(tmp_path / "b")
    assert len(ReplayBuffer.load(tmp_path / "b")) == 0


def test_nothing_is_appended_from_nothing() -> None:
    buffer = filled()
    buffer.append([], [], [], [], [], [], step=8)
    assert len(buffer) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1, 0.5, 1]}, "labels must be 0/1"),
        ({"features": np.zeros((4, 2))}, "this buffer takes \\[n, 3\\]"),
        ({"features": np.full((4, 3), 1e9)}, "within float16"),
        ({"features": np.full((4, 3), np.nan)}, "must be finite"),
        ({"inclusion": [0.5, 0.5, 0.0, 1.0]}, "inclusion probabilities must lie in \\(0, 1\\]"),
        ({"groups": [0, 1]}, "as many of everything"),
        ({"scores": [0, 0, 0, 2.0]}, "scores must lie in"),
    ],
)
def test_bad_rows_are_refused_and_change_nothing(changes: dict[str, Any], message: str) -> None:
    buffer = filled()
    with pytest.raises(ValueError, match=message):
        buffer.append(**rows(**changes))
    assert len(buffer) == 4


def test_batches_of_an_empty_buffer_are_refused() -> None:
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        next(ReplayBuffer(6, 3).batches(np.random.default_rng(0), 2))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x00" * 100])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(BufferFileError, match="holds no replay buffer"):
        ReplayBuffer.load(tmp_path / "b")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BufferFileError, match="holds no replay buffer"):
        ReplayBuffer.load(tmp_path / "b")
