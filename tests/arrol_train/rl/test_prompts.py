"""What is known of prompts, and how many rollouts each gets."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import betabinom

from arrol_train.rl.breakeven import expected_signal, signal_by_right
from arrol_train.rl.group import Group, Rollout
from arrol_train.rl.prompts import HALF_LIFE, PromptTable, Visited, share_out


def group(row: int, *rewards: float | None) -> Group:
    """Rollouts that were finished, and those that were pruned where the head gave them one half."""
    rollouts = [
        Rollout([1], ended=True, reward=reward) if reward is not None else Rollout([1], posterior=0.5, pruned_at=8)
        for reward in rewards
    ]
    return Group(0, row, [5], rollouts)


def table(*groups: Group, posteriors: bool = False) -> PromptTable:
    known = PromptTable()
    for each in groups:
        known.note([each], posteriors)
    return known


def test_a_visit_counts_its_graded_rollouts_and_half_of_what_was_before() -> None:
    known = table(group(3, 1, 0, 0, 0), group(3, 1, 1, None))
    assert known.visited == {3: Visited(0.5 * 1 + 2, 0.5 * 3, barren=1, step=2)}


def test_the_pruned_count_by_their_posterior_where_there_is_a_head() -> None:
    # Of two known and two that are even (no group effect): 1.5 of 4 right, as the evidence of two.
    assert table(group(3, 1, 0, None, None), posteriors=True).visited == {3: Visited(1.0, 1.0, step=1)}
    assert table(group(3, 0, 0, None, None), posteriors=True).visited == {3: Visited(0.5, 1.5, barren=1, step=1)}


def test_groups_without_signal_are_counted_until_one_has_some() -> None:
    assert table(group(3, 1, 1), group(3, 0, 0)).barren(3) == 2
    assert table(group(3, 1, 1), group(3, 0, 0), group(3, 0, 1)).barren(3) == 0
    assert table().barren(3) == 0
    assert table(group(3, 1, 1), group(4, 1, 0)).barren_share == 0.5


def test_what_was_given_up_counts_if_it_had_ended() -> None:
    kept = group(3, 1, 0)
    kept.give_up(group(4, 0, 0))
    kept.give_up(Group(0, 5, [5], [Rollout([1])]))
    assert table(kept).visited == {4: Visited(0, 2, barren=1, step=1), 3: Visited(1, 1, step=1)}


def test_what_could_not_be_graded_is_no_visit() -> None:
    assert table(Group(0, 3, [5], [Rollout([1], ended=True)])).visited == {}


def test_the_prior_is_the_one_that_the_visits_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    known = PromptTable()
    assert known.prior() == (1.0, 1.0)
    right = rng.binomial(16, rng.beta(0.8, 2.4, size=1500))
    known.visited = {row: Visited(float(k), float(16 - k)) for row, k in enumerate(right)}
    np.testing.assert_allclose(known.prior(), (0.8, 2.4), rtol=0.1)


VALUES = arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 4)), elements=st.floats(0, 1))


@given(values=VALUES, total=st.integers(0, 8), price=st.sampled_from([0.0, 0.2]))
def test_no_other_deal_is_worth_more(values: Any, total: int, price: float) -> None:
    dealt = share_out(values, total, price)
    assert sum(dealt) <= total
    values = values - price * np.arange(values.shape[1])
    every = itertools.product(range(values.shape[1]), repeat=len(values))
    best = max(sum(values[i, k] for i, k in enumerate(each)) for each in every if sum(each) <= total)
    assert sum(values[i, k] for i, k in enumerate(dealt)) == pytest.approx(best, abs=1e-7)


def test_pieces_that_are_not_worth_their_price_are_not_dealt_out() -> None:
    values = np.array([[1.0, 1.1, 1.15], [0.0, 0.5, 0.6]])
    assert share_out(values, 4) == [2, 2]
    assert share_out(values, 4, price=0.2) == [0, 1]


def sizes_of(known: PromptTable, rows: list[int], auroc: float, position: int = 10, **changes: int) -> list[int]:
    return known.group_sizes(
        rows, **{"group": 8, "survivors": 4, "most": 24} | changes, auroc=auroc, position=position
    )


def visited(**visits: tuple[float, float]) -> PromptTable:
    """Prompts with so many right and wrong rollouts, of 100 tokens."""
    known = PromptTable()
    known.visited = {int(row[1:]): Visited(*counts) for row, counts in visits.items()}
    known.length = 100.0
    return known


def test_rollouts_go_where_rare_successes_have_to_be_found() -> None:
    known = visited(p0=(3, 17), p1=(0, 300), p2=(16, 16), p3=(300, 0))
    sizes = sizes_of(known, [0, 1, 2, 3], auroc=0.9)
    rare, hopeless, even, solved = sizes
    assert rare > even >= 4 == hopeless == solved
    assert sum(sizes) <= 4 * 8
    # They are worth more than an even share.
    signals = [
        sum(expected_signal(rate, size, 4, 0.9) for rate, size in zip((3 / 20, 0, 0.5, 1), deal, strict=True))
        for deal in (sizes, [8] * 4)
    ]
    assert signals[0] > 1.05 * signals[1]


def test_no_more_are_started_than_pay_for_their_tokens() -> None:
    known = visited(p0=(5, 95), p1=(50, 50))
    rows = [0, 1]

    def signal_for_tokens(sizes: list[int], begun: float) -> float:
        worth = sum(
            betabinom.pmf(np.arange(size + 1), size, a + right, b + wrong) @ signal_by_right(size, 4, 0.8)
            for size, (right, wrong) in zip(sizes, ((5, 95), (50, 50)), strict=True)
        )
        return float(worth / sum(4 + begun * (size - 4) for size in sizes))

    a, b = known.prior()
    found = {at: sizes_of(known, rows, auroc=0.8, position=at, group=14, most=14) for at in (2, 20, 60)}
    for at, sizes in found.items():
        every = itertools.product(range(4, 15), repeat=2)
        best = max(signal_for_tokens(list(each), at / 100) for each in every)
        assert signal_for_tokens(sizes, at / 100) == pytest.approx(best, rel=1e-6)
    assert sum(found[2]) > sum(found[20]) > sum(found[60])


def test_where_beginnings_are_as_dear_as_rollouts_none_is_pruned() -> None:
    assert sizes_of(visited(p0=(50, 50), p1=(40, 60)), [0, 1], auroc=0.8, position=90) == [4, 4]


def test_a_head_that_cannot_rank_starts_no_more_than_are_trained_on() -> None:
    assert sizes_of(visited(p0=(50, 50)), [0, 1], auroc=0.5) == [4, 4]


def test_prompts_of_which_the_same_is_known_share_alike() -> None:
    sizes = sizes_of(visited(p0=(5, 95)), [5, 6, 7], auroc=0.8, position=2)
    assert sizes == [8, 8, 8]


def test_newer_visits_say_more_of_other_prompts() -> None:
    known = visited(p0=(10, 90), p1=(90, 10))
    known.steps = HALF_LIFE
    known.visited[0] = known.visited[0]._replace(step=HALF_LIFE)
    a, b = known.prior()
    assert a / (a + b) < 0.45  # between .1, which is new, and .9


def test_lengths_of_older_steps_count_less() -> None:
    known = PromptTable()
    for length in (10, 20, 40):
        known.note([Group(0, 0, [5], [Rollout([1] * length, ended=True, reward=1.0)])], posteriors=False)
    assert known.length == 0.5 * (0.5 * 10 + 0.5 * 20) + 0.5 * 40


def test_a_table_of_an_older_checkpoint_comes_back() -> None:
    known = PromptTable()
    known.load_state_dict({"3": [1.0, 2.0, 1]})
    assert known.visited == {3: Visited(1.0, 2.0, barren=1)}


def test_what_is_saved_comes_back() -> None:
    known, again = table(group(3, 1, 0, 0), group(9, 1, 1)), PromptTable()
    again.load_state_dict(known.state_dict())
    assert (again.visited, again.steps, again.length) == (known.visited, 2, 1.0)
