"""What the head on the fly learns from a step's groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from arrol_train.positions import FINISH
from arrol_train.rl.detection import Pairs
from arrol_train.rl.group import Group, Rollout, Vector
from arrol_train.rl.learner import HeadLearner, buffer_rows, sequence_rows
from arrol_train.rl.online_head import OnlineHead
from arrol_tts.errors import HeadError
from arrol_tts.head_config import Pooling, QualityHeadConfig


def vector(value: float) -> Vector:
    return np.full(3, value, np.float16)


def groups() -> list[Group]:
    """Right rises and wrong falls."""
    right = Rollout([1], reward=1.0, inclusion=0.5, states=np.array([vector(0), vector(1)]))
    right.marks = {8: vector(1), FINISH: vector(2)}
    wrong = Rollout([1], reward=0.0, states=np.array([vector(-3)]), marks={FINISH: vector(-3)})
    pruned = Rollout([1], inclusion=0.5, marks={8: vector(9)}, pruned_at=8)
    return [Group(41, 1, [5], [right, pruned, wrong]), Group(42, 2, [5], [wrong])]


def head(pooling: Pooling = "gated") -> OnlineHead:
    """Its score is the sigmoid of the mean of the states' first numbers, or of the last one's."""
    stride, size = (8, 0) if pooling == "gated" else (1, 4)
    online = OnlineHead(QualityHeadConfig("m", 3, size, positions=[8], pooling=pooling, stride=stride))
    if pooling == "gated":
        with torch.no_grad():
            online.head.outer.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
            online.head.outer.bias.zero_()
    return online


def test_a_row_is_a_mark_of_a_graded_rollout() -> None:
    rows = buffer_rows(groups(), head())
    scores = rows.pop("scores")
    assert {name: column.tolist() for name, column in rows.items()} == {
        "features": [[1.0] * 3, [2.0] * 3, [-3.0] * 3, [-3.0] * 3],
        "labels": [1.0, 1.0, 0.0, 0.0],
        "groups": [41, 41, 41, 42],
        "positions": [8, FINISH, FINISH, FINISH],
        "inclusion": [0.5, 0.5, 1.0, 1.0],
    }
    # Pooled over the states so far: 0 and 1 have the mean 0.5, at token 8 and at the end.
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([-0.5, -0.5, 3, 3])), rtol=1e-6)


def test_a_sequence_is_every_state_of_a_graded_rollout() -> None:
    rows = sequence_rows(groups())
    assert [states.tolist() for states in rows.pop("states")] == [
        [[0.0] * 3, [1.0] * 3],
        [[-3.0] * 3],
        [[-3.0] * 3],
    ]
    assert rows == {"labels": [1.0, 0.0, 0.0], "groups": [41, 41, 42], "inclusion": [0.5, 1.0, 1.0]}


def test_the_head_is_measured_before_it_learns_and_beside_it_the_old_design() -> None:
    learner = HeadLearner(head(), buffer_rows=16, updates=3)
    metrics = learner.learn(groups(), step=7)
    assert metrics["head/finish/auroc_within"] == metrics["head/finish/auroc_within_all"] == 1.0
    assert metrics["head/8/rows"] == 1.0
    assert metrics["head/cross_entropy"] > 0
    assert learner.buffer.steps.tolist() == [7] * 4
    assert learner.sequences is not None
    assert [len(states) for states in learner.sequences.states] == [2, 1, 1]
    assert metrics["head/finish/auroc_within_last"] in (0.0, 1.0)  # it knows nothing yet
    for step in range(8, 30):
        metrics = learner.learn(groups(), step)
    assert metrics["head/finish/auroc_within_last"] == 1.0
    assert "head/8/auroc_within_last" not in metrics  # all were right there


def test_groups_that_were_not_pruned_at_random_say_nothing_of_all() -> None:
    chosen = groups()
    chosen[0].at_random = False
    metrics = HeadLearner(head(), updates=0).learn(chosen, step=7)
    assert metrics["head/finish/auroc_within"] == 1.0
    assert "head/finish/auroc_within_all" not in metrics


def test_a_head_that_pools_nothing_learns_from_the_marks_alone() -> None:
    learner = HeadLearner(head("last"), buffer_rows=16, updates=3)
    metrics = learner.learn(groups(), step=7)
    assert learner.sequences is learner.last is None
    assert metrics["head/cross_entropy"] > 0
    assert "head/finish/auroc_within_last" not in metrics


def test_as_many_rollouts_are_kept_as_the_rows_are_of() -> None:
    learner = HeadLearner(head(), buffer_rows=6)
    for step in range(3):
        learner.learn(groups(), step)
    assert learner.sequences is not None
    assert (len(learner.buffer), len(learner.sequences)) == (6, 3)


def test_a_few_pairs_move_what_is_hoped_of_a_head_a_little() -> None:
    learner = HeadLearner(head())
    assert np.isnan(learner.hoped_auroc(FINISH, pairs=30.0))
    learner.pairs[FINISH] = Pairs(total=10.0, ranked=0.0)
    assert learner.auroc_within(FINISH) == 0.0
    assert learner.hoped_auroc(FINISH, pairs=30.0) == pytest.approx(0.75 * 30 / 40)


def test_what_is_saved_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    first, second = HeadLearner(head(), updates=2), HeadLearner(head(), updates=2)
    first.learn(groups(), step=0)
    first.save(tmp_path)
    second.load(tmp_path)
    assert second.pairs == first.pairs
    assert second.auroc_within(FINISH) == 1.0
    assert first.learn(groups(), step=1) == second.learn(groups(), step=1)
    assert first.learn(groups(), step=2) == second.learn(groups(), step=2)


def test_what_a_head_of_another_pooling_saved_is_refused(tmp_path: Path) -> None:
    HeadLearner(head("last")).save(tmp_path)
    with pytest.raises(HeadError, match=r"saved with the pooling 'last', this run uses 'gated': set it back"):
        HeadLearner(head()).load(tmp_path)


def test_groups_without_a_state_teach_nothing() -> None:
    learner = HeadLearner(head())
    assert learner.learn([Group(0, 0, [5], [Rollout([1], reward=1.0)])], step=0) == {}
    assert len(learner.buffer) == 0
