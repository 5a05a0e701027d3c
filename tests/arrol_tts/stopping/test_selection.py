"""Survivor policies: exact counts, inclusion probabilities, and what each rule is for."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrol_tts.calibration import logit, sigmoid
from arrol_tts.stopping.selection import (
    POLICIES,
    expected_variance,
    select,
    survival_probabilities,
)

PRUNING = [policy for policy in POLICIES if policy != "none"]
Q = np.array([0.0, 0.1, 0.15, 0.3, 0.3, 0.3, 0.4, 0.7, 0.7, 1.0])
KNOWN = np.isin(Q, (0.0, 1.0))


@pytest.mark.parametrize("policy", PRUNING)
@given(
    q=st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), min_size=2, max_size=20),
    share=st.sampled_from([0.25, 0.5, 0.75]),
    seed=st.integers(0, 1000),
)
def test_exactly_so_many_survive_and_all_had_a_chance(
    policy: str, q: list[float], share: float, seed: int
) -> None:
    keep = max(1, round(share * len(q)))
    rng = np.random.default_rng(seed)
    selection = select(policy, q, keep, rng, tau=1.0, p_min=0.02, p_max=0.98)
    assert len(np.unique(selection.kept)) == keep
    assert (np.diff(selection.kept) > 0).all()
    assert selection.inclusion.sum() == pytest.approx(keep)
    assert (selection.inclusion > 0).all()
    if keep < len(q):
        assert (selection.inclusion < 1).all()


@pytest.mark.parametrize("policy", PRUNING)
@pytest.mark.parametrize("keep", [4, 5])
def test_inclusion_probabilities_match_simulation(policy: str, keep: int) -> None:
    rng = np.random.default_rng(0)
    count = np.zeros(len(Q))
    draws = 2000
    for _ in range(draws):
        selection = select(policy, Q, keep, rng, known=KNOWN, tau=1.0, exploration=0.2)
        count[selection.kept] += 1
    error = np.sqrt(selection.inclusion * (1 - selection.inclusion) / draws)
    assert (abs(count / draws - selection.inclusion) < 4 * error + 1e-9).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_keeping_everybody_is_no_pruning(policy: str) -> None:
    selection = select(policy, Q, len(Q), np.random.default_rng(0), known=KNOWN)
    assert selection.kept.tolist() == list(range(len(Q)))
    assert (selection.inclusion == 1).all()


@pytest.mark.parametrize("policy", PRUNING)
def test_a_head_that_knows_nothing_prunes_at_random(policy: str) -> None:
    selection = select(policy, np.full(16, 0.3), 8, np.random.default_rng(0), tau=2.0)
    assert selection.inclusion == pytest.approx(np.full(16, 0.5))


@pytest.mark.parametrize("policy", PRUNING)
def test_scores_without_information_leave_the_mean_reward_alone(policy: str) -> None:
    rng = np.random.default_rng(0)
    rewards = (rng.random((2000, 16)) < rng.beta(1, 1, size=(2000, 1))).astype(float)
    kept = [row[select(policy, rng.random(16), 8, rng, tau=1.0).kept].mean() for row in rewards]
    difference = np.array(kept) - rewards.mean(axis=1)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(difference))


@pytest.mark.parametrize("tau", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("seed", range(8))
def test_max_variance_is_as_good_as_the_best_of_all_subsets(tau: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = rng.random(9) < 0.3
    q = np.where(known, rng.random(9) < 0.5, rng.random(9) ** rng.integers(1, 4))
    q = np.clip(q, np.where(known, 0, 0.001), np.where(known, 1, 0.999))
    for keep in (2, 5, 6):
        kept = select("max_variance", q, keep, rng, known=known, tau=tau, exploration=0.0).kept
        best = max(
            expected_variance(q[list(subset)], tau, known[list(subset)])
            for subset in itertools.combinations(range(9), keep)
        )
        assert expected_variance(q[kept], tau, known[kept]) >= 0.98 * best - 1e-9


def test_max_variance_splits_evenly_where_posteriors_say_little() -> None:
    scores = np.linspace(0.4, 0.6, 8)
    q = np.where(scores < 0.5, 0.55, 0.56)
    kept = select("max_variance", q, 4, np.random.default_rng(0), scores=scores, tau=1.0, exploration=0.0).kept
    assert kept.tolist() == [0, 1, 6, 7]


def test_max_variance_keeps_the_rare_ones_that_are_likely_right() -> None:
    q = np.array([0.02, 0.03, 0.02, 0.9, 0.04, 0.03, 0.9, 0.02])
    kept = select("max_variance", q, 4, np.random.default_rng(0), exploration=0.0).kept
    assert {3, 6} <= set(kept.tolist())


def test_expected_variance_equals_simulation() -> None:
    rng = np.random.default_rng(0)
    q, tau = np.array([0.2, 0.5, 0.6, 0.9]), 1.5
    p = sigmoid(logit(q) + tau * rng.normal(size=(200_000, 1)))
    share = (rng.random(p.shape) < p).mean(axis=1)
    assert expected_variance(q, tau) == pytest.approx((share * (1 - share)).mean(), abs=1e-3)
    assert expected_variance([1.0, 0.0], tau, known=[True, True]) == pytest.approx(0.25)


def test_tails_keeps_both_ends_by_rank_and_known_rewards_first() -> None:
    q = np.array([0.4, 0.4, 0.0, 0.4, 0.4, 0.4])
    scores = [0.41, 0.43, 0.99, 0.44, 0.40, 0.42]
    known = [False, False, True, False, False, False]
    kept = select("tails", q, 4, np.random.default_rng(0), known=known, scores=scores, exploration=0.0).kept
    assert kept.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("level", "kept"), [(0.1, [0, 3, 4]), (0.8, [0, 1, 4])])
def test_the_odd_one_of_tails_goes_to_the_scarce_end(level: float, kept: list[int]) -> None:
    q = level + np.array([0.0, 0.01, 0.02, 0.03, 0.04])
    assert select("tails", q, 3, np.random.default_rng(0), exploration=0.0).kept.tolist() == kept


def test_the_published_bisection_matches_a_hand_worked_case() -> None:
    # keep + strength (rho - q) is .75, .50 and .25 here: their mean is .5 already, so delta is 0.
    assert survival_probabilities([0.0, 0.5, 1.0], 0.5) == pytest.approx([0.75, 0.5, 0.25])
    # With strength 2: 1.5, .5, -.5, clipped to .9, .5, .1, which again has mean .5.
    assert survival_probabilities([0.0, 0.5, 1.0], 0.5, strength=2.0) == pytest.approx([0.9, 0.5, 0.1])
    # All right: .25 each before delta, which has to be .25.
    assert survival_probabilities([1.0, 1.0], 0.5) == pytest.approx([0.5, 0.5])
    # One clips: .9 + p + p must be 1.2, so that p = .15; delta is -.1 (from .25) and 1.25 + delta clips.
    assert survival_probabilities([0.0, 1.0, 1.0], 0.4, strength=1.5) == pytest.approx([0.9, 0.15, 0.15])


def test_published_drops_the_likely_right_even_where_few_are() -> None:
    q = np.array([0.05, 0.05, 0.05, 0.6])
    rng = np.random.default_rng(0)
    published = select("published", q, 2, rng, exploration=0.0).inclusion
    signed = select("group_signed", q, 2, rng, exploration=0.0).inclusion
    assert published[3] < 0.5 < published[0]
    assert signed[0] < 0.5 < signed[3]


def test_published_and_group_signed_agree_where_most_are_right() -> None:
    q = np.array([0.9, 0.9, 0.6, 0.8])
    rng = np.random.default_rng(0)
    published, signed = (select(p, q, 2, rng).inclusion for p in ("published", "group_signed"))
    assert published == pytest.approx(signed)


def test_the_same_random_state_gives_the_same_survivors() -> None:
    first, second = (select("random", Q, 5, np.random.default_rng(3)).kept for _ in range(2))
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "best"}, "there is no policy 'best'; choose one of none, random"),
        ({"policy": "none"}, "keeps all 3 rollouts of a group, not 2"),
        ({"keep": 4}, "between 1 and the group's 3"),
        ({"keep": 0}, "between 1 and the group's 3"),
        ({"q": [0.1, 0.2, 1.2]}, "q must lie in \\[0, 1\\]"),
        ({"q": [0.1, np.nan, 0.2]}, "q must lie in"),
        ({"known": [True, False, False]}, "its reward, which must be 0 or 1"),
        ({"scores": [0.1]}, "have shapes"),
        ({"exploration": 1.5}, "exploration is 1.5"),
        ({"policy": "published", "p_min": 0.7}, "outside the bounds p_min 0.7"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"policy": "tails", "q": [0.2, 0.3, 0.4], "keep": 2} | changes
    with pytest.raises(ValueError, match=message):
        select(rng=np.random.default_rng(0), **arguments)


def test_a_selection_says_whether_it_was_made_at_random() -> None:
    rng = np.random.default_rng(0)
    q = np.linspace(0.1, 0.9, 8)
    assert not select("tails", q, 4, rng, exploration=0.0).at_random
    assert select("tails", q, 4, rng, exploration=1.0).at_random
    assert select("random", q, 4, rng, exploration=0.0).at_random
    assert select("tails", q, 8, rng, exploration=0.0).at_random  # nobody went
