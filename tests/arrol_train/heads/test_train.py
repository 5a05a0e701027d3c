"""Training a head: it learns what is there, and nothing where nothing is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arrol_train.heads.dataset import States, logits_at
from arrol_train.heads.train import HeadTraining, average_heads, train_head
from arrol_tts.head import QualityHead
from arrol_tts.head_config import Pooling, QualityHeadConfig
from arrol_tts.metrics import within_question_auroc

FAST = HeadTraining(epochs=12, learning_rate=1e-2)
TOKENS = 12
WIDTH = 6


def data(signal: float, seed: int = 0, questions: int = 40) -> dict[str, Any]:
    """Questions x 8 traces of 12 tokens, whose first column tells right from wrong within a question."""
    rng = np.random.default_rng(seed)
    labels = rng.random((questions, 8)) < rng.random((questions, 1))
    features = rng.normal(size=(questions, 8, TOKENS, WIDTH)).astype(np.float32)
    features[..., 0] += signal * labels[..., None]
    features[..., 1] += 5 * rng.normal(size=(questions, 1, 1))  # differs between questions and says nothing
    return {
        "states": states_of(features.reshape(-1, WIDTH)),
        "labels": labels.reshape(-1),
        "questions": np.repeat(np.arange(questions), 8),
    }


def states_of(features: Any, tokens: int = TOKENS) -> States:
    """Of traces that all have as many tokens."""
    traces = len(features) // tokens
    return States(features, np.tile(np.arange(tokens), traces), np.arange(traces + 1) * tokens)


def config(pooling: Pooling = "gated", **changed: Any) -> QualityHeadConfig:
    return QualityHeadConfig("m", WIDTH, pooling=pooling, positions=[4], **{"inner_size": 16} | changed)


def within(head: QualityHead, fresh: dict[str, Any], position: int) -> float:
    """AUROC within questions at a position."""
    traces = np.arange(len(fresh["labels"]))
    with torch.inference_mode():
        scores = logits_at(head, fresh["states"], traces, np.full((len(traces), 1), position)).numpy()[:, 0]
    return within_question_auroc(fresh["labels"], scores, fresh["questions"])


@pytest.mark.parametrize("pooling", ["gated", "mean", "last"])
@pytest.mark.parametrize("linear", [False, True])
def test_a_signal_is_found_and_calibrated(pooling: Pooling, linear: bool) -> None:
    head = train_head(**data(3.0), config=config(pooling), training=replace(FAST, linear=linear))
    assert head.config.metrics["validation_auroc_within"] > 0.9
    fresh = data(3.0, seed=1)
    assert within(head, fresh, 4) > 0.9
    with torch.inference_mode():
        scores = head(torch.from_numpy(fresh["states"].features.reshape(-1, TOKENS, WIDTH)))[:, -1].numpy()
    confident = scores > 0.8
    assert confident.sum() > 50
    assert fresh["labels"][confident].mean() > 0.75


def test_pooling_knows_more_with_every_token() -> None:
    head = train_head(**data(0.7, questions=80), config=config(), training=FAST)
    fresh = data(0.7, seed=1)
    early, later, finish = (within(head, fresh, position) for position in (0, 4, TOKENS - 1))
    assert early + 0.05 < later
    assert later + 0.03 < finish
    last = train_head(**data(0.7, questions=80), config=config("last"), training=FAST)
    assert within(last, fresh, TOKENS - 1) + 0.1 < finish


def test_no_signal_stays_near_chance() -> None:
    head = train_head(**data(0.0), config=config(), training=FAST)
    assert abs(within(head, data(0.0, seed=1), TOKENS) - 0.5) < 0.1


def test_the_same_seed_gives_the_same_head() -> None:
    short = replace(FAST, epochs=2)
    first, second = (train_head(**data(1.0), config=config(), training=short) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.config == second.config


def test_a_stride_reads_its_multiples_alone() -> None:
    traces = data(3.0)
    spoilt = traces["states"].features.reshape(-1, TOKENS, WIDTH).copy()
    spoilt[:, np.arange(TOKENS) % 4 != 0] = 1e4 * np.random.default_rng(2).normal(size=WIDTH)
    short = replace(FAST, epochs=2)
    plain = train_head(**traces, config=config(stride=4), training=short)
    other = traces | {"states": states_of(spoilt.reshape(-1, WIDTH))}
    same = train_head(**other, config=config(stride=4), training=short)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters(), strict=True))
    assert plain.config.stride == 4


def test_long_traces_weigh_no_more_than_short_ones() -> None:
    """Where they speak against the short ones, which are as many, neither side wins."""
    rng = np.random.default_rng(0)
    lengths = np.where(np.arange(480) % 8 < 4, 2, 60)
    labels = rng.random(480) < 0.5
    sign = np.where(lengths == 2, 1, -1) * np.where(labels, 1, -1)
    features = rng.normal(size=(int(lengths.sum()), 1)).astype(np.float32)
    features[:, 0] += np.repeat(sign, lengths)
    tokens = np.concatenate([np.arange(length) for length in lengths])
    states = States(features, tokens, np.concatenate([[0], np.cumsum(lengths)]))
    one = QualityHeadConfig("m", 1, pooling="mean", inner_size=0)
    training = replace(FAST, linear=True, ranking=0.0, draws=0, epochs=4)
    head = train_head(states, labels, np.repeat(np.arange(60), 8), one, training)
    assert abs(float(head.outer.weight.detach()[0, 0])) < 0.35


@pytest.mark.parametrize(("value", "message"), [(True, "all 320 traces are right"), (False, "are wrong")])
def test_labels_of_one_kind_are_refused(value: bool, message: str) -> None:
    traces = data(1.0) | {"labels": np.full(320, value)}
    with pytest.raises(ValueError, match=message):
        train_head(**traces, config=config())


def test_features_that_are_not_finite_are_refused() -> None:
    traces = data(1.0)
    traces["states"].features[:, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        train_head(**traces, config=config())


def test_vectors_that_were_not_kept_are_named() -> None:
    traces = data(1.0)
    rows = np.flatnonzero(np.arange(320 * TOKENS) % TOKENS % 4 == 0)
    kept = States(traces["states"].features[rows], traces["states"].tokens[rows], np.arange(321) * 3)
    with pytest.raises(ValueError, match="or of every 6th as this one, and they were not kept"):
        train_head(**traces | {"states": kept}, config=config(stride=6))


def test_a_linear_head_without_pooling_is_one_of_inner_size_2() -> None:
    head = train_head(**data(3.0), config=config("last"), training=replace(FAST, linear=True, epochs=2))
    assert (head.config.inner_size, head.config.format_version) == (2, 1)
    x = torch.randn(20, WIDTH)
    logits = head.logits(x)
    # A head that computes a linear function: the midpoint's value is the mean.
    torch.testing.assert_close(head.logits((x[:10] + x[10:]) / 2), (logits[:10] + logits[10:]) / 2)


@pytest.mark.parametrize(
    ("pooling", "linear", "size"), [("last", False, 32), ("mean", False, 32), ("mean", True, 0)]
)
def test_averaged_heads_have_the_mean_logits(pooling: Pooling, linear: bool, size: int) -> None:
    training = replace(FAST, linear=linear)
    heads = [train_head(**data(1.0), config=config(pooling), training=replace(training, epochs=1))]
    heads.append(train_head(**data(1.0), config=config(pooling), training=replace(training, epochs=2)))
    average = average_heads(heads)
    x = torch.randn(20, WIDTH)
    torch.testing.assert_close(average.logits(x), (heads[0].logits(x) + heads[1].logits(x)) / 2)
    assert average.config.inner_size == size


def test_vectors_in_a_file_give_the_same_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces, short = data(3.0), replace(FAST, epochs=2)
    half = traces["states"].features.astype(np.float16)
    np.save(tmp_path / "rows.npy", half)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    from_memory = train_head(
        **traces | {"states": states_of(half.astype(np.float32))}, config=config(), training=short
    )
    from_file = train_head(**traces | {"states": states_of(mapped)}, config=config(), training=short)
    for a, b in zip(from_file.parameters(), from_memory.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_standardisation_is_the_training_traces_own() -> None:
    traces = data(1.0)
    held_out: NDArray[np.int64] = np.arange(64)
    features = traces["states"].features.reshape(-1, TOKENS, WIDTH)
    features[held_out] += 100
    features[..., 3] += 1e4  # far from zero, where squares of float32 would cancel
    head = train_head(**traces, config=config(), training=replace(FAST, epochs=1), held_out=held_out)
    fitted = features[64:].reshape(-1, WIDTH).astype(np.float64)
    np.testing.assert_allclose(head.mean.numpy(), fitted.mean(axis=0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(1 / head.scale.numpy(), fitted.std(axis=0, ddof=1), rtol=1e-2)


def test_a_rare_class_is_not_given_up() -> None:
    """Nineteen wrong traces for a right one: the calibrated scores are small, and still in the right order."""
    rng = np.random.default_rng(0)
    labels = rng.random(1600) < 0.05
    features = rng.normal(size=(1600, 6)).astype(np.float32)
    features[:, 0] += 3 * labels
    questions = np.repeat(np.arange(100), 16)
    head = train_head(states_of(features, 1), labels, questions, config(), FAST)
    with torch.inference_mode():
        scores = head(torch.from_numpy(features[:, None])).numpy()[:, 0]
    assert scores.mean() == pytest.approx(0.05, abs=0.03)
    assert within_question_auroc(labels, scores, questions) > 0.95


def test_training_ends_when_it_stops_getting_better() -> None:
    head = train_head(**data(0.0), config=config(), training=replace(FAST, epochs=60, patience=2))
    assert head.config.metrics["epochs"] < 60


def test_validation_without_mixed_questions_is_refused() -> None:
    traces = data(1.0)
    held_out = np.arange(64)
    traces["labels"][held_out] = True
    with pytest.raises(ValueError, match="too few questions have both right and wrong"):
        train_head(**traces, config=config(), held_out=held_out)
