"""The head that a run leaves, trained once more on the buffer."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from arrol_train.positions import FINISH
from arrol_train.rl.buffer import ReplayBuffer, SequenceBuffer
from arrol_train.rl.config import OnlineTraining
from arrol_train.rl.group import Group, Rollout
from arrol_train.rl.learner import HeadLearner
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.refit import HeldOut, Refit, refit
from arrol_tts.calibration import sigmoid
from arrol_tts.head import QualityHead
from arrol_tts.head_config import Pooling, QualityHeadConfig
from arrol_tts.metrics import within_question_auroc

SIZE, GROUPS, EACH = 6, 40, 8
TRAINING = OnlineTraining()


def samples(rng: np.random.Generator, groups: int = GROUPS) -> dict[str, Any]:
    """Rollouts whose states' first numbers tell a little of how they end; groups differ in how hard they are."""
    group = np.repeat(np.arange(groups), EACH)
    quality = rng.normal(size=len(group)) + np.repeat(rng.normal(size=groups), EACH)
    labels = (rng.random(len(group)) < sigmoid(2 * quality)).astype(np.float32)
    states = []
    for value in quality:
        rows = rng.normal(size=(int(rng.integers(3, 12)), SIZE))
        rows[:, 0] += value
        states.append(rows.astype(np.float16))
    return {"states": states, "labels": labels, "groups": group, "inclusion": np.ones(len(group))}


def buffer(seed: int = 0, groups: int = GROUPS) -> SequenceBuffer:
    filled = SequenceBuffer(10_000, 1 << 24, SIZE)
    filled.append(**samples(np.random.default_rng(seed), groups))
    return filled


def untrained(pooling: Pooling = "mean", seed: int = 0) -> QualityHead:
    config = QualityHeadConfig("m", SIZE, 8, positions=[4], pooling=pooling)
    return OnlineHead(config, seed=seed).head


def auroc_within(head: QualityHead, rows: dict[str, Any]) -> float:
    with torch.no_grad():
        scores = [float(head(torch.from_numpy(states).float())[-1]) for states in rows["states"]]
    return within_question_auroc(rows["labels"], scores, rows["groups"])


def test_the_head_is_better_on_rollouts_that_neither_has_seen() -> None:
    online = OnlineHead(untrained().config)
    online.update(buffer(), steps=2)
    found = refit(untrained(), online.head, buffer(), TRAINING)
    fresh = samples(np.random.default_rng(9))
    assert found.head is not None
    assert auroc_within(found.head, fresh) > auroc_within(online.head, fresh) + 0.05
    assert found.new is not None
    assert found.online is not None
    assert found.new.beats(found.online)
    assert found.groups == GROUPS
    assert 1 <= found.epochs <= 40


def test_it_is_calibrated() -> None:
    found = refit(untrained(), untrained(seed=2), buffer(), TRAINING)
    assert found.head is not None
    fresh = samples(np.random.default_rng(9))
    with torch.no_grad():
        scores = np.array([float(found.head(torch.from_numpy(states).float())[-1]) for states in fresh["states"]])
    for low, high in ((0.0, 0.5), (0.5, 1.0)):
        rows = (scores > low) & (scores <= high)
        assert scores[rows].mean() == pytest.approx(fresh["labels"][rows].mean(), abs=0.08)
    assert found.head.config.calibration != [1.0, 0.0]


def test_the_head_on_the_fly_stays_where_it_is_better() -> None:
    rng = np.random.default_rng(3)
    few = SequenceBuffer(1000, 1 << 20, SIZE)
    few.append(**samples(rng, groups=10))
    online = OnlineHead(untrained().config)
    online.update(buffer(), steps=400)
    found = refit(untrained(), online.head, few, TRAINING)
    assert found.head is None
    assert found.figures()["kept"] == 0.0
    assert found.figures()["groups"] == 10.0


def test_it_depends_on_the_seed_alone_and_changes_neither_head() -> None:
    start, online = untrained(), untrained(seed=2)
    before = copy.deepcopy([head.state_dict() for head in (start, online)])
    torch.manual_seed(1)
    first = refit(start, online, buffer(groups=12), TRAINING, seed=4)
    torch.manual_seed(2)
    second = refit(start, online, buffer(groups=12), TRAINING, seed=4)
    other = refit(start, online, buffer(groups=12), TRAINING, seed=5)
    assert first.head is not None
    assert second.head is not None
    for a, b in zip(first.head.state_dict().values(), second.head.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert first.figures() == second.figures() != other.figures()
    for head, state in zip((start, online), before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), state.values(), strict=True))


@pytest.mark.parametrize("labels", [0.0, 1.0])
def test_a_buffer_without_rewards_that_differ_leaves_the_head_on_the_fly(labels: float) -> None:
    alike = buffer()
    alike.labels[:] = labels
    assert refit(untrained(), untrained(), alike, TRAINING) == Refit(None)
    assert refit(untrained(), untrained(), SequenceBuffer(10, 1 << 20, SIZE), TRAINING).figures() == {}


def test_a_head_that_pools_nothing_learns_from_the_marks_and_is_calibrated_at_the_end() -> None:
    rows = samples(np.random.default_rng(0))
    marks = ReplayBuffer(10_000, SIZE)
    for position in (4, FINISH):
        marks.append(
            features=np.array([states[-1] for states in rows["states"]]),
            labels=rows["labels"],
            groups=rows["groups"],
            positions=np.full(len(rows["labels"]), position),
            inclusion=rows["inclusion"],
            scores=np.full(len(rows["labels"]), 0.5),
            step=0,
        )
    assert len(marks.whole().labels) == GROUPS * EACH
    found = refit(untrained("last"), untrained("last", seed=2), marks, TRAINING)
    assert found.head is not None
    assert found.new is not None
    assert found.new.auroc_within > 0.65


@pytest.mark.parametrize(
    ("loss", "auroc", "better"), [(0.5, 0.8, True), (0.5, 0.7, False), (0.7, 0.9, False), (0.6, 0.8, False)]
)
def test_better_is_a_lower_loss_and_no_worse_ranks(loss: float, auroc: float, better: bool) -> None:
    assert HeldOut(loss, auroc).beats(HeldOut(0.6, 0.8)) is better


def test_what_a_learner_exports_is_refitted_unless_it_is_told_not_to() -> None:
    rng = np.random.default_rng(0)
    learner = HeadLearner(OnlineHead(untrained().config), updates=1)
    rows = samples(rng)
    rollouts = [
        Rollout([1], reward=float(label), states=states, marks={FINISH: states[-1]})
        for states, label in zip(rows["states"], rows["labels"], strict=True)
    ]
    learner.learn([Group(i, i, [5], rollouts[EACH * i : EACH * i + EACH]) for i in range(GROUPS)], step=0)
    fresh = samples(np.random.default_rng(9))
    plain, better = learner.export(refit=False), learner.export()
    assert "refit" not in plain.config.metrics
    assert better.config.metrics["refit"]["kept"] == 1.0
    assert auroc_within(better, fresh) > auroc_within(plain, fresh) + 0.05
    # It starts where the run's head did, not where the head on the fly has come to.
    for _ in range(3):
        learner.head.update(buffer(1), steps=5)
    again = learner.export()
    torch.testing.assert_close(again.outer.weight, better.outer.weight)
