"""When pruning pays: expected signals against simulation and by hand, and the choice that follows."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from arrol_train.rl.breakeven import (
    StepCost,
    choices,
    expected_signal,
    group_signal,
    success_rates,
    worth_at,
)
from arrol_tts.errors import InputError

COST = StepCost(token=0.001, rollout=0.05, fixed=0.2, length=100.0, prompts=10)


def test_the_signal_of_a_group_is_half_the_sum_of_its_normalised_advantages() -> None:
    rewards = np.array([1, 1, 0, 0, 0, 0, 0, 0], float)
    advantages = (rewards - rewards.mean()) / rewards.std()
    assert group_signal(2, 8) == pytest.approx(abs(advantages).sum() / 2)
    assert group_signal([0, 8], 8).tolist() == [0.0, 0.0]


def test_two_rollouts_of_which_nothing_is_pruned_have_signal_where_one_is_right() -> None:
    assert expected_signal(0.5, 2, 2) == pytest.approx(0.5)  # sqrt(1 * 1), half of the time


def test_an_oracle_keeps_the_one_right_rollout_of_three() -> None:
    # One of three right: 3 p (1 - p)^2, two: 3 p^2 (1 - p); best and worst then differ.
    assert expected_signal(0.5, 3, 2, auroc=1.0) == pytest.approx(0.75, abs=1e-4)


def test_a_head_that_is_always_wrong_keeps_the_extremes_too() -> None:
    assert expected_signal(0.3, 8, 4, auroc=0.0) == pytest.approx(expected_signal(0.3, 8, 4, auroc=1.0), rel=1e-4)


def test_random_pruning_is_as_sampling_fewer() -> None:
    assert expected_signal([0.1, 0.6], 16, 8, auroc=0.5) == pytest.approx(expected_signal([0.1, 0.6], 8, 8))


@pytest.mark.parametrize(
    ("rate", "group", "survivors", "auroc"), [(0.05, 32, 8, 0.85), (0.3, 12, 6, 0.7), (0.5, 16, 8, 0.2)]
)
def test_the_expected_signal_is_that_of_simulated_groups(
    rate: float, group: int, survivors: int, auroc: float
) -> None:
    rng = np.random.default_rng(0)
    right = rng.random((20000, group)) < rate
    # Plackett and Luce's order is that of exponential times, whose rate is the weight.
    times = rng.exponential(size=right.shape) / np.where(right, auroc / (1 - auroc), 1.0)
    # From the other end it is the wrong ones that come first.
    times[10000:] = -rng.exponential(size=(10000, group)) / np.where(right[10000:], 1.0, auroc / (1 - auroc))
    order = np.argsort(times, axis=1)
    kept = np.concatenate([order[:, : survivors - survivors // 2], order[:, group - survivors // 2 :]], axis=1)
    found = group_signal(np.take_along_axis(right, kept, 1).sum(axis=1), survivors)
    error = 4 * found.std() / math.sqrt(len(found))
    assert expected_signal(rate, group, survivors, auroc) == pytest.approx(found.mean(), abs=error)


def test_it_is_near_that_of_a_head_with_normal_scores() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((20000, 32)) < 0.05
    distance = math.sqrt(2) * NormalDist().inv_cdf(0.85)
    order = np.argsort(rng.normal(size=right.shape) + distance * right, axis=1)
    kept = np.concatenate([order[:, :4], order[:, 28:]], axis=1)
    found = group_signal(np.take_along_axis(right, kept, 1).sum(axis=1), 8).mean()
    assert expected_signal(0.05, 32, 8, 0.85) == pytest.approx(found, rel=0.03)


def test_rates_of_a_beta_have_its_moments() -> None:
    rates = success_rates(0.3, 0.15, points=2000)
    assert np.mean(rates) == pytest.approx(0.3, abs=1e-3)
    assert np.mean(rates**2) == pytest.approx(0.15, abs=1e-3)


def test_rates_that_do_not_differ_are_one_rate() -> None:
    assert success_rates(0.3, 0.09).tolist() == [0.3]


def test_seconds_of_a_step_are_tokens_rollouts_and_what_is_fixed() -> None:
    # 8 whole rollouts of 100 tokens and 8 beginnings of 10, 8 updates, 10 prompts.
    assert COST.seconds(16, 8, 10) == pytest.approx(0.2 + 10 * (0.88 + 0.4))
    assert COST.seconds(8, 8) == pytest.approx(0.2 + 10 * (0.8 + 0.4))
    assert COST.seconds(16, 8, 300) == pytest.approx(0.2 + 10 * (1.6 + 0.4))  # they had ended before


def test_pruning_pays_where_right_ones_are_rare_and_the_head_knows_early() -> None:
    best = choices(0.05, COST, {10: 0.9}, 8, [16, 32])[0]
    assert (best.group, best.survivors, best.position, best.policy) == (32, 8, 10, "tails")


def test_pruning_does_not_pay_where_half_are_right_and_the_head_knows_little() -> None:
    best = choices(0.5, COST, {50: 0.6}, 8, [16, 32])
    kept_small = next(choice for choice in best if choice.survivors == 8)
    assert (kept_small.group, kept_small.policy) == (8, "none")


def test_an_auroc_from_which_pruning_pays_divides_those_that_do_from_those_that_do_not() -> None:
    needed = worth_at(0.1, COST, 16, 8, 10)
    alone = expected_signal(0.1, 8, 8) / COST.seconds(8, 8)
    assert 0.5 < needed < 1
    for auroc, pays in ((needed - 0.02, False), (needed + 0.02, True)):
        assert (expected_signal(0.1, 16, 8, auroc) / COST.seconds(16, 8, 10) > alone) == pays


def test_no_head_is_good_enough_where_beginnings_cost_more_than_an_oracle_gains() -> None:
    assert math.isnan(worth_at(0.5, COST, 32, 8, 90))


@pytest.mark.parametrize(
    "wrong", [{"rates": 1.2}, {"auroc": -0.1}, {"group": 4, "survivors": 8}], ids=["rate", "auroc", "survivors"]
)
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        expected_signal(**{"rates": 0.5, "group": 8, "survivors": 4} | wrong)  # type: ignore[arg-type]
