"""Posterior curves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from arrol_train.rl.posterior import POSTERIORS, HistogramPosterior, IsotonicPosterior


def test_the_histogram_posterior_matches_a_hand_worked_case() -> None:
    # Two bins. Right: 3 high, 1 low; wrong: 1 high, 3 low; alpha 1. P(high | right) = 4/6, P(high | wrong) = 2/6,
    # pi = 1/2: q(high) = (4/6) / (4/6 + 2/6) = 2/3.
    posterior = HistogramPosterior(bins=2)
    posterior.fit([0.9, 0.8, 0.7, 0.1, 0.6, 0.2, 0.3, 0.4], [1, 1, 1, 1, 0, 0, 0, 0])
    assert posterior([0.95, 0.05]) == pytest.approx([2 / 3, 1 / 3])


def test_the_success_rate_is_the_prior() -> None:
    # One right and three wrong, all in one bin: P(b | right) = 2/3, P(b | wrong) = 4/5, pi = 1/4.
    posterior = HistogramPosterior(bins=2)
    posterior.fit([0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0])
    assert posterior([0.2]) == pytest.approx([(1 / 4 * 2 / 3) / (1 / 4 * 2 / 3 + 3 / 4 * 4 / 5)])


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_weight_counts_as_so_many_rollouts(name: str) -> None:
    twice, weighted = POSTERIORS[name](), POSTERIORS[name]()
    twice.fit([0.1, 0.1, 0.9, 0.9], [0, 0, 0, 1])
    weighted.fit([0.1, 0.9, 0.9], [0, 0, 1], weights=[2, 1, 1])
    # Isotonic regression's margin depends on the number of rows.
    assert weighted([0.1, 0.9]) == pytest.approx(twice([0.1, 0.9]), abs=0.04)


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_posterior_recovers_a_known_curve(name: str) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    posterior = POSTERIORS[name]()
    posterior.fit(scores, rng.random(20_000) < scores**2)
    grid = np.linspace(0.05, 0.95, 10)
    assert posterior(grid) == pytest.approx(grid**2, abs=0.06)


@pytest.mark.parametrize("name", POSTERIORS)
def test_before_any_fit_nothing_is_known(name: str) -> None:
    assert POSTERIORS[name]()([0.0, 0.3, 1.0]) == pytest.approx([0.5, 0.5, 0.5])


def test_labels_of_one_kind_are_no_certainty_for_isotonic_regression() -> None:
    posterior = IsotonicPosterior()
    posterior.fit([0.2, 0.8], [1, 1])
    assert posterior([0.5]) == pytest.approx([0.75])


@pytest.mark.parametrize("name", POSTERIORS)
def test_state_goes_through_json(name: str) -> None:
    first, second = POSTERIORS[name](), POSTERIORS[name]()
    first.fit([0.1, 0.4, 0.6, 0.9], [0, 1, 0, 1])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second(np.linspace(0, 1, 7)).tolist() == first(np.linspace(0, 1, 7)).tolist()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (([0.5], [0.3]), "labels must be 0/1: threshold a graded reward"),
        (([1.5], [1]), "scores must lie in"),
        (([], []), "at least one"),
        (([0.5], [1, 0]), "have shapes"),
        (([0.5], [1], [-1.0]), "not negative"),
    ],
)
def test_bad_rows_are_refused(rows: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HistogramPosterior().fit(*rows)
