"""The combined method: closed-form fits, held-out votes, storage, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from arrol_tts.combined import CombinedVoter, cross_val_vote, fit_combined, trace_features
from arrol_tts.trace import Trace
from arrol_tts.voting import vote


def pair(question_id: str, *, right_finished: bool) -> list[Trace]:
    """A right and a wrong trace, one of which ended by itself."""
    return [
        Trace(question_id, 0, answer="1", correct=True, finish_reason="stop" if right_finished else "length"),
        Trace(question_id, 1, answer="2", correct=False, finish_reason="length" if right_finished else "stop"),
    ]


def misled_questions(num_questions: int, seed: int = 0) -> list[list[Trace]]:
    """Most traces share a wrong answer, and right ones score higher, on top of a question's own level."""
    rng = np.random.default_rng(seed)
    questions = []
    for question in range(num_questions):
        level = rng.normal(0, 2)
        right = np.arange(12) < 4
        log_odds = level + 2.5 * right + rng.normal(0, 1, 12)
        questions.append(
            [
                Trace(
                    f"q{question}",
                    i,
                    answer="1" if right[i] else "2",
                    correct=bool(right[i]),
                    num_tokens=int(rng.integers(20, 80)),
                    scores={20: float(1 / (1 + np.exp(-log_odds[i])))},
                    confidence=rng.gamma(4, 4, 30).astype(np.float32),
                )
                for i in range(12)
            ]
        )
    return questions


def test_one_feature_fits_in_closed_form() -> None:
    # In 3 of 4 pairs the finished trace is the right one, so finishing multiplies the weight by 3.
    questions = [pair(str(i), right_finished=i != 0) for i in range(4)]
    voter = fit_combined(questions, signals=["finish"], penalty=1e-9, folds=0)
    assert voter.coefficients == pytest.approx((math.log(3),), abs=1e-4)


def test_several_right_traces_fit_in_closed_form() -> None:
    # With e the factor of finishing, the likelihood is ((e + 1) / (2e + 1))^4 * e / (e + 1), largest at 1/2.
    unfinished_right = Trace("", 2, answer="1", correct=True, finish_reason="length")
    finished_wrong = Trace("", 1, answer="2", correct=False)
    finished_right = Trace("", 0, answer="1", correct=True)
    questions = [[finished_right, finished_wrong, unfinished_right]] * 4 + [pair("", right_finished=True)]
    voter = fit_combined(questions, signals=["finish"], penalty=1e-9, folds=0)
    assert voter.coefficients == pytest.approx((-math.log(2),), abs=1e-4)


def test_share_of_the_winner_is_the_fitted_probability() -> None:
    questions = [pair(str(i), right_finished=i != 0) for i in range(4)]
    voter = fit_combined(questions, signals=["finish"], penalty=1e-9, folds=0)
    result = vote(pair("new", right_finished=True), voter)
    assert (result.answer, result.method) == ("1", "combined")
    assert result.confidence == pytest.approx(0.75, abs=1e-4)


def test_learns_to_overrule_a_misled_majority() -> None:
    voter = fit_combined(misled_questions(60))
    assert voter.signals == ("scores", "confidence", "agreement", "length", "finish")
    assert voter.cross_validation["majority_accuracy"] == 0.0
    assert voter.cross_validation["accuracy"] > 0.9
    assert voter.cross_validation["questions"] == 60


def test_held_out_votes_come_in_the_given_order() -> None:
    results = cross_val_vote(misled_questions(12), folds=3)
    assert [r.question_id for r in results] == [f"q{i}" for i in range(12)]


def test_a_question_has_no_part_in_the_fit_that_votes_on_it() -> None:
    questions = misled_questions(10)
    relabelled = [Trace(t.question_id, t.sample_id, answer=t.answer, scores=t.scores, correct=not t.correct)
                  for t in questions[3]]  # fmt: skip
    before = cross_val_vote(questions, folds=10, signals=["scores"])[3]
    after = cross_val_vote([*questions[:3], relabelled, *questions[4:]], folds=10, signals=["scores"])[3]
    assert after.weights == before.weights


def test_the_seed_decides_the_folds() -> None:
    questions = misled_questions(12)
    first, again = (cross_val_vote(questions, folds=3, seed=5) for _ in range(2))
    assert [r.weights for r in first] == [r.weights for r in again]
    other = cross_val_vote(questions, folds=3, seed=6)
    assert [r.weights for r in first] != [r.weights for r in other]


def test_signals_default_to_what_every_voting_trace_carries() -> None:
    questions = misled_questions(4)
    questions[0][0].confidence = None
    questions[1].append(Trace("q1", 99))  # no answer, so it does not vote
    assert fit_combined(questions, folds=0).signals == ("scores", "agreement", "length", "finish")


def test_length_is_no_signal_where_it_was_not_recorded() -> None:
    voter = fit_combined([pair("a", right_finished=True)], folds=0)
    assert voter.signals == ("agreement", "finish")


def test_features() -> None:
    traces = [
        Trace("q", 0, answer="1", scores={5: 0.75}, num_tokens=10, confidence=np.array([2], np.float32)),
        Trace("q", 1, answer="1", scores={5: 0.5}, num_tokens=40, confidence=np.array([4], np.float32)),
        Trace("q", 2, answer="2", scores={5: 0.25}, num_tokens=20, confidence=np.array([3], np.float32)),
        Trace("q", 3, answer="1", scores={5: 0.25}, num_tokens=20, confidence=np.array([3], np.float32),
              finish_reason="length"),
    ]  # fmt: skip
    features = trace_features(traces, ["scores", "confidence", "agreement", "length", "finish"])
    log3, spread = math.log(3), math.sqrt(2)
    np.testing.assert_allclose(features[:, 0], [log3, 0.0, -log3, -log3])
    np.testing.assert_allclose(features[:, 1], [1.0, 0.6, 0.0, 0.0])
    for column in range(2, 6):
        np.testing.assert_allclose(features[:, column], [-spread, spread, 0.0, 0.0])
    np.testing.assert_allclose(features[:, 6], np.log([0.75, 0.75, 0.25, 0.75]))
    np.testing.assert_allclose(features[:, 7], [-spread, spread, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(features[:, 8], [1, 1, 1, 0])


def test_a_constant_feature_is_harmless() -> None:
    questions = [pair(str(i), right_finished=i != 0) for i in range(4)]
    voter = fit_combined(questions, signals=["agreement", "finish"], penalty=1e-9, folds=0)
    assert voter.coefficients == pytest.approx((0.0, math.log(3)), abs=1e-4)


def test_json_round_trip() -> None:
    voter = fit_combined(misled_questions(10), window=8, tail=4)
    assert CombinedVoter.from_dict(json.loads(json.dumps(voter.to_dict()))) == voter


def test_stored_features_of_another_version() -> None:
    state = CombinedVoter(("finish",), (1.0,)).to_dict() | {"features": ["ended"]}
    with pytest.raises(ValueError, match=r"reads features \['ended'\], this version reads \['finished'\]; fit"):
        CombinedVoter.from_dict(state)


def test_stored_field_missing() -> None:
    state = CombinedVoter(("finish",), (1.0,)).to_dict()
    del state["window"]
    with pytest.raises(ValueError, match="the stored voter lacks 'window'; write it with to_dict"):
        CombinedVoter.from_dict(state)


def test_missing_signal_names_the_trace() -> None:
    voter = CombinedVoter(("scores",), (1.0, 0.0))
    with pytest.raises(ValueError, match="reads the signal 'scores', and sample 4 of question 'q' has none"):
        vote([Trace("q", 4, answer="1")], voter)


def test_unknown_signal() -> None:
    with pytest.raises(ValueError, match="unknown signal 'entropy'; choose from scores, confidence, agreem"):
        fit_combined(misled_questions(2), signals=["entropy"], folds=0)


def test_missing_label() -> None:
    with pytest.raises(ValueError, match="sample 7 of question 'q' has no label; set"):
        fit_combined([[Trace("q", 7, answer="1")]], folds=0)


def test_nothing_to_learn() -> None:
    with pytest.raises(ValueError, match="no question has both right and wrong voting traces"):
        fit_combined([[Trace("q", 0, answer="1", correct=True)]], folds=0)


@pytest.mark.parametrize("folds", [1, 5])
def test_folds_outside_their_range(folds: int) -> None:
    with pytest.raises(ValueError, match=f"folds is {folds}; it must be from 2 to the number of questions"):
        fit_combined(misled_questions(4), folds=folds)


def signalled(num_questions: int, score: float, confidence: float, seed: int = 0) -> list[list[Trace]]:
    """Questions of 8 traces, 4 of them right; how far right ones lie above wrong ones in score and confidence."""
    rng = np.random.default_rng(seed)
    questions = []
    for question in range(num_questions):
        right = rng.permutation(8) < 4
        log_odds = score * right + rng.normal(size=8)
        means = 10 + confidence * right + rng.normal(size=8)
        questions.append(
            [
                Trace(
                    f"q{question}",
                    i,
                    answer="1" if right[i] else "2",
                    correct=bool(right[i]),
                    num_tokens=4,
                    scores={3: float(1 / (1 + np.exp(-log_odds[i])))},
                    confidence=np.full(4, means[i], np.float32),
                )
                for i in range(8)
            ]
        )
    return questions


def accuracy(voter: CombinedVoter, questions: list[list[Trace]]) -> float:
    return float(np.mean([bool(vote(traces, voter).correct) for traces in questions]))


@pytest.mark.parametrize(
    ("score", "confidence", "part", "noise"),
    [(1.0, 0.0, "scores", slice(2, None)), (0.0, 1.0, "confidence", slice(0, 2))],
)
def test_a_signal_that_says_nothing_has_no_part_in_the_vote(
    score: float, confidence: float, part: str, noise: slice
) -> None:
    voter = fit_combined(signalled(30, score, confidence), folds=0)
    assert voter.towards == part
    assert not any(voter.coefficients[noise])
    alone = fit_combined(signalled(30, score, confidence), signals=[part], folds=0)
    fresh = signalled(200, score, confidence, seed=1)
    assert accuracy(voter, fresh) == pytest.approx(accuracy(alone, fresh), abs=0.011)


def test_signals_that_say_different_things_are_combined() -> None:
    voter = fit_combined(signalled(100, 1.0, 1.0), folds=0)
    fresh = signalled(300, 1.0, 1.0, seed=1)
    alone = [fit_combined(signalled(100, 1.0, 1.0), signals=[part], folds=0) for part in ("scores", "confidence")]
    assert accuracy(voter, fresh) > max(accuracy(one, fresh) for one in alone) + 0.02


def test_where_nothing_says_anything_it_is_a_majority_vote() -> None:
    voter = fit_combined(signalled(40, 0.0, 0.0), folds=0)
    assert (voter.towards, set(voter.coefficients)) == ("majority", {0.0})
