"""Training a head: it learns what is there, and nothing where nothing is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from arrol_train.head_trainer import HeadTraining, ranking_loss, train_head
from arrol_tts.head_config import QualityHeadConfig

FAST = HeadTraining(epochs=40, groups_per_batch=8, learning_rate=3e-3)


def data(signal: float, seed: int = 0) -> dict[str, Any]:
    """60 questions x 8 rows of width 6, whose first column tells right from wrong within a question."""
    rng = np.random.default_rng(seed)
    labels = rng.random((60, 8)) < rng.random((60, 1))
    features = rng.normal(size=(60, 8, 6)).astype(np.float32)
    features[..., 0] += signal * labels
    features[..., 1] += 5 * rng.normal(size=(60, 1))  # differs between questions and says nothing
    return {
        "features": features.reshape(-1, 6),
        "labels": labels.reshape(-1),
        "questions": np.repeat(np.arange(60), 8),
        "positions": np.zeros(480, dtype=np.int64),
    }


def config() -> QualityHeadConfig:
    return QualityHeadConfig(base_model="m", hidden_size=6, inner_size=16)


def test_a_signal_is_found_and_calibrated() -> None:
    head = train_head(**data(3.0), config=config(), training=FAST)
    assert head.config.metrics["validation_auroc_within"] > 0.9
    fresh = data(3.0, seed=1)
    with torch.inference_mode():
        scores = head(torch.from_numpy(fresh["features"])).numpy()
    confident = scores > 0.8
    assert confident.sum() > 50
    assert fresh["labels"][confident].mean() > 0.75


def test_no_signal_stays_near_chance() -> None:
    head = train_head(**data(0.0), config=config(), training=FAST)
    fresh = data(0.0, seed=1)
    with torch.inference_mode():
        scores = head(torch.from_numpy(fresh["features"])).numpy()
    from arrol_tts.metrics import within_question_auroc

    assert abs(within_question_auroc(fresh["labels"], scores, fresh["questions"]) - 0.5) < 0.1


def test_the_same_seed_gives_the_same_head() -> None:
    first, second = (train_head(**data(1.0), config=config(), training=FAST) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.config == second.config


def test_ranking_loss_equals_a_hand_computation() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, 5.0])
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0])
    groups = torch.tensor([0, 0, 0, 1])
    expected = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(-2.0))) / 2
    assert ranking_loss(logits, labels, groups).item() == pytest.approx(expected)


def test_ranking_loss_without_pairs_is_zero() -> None:
    ones = torch.ones(3)
    assert ranking_loss(ones, ones, torch.zeros(3)).item() == 0
    assert ranking_loss(ones, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 1, 2])).item() == 0


@pytest.mark.parametrize(("value", "message"), [(True, "all 480 rows are right"), (False, "are wrong")])
def test_labels_of_one_kind_are_refused(value: bool, message: str) -> None:
    rows = data(1.0) | {"labels": np.full(480, value)}
    with pytest.raises(ValueError, match=message):
        train_head(**rows, config=config())


def test_features_that_are_not_finite_are_refused() -> None:
    rows = data(1.0)
    rows["features"][3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        train_head(**rows, config=config())
