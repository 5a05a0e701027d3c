"""Which groups go on past the first detection position."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrol_train.rl.whole_groups import largest_variance, select_groups
from arrol_tts.stopping.selection import expected_variance

PROBABILITY = st.floats(0.001, 0.999)


def test_the_largest_variance_is_that_of_an_even_mixture() -> None:
    # Two known right and two known wrong survive: a quarter. Without any right one there is nothing.
    assert largest_variance([1, 0, 0, 0, 1, 0], 4, known=[True] * 6) == pytest.approx(0.25)
    assert largest_variance([0] * 6, 4, known=[True] * 6) == 0
    # Of independent coins of .5, two agree half of the time, and have else a variance of a quarter.
    assert largest_variance([0.5] * 3, 2) == pytest.approx(0.125)


@given(q=st.lists(PROBABILITY, min_size=2, max_size=7), data=st.data(), tau=st.sampled_from([0.0, 1.5]))
def test_no_other_survivors_have_a_larger_one(q: list[float], data: Any, tau: float) -> None:
    keep = data.draw(st.integers(2, len(q)))
    every = [expected_variance(list(each), tau) for each in itertools.combinations(q, keep)]
    assert largest_variance(q, keep, tau) == pytest.approx(max(every), abs=1e-9)


def test_groups_of_the_most_signal_go_on() -> None:
    chosen = select_groups([0.1, 0.25, 0.0, 0.2], 2, np.random.default_rng(0), 0.0)
    assert chosen.kept.tolist() == [1, 3]
    assert chosen.inclusion.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("exploration", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("keep", [1, 3, 5])
def test_inclusion_probabilities_match_simulation(keep: int, exploration: float) -> None:
    signal = [0.1, 0.25, 0.1, 0.2, 0.1]
    rng = np.random.default_rng(0)
    every = [select_groups(signal, keep, rng, exploration) for _ in range(4000)]
    counts = np.bincount(np.concatenate([each.kept for each in every]), minlength=5) / 4000
    np.testing.assert_allclose(counts, every[0].inclusion, atol=0.03)
    assert every[0].inclusion.sum() == pytest.approx(keep)
    assert {len(each.kept) for each in every} == {keep}


def test_more_groups_than_were_started_cannot_go_on() -> None:
    with pytest.raises(ValueError, match="between 1 and the 2 groups"):
        select_groups([0.1, 0.2], 3, np.random.default_rng(0), 0.0)
