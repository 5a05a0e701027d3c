"""Advantages with the mean and the spread of all that were started, worked out by hand and by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from arrol_train.rl.advantages import GroupRewards, Scale, advantages, expected_rewards
from arrol_tts.calibration import logit, sigmoid
from arrol_tts.stopping.selection import select

NAN = float("nan")
Floats = NDArray[np.float64]


def rewards(total: list[float], others: list[float], task: list[float] | None = None) -> GroupRewards:
    return GroupRewards(np.array(total), np.array(total if task is None else task), np.array(others))


def grpo(values: Floats) -> Floats:
    """TRL's own, of a whole group."""
    return np.asarray((values - values.mean()) / (values.std(ddof=1) + 1e-4))


def test_where_nothing_is_pruned_they_are_grpos() -> None:
    groups = [
        rewards([1.0, 0, 0, 1.0, 0], []),
        rewards([1.0, 1.0], []),
        rewards([0.3, -0.7, 0.9], [], [1.0, 0, 1.0]),
    ]
    expected = [grpo(group.total) for group in groups]
    for found, wanted in zip(advantages(groups), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    every = np.concatenate([group.total for group in groups])
    for found, group in zip(advantages(groups, "batch"), groups, strict=True):
        np.testing.assert_allclose(found, (group.total - group.total.mean()) / (every.std(ddof=1) + 1e-4))
    for found, group in zip(advantages(groups, "none"), groups, strict=True):
        np.testing.assert_allclose(found, group.total - group.total.mean())


def test_where_all_rewards_are_known_the_pruned_count_as_in_a_whole_group() -> None:
    (found,) = advantages([rewards([1.0, 0.0], [0.0, 1.0, 0.0, 0.0])])
    np.testing.assert_allclose(found, grpo(np.array([1.0, 0, 0, 1, 0, 0]))[:2])


def test_survivors_that_are_all_right_have_an_advantage_worked_out_by_hand() -> None:
    # Two right of four, the others right with probability one half: the mean is 3/4. Squared distances: twice
    # (1/4)^2, and twice (1/4)^2 + 1/4 of a coin; over 3 that is 1/4, so the deviation is 1/2.
    (found,) = advantages([rewards([1.0, 1.0], [0.5, 0.5])])
    np.testing.assert_allclose(found, 0.25 / (0.5 + 1e-4))
    (found,) = advantages([rewards([0.0, 0.0], [0.5, 0.5])])
    np.testing.assert_allclose(found, -0.25 / (0.5 + 1e-4))
    (found,) = advantages([rewards([1.0, 1.0], [0.5, 0.5])], "none")
    np.testing.assert_allclose(found, 0.25)


def test_a_group_that_can_only_be_all_right_has_none() -> None:
    (found,) = advantages([rewards([1.0, 1.0], [1.0, 1.0])])
    np.testing.assert_array_equal(found, 0)


def test_the_ungraded_have_none_and_count_nowhere() -> None:
    (found,) = advantages([rewards([1.0, NAN, 0.0], [0.0])])
    np.testing.assert_allclose(found[[0, 2]], grpo(np.array([1.0, 0, 0]))[:2])
    assert found[1] == 0
    (found,) = advantages([rewards([NAN, NAN], [0.5, 0.5])])
    np.testing.assert_array_equal(found, 0)


def test_other_rewards_count_and_the_pruned_get_the_survivors_mean_of_them() -> None:
    # Right with a punishment of 0.4, wrong without: the pruned one is wrong and gets the mean punishment, 0.2.
    (found,) = advantages([rewards([0.6, 0.0], [0.0], task=[1.0, 0.0])])
    np.testing.assert_allclose(found, grpo(np.array([0.6, 0.0, -0.2]))[:2])


def test_the_tasks_reward_may_have_a_weight() -> None:
    (doubled,) = advantages([rewards([2.0, 2.0], [1.0, 1.0])], weight=2.0)
    (single,) = advantages([rewards([1.0, 1.0], [0.5, 0.5])])
    np.testing.assert_allclose(doubled, single, rtol=1e-3)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_they_are_bounded_where_one_of_many_is_right(scale: Scale) -> None:
    (found,) = advantages([rewards([1.0] + [0.0] * 7, [1e-3] * 8)], scale)
    assert abs(found).max() < 4


def test_known_rewards_say_what_the_pruned_were_worth() -> None:
    posterior = np.full(4, 0.5)
    alone = expected_rewards([NAN] * 4, posterior, 1.0)
    np.testing.assert_allclose(alone, 0.5)
    after_wrong = expected_rewards([0.0, 0.0, NAN, NAN], posterior, 1.0)
    after_right = expected_rewards([1.0, 1.0, NAN, NAN], posterior, 1.0)
    assert after_wrong[:2].tolist() == [0.0, 0.0]
    assert (after_wrong[2:] < 0.4).all()
    np.testing.assert_allclose(after_wrong[2:], 1 - after_right[2:])
    # Without a group effect rollouts say nothing of each other.
    np.testing.assert_allclose(expected_rewards([0.0, 0.0, NAN, NAN], posterior, 0.0)[2:], 0.5)


def test_a_rollout_that_was_never_scored_tells_only_its_reward() -> None:
    found = expected_rewards([1.0, NAN], [NAN, 0.25], 2.0)
    assert found[0] == 1.0
    assert found[1] == pytest.approx(expected_rewards([NAN], [0.25], 2.0)[0])


def test_the_effect_is_integrated_out() -> None:
    # One right and one unknown, both with the posterior 1/2: E[s(u)^2] / E[s(u)].
    u = np.random.default_rng(0).normal(size=400_000)
    s = sigmoid(1.5 * u)
    found = expected_rewards([1.0, NAN], [0.5, 0.5], 1.5)
    assert found[1] == pytest.approx((s**2).mean() / s.mean(), abs=2e-3)


GROUP, KEEP, TAU = 16, 8, 1.0


def simulated(policy: str, count: int, **options: Any) -> dict[str, Floats]:
    """Groups whose head errs by a shared effect, pruned: the mean of all, and three estimates of it."""
    rng = np.random.default_rng(1)
    found: dict[str, list[float]] = {"all": [], "survivors": [], "expected": [], "weighted": []}
    for _ in range(count):
        q = sigmoid(rng.normal(-1, 1.2, GROUP))
        r = (rng.random(GROUP) < sigmoid(logit(q) + TAU * rng.normal())).astype(float)
        selection = select(policy, q, KEEP, rng, tau=TAU, **options)
        kept = np.isin(np.arange(GROUP), selection.kept)
        found["all"].append(r.mean())
        found["survivors"].append(r[kept].mean())
        found["expected"].append(expected_rewards(np.where(kept, r, NAN), q, TAU).mean())
        found["weighted"].append((q + np.where(kept, r - q, 0) / selection.inclusion).mean())
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("policy", ["tails", "max_variance", "random", "published"])
def test_the_mean_is_not_biased_by_selection_and_nearer_than_the_survivors(policy: str) -> None:
    means = simulated(policy, 1500)
    error = {name: values - means["all"] for name, values in means.items() if name != "all"}
    standard_error = {name: values.std() / np.sqrt(len(values)) for name, values in error.items()}
    for name in ("expected", "weighted"):
        assert abs(error[name].mean()) < 4 * standard_error[name]
    assert standard_error["expected"] < 0.006
    if policy in ("published", "tails"):
        assert abs(error["survivors"].mean()) > 4 * standard_error["survivors"]
    spread = {name: float(np.sqrt((values**2).mean())) for name, values in error.items()}
    assert spread["expected"] < 0.9 * spread["survivors"]
    assert spread["expected"] < spread["weighted"]
    if policy == "tails":
        assert spread["weighted"] > 2.5 * spread["survivors"]


def test_weighing_survivors_gradients_by_inclusion_is_unbiased_and_costs_most_of_the_signal() -> None:
    """Why `rollout.baseline` has no weights: mean over spread of a gradient's two parts, in simulated groups."""
    rng = np.random.default_rng(2)
    found: dict[str, list[Floats]] = {"whole": [], "plain": [], "weighted": []}
    for _ in range(3000):
        seen, unseen = rng.normal(size=(2, GROUP))  # gradients of what the head sees and of what comes later
        r = (rng.random(GROUP) < sigmoid(1.5 * seen + unseen)).astype(float)
        q = sigmoid(1.3 * seen)
        selection = select("tails", q, KEEP, rng)
        gradient = (r - 0.5) * np.stack([seen, unseen])
        found["whole"].append(gradient.mean(axis=1))
        found["plain"].append(gradient[:, selection.kept].mean(axis=1))
        weight = KEEP / GROUP / selection.inclusion
        found["weighted"].append((gradient * weight)[:, selection.kept].mean(axis=1))
    mean = {name: np.mean(values, axis=0) for name, values in found.items()}
    spread = {name: np.std(values, axis=0) for name, values in found.items()}
    np.testing.assert_allclose(mean["weighted"], mean["whole"], atol=0.02)
    assert mean["plain"][0] > mean["whole"][0] + 0.03
    signal = {name: np.linalg.norm(mean[name]) / np.linalg.norm(spread[name]) for name in mean}
    assert signal["weighted"] < 0.6 * signal["plain"]
