"""Metrics against values worked out by hand and against scikit-learn where it has the metric."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrol_tts.errors import MissingPackageError
from arrol_tts.metrics import (
    accuracy_per_question,
    auroc,
    auroc_per_question,
    bootstrap_interval,
    bootstrap_ratio_interval,
    brier,
    curve_of,
    curve_sizes,
    expected_calibration_error,
    mcnemar,
    paired_permutation_test,
    pass_at_k,
    random_subsets,
    reliability,
    vote_curve,
    wilson_interval,
    within_question_auroc,
)


def test_accuracy_per_question_keeps_the_order_of_appearance() -> None:
    result = accuracy_per_question([True, False, True, True], ["b", "b", "a", "a"])
    assert list(result.items()) == [("b", 0.5), ("a", 1.0)]


def test_accuracy_per_question_rejects_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="correct has 1 values and questions 2"):
        accuracy_per_question([True], ["a", "b"])


# --- pass@k ---------------------------------------------------------------------------------------


def test_pass_at_k_matches_the_binomial_formula() -> None:
    for n, k in [(8, 1), (8, 3), (8, 8), (5, 5)]:
        expected = [1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)]
        assert pass_at_k(n, np.arange(n + 1), k) == pytest.approx(expected)


def test_pass_at_1_is_the_accuracy() -> None:
    assert pass_at_k([10, 4], [3, 4], 1) == pytest.approx([0.3, 1.0])


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    # C(1990, 500) / C(2000, 500) = prod over ten right samples of (1500 - i) / (2000 - i)
    expected = 1 - math.prod((1500 - i) / (2000 - i) for i in range(10))
    assert pass_at_k(2000, 10, 500) == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 9])
def test_pass_at_k_rejects_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k is {k}; it must be at least 1 and at most the 8 samples"):
        pass_at_k([8, 16], [1, 1], k)


def test_pass_at_k_rejects_more_right_than_drawn() -> None:
    with pytest.raises(ValueError, match="num_correct must lie between 0 and num_samples"):
        pass_at_k(4, 5, 1)


# --- curves ---------------------------------------------------------------------------------------


def test_random_subsets_have_distinct_members() -> None:
    subsets = random_subsets(10, 4, subsets=50)
    assert subsets.shape == (50, 4)
    assert all(len(set(row)) == 4 for row in subsets.tolist())


def test_random_subsets_are_prefixes_of_larger_ones() -> None:
    assert (random_subsets(10, 5, seed=3)[:, :4] == random_subsets(10, 4, seed=3)).all()


def test_random_subsets_of_everything_are_one() -> None:
    assert random_subsets(3, 3).tolist() == [[0, 1, 2]]


def test_random_subsets_reject_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="k is 4; it must be between 1 and the 3 samples there are"):
        random_subsets(3, 4)


def test_vote_curve_at_all_samples_is_the_vote() -> None:
    groups, correct = [0, 0, 0, 1, 1], [False, False, False, True, True]
    assert vote_curve(groups, correct, [5]).tolist() == [0.0]
    assert vote_curve(groups, correct, [5], weights=[1, 1, 1, 2, 2]).tolist() == [1.0]


def test_vote_curve_matches_enumeration_of_all_subsets() -> None:
    groups, correct, k = [0, 0, 0, 1, 1, 2], [True, True, True, False, False, False], 3
    verdicts = []
    for subset in itertools.combinations(range(6), k):
        counts = np.bincount([groups[i] for i in subset], minlength=3)
        leaders = np.flatnonzero(counts == counts.max())
        verdicts.append((leaders == 0).mean())
    assert vote_curve(groups, correct, [k], subsets=20_000) == pytest.approx(np.mean(verdicts), abs=0.01)


def test_vote_curve_counts_a_tie_as_a_share() -> None:
    assert vote_curve([0, 1], [True, False], [2]).tolist() == [0.5]


def test_vote_curve_sees_ties_through_rounding() -> None:
    # 0.1 + 0.2 and 0.3 differ in the last bit
    assert vote_curve([0, 0, 1], [True, True, False], [3], weights=[0.1, 0.2, 0.3]).tolist() == [0.5]


def test_vote_curve_ignores_samples_without_an_answer() -> None:
    assert vote_curve([-1, -1, 4], [False, False, True], [3]).tolist() == [1.0]


def test_vote_curve_without_any_answer_is_wrong() -> None:
    assert vote_curve([-1, -1], [False, False], [1, 2]).tolist() == [0.0, 0.0]


def test_vote_curve_with_only_zero_weights_is_wrong() -> None:
    assert vote_curve([0, 0], [True, True], [2], weights=[0, 0]).tolist() == [0.0]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_vote_curve_rejects_bad_weights(weight: float) -> None:
    with pytest.raises(ValueError, match="weights must be finite and not negative"):
        vote_curve([0, 1], [True, False], [1], weights=[1.0, weight])


def test_vote_curve_rejects_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="give one of each per sample"):
        vote_curve([0, 1], [True], [1])


def test_curve_of_agrees_with_vote_curve() -> None:
    groups, correct = np.array([0, 0, 1, 1, 1]), np.array([True, True, False, False, False])

    def majority_is_right(indices: np.ndarray) -> float:
        counts = np.bincount(groups[indices], minlength=2)
        return 0.5 if counts[0] == counts[1] else float(counts[0] > counts[1])

    curve = curve_of(majority_is_right, 5, [1, 2, 3], subsets=100, seed=7)
    assert curve == pytest.approx(vote_curve(groups, correct, [1, 2, 3], subsets=100, seed=7))


# --- ranking --------------------------------------------------------------------------------------


def test_auroc_of_a_perfect_ranking_is_one() -> None:
    assert auroc([False, False, True], [0.1, 0.2, 0.3]) == 1.0


def test_auroc_counts_ties_as_half() -> None:
    assert auroc([True, False, False], [1.0, 1.0, 0.0]) == 0.75


def test_auroc_of_one_class_is_nan() -> None:
    assert math.isnan(auroc([True, True], [0.1, 0.2]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_auroc_equals_scikit_learn(samples: list[tuple[bool, int]]) -> None:
    from sklearn.metrics import roc_auc_score

    correct, scores = zip(*samples, strict=True)
    if any(correct) and not all(correct):
        assert auroc(correct, scores) == pytest.approx(roc_auc_score(correct, scores))


def test_auroc_per_question_equals_each_question_alone() -> None:
    rng = np.random.default_rng(0)
    questions, scores = rng.integers(20, size=400), rng.integers(6, size=400)
    correct = rng.random(400) < 0.5
    alone = [auroc(correct[questions == q], scores[questions == q]) for q in range(20)]
    assert auroc_per_question(correct, scores, questions) == pytest.approx(alone)


def test_within_question_auroc_skips_questions_of_one_class() -> None:
    # question a: perfect; b: all right; overall the scores of b hide nothing inside a
    correct, scores = [True, False, True, True], [0.2, 0.1, 0.05, 0.9]
    assert within_question_auroc(correct, scores, ["a", "a", "b", "b"]) == 1.0


def test_within_question_auroc_ignores_difficulty() -> None:
    # Scores know only that question a is easier: nothing inside a question.
    correct = [True, True, False, True, False, False]
    scores = [0.9, 0.9, 0.9, 0.1, 0.1, 0.1]
    questions = ["a", "a", "a", "b", "b", "b"]
    assert within_question_auroc(correct, scores, questions) == 0.5
    assert auroc(correct, scores) == pytest.approx(2 / 3)


def test_within_question_auroc_without_mixed_questions_is_nan() -> None:
    assert math.isnan(within_question_auroc([True, False], [0.1, 0.2], ["a", "b"]))


def test_auroc_rejects_nan_scores() -> None:
    with pytest.raises(ValueError, match="scores must be finite"):
        auroc([True, False], [0.1, math.nan])


def test_auroc_rejects_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="give one of each per sample"):
        auroc([True, False], [0.1])


# --- calibration ----------------------------------------------------------------------------------


def test_brier_of_hand_worked_predictions() -> None:
    assert brier([0.9, 0.4], [True, False]) == pytest.approx((0.01 + 0.16) / 2)


def test_brier_equals_scikit_learn() -> None:
    from sklearn.metrics import brier_score_loss

    probabilities = np.linspace(0, 1, 11)
    outcomes = np.arange(11) % 3 == 0
    assert brier(probabilities, outcomes) == pytest.approx(brier_score_loss(outcomes, probabilities))


def test_reliability_bins_include_both_ends() -> None:
    result = reliability([0.0, 0.5, 1.0], [False, True, True], bins=2)
    assert result.edges.tolist() == [0.0, 0.5, 1.0]
    assert result.count.tolist() == [1, 2]
    assert result.confidence.tolist() == [0.0, 0.75]
    assert result.accuracy.tolist() == [0.0, 1.0]
    assert result.ece == pytest.approx(2 / 3 * 0.25)


def test_reliability_of_an_empty_bin_is_nan() -> None:
    result = reliability([0.9], [True], bins=2)
    assert result.count.tolist() == [0, 1]
    assert math.isnan(result.confidence[0])
    assert math.isnan(result.accuracy[0])
    assert result.ece == pytest.approx(0.1)


def test_calibrated_predictions_have_no_calibration_error() -> None:
    assert expected_calibration_error([0.25] * 4, [True, False, False, False]) == 0.0


def test_overconfident_predictions_have_their_excess_as_error() -> None:
    assert expected_calibration_error([0.9] * 10, [True] * 6 + [False] * 4) == pytest.approx(0.3)


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_calibration_rejects_values_that_are_no_probabilities(probability: float) -> None:
    with pytest.raises(ValueError, match=r"probabilities must lie in \[0, 1\]"):
        brier([probability], [True])


def test_calibration_rejects_outcomes_that_are_no_truth_values() -> None:
    with pytest.raises(ValueError, match="outcomes must be true or false"):
        brier([0.5], [0.5])


# --- intervals ------------------------------------------------------------------------------------


def test_bootstrap_interval_of_a_coin_matches_the_normal_approximation() -> None:
    low, high = bootstrap_interval([0, 1] * 200)
    # half-width 1.96 * sqrt(0.25 / 400) = 0.049
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.005)


def test_bootstrap_interval_of_equal_values_is_a_point() -> None:
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_bootstrap_interval_repeats_with_its_seed() -> None:
    values = [0.0, 0.2, 0.9, 1.0]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1, resamples=99) != bootstrap_interval(values, seed=2, resamples=99)


def test_bootstrap_interval_narrows_with_a_lower_level() -> None:
    values = np.arange(30) / 30
    low, high = bootstrap_interval(values)
    low_half, high_half = bootstrap_interval(values, level=0.5)
    assert low < low_half < high_half < high


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.random(40), resamples=500, seed=seed, level=0.9)
        covered += low <= 0.5 <= high
    assert 0.84 <= covered / 200 <= 0.96


def test_bootstrap_ratio_interval_of_proportional_costs_is_a_point() -> None:
    assert bootstrap_ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == (2.0, 2.0)


def test_clustering_widens_the_interval() -> None:
    # 20 questions of 50 equal samples are worth 20 values, not 1000.
    question_accuracy = [0.0, 1.0] * 10
    clustered = bootstrap_ratio_interval(np.array(question_accuracy) * 50, np.full(20, 50))
    independent = bootstrap_interval(np.repeat(question_accuracy, 50), resamples=1000)
    assert clustered[1] - clustered[0] > 5 * (independent[1] - independent[0])


def test_bootstrap_rejects_no_questions() -> None:
    with pytest.raises(ValueError, match="give one per question"):
        bootstrap_interval([])


def test_bootstrap_rejects_nan() -> None:
    with pytest.raises(ValueError, match="values must be finite"):
        bootstrap_interval([0.5, math.nan])


def test_bootstrap_ratio_rejects_zero_denominators() -> None:
    with pytest.raises(ValueError, match="denominators must be positive"):
        bootstrap_ratio_interval([1.0], [0.0])


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_intervals_reject_levels_that_are_no_share(level: float) -> None:
    with pytest.raises(ValueError, match="it must lie between 0 and 1"):
        bootstrap_interval([0.5], level=level)
    with pytest.raises(ValueError, match="it must lie between 0 and 1"):
        wilson_interval(1, 2, level=level)


def test_wilson_interval_of_a_textbook_case() -> None:
    # 8 of 10 at 95%: 0.490 to 0.943
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_interval_of_no_successes_starts_at_zero() -> None:
    low, high = wilson_interval(0, 30)
    assert low == 0.0
    assert high == pytest.approx(0.1135, abs=1e-4)  # z^2 / (n + z^2)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3), (0, 0)])
def test_wilson_interval_rejects_what_is_no_proportion(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="is not a proportion"):
        wilson_interval(successes, trials)


# --- paired tests ---------------------------------------------------------------------------------


def test_curves_are_drawn_at_powers_of_two_and_at_all() -> None:
    assert curve_sizes(1) == [1]
    assert curve_sizes(8) == [1, 2, 4, 8]
    assert curve_sizes(12) == [1, 2, 4, 8, 12]


def test_mcnemar_counts_the_discordant_questions() -> None:
    first = [True] * 9 + [False] + [True] * 5
    second = [False] * 9 + [True] + [True] * 5
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (9, 1)
    assert result.p_value == pytest.approx(22 / 1024)  # 2 (C(10,0) + C(10,1)) / 2^10


def test_mcnemar_of_the_committed_head_benchmark() -> None:
    # 51 of its questions tell head and majority apart: 45 for the head, 6 for majority.
    first = np.array([True] * 45 + [False] * 6)
    assert mcnemar(first, ~first).p_value == pytest.approx(1.8323628836469652e-08, rel=1e-12)


def test_without_scipy_a_test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'arrol\[evals\]'"):
        mcnemar([True], [False])


def test_mcnemar_of_equal_methods_is_one() -> None:
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)


def test_mcnemar_of_an_even_split_is_one() -> None:
    assert mcnemar([True, False], [False, True]).p_value == 1.0


def test_mcnemar_rejects_unpaired_methods() -> None:
    with pytest.raises(ValueError, match="give one each per question"):
        mcnemar([True], [True, False])


def test_permutation_test_of_few_questions_is_exact() -> None:
    assert paired_permutation_test([1, 1, 1, 1, 1], [0, 0, 0, 0, 0]) == 2 / 32


def test_permutation_test_equals_mcnemar_on_verdicts() -> None:
    first = np.array([1] * 9 + [0] + [1] * 5)
    second = np.array([0] * 9 + [1] + [1] * 5)
    assert paired_permutation_test(first, second) == pytest.approx(mcnemar(first, second).p_value)


def test_permutation_test_of_equal_methods_is_one() -> None:
    assert paired_permutation_test([0.5, 0.2], [0.5, 0.2]) == 1.0


def test_permutation_test_of_many_questions_is_close_to_exact() -> None:
    first = np.r_[np.ones(14), np.zeros(6)]
    exact = mcnemar(first, 1 - first).p_value
    assert paired_permutation_test(first, 1 - first, resamples=20_000) == pytest.approx(exact, abs=0.01)


def test_permutation_test_is_never_zero() -> None:
    assert paired_permutation_test(np.ones(60), np.zeros(60), resamples=99) == 0.01


def test_permutation_test_rejects_nan() -> None:
    with pytest.raises(ValueError, match="values must be finite"):
        paired_permutation_test([math.nan], [0.0])
