"""The head that learns on the fly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrol_train.positions import FINISH
from arrol_train.rl.buffer import ReplayBuffer, SequenceBuffer
from arrol_train.rl.config import OnlineTraining
from arrol_train.rl.group import Rollout
from arrol_train.rl.online_head import OnlineHead
from arrol_tts.errors import HeadError
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.metrics import auroc

AT = 32


def config() -> QualityHeadConfig:
    return QualityHeadConfig(base_model="m", hidden_size=6, inner_size=16, positions=[AT])


def rollouts(step: int, signal: float = 3.0, position: int = AT) -> dict[str, Any]:
    """8 groups x 8 rollouts: column 0 tells right from wrong inside a group, column 1 says nothing."""
    rng = np.random.default_rng(step)
    labels = rng.random((8, 8)) < rng.random((8, 1))
    features = rng.normal(size=(8, 8, 6))
    features[..., 0] += signal * labels
    features[..., 1] += 5 * rng.normal(size=(8, 1))
    return {
        "features": features.reshape(-1, 6),
        "labels": labels.reshape(-1),
        "groups": step * 8 + np.repeat(np.arange(8), 8),
        "positions": np.full(64, position),
        "inclusion": np.full(64, 0.5),
        "step": step,
    }


def score(online: OnlineHead, rows: dict[str, Any]) -> Any:
    with torch.inference_mode():
        return online.head(torch.from_numpy(rows["features"].astype(np.float32))).numpy()


def trained(
    steps: int = 20, signal: float = 3.0, seed: int = 0, **options: Any
) -> tuple[OnlineHead, ReplayBuffer]:
    online = OnlineHead(config(), OnlineTraining(learning_rate=3e-3, **options), seed=seed)
    buffer = ReplayBuffer(4096, 6)
    for step in range(steps):
        for position in (AT, FINISH):
            rows = rollouts(step, signal, position)
            buffer.append(**rows, scores=score(online, rows))
        online.update(buffer, steps=8)
        online.fit_posterior(buffer)
    return online, buffer


def drifting(step: int, shift: float = 0.0) -> list[Rollout]:
    """4 groups x 8 rollouts of 20 to 60 tokens, read at every second one, each a noisy word on how it will end."""
    rng = np.random.default_rng(step)
    rollouts = []
    for _ in range(32):
        reward, tokens = float(rng.random() < 0.5), int(rng.integers(20, 60))
        states = rng.normal(size=(-(-tokens // 2), 6))
        states[:, 0] += 0.7 * reward + shift
        states = states.astype(np.float16)
        marks = {16: states[8], FINISH: states[-1]}
        rollout = Rollout([1] * tokens, reward=reward, states=states, marks=marks)
        rollouts.append(rollout)
    return rollouts


def pooled(steps: int = 20, **options: Any) -> tuple[OnlineHead, SequenceBuffer]:
    config = QualityHeadConfig("m", 6, 0, positions=[16], pooling="gated", stride=2)
    online = OnlineHead(config, OnlineTraining(learning_rate=3e-3, **options))
    buffer = SequenceBuffer(4096, 1 << 20, 6)
    for step in range(steps):
        rollouts = drifting(step)
        states, labels = [r.states for r in rollouts if r.states is not None], [r.reward for r in rollouts]
        buffer.append(states, labels, 4 * step + np.arange(32) // 8, np.ones(32))
        online.update(buffer, steps=8)
    return online, buffer


def test_a_pooling_head_knows_more_of_a_longer_part() -> None:
    online, _ = pooled()
    rollouts = [rollout for step in range(1000, 1010) for rollout in drifting(step)]
    labels = [rollout.reward for rollout in rollouts]
    early, late = (auroc(labels, online.scores(rollouts, position)) for position in (16, FINISH))
    # The mean of k such words tells with AUROC Phi(0.7 sqrt(k / 2)): of 9 0.93, of 10 to 30 0.99; of one 0.69.
    assert early > 0.9
    assert late > 0.96


def test_scores_are_those_of_a_plain_pass_over_the_states_so_far() -> None:
    online, _ = pooled(steps=3)
    rollouts = drifting(1000)
    for position, rows in ((16, 9), (FINISH, None)):
        with torch.inference_mode():
            plain = [
                online.head(torch.from_numpy(rollout.states[:rows].astype(np.float32)))[-1].item()
                for rollout in rollouts
                if rollout.states is not None
            ]
        np.testing.assert_allclose(online.scores(rollouts, position), plain, atol=1e-6)


def test_what_was_not_read_at_a_position_scores_a_half() -> None:
    online, _ = pooled(steps=1)
    (rollout, *_) = drifting(0)
    assert online.scores([Rollout([1]), rollout], 99).tolist() == [0.5, 0.5]
    assert online.scores([], 16).tolist() == []


def test_long_rollouts_do_not_outweigh_short_ones() -> None:
    """All states are alike: rollouts of 4 tokens are right, those of 400 wrong, and there are as many of each."""
    config = QualityHeadConfig("m", 6, 0, pooling="gated")
    online = OnlineHead(config, OnlineTraining(learning_rate=0.03, weight_decay=0.0, positions=0))
    buffer = SequenceBuffer(100, 1 << 20, 6)
    lengths = [4, 400] * 8
    buffer.append(
        [np.ones((n, 6), np.float16) for n in lengths], [n == 4 for n in lengths], range(16), np.ones(16)
    )
    online.update(buffer, steps=200)
    with torch.inference_mode():
        assert online.head(torch.ones(9, 6))[-1].item() == pytest.approx(0.5, abs=0.02)


def track(online: OnlineHead, rows: dict[str, Any]) -> dict[str, float]:
    return online.track(score(online, rows), rows["labels"], rows["groups"], rows["inclusion"], AT)


@pytest.mark.parametrize("posterior", ["histogram", "isotonic"])
def test_a_signal_is_found_while_it_streams_in(posterior: str) -> None:
    online, _ = trained(posterior=posterior)
    metrics = track(online, rollouts(1000))
    assert metrics["auroc_within"] > 0.9
    assert metrics["accuracy"] > 0.8
    assert metrics["ece"] < 0.15


def test_no_signal_stays_near_chance() -> None:
    online, _ = trained(signal=0.0)
    metrics = [track(online, rollouts(1000 + i, 0.0)) for i in range(10)]
    assert abs(np.mean([m["auroc_within"] for m in metrics]) - 0.5) < 0.1


def test_the_posterior_of_a_position_says_how_often_scores_are_right() -> None:
    online, _ = trained()
    rows = rollouts(1000)
    q = online.posterior(score(online, rows), AT)
    labels = rows["labels"]
    assert q[labels].mean() > 0.5 + q[~labels].mean()
    assert online.posterior([0.2, 0.9], position=99).tolist() == [0.5, 0.5]


def test_a_shared_error_shows_as_group_effect() -> None:
    """Groups differ in how hard they are and no feature says so."""
    online, _ = trained(signal=1.0)
    assert 0.3 < online.tau_at(AT) < 4
    assert online.tau_at(99) == 0.0


def test_the_same_seed_gives_the_same_head_whatever_else_draws() -> None:
    first, _ = trained(steps=3)
    torch.manual_seed(123)
    second, _ = trained(steps=3)
    other, _ = trained(steps=3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.head.parameters(), second.head.parameters(), strict=True))
    assert not torch.equal(first.head.inner.weight, other.head.inner.weight)


def test_making_a_head_leaves_torch_s_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    OnlineHead(config(), seed=9)
    assert torch.equal(torch.rand(1), expected)


def test_a_saved_head_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    online, buffer = trained(steps=3)
    online.save(tmp_path / "online.safetensors")
    again = OnlineHead(config(), online.training, seed=77)
    again.load(tmp_path / "online.safetensors")
    assert again.posterior([0.1, 0.8], AT).tolist() == online.posterior([0.1, 0.8], AT).tolist()
    assert again.tau_at(AT) == online.tau_at(AT)
    for head in (online, again):
        head.update(buffer, steps=5)
    assert all(torch.equal(a, b) for a, b in zip(online.head.parameters(), again.head.parameters(), strict=True))


def test_rare_survivors_weigh_more() -> None:
    """Ten rows of the same state: wrong ones are certain to be kept, right ones one in four times."""
    buffer = ReplayBuffer(100, 6)
    labels = np.array([1.0] * 2 + [0.0] * 8)
    buffer.append(
        np.zeros((10, 6)),
        labels,
        np.arange(10),
        np.full(10, AT),
        np.where(labels > 0, 0.25, 1.0),
        np.full(10, 0.5),
        0,
    )
    online = OnlineHead(config(), OnlineTraining(learning_rate=0.03, weight_decay=0.0))
    online.update(buffer, steps=300)
    online.fit_posterior(buffer)
    with torch.inference_mode():
        assert online.head(torch.zeros(6)).item() == pytest.approx(0.5, abs=0.02)
    assert online.posterior([0.5], AT)[0] == pytest.approx(0.5, abs=0.05)


def test_the_weight_of_one_row_is_bounded() -> None:
    online = OnlineHead(config(), OnlineTraining(max_weight=3.0))
    metrics = online.track([0.9, 0.1], [1, 0], [0, 0], [1e-6, 1.0], AT)
    # Before any fit the posterior is 0.5, which predicts wrong: right on the second row only.
    assert metrics["accuracy"] == pytest.approx(1 / 4)


def test_metrics_that_are_not_defined_are_left_out() -> None:
    metrics = OnlineHead(config()).track([0.9, 0.1], [1, 1], [0, 0], [1.0, 1.0], AT)
    assert set(metrics) == {"rows", "accuracy", "ece"}
    assert OnlineHead(config()).track([], [], [], [], AT) == {"rows": 0.0}


def test_an_empty_buffer_teaches_nothing() -> None:
    online = OnlineHead(config())
    assert online.update(ReplayBuffer(10, 6), steps=5) == {}


def test_the_exported_head_is_calibrated_and_loads_as_a_quality_head(tmp_path: Path) -> None:
    online, buffer = trained()
    head = online.export(buffer)
    head.save_pretrained(tmp_path)
    loaded = QualityHead.from_pretrained(tmp_path)
    rows = rollouts(1000)
    with torch.inference_mode():
        scores = loaded(torch.from_numpy(rows["features"].astype(np.float32))).numpy()
    assert head.config.calibration != [1.0, 0.0]
    assert np.mean((scores > 0.5) == rows["labels"]) > 0.8
    assert online.head.config.calibration == [1.0, 0.0]


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "h").write_bytes(content)
    with pytest.raises(HeadError, match="holds no head of this run"):
        OnlineHead(config()).load(tmp_path / "h")


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    OnlineHead(config()).save(tmp_path / "h")
    other = QualityHeadConfig(base_model="m", hidden_size=7)
    with pytest.raises(HeadError, match="holds no head of this run"):
        OnlineHead(other).load(tmp_path / "h")


def test_another_posterior_is_refused(tmp_path: Path) -> None:
    OnlineHead(config()).save(tmp_path / "h")
    with pytest.raises(HeadError, match="set it back"):
        OnlineHead(config(), OnlineTraining(posterior="isotonic")).load(tmp_path / "h")


def test_an_unknown_posterior_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no posterior 'spline'; choose one of histogram, isotonic"):
        OnlineTraining(posterior="spline")
