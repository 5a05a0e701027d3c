"""What the head on the fly learns from a step's groups."""

from __future__ import annotations

import numpy as np

from arrol_train.positions import FINISH
from arrol_train.rl.group import Group, Rollout, State
from arrol_train.rl.learner import HeadLearner, buffer_rows
from arrol_train.rl.online_head import OnlineHead
from arrol_tts.head_config import QualityHeadConfig


def state(value: float, score: float) -> State:
    return State(np.full(3, value, np.float16), score)


def groups() -> list[Group]:
    right = Rollout([1], reward=1.0, inclusion=0.5, states={8: state(1, 0.7), FINISH: state(2, 0.8)})
    wrong = Rollout([1], reward=0.0, states={FINISH: state(3, 0.1)})
    pruned = Rollout([1], inclusion=0.5, states={8: state(9, 0.9)}, pruned_at=8)
    return [Group(41, 1, [5], [right, pruned]), Group(42, 2, [5], [wrong])]


def test_a_row_is_a_state_of_a_graded_rollout() -> None:
    rows = buffer_rows(groups(), 3)
    assert {name: column.tolist() for name, column in rows.items()} == {
        "features": [[1.0] * 3, [2.0] * 3, [3.0] * 3],
        "labels": [1.0, 1.0, 0.0],
        "groups": [41, 41, 42],
        "positions": [8, FINISH, FINISH],
        "inclusion": [0.5, 0.5, 1.0],
        "scores": np.array([0.7, 0.8, 0.1], np.float32).tolist(),
    }


def test_the_head_is_measured_before_it_learns() -> None:
    online = OnlineHead(QualityHeadConfig("m", 3, inner_size=4, positions=[8]))
    learner = HeadLearner(online, buffer_rows=16, updates=3)
    metrics = learner.learn(groups(), step=7)
    # Right scored 0.8 and wrong 0.1 by the head of their time.
    assert metrics["head/finish/auroc"] == 1.0
    assert metrics["head/8/rows"] == 1.0
    assert metrics["head/cross_entropy"] > 0
    assert learner.buffer.steps.tolist() == [7, 7, 7]


def test_groups_without_a_state_teach_nothing() -> None:
    learner = HeadLearner(OnlineHead(QualityHeadConfig("m", 3, inner_size=4)))
    assert learner.learn([Group(0, 0, [5], [Rollout([1], reward=1.0)])], step=0) == {}
    assert len(learner.buffer) == 0
