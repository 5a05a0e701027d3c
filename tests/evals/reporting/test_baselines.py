"""Published ways to ask for fewer traces, on answers whose end is worked out by hand."""

from __future__ import annotations

import pytest

from arrol_tts.consensus import most_likely
from evals.reporting.baselines import adaptive_consistency, early_stopping_self_consistency, until_clear


def test_adaptive_consistency_stops_at_the_beta_criterion() -> None:
    # P(p > 1/2) of Beta(v + 1, 1) is 1 - 2 ** -(v + 1): .9375 with three votes without a rival, .96875 with four.
    assert adaptive_consistency([7, 7, 7, 7, 7], 0.95) == 4
    assert adaptive_consistency([7, 7, 7, 7, 7], 0.9) == 3
    # One vote against it: Beta(6, 2) is .9375, Beta(7, 2) .96484375.
    assert adaptive_consistency([7, 8, 7, 7, 7, 7, 7, 7], 0.95) == 7
    assert most_likely(6, 1) == pytest.approx(0.96484375, abs=1e-6)


def test_adaptive_consistency_looks_at_the_two_leading_answers_only() -> None:
    # Against one vote each of three answers the leader needs what it needs against one.
    assert adaptive_consistency([1, 2, 3, 7, 7, 7, 7, 7, 7, 7], 0.95) == 9


def test_adaptive_consistency_does_not_count_traces_without_an_answer() -> None:
    assert adaptive_consistency([-1, -1, -1, -1, 7, 7, 7, 7, 7], 0.95) == 8
    assert adaptive_consistency([-1] * 5, 0.95) == 5


def test_adaptive_consistency_asks_for_all_where_nothing_is_sure() -> None:
    assert adaptive_consistency([7, 8] * 4, 0.95) == 8


def test_esc_stops_at_the_first_unanimous_window() -> None:
    assert early_stopping_self_consistency([1, 1, 2, 3, 3, 3, 3, 3], 3) == 6
    # Three in a row, but over the bound of a window.
    assert early_stopping_self_consistency([1, 3, 3, 3, 1, 1, 3, 1, 1], 3) == 9


def test_esc_needs_a_whole_window_of_answers() -> None:
    assert early_stopping_self_consistency([1, 2, 3, 3, 3], 4) == 5
    assert early_stopping_self_consistency([-1, -1, 3, 3], 2) == 4


def test_esc_refuses_a_window_of_one() -> None:
    with pytest.raises(ValueError, match="window is 1; it must be at least 2"):
        early_stopping_self_consistency([1, 2], 1)


def test_deepconf_asks_until_an_answer_has_the_share_of_the_weight_but_for_the_warmup_always() -> None:
    assert until_clear([7, 7, 7, 7], [1.0] * 4, 0.95, warmup=2) == 2
    # 3 of 4 is too little, 19 of 20 is enough; a trace without an answer weighs nothing.
    assert until_clear([7, 8, -1, 7, 7], [2.0, 1.0, 50.0, 1.0, 16.0], 0.95, warmup=1) == 1
    assert until_clear([8, 7, -1, 7, 7, 7], [1.0, 2.0, 50.0, 1.0, 16.0, 1.0], 0.95, warmup=2) == 5
    assert until_clear([-1, -1, -1], [1.0] * 3, 0.95, warmup=1) == 3
