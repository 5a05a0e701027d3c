"""Detection positions: how well a head ranks there, and which is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from arrol_train.rl.detection import Pairs, ranked_pairs, stands_for
from arrol_train.rl.group import Group, Rollout
from arrol_tts.metrics import within_question_auroc
from arrol_tts.stopping.selection import select


def test_pairs_of_a_group_count_by_the_product_of_their_weights() -> None:
    labels, scores, groups = [1, 0, 0, 1, 0], [0.7, 0.5, 0.9, 0.4, 0.4], [3, 3, 3, 5, 5]
    # In group 3 the right one beats the weight of 1 and loses to that of 10; in group 5 it is a tie.
    pairs = ranked_pairs(labels, scores, groups, [2.0, 1.0, 10.0, 1.0, 4.0])
    assert pairs == Pairs(total=2 + 20 + 4, ranked=2 + 2)
    assert pairs.auroc == pytest.approx(4 / 26)


def test_groups_of_one_label_have_no_pairs() -> None:
    assert ranked_pairs([1, 1, 0], [0.1, 0.2, 0.3], [0, 0, 1], [1, 1, 1]) == Pairs()
    assert np.isnan(Pairs().auroc)


def test_older_pairs_fade() -> None:
    assert Pairs(10.0, 8.0).followed_by(Pairs(4.0, 1.0), 0.5) == Pairs(9.0, 5.0)


def test_groups_that_were_pruned_at_random_speak_for_the_middle_that_tails_drops() -> None:
    rng = np.random.default_rng(0)
    groups, everyone = [], []
    for each in range(1500):
        labels = (rng.random(16) < 0.4).astype(float)
        scores = labels + 1.5 * rng.normal(size=16)
        chosen = select("tails", 1 / (1 + np.exp(-scores)), 8, rng, exploration=0.2)
        everyone += [[labels[i], scores[i], each] for i in range(16)]
        rollouts = [Rollout(inclusion=share) for share in chosen.inclusion]
        for i in chosen.kept:
            rollouts[i].reward = labels[i]
        groups.append((Group(each, 0, [], rollouts, at_random=chosen.at_random), scores))
    truth = within_question_auroc(*np.array(everyone).T)
    rows = [
        (rollout.reward, scores[i], group.id, stands_for(group, rollout), 1.0)
        for group, scores in groups
        for i, rollout in enumerate(group.rollouts)
        if rollout.reward is not None
    ]
    *columns, weights, ones = np.array(rows).T
    assert ranked_pairs(*columns, ones).auroc > truth + 0.04
    assert ranked_pairs(*columns, weights).auroc == pytest.approx(truth, abs=0.015)


def test_those_that_went_on_stand_for_all_but_the_ones_that_had_ended() -> None:
    ended, on, pruned = (
        Rollout(reward=1.0),
        Rollout(reward=0.0, inclusion=0.5),
        Rollout(inclusion=0.5, pruned_at=8),
    )
    group = Group(0, 0, [], [ended, on, pruned, pruned])
    assert [stands_for(group, rollout) for rollout in (ended, on)] == [1.0, 3.0]
    for rollout in group.rollouts:  # and the group could have been pruned whole
        rollout.inclusion *= 0.25
    group.inclusion = 0.25
    assert [stands_for(group, rollout) for rollout in (ended, on)] == [1.0, 3.0]
    group.at_random = False
    assert stands_for(group, on) == 0.0
