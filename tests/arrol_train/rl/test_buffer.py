"""The replay buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrol_train.positions import FINISH
from arrol_train.rl.buffer import BufferFileError, ReplayBuffer, SequenceBuffer
from arrol_train.rl.config import OnlineTraining


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


TWO_GROUPS = OnlineTraining(groups_per_batch=2, positions=2)


def test_a_pass_visits_every_group_whole_and_once() -> None:
    buffer = filled(n=6, groups=[0, 1, 0, 2, 1, 2])
    batches = buffer.batches(np.random.default_rng(0), TWO_GROUPS)
    first, second = next(batches), next(batches)
    assert sorted([*first.states[:, 0], *second.states[:, 0]]) == [0, 3, 6, 9, 12, 15]
    assert {len(batch.labels) for batch in (first, second)} == {2, 4}
    assert (first.ends - first.starts).tolist() == [1] * len(first.labels)


def test_rows_are_ranked_among_those_of_their_group_at_the_same_position() -> None:
    buffer = filled(groups=[5, 5, 5, 6], positions=[8, FINISH, FINISH, FINISH])
    batch = next(buffer.batches(np.random.default_rng(0), TWO_GROUPS))
    at, one, other, elsewhere = (batch.groups[batch.states[:, 0] == value].item() for value in (0, 3, 6, 9))
    assert one == other
    assert len({at, one, elsewhere}) == 3


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
        next(ReplayBuffer(6, 3).batches(np.random.default_rng(0), OnlineTraining()))
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        next(SequenceBuffer(6, 100, 3).batches(np.random.default_rng(0), OnlineTraining()))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x00" * 100])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(BufferFileError, match="holds no replay buffer"):
        ReplayBuffer.load(tmp_path / "b")
    with pytest.raises(BufferFileError, match="holds no replay buffer"):
        SequenceBuffer.load(tmp_path / "b")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BufferFileError, match="holds no replay buffer"):
        ReplayBuffer.load(tmp_path / "b")


def states(*lengths: int) -> list[Any]:
    """Rollouts whose states have their own number, then that of the token."""
    return [
        np.stack([np.full(length, i), np.arange(length)], axis=1).astype(np.float16)
        for i, length in enumerate(lengths)
    ]


def sequences(*lengths: int, capacity: int = 6, max_bytes: int = 1 << 20) -> SequenceBuffer:
    buffer = SequenceBuffer(capacity, max_bytes, hidden_size=2)
    n = len(lengths)
    buffer.append(states(*lengths), np.arange(n) % 2, np.arange(n) // 2, np.full(n, 0.5))
    return buffer


def test_a_batch_has_whole_rollouts_and_their_beginnings_up_to_shared_positions() -> None:
    buffer = sequences(5, 9, 4, 2)
    batches = buffer.batches(np.random.default_rng(0), TWO_GROUPS)
    beginnings = 0
    for _ in range(20):
        batch = next(batches)
        rollout, first = batch.states[batch.starts].T
        last_rollout, last = batch.states[batch.ends - 1].T
        assert (rollout == last_rollout).all()
        assert (first == 0).all()
        lengths = np.array([5, 9, 4, 2])[rollout.astype(int)]
        whole = last + 1 == lengths
        assert sorted(set(rollout[whole].tolist())) == [0, 1, 2, 3]
        assert batch.labels.tolist() == (rollout % 2).tolist()
        assert batch.inclusion.tolist() == [0.5] * len(rollout)
        for number in set(batch.groups.tolist()):
            ranked = batch.groups == number
            assert len(set((rollout[ranked] // 2).tolist())) == 1  # of one prompt
            assert len(set(last[ranked].tolist())) == 1 or whole[ranked].all()  # at one position, or at their ends
        beginnings += int((~whole).sum())
    assert beginnings > 40


def test_every_second_position_of_two_rollouts_lies_in_the_short_one() -> None:
    """It has 4 tokens, the other 1,000, over which its half spreads evenly."""
    buffer = sequences(4, 1000)
    batches = buffer.batches(np.random.default_rng(0), OnlineTraining(groups_per_batch=1, positions=100))
    batch = next(batches)
    upto = (batch.ends - batch.starts)[batch.labels == 1]
    assert 35 < (upto <= 4).sum() < 70
    assert 300 < np.median(upto[upto > 4]) < 700


def test_the_oldest_rollouts_leave_when_there_are_too_many_or_they_take_too_much() -> None:
    buffer = sequences(3, 3, 3, capacity=4)
    buffer.append(states(1, 1), [1, 1], [7, 8], [1.0, 1.0])
    assert [len(each) for each in buffer.states] == [3, 3, 1, 1]
    assert buffer.groups.tolist() == [0, 1, 7, 8]
    assert buffer.labels.tolist() == [1, 0, 1, 1]
    # A state takes 4 bytes.
    assert [len(each) for each in sequences(3, 3, 3, max_bytes=24).states] == [3, 3]
    assert [len(each) for each in sequences(3, 3, 9, max_bytes=24).states] == [9]


def test_moments_are_those_of_a_sample_of_all_states() -> None:
    mean, deviation = sequences(3, 1).moments()
    # Rollout 0 has tokens 0, 1, 2; rollout 1 has token 0.
    np.testing.assert_allclose(mean, [0.25, 0.75])
    np.testing.assert_allclose(deviation, [0.433, 0.829], atol=1e-3)
    many = sequences(3000, 20000, 27000)  # more than are looked at
    np.testing.assert_allclose(many.moments()[0], [1.48, 11379.5], rtol=5e-3)


def test_saved_rollouts_come_back(tmp_path: Path) -> None:
    for buffer in (sequences(3, 1, 2), SequenceBuffer(6, 100, 2)):
        buffer.save(tmp_path / "b")
        again = SequenceBuffer.load(tmp_path / "b")
        assert (again.capacity, again.max_bytes, again.hidden_size) == (6, buffer.max_bytes, 2)
        assert [each.tolist() for each in again.states] == [each.tolist() for each in buffer.states]
        assert {each.dtype for each in again.states} <= {np.dtype(np.float16)}
        for name in ("labels", "groups", "inclusion"):
            assert np.array_equal(getattr(again, name), getattr(buffer, name))
            assert getattr(again, name).dtype == getattr(buffer, name).dtype


def test_a_file_of_rows_holds_no_rollouts(tmp_path: Path) -> None:
    filled().save(tmp_path / "b")
    with pytest.raises(BufferFileError, match="holds no replay buffer"):
        SequenceBuffer.load(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0.5]}, "labels must be 0/1"),
        ({"states": [np.zeros((2, 3), np.float16)]}, "this buffer takes \\[rows, 2\\]"),
        ({"states": [np.zeros((0, 2), np.float16)]}, "this buffer takes \\[rows, 2\\]"),
        ({"states": [np.full((2, 2), np.inf, np.float16)]}, "must be finite and within float16"),
        ({"inclusion": [0.0]}, "inclusion probabilities must lie in \\(0, 1\\]"),
    ],
)
def test_bad_rollouts_are_refused_and_change_nothing(changes: dict[str, Any], message: str) -> None:
    buffer = sequences(2, 2)
    given = {"states": states(2), "labels": [1], "groups": [5], "inclusion": [1.0]} | changes
    with pytest.raises(ValueError, match=message):
        buffer.append(**given)
    assert len(buffer) == 2
