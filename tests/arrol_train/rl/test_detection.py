"""Detection positions: how well a head ranks there, and which is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from arrol_train.rl.detection import Pairs, PositionChooser, ranked_pairs, stands_for
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


EVEN = {"rollout/success": 0.5, "rollout/success_square": 0.25, "rollout/length": 100.0, "reward": 0.1}


def chooser(at: int = 20) -> PositionChooser:
    made = PositionChooser((10, 20, 60), at, 4, 2)
    made.note(EVEN)
    return made


def test_a_position_is_worth_the_signal_of_a_group_for_its_tokens() -> None:
    # At random, two survivors differ half of the time, and their signal is 1 then.
    assert chooser().worth(20, 0.5) == pytest.approx(1000 * 0.5 / (2 * 100 + 2 * 21))
    # An oracle finds a right and a wrong one unless all four are alike.
    assert chooser().worth(60, 1.0) == pytest.approx(1000 * (1 - 2 / 16) / (2 * 100 + 2 * 61), rel=1e-4)
    assert np.isnan(chooser().worth(20, float("nan")))
    assert np.isnan(PositionChooser((10,), 10, 4, 2).worth(10, 0.5))


@pytest.mark.parametrize(
    ("aurocs", "expected"),
    [
        ({10: 0.7, 20: 0.7, 60: 0.7}, 10),  # the earliest costs least
        ({10: 0.5, 20: 0.5, 60: 1.0}, 60),  # the last knows more than it costs
        ({10: 0.65, 20: 0.7}, 20),  # hardly better is not enough
        ({10: float("nan"), 20: 0.5}, 20),
        ({}, 20),
    ],
)
def test_the_position_moves_where_another_is_clearly_worth_more(aurocs: dict[int, float], expected: int) -> None:
    positions = chooser()
    positions.choose(aurocs)
    assert positions.at == expected


def test_a_choice_comes_back_with_what_it_rests_on() -> None:
    first, again = chooser(), PositionChooser((10, 20, 60), 60, 4, 2)
    first.note(EVEN | {"rollout/length": 50.0})
    first.learned = 7
    again.load_state_dict(first.state_dict())
    assert (again.at, again.learned) == (20, 7)
    assert again.worth(20, 0.5) == first.worth(20, 0.5) == pytest.approx(1000 * 0.5 / (2 * 97.5 + 2 * 21))
