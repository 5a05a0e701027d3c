"""Training a head: it learns what is there, and nothing where nothing is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrol_train.heads.train import HeadTraining, average_heads, train_head
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.metrics import auroc, within_question_auroc

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
    assert abs(within_question_auroc(fresh["labels"], scores, fresh["questions"]) - 0.5) < 0.1


def test_the_same_seed_gives_the_same_head() -> None:
    first, second = (train_head(**data(1.0), config=config(), training=FAST) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.config == second.config


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


def test_a_linear_probe_is_a_head() -> None:
    head = train_head(**data(3.0), config=config(), training=replace(FAST, linear=True))
    assert head.config.inner_size == 2
    x = torch.randn(20, 6)
    logits = head.logits(x)
    # A head that computes a linear function: the midpoint's value is the mean.
    torch.testing.assert_close(head.logits((x[:10] + x[10:]) / 2), (logits[:10] + logits[10:]) / 2)
    fresh = data(3.0, seed=1)
    with torch.inference_mode():
        scores = head(torch.from_numpy(fresh["features"])).numpy()
    assert within_question_auroc(fresh["labels"], scores, fresh["questions"]) > 0.9


def test_averaged_heads_have_the_mean_logits() -> None:
    heads = [train_head(**data(1.0), config=config(), training=replace(FAST, epochs=2))]
    heads.append(train_head(**data(1.0), config=config(), training=replace(FAST, epochs=4)))
    average = average_heads(heads)
    x = torch.randn(20, 6)
    torch.testing.assert_close(average.logits(x), (heads[0].logits(x) + heads[1].logits(x)) / 2)
    assert average.config.inner_size == 32


def test_vectors_in_a_file_give_the_same_head(tmp_path: Path) -> None:
    rows = data(3.0)
    half = rows["features"].astype(np.float16)
    np.save(tmp_path / "rows.npy", half)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    from_file = train_head(**rows | {"features": mapped}, config=config(), training=FAST)
    from_memory = train_head(**rows | {"features": half.astype(np.float32)}, config=config(), training=FAST)
    for a, b in zip(from_file.parameters(), from_memory.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_standardisation_is_the_training_rows_own() -> None:
    rows = data(1.0)
    held_out = rows["questions"] < 12
    rows["features"][held_out] += 100
    rows["features"][:, 3] += 1e4  # far from zero, where squares of float32 would cancel
    head = train_head(**rows, config=config(), training=replace(FAST, epochs=1), held_out=held_out)
    fitted = rows["features"][~held_out].astype(np.float64)
    np.testing.assert_allclose(head.mean.numpy(), fitted.mean(axis=0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(1 / head.scale.numpy(), fitted.std(axis=0, ddof=1), rtol=1e-2)


def test_a_rare_class_is_not_given_up() -> None:
    """Nineteen wrong rows for a right one: the calibrated scores are small, and still in the right order."""
    rng = np.random.default_rng(0)
    labels = rng.random(1600) < 0.05
    features = rng.normal(size=(1600, 6)).astype(np.float32)
    features[:, 0] += 3 * labels
    questions = np.repeat(np.arange(100), 16)
    head = train_head(features, labels, questions, np.zeros(1600, np.int64), config(), FAST)
    with torch.inference_mode():
        scores = head(torch.from_numpy(features)).numpy()
    assert scores.mean() == pytest.approx(0.05, abs=0.03)
    assert auroc(labels, scores) > 0.95


def test_training_ends_when_it_stops_getting_better() -> None:
    head = train_head(**data(0.0), config=config(), training=replace(FAST, epochs=200, patience=3))
    assert head.config.metrics["epochs"] < 200


def test_validation_without_mixed_questions_is_refused() -> None:
    rows = data(1.0)
    held_out = rows["questions"] < 12
    rows["labels"][held_out] = True
    with pytest.raises(ValueError, match="too few questions have both right and wrong"):
        train_head(**rows, config=config(), held_out=held_out)
