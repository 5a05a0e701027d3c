"""Calibration: closed-form fits, the answer calibration on synthetic votes, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from arrol_tts.calibration import AnswerCalibration, isotonic, logit, platt_scale, sigmoid, vote_features
from arrol_tts.errors import InputError
from arrol_tts.trace import Trace
from arrol_tts.voting import VoteResult, vote


def weighted_vote(question_id: str, ballots: Sequence[tuple[str | None, float]]) -> VoteResult:
    def weigh(traces: Sequence[Trace]) -> NDArray[np.float64]:
        return np.array([ballots[t.sample_id][1] for t in traces])

    return vote([Trace(question_id, i, answer=a, correct=a == "1") for i, (a, _) in enumerate(ballots)], weigh)


def synthetic_votes(num_questions: int, seed: int) -> list[VoteResult]:
    """Majority votes of 16 in which "1" is right and as likely as each question is easy."""
    rng = np.random.default_rng(seed)
    results = []
    for question in range(num_questions):
        ease = rng.beta(1, 1)
        right = rng.random(16) < ease
        wrong = rng.choice(["2", "3"], p=[0.8, 0.2], size=16)
        traces = [
            Trace(str(question), i, answer="1" if right[i] else str(wrong[i]), correct=bool(right[i]))
            for i in range(16)
        ]
        results.append(vote(traces))
    return results


def test_sigmoid() -> None:
    np.testing.assert_allclose(sigmoid([0.0, math.log(3), -1000.0, 1000.0]), [0.5, 0.75, 0.0, 1.0])


def test_logit_inverts_sigmoid() -> None:
    np.testing.assert_allclose(logit([0.25, 0.5, 0.75]), [-math.log(3), 0.0, math.log(3)])


def test_logit_of_certainty_is_finite() -> None:
    np.testing.assert_allclose(logit([0.0, 1.0]), [-13.815510, 13.815510], rtol=1e-6)


def test_platt_scale_closed_form() -> None:
    # 2 of 10 right at logit 0 and 8 of 10 at logit 1; smoothed, 0.25 and 0.75.
    logits = [0.0] * 10 + [1.0] * 10
    labels = [True] * 2 + [False] * 8 + [True] * 8 + [False] * 2
    a, b = platt_scale(logits, labels)
    assert (a, b) == pytest.approx((2 * math.log(3), -math.log(3)), abs=1e-4)


def test_platt_scale_of_separated_labels_is_finite() -> None:
    a, b = platt_scale([-1.0, -1.0, 1.0, 1.0], [False, False, True, True])
    # Smoothed labels 1/4 and 3/4.
    assert (a, b) == pytest.approx((math.log(3), 0.0), abs=1e-4)


def test_isotonic_pools_violators() -> None:
    thresholds, probabilities = isotonic([1.0, 2.0, 3.0, 4.0], [False, True, False, True])
    np.testing.assert_allclose(np.interp([0, 1, 2.5, 3, 9], thresholds, probabilities), [0, 0, 0.5, 0.5, 1])


@pytest.mark.parametrize("fit", [platt_scale, isotonic])
def test_labels_all_the_same(fit: Any) -> None:
    with pytest.raises(ValueError, match="the labels are all True; calibration needs both right and wrong"):
        fit([0.1, 0.2], [True, True])


@pytest.mark.parametrize("fit", [platt_scale, isotonic])
def test_no_examples(fit: Any) -> None:
    with pytest.raises(ValueError, match="the labels are missing"):
        fit([], [])


@pytest.mark.parametrize("fit", [platt_scale, isotonic])
def test_lengths_differ(fit: Any) -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\); both must be \[num_traces\]"):
        fit([0.1, 0.2], [True, False, True])


@pytest.mark.parametrize("fit", [platt_scale, isotonic])
def test_score_not_finite(fit: Any) -> None:
    with pytest.raises(ValueError, match="the score at index 1 is not finite"):
        fit([0.1, math.nan], [True, False])


def test_vote_features() -> None:
    result = weighted_vote("q", [("1", 3.0), ("1", 1.0), ("2", 1.0), (None, 9.0)])
    np.testing.assert_allclose(vote_features(result), [0.8, 0.6, 2 / 3, math.log1p(25 / 11)])


def test_vote_features_of_a_unanimous_vote() -> None:
    result = weighted_vote("q", [("1", 2.0), ("1", 2.0)])
    np.testing.assert_allclose(vote_features(result), [1.0, 1.0, 1.0, math.log(3)])


def test_vote_features_of_zero_weights() -> None:
    np.testing.assert_allclose(vote_features(weighted_vote("q", [("1", 0.0)])), [0.0, 0.0, 1.0, 0.0])


def test_mean_probability_is_the_accuracy_it_was_fitted_on() -> None:
    results = synthetic_votes(200, seed=0)
    calibration = AnswerCalibration.fit(results)
    accuracy = np.mean([bool(r.correct) for r in results])
    mean_probability = np.mean([calibration.probability(r) for r in results])
    assert mean_probability == pytest.approx(accuracy, abs=1e-3)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_calibrated_probability_beats_the_share_on_new_questions(kind: Any) -> None:
    calibration = AnswerCalibration.fit(synthetic_votes(400, seed=1), kind=kind)
    held_out = synthetic_votes(400, seed=2)
    right = np.array([bool(r.correct) for r in held_out])
    brier = np.mean((np.array([calibration.probability(r) for r in held_out]) - right) ** 2)
    brier_of_share = np.mean((np.array([r.confidence for r in held_out]) - right) ** 2)
    assert brier < brier_of_share - 0.01


def test_vote_reports_the_calibrated_probability() -> None:
    results = synthetic_votes(50, seed=3)
    calibration = AnswerCalibration.fit(results)
    again = vote(results[0].traces, calibration=calibration)
    assert again.confidence == calibration.probability(results[0])


def test_given_labels_take_the_place_of_the_traces() -> None:
    results = [r for r in synthetic_votes(60, seed=4) if r.correct is not None]
    inverted = [not r.correct for r in results]
    confident = max(results, key=lambda r: r.confidence)
    unsure = min(results, key=lambda r: r.confidence)
    calibration = AnswerCalibration.fit(results, inverted)
    assert calibration.probability(confident) < calibration.probability(unsure)


def test_nobody_answered_has_probability_zero() -> None:
    calibration = AnswerCalibration("majority", (1.0, 1.0, 1.0, 1.0), 5.0)
    assert calibration.probability(vote([Trace("q", 0)])) == 0.0


def test_questions_nobody_answered_are_left_out_of_the_fit() -> None:
    results = synthetic_votes(40, seed=5)
    assert AnswerCalibration.fit([*results, vote([Trace("q", 0)])]) == AnswerCalibration.fit(results)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_json_round_trip(kind: Any) -> None:
    calibration = AnswerCalibration.fit(synthetic_votes(40, seed=6), kind=kind)
    assert AnswerCalibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_stored_features_of_another_version() -> None:
    state = AnswerCalibration("majority", (1.0,) * 4, 0.0).to_dict() | {"features": ["share"]}
    with pytest.raises(ValueError, match=r"reads features \['share'\], this version reads \['share', 'margin'"):
        AnswerCalibration.from_dict(state)


def test_stored_field_missing() -> None:
    state = AnswerCalibration("majority", (1.0,) * 4, 0.0).to_dict()
    del state["intercept"]
    with pytest.raises(ValueError, match="the stored calibration lacks 'intercept'"):
        AnswerCalibration.from_dict(state)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("coefficients", [1.0, 2.0], "has 2 coefficients, and needs 4"),
        ("coefficients", 1.0, "is none"),
        ("coefficients", ["x"] * 4, "could not convert"),
        ("probabilities", [0.5], "has 1 probabilities, and needs 0"),
        ("intercept", math.nan, "not finite"),
    ],
)
def test_what_is_no_calibration_is_refused(field: str, value: Any, message: str) -> None:
    state = AnswerCalibration("majority", (1.0,) * 4, 0.0).to_dict()
    with pytest.raises(InputError, match=message):
        AnswerCalibration.from_dict(state | {field: value})


def test_another_method_is_refused() -> None:
    calibration = AnswerCalibration("quality", (1.0,) * 4, 0.0)
    with pytest.raises(ValueError, match="fitted on votes by 'quality' and does not hold for 'majority'"):
        vote([Trace("q", 0, answer="1")], calibration=calibration)


def test_mixed_methods() -> None:
    results = synthetic_votes(5, seed=7)
    with pytest.raises(ValueError, match="mix voting methods majority, weigh; fit one calibration each"):
        AnswerCalibration.fit([*results, weighted_vote("q", [("1", 1.0)])])


def test_missing_label() -> None:
    with pytest.raises(ValueError, match="question 'q' has no label; pass correct=, or set"):
        AnswerCalibration.fit([*synthetic_votes(5, seed=8), vote([Trace("q", 0, answer="1")])])


def test_number_of_labels_differs() -> None:
    with pytest.raises(ValueError, match="5 results and 1 labels; give one label a result"):
        AnswerCalibration.fit(synthetic_votes(5, seed=9), [True])


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="kind is 'beta'; it must be 'platt' or 'isotonic'"):
        AnswerCalibration.fit(synthetic_votes(5, seed=9), kind="beta")  # type: ignore[arg-type]
