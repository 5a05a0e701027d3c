"""Voting: methods, ties, abstention, bad input, DeepConf's seven votes, and properties of any vote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from arrol_tts import voting
from arrol_tts.calibration import AnswerCalibration
from arrol_tts.trace import FinishReason, Trace
from arrol_tts.voting import METHODS, AnswerRow, TokenLedger, register, vote


def trace(
    sample_id: int,
    answer: str | None,
    *,
    question_id: str = "q",
    score: float | None = None,
    confidence: Sequence[float] | None = None,
    num_tokens: int = 10,
    finish_reason: FinishReason = "stop",
    correct: bool | None = None,
    meta: dict[str, Any] | None = None,
) -> Trace:
    return Trace(
        question_id=question_id,
        sample_id=sample_id,
        answer=answer,
        scores={} if score is None else {20: score},
        confidence=None if confidence is None else np.array(confidence, np.float32),
        num_tokens=num_tokens,
        finish_reason=finish_reason,
        correct=correct,
        meta=meta or {},
    )


def answers(*given_answers: str | None) -> list[Trace]:
    return [trace(i, answer) for i, answer in enumerate(given_answers)]


def scored(*pairs: tuple[str, float]) -> list[Trace]:
    return [trace(i, answer, score=score) for i, (answer, score) in enumerate(pairs)]


def fixed(weights: Sequence[float]) -> Callable[[Sequence[Trace]], NDArray[np.float64]]:
    """A method that gives each trace the weight listed under its sample id."""

    def weigh(traces: Sequence[Trace]) -> NDArray[np.float64]:
        return np.array([weights[t.sample_id] for t in traces])

    return weigh


# The result


def test_majority_wins() -> None:
    assert vote(answers("7", "5", "7")).answer == "7"


def test_confidence_is_the_share_of_the_weight() -> None:
    assert vote(answers("7", "5", "7", "7")).confidence == 0.75


def test_table_is_sorted_by_weight() -> None:
    result = vote(answers("5", "7", "7"), fixed([1.0, 0.5, 2.5]))
    assert result.table == (AnswerRow("7", 2, 3.0, 0.75, 0.75), AnswerRow("5", 1, 1.0, 0.25, 0.25))


def test_equal_values_are_one_answer() -> None:
    assert vote(answers(r"\frac{1}{2}", "0.5", "3")).table[0].votes == 2


def test_weights_and_choices_follow_the_given_order() -> None:
    traces = [trace(2, "5"), trace(0, None), trace(1, "7")]
    result = vote(traces, fixed([9.0, 3.0, 1.0]))
    assert result.weights == (1.0, 0.0, 3.0)
    assert result.choices == (1, -1, 0)


def test_traces_without_an_answer_do_not_vote() -> None:
    assert vote(answers(None, None, "7", " ", "")).table == (AnswerRow("7", 1, 1.0, 1.0, 1.0),)


def test_nobody_answered() -> None:
    result = vote(answers(None, None))
    assert (result.answer, result.confidence, result.table, result.abstained) == (None, 0.0, (), False)


def test_methods_that_need_signals_pass_over_unanswered_traces() -> None:
    assert vote([trace(0, None), trace(1, "7", score=0.4)], "quality").answer == "7"


def test_a_single_trace_wins_with_full_share() -> None:
    result = vote([trace(0, "7", score=0.3, confidence=[5.0], meta={"self_certainty": 9.0})], "quality-ranks")
    assert (result.answer, result.confidence) == ("7", 1.0)


def test_method_name_of_a_function() -> None:
    def shortest(traces: Sequence[Trace]) -> NDArray[np.float64]:
        return np.array([1 / t.num_tokens for t in traces])

    assert vote(answers("7"), shortest).method == "shortest"


def test_correct_reads_the_labels_of_the_winner() -> None:
    traces = [trace(0, "7", correct=False), trace(1, "7", correct=False), trace(2, "5", correct=True)]
    assert vote(traces).correct is False
    assert vote(traces, fixed([0, 0, 1])).correct is True


def test_correct_is_none_without_labels() -> None:
    assert vote(answers("7")).correct is None


def test_printed_result_shows_answer_and_table() -> None:
    assert str(vote(answers("7", "5", "7", "7"))).splitlines() == [
        "q: 7 (confidence 0.75, majority)",
        "   75.0%     3 votes      3.000  7",
        "   25.0%     1 votes      1.000  5",
        "  40 tokens, 0 traces pruned, about 0 tokens saved",
    ]


@pytest.mark.parametrize(
    ("traces", "first_line"),
    [
        (answers(None), "q: no answer (confidence 0.00, majority)"),
        (answers("x" * 1000), "q: " + "x" * 77 + "... (confidence 1.00, majority)"),
        (answers("1", "2"), "q: abstained (confidence 0.50, majority)"),
    ],
)
def test_printed_verdict(traces: list[Trace], first_line: str) -> None:
    assert str(vote(traces, min_confidence=0.6)).splitlines()[0] == first_line


def test_methods_see_the_voting_traces_by_sample_id() -> None:
    seen: list[int] = []

    def weigh(traces: Sequence[Trace]) -> NDArray[np.float64]:
        seen.extend(t.sample_id for t in traces)
        return np.ones(len(traces))

    vote([trace(5, "7"), trace(9, None), trace(2, "7"), trace(3, "8")], weigh)
    assert seen == [2, 3, 5]


# Ties


def test_tied_weight_goes_to_more_votes() -> None:
    assert vote(answers("1", "2", "2"), fixed([1.0, 0.5, 0.5])).answer == "2"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_tied_weight_and_votes_go_to_the_lowest_sample_id(order: tuple[int, int]) -> None:
    traces = answers("12", "7")
    assert vote([traces[i] for i in order]).answer == "12"


def test_sums_tie_exactly_whatever_their_order() -> None:
    # Added left to right, 0.1 + 0.2 + 0.3 exceeds 0.3 + 0.2 + 0.1.
    result = vote(answers("2", "2", "2", "1", "1", "1"), fixed([0.3, 0.2, 0.1, 0.1, 0.2, 0.3]))
    assert result.table[0].weight == result.table[1].weight
    assert result.answer == "2"


def test_all_weights_zero_leave_it_to_the_votes() -> None:
    result = vote(answers("5", "7", "7"), fixed([0.0, 0.0, 0.0]))
    assert (result.answer, result.confidence) == ("7", 0.0)


# Abstention and calibration


def test_abstains_below_min_confidence() -> None:
    result = vote(answers("7", "5", "7"), min_confidence=0.7)
    assert (result.answer, result.abstained, result.table[0].answer) == (None, True, "7")


def test_nobody_answering_is_not_an_abstention() -> None:
    assert vote(answers(None), min_confidence=0.5).abstained is False


def test_answers_at_min_confidence() -> None:
    result = vote(answers("7", "5"), min_confidence=0.5)
    assert (result.answer, result.abstained) == ("7", False)


def test_calibration_replaces_the_share_before_abstention() -> None:
    certain = AnswerCalibration("majority", (0.0, 0.0, 0.0, 0.0), intercept=-np.log(3.0))
    result = vote(answers("7", "7"), min_confidence=0.3, calibration=certain)
    assert result.confidence == pytest.approx(0.25)
    assert result.abstained


def test_calibration_gives_every_answer_a_probability() -> None:
    certain = AnswerCalibration("majority", (0.0, 0.0, 0.0, 0.0), intercept=np.log(4.0))
    result = vote(answers("7", "7", "7", "5", "5", "3"), calibration=certain)
    assert [row.probability for row in result.table] == pytest.approx([0.8, 0.2 * 2 / 3, 0.2 / 3])
    assert [row.share for row in result.table] == pytest.approx([1 / 2, 1 / 3, 1 / 6])
    assert vote(answers("7", "7"), calibration=certain).table[0].probability == pytest.approx(0.8)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_min_confidence_outside_its_range(value: float) -> None:
    with pytest.raises(ValueError, match=rf"min_confidence is {value}; it must be in \[0, 1\]"):
        vote(answers("7"), min_confidence=value)


# Tokens


def test_ledger_estimates_savings_from_finished_traces() -> None:
    traces = [
        trace(0, "7", num_tokens=100),
        trace(1, None, num_tokens=60, finish_reason="length"),
        trace(2, None, num_tokens=20, finish_reason="pruned"),
        trace(3, None, num_tokens=30, finish_reason="pruned"),
        trace(4, None, num_tokens=5, finish_reason="cancelled"),
    ]
    assert vote(traces).tokens == TokenLedger(generated=215, pruned_traces=2, saved=110)


def test_a_ledger_counts_unstarted_traces_at_the_mean_length_of_finished_ones() -> None:
    traces = [trace(0, "7", num_tokens=100), trace(1, None, num_tokens=60, finish_reason="length")]
    assert TokenLedger.of(traces, unstarted_traces=3) == TokenLedger(160, 0, 240, unstarted_traces=3)


def test_a_pruned_trace_longer_than_the_mean_saves_nothing() -> None:
    traces = [trace(0, "7", num_tokens=10), trace(1, None, num_tokens=50, finish_reason="pruned")]
    assert vote(traces).tokens.saved == 0


def test_no_finished_trace_gives_no_estimate() -> None:
    assert vote([trace(0, None, finish_reason="pruned")]).tokens == TokenLedger(10, 1, 0)


def test_the_ledger_sums_the_prompt_tokens_that_are_known_and_those_that_the_cache_spared() -> None:
    traces = [
        replace(trace(0, "1"), prompt_tokens=40, cached_tokens=0),
        replace(trace(1, "1"), prompt_tokens=40, cached_tokens=32),
        trace(2, None, finish_reason="cancelled"),  # it never began
    ]
    tokens = vote(traces).tokens
    assert (tokens.prompt, tokens.cached) == (80, 32)
    assert (vote(traces[2:]).tokens.prompt, vote(traces[2:]).tokens.cached) == (None, None)


# Methods


def test_quality_weighs_by_the_last_score() -> None:
    two_scores = Trace("q", 0, answer="7", scores={10: 0.9, 20: 0.25})
    assert vote([two_scores], "quality").weights == (0.25,)


def test_quality_over_all_scores_is_the_mean_of_their_log_odds() -> None:
    # Odds 4 and 1/9: their geometric mean is 2/3, a probability of 0.4.
    both = Trace("q", 0, answer="7", num_tokens=3, scores={1: 0.8, 2: 0.1})
    assert vote([both], "quality", over="mean").weights == pytest.approx((0.4,))
    doubled = vote([both], "quality", over="mean", platt=(2.0, 0.0)).weights
    assert doubled == pytest.approx((4 / 13,))


def test_quality_by_odds_lets_one_good_trace_outweigh_many_bad_ones() -> None:
    votes = scored(*[("7", 0.25)] * 4, ("5", 0.75))
    assert vote(votes, "quality").answer == "7"
    result = vote(votes, "quality", odds_power=1.0)
    assert result.answer == "5"
    assert result.weights == pytest.approx((1 / 3,) * 4 + (3.0,))
    assert vote(scored(("7", 0.75)), "quality", odds_power=2.0).weights == pytest.approx((9.0,))
    assert np.isfinite(vote(scored(("7", 1.0), ("5", 0.0)), "quality", odds_power=2.0).weights).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"over": "best"}, "over is 'best'; it must be 'last' or 'mean'"), ({"odds_power": 0}, "odds_power is 0")],
)
def test_quality_refuses_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vote(scored(("7", 0.5)), "quality", **options)  # type: ignore[arg-type]


def test_quality_recalibrates() -> None:
    result = vote(scored(("7", 0.5)), "quality", platt=(2.0, np.log(3.0)))
    assert result.weights[0] == pytest.approx(0.75)


def test_unscored_gives_a_score_to_traces_the_head_never_read() -> None:
    assert vote([trace(0, "7"), trace(1, "5", score=0.2)], "quality", unscored=0.5).weights == (0.5, 0.2)


def test_log_odds_add_the_log_of_the_number_of_wrong_answers() -> None:
    result = vote(scored(("7", 0.75), ("5", 0.5)), "quality-logodds", wrong_answers=4)
    assert result.weights == pytest.approx((np.log(12), np.log(4)))


def test_log_odds_worse_than_chance_do_not_vote() -> None:
    assert vote(scored(("7", 0.2)), "quality-logodds", wrong_answers=2).weights == (0.0,)


def test_log_odds_of_certain_scores_are_finite() -> None:
    assert vote(scored(("7", 1.0), ("5", 0.0)), "quality-logodds").answer == "7"


def test_ranks_map_linearly_to_zero_and_one() -> None:
    assert vote(scored(("1", 0.2), ("2", 0.9), ("3", 0.8)), "quality-ranks").weights == (0.0, 1.0, 0.5)


def test_tied_scores_share_their_rank() -> None:
    result = vote(scored(("1", 0.2), ("2", 0.5), ("3", 0.5), ("4", 0.9)), "quality-ranks")
    assert result.weights == pytest.approx((0.0, 0.5, 0.5, 1.0))


def test_ranks_of_equal_scores_are_a_majority_vote() -> None:
    assert vote(scored(("1", 0.3), ("2", 0.3), ("2", 0.3)), "quality-ranks").weights == (1.0, 1.0, 1.0)


def test_ranks_can_dethrone_the_winner_by_a_low_vote_for_it() -> None:
    # A known limit of the published weights, documented with the method.
    votes = [("1", 0.9), ("3", 0.8), ("2", 0.7), ("2", 0.6), ("2", 0.5)]
    assert vote(scored(*votes), "quality-ranks").answer == "1"
    assert vote(scored(*votes, ("1", 0.1)), "quality-ranks").answer == "2"


def test_best_of_n_takes_the_highest_score() -> None:
    result = vote(scored(("5", 0.3), ("5", 0.3), ("7", 0.31)), "best-of-n")
    assert (result.answer, result.weights) == ("7", (0.0, 0.0, 1.0))


def test_self_certainty_is_a_borda_vote() -> None:
    traces = [trace(i, str(i), meta={"self_certainty": c}) for i, c in enumerate([12.0, 15.0, 11.0])]
    assert vote(traces, "self-certainty", power=2.0).weights == (4.0, 9.0, 1.0)


def test_top_share_keeps_the_most_confident() -> None:
    traces = [trace(i, str(i), confidence=[c]) for i, c in enumerate([1.0, 4.0, 3.0, 2.0])]
    assert vote(traces, "deepconf-mean", top_share=0.5).weights == (0.0, 4.0, 3.0, 0.0)


def test_top_share_keeps_ties_at_the_threshold() -> None:
    traces = [trace(i, str(i), confidence=[c]) for i, c in enumerate([2.0, 2.0, 1.0])]
    assert vote(traces, "deepconf-mean", top_share=0.1).weights == (2.0, 2.0, 0.0)


def test_window_option_reaches_the_measure() -> None:
    assert vote([trace(0, "7", confidence=[4, 2, 6])], "deepconf-lowest", window=2).weights == (3.0,)


# DeepConf's seven votes, restated from the published code: plain lists, one loop a definition


def published_measure(kind: str, values: list[float], window: int) -> float:
    if kind == "majority":
        return 1.0
    if not values:
        return 0.0
    if kind == "mean":
        return sum(values) / len(values)
    if kind == "tail":
        return sum(values[-window:]) / len(values[-window:])
    if len(values) < window:
        return sum(values) / len(values)
    groups = sorted(sum(values[i : i + window]) / window for i in range(len(values) - window + 1))
    bottom = groups[:1] if kind == "lowest" else groups[: max(1, int(len(groups) * 0.1))]
    return sum(bottom) / len(bottom)


def published_vote(traces: list[Trace], kind: str, window: int, top_percent: float | None) -> str | None:
    valid = [t for t in traces if t.answer]
    if not valid:
        return None
    values = [
        published_measure(kind, t.confidence.tolist(), window) if t.confidence is not None else 0.0 for t in valid
    ]
    threshold = 0.0 if top_percent is None else float(np.percentile(values, (1 - top_percent) * 100))
    totals: dict[str, float] = {}
    for t, value in zip(valid, values, strict=True):
        if value >= threshold:
            totals[str(t.answer)] = totals.get(str(t.answer), 0.0) + value
    return max(totals, key=lambda answer: totals[answer])


SEVEN_VOTES = [
    ("majority", "majority", None),
    ("deepconf-mean", "mean", None),
    ("deepconf-tail", "tail", None),
    ("deepconf", "bottom", None),
    ("deepconf-lowest", "lowest", None),
    ("deepconf-tail-top10", "tail", 0.1),
    ("deepconf-top10", "bottom", 0.1),
]


def confident_traces(num_traces: int, seed: int) -> list[Trace]:
    """Random traces of 0 to 60 tokens, around a window of 16, some without an answer."""
    rng = np.random.default_rng(seed)
    picks = rng.choice(["3", "4", "9", ""], size=num_traces, p=[0.35, 0.3, 0.25, 0.1])
    return [
        trace(i, str(pick) or None, confidence=rng.gamma(4, 4, rng.integers(0, 60)).tolist())
        for i, pick in enumerate(picks)
    ]


@pytest.mark.parametrize(("method", "kind", "top_percent"), SEVEN_VOTES)
@pytest.mark.parametrize("num_traces", [1, 2, 9, 10, 11, 64])
def test_deepconf_vote_equals_the_published_one(
    method: str, kind: str, top_percent: float | None, num_traces: int
) -> None:
    for seed in range(5):
        traces = confident_traces(num_traces, seed)
        options: dict[str, Any] = {name: 16 for name in ("window", "tail") if name in METHODS[method].options}
        assert vote(traces, method, **options).answer == published_vote(traces, kind, 16, top_percent)


# Registry and options


@pytest.fixture
def clean_registry() -> Iterator[None]:
    before = dict(voting.registry._methods)
    yield
    voting.registry._methods.clear()
    voting.registry._methods.update(before)


def test_built_in_methods() -> None:
    assert sorted(METHODS) == [
        "best-of-n",
        "deepconf",
        "deepconf-lowest",
        "deepconf-mean",
        "deepconf-tail",
        "deepconf-tail-top10",
        "deepconf-top10",
        "majority",
        "quality",
        "quality-logodds",
        "quality-ranks",
        "self-certainty",
    ]


def test_every_method_is_described() -> None:
    assert all(info.description for info in METHODS.values())


@pytest.mark.usefixtures("clean_registry")
def test_registered_method_votes_by_name() -> None:
    @register("longest")
    def longest(traces: Sequence[Trace], power: float = 1.0) -> NDArray[np.float64]:
        """Longer traces weigh more."""
        return np.array([t.num_tokens**power for t in traces])

    traces = [trace(0, "5", num_tokens=3), trace(1, "7", num_tokens=4)]
    assert vote(traces, "longest", power=2.0).weights == (9.0, 16.0)
    assert METHODS["longest"].description == "Longer traces weigh more."
    assert METHODS["longest"].options == {"power": 1.0}


def test_name_taken() -> None:
    with pytest.raises(ValueError, match="voting method 'majority' is already registered"):
        register("majority")


def test_unknown_method_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown voting method 'mean'; choose from best-of-n, deepconf, "):
        vote(answers("7"), "mean")


def test_unknown_option_lists_the_methods_own() -> None:
    with pytest.raises(ValueError, match="'deepconf-tail' has no option 'window'; it has tail, top_share"):
        vote(answers("7"), "deepconf-tail", window=8)


def test_unknown_option_of_a_method_without_any() -> None:
    with pytest.raises(ValueError, match="'majority' has no option 'window'; it has none"):
        vote(answers("7"), "majority", window=8)


def test_unknown_option_of_a_function() -> None:
    with pytest.raises(ValueError, match="'weigh' has no option 'window'"):
        vote(answers("7"), fixed([1.0]), window=8)


def test_unknown_option_is_an_error_even_when_nobody_answered() -> None:
    with pytest.raises(ValueError, match="no option 'window'"):
        vote(answers(None), window=8)


# Bad input


def test_no_traces() -> None:
    with pytest.raises(ValueError, match="no traces to vote on; pass at least one trace of the question"):
        vote([])


def test_mixed_questions() -> None:
    with pytest.raises(ValueError, match="mix questions 'a' and 'b'; vote on one question at a time"):
        vote([trace(0, "7", question_id="a"), trace(1, "7", question_id="b")])


def test_duplicated_sample_ids() -> None:
    with pytest.raises(ValueError, match="sample id 3 occurs twice in question 'q'; number its traces apart"):
        vote([trace(3, "7"), trace(3, None)])


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 3.5])
@pytest.mark.parametrize("method", ["quality", "quality-logodds", "quality-ranks", "best-of-n"])
def test_bad_scores(method: str, score: float) -> None:
    with pytest.raises(ValueError, match=rf"the score of sample 1 of question 'q' is {score}; .*\[0, 1\]"):
        vote(scored(("7", 0.5), ("7", score)), method)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_bad_weights(weight: float) -> None:
    with pytest.raises(ValueError, match=f"gave sample 1 of question 'q' the weight {weight}; weights must"):
        vote(answers("7", "5"), fixed([1.0, weight]))


def test_wrong_number_of_weights() -> None:
    with pytest.raises(ValueError, match=r"weights of shape \(1,\); it must return one .* each of the 2"):
        vote(answers("7", "5"), lambda traces: np.ones(1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -2.0])
def test_bad_confidence(bad: float) -> None:
    with pytest.raises(ValueError, match=f"'deepconf', sample 4 of question 'q': .* {bad} at token 1"):
        vote([trace(4, "7", confidence=[1.0, bad])], "deepconf")


def test_bad_self_certainty() -> None:
    with pytest.raises(ValueError, match="self-certainty of sample 0 of question 'q' is nan; it must be"):
        vote([trace(0, "7", meta={"self_certainty": float("nan")})], "self-certainty")


@pytest.mark.parametrize("method", [name for name, info in METHODS.items() if "scores" in info.needs])
def test_missing_score(method: str) -> None:
    match = rf"'{method}' needs Trace.scores .* sample 1 of question 'q' has none; sample with a quality head"
    with pytest.raises(ValueError, match=match):
        vote([trace(0, "7", score=0.5), trace(1, "5")], method)


@pytest.mark.parametrize("method", [name for name, info in METHODS.items() if "confidence" in info.needs])
def test_missing_confidence(method: str) -> None:
    with pytest.raises(ValueError, match=rf"'{method}' needs Trace.confidence .* has none; record it while"):
        vote([trace(0, "7", confidence=[1.0]), trace(1, "5")], method)


def test_missing_self_certainty() -> None:
    with pytest.raises(ValueError, match=r'needs Trace.meta\["self_certainty"\] .* use deepconf-mean'):
        vote(answers("7"), "self-certainty")


@pytest.mark.parametrize("top_share", [0.0, 1.5])
def test_top_share_outside_its_range(top_share: float) -> None:
    with pytest.raises(ValueError, match=rf"top_share is {top_share}; it must be in \(0, 1\]"):
        vote([trace(0, "7", confidence=[1.0])], "deepconf", top_share=top_share)


# Properties

ANSWERS = st.sampled_from(["1", "2", "3", "1/2", "0.5", None])
WEIGHTS = st.one_of(st.just(0.0), st.floats(0, 1e6), st.integers(0, 5).map(float))
BALLOTS = st.lists(st.tuples(ANSWERS, WEIGHTS), min_size=1, max_size=12)
SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]) | st.floats(0, 1)
SIGNALS = st.lists(
    st.tuples(ANSWERS, SCORES, st.lists(st.floats(0, 40, width=32), max_size=6)), min_size=1, max_size=10
)
BY_TRACE = ["majority", "deepconf", "deepconf-mean", "deepconf-tail", "deepconf-lowest", "quality"]
BY_TRACE += ["quality-logodds"]


def with_signals(drawn: list[tuple[str | None, float, list[float]]]) -> list[Trace]:
    return [
        trace(i, answer, score=score, confidence=confidence, meta={"self_certainty": score})
        for i, (answer, score, confidence) in enumerate(drawn)
    ]


@pytest.mark.parametrize("method", sorted(METHODS))
@given(drawn=SIGNALS, data=st.data())
def test_order_does_not_matter(
    method: str, drawn: list[tuple[str | None, float, list[float]]], data: st.DataObject
) -> None:
    traces = with_signals(drawn)
    shuffled = data.draw(st.permutations(traces))
    expected, got = vote(traces, method), vote(shuffled, method)
    assert (got.answer, got.confidence, got.table) == (expected.answer, expected.confidence, expected.table)


@pytest.mark.parametrize("method", [*BY_TRACE, "quality-ranks", "best-of-n"])
@given(drawn=SIGNALS, times=st.sampled_from([2, 4]))
def test_duplicates_scale(method: str, drawn: list[tuple[str | None, float, list[float]]], times: int) -> None:
    once = vote(with_signals(drawn), method)
    repeated = vote(with_signals(drawn * times), method)
    shares = {row.answer: row.share for row in once.table}
    assert {row.answer: row.share for row in repeated.table} == pytest.approx(shares)
    assert [row.votes for row in repeated.table] == [times * row.votes for row in once.table]


@given(ballots=BALLOTS)
def test_zero_weight_never_wins_unless_alone(ballots: list[tuple[str | None, float]]) -> None:
    result = vote(answers(*(a for a, _ in ballots)), fixed([w for _, w in ballots]))
    if any(row.weight > 0 for row in result.table):
        assert result.table[0].weight > 0


@given(ballots=BALLOTS, weight=WEIGHTS)
def test_a_vote_for_the_winner_never_dethrones_it(ballots: list[tuple[str | None, float]], weight: float) -> None:
    given_answers, weights = [a for a, _ in ballots], [w for _, w in ballots]
    winner = vote(answers(*given_answers), fixed(weights)).answer
    if winner is not None:
        after = vote(answers(*given_answers, winner), fixed([*weights, weight]))
        assert after.choices[-1] == 0


@pytest.mark.parametrize("method", [*BY_TRACE, "best-of-n"])
@given(drawn=SIGNALS, score=SCORES, confidence=st.lists(st.floats(0, 40, width=32), max_size=6))
def test_a_vote_for_a_methods_winner_never_dethrones_it(
    method: str,
    drawn: list[tuple[str | None, float, list[float]]],
    score: float,
    confidence: list[float],
) -> None:
    winner = vote(with_signals(drawn), method).answer
    if winner is not None:
        assert vote(with_signals([*drawn, (winner, score, confidence)]), method).choices[-1] == 0


@given(ballots=BALLOTS)
def test_shares_sum_to_one(ballots: list[tuple[str | None, float]]) -> None:
    result = vote(answers(*(a for a, _ in ballots)), fixed([w for _, w in ballots]))
    total = sum(row.share for row in result.table)
    assert total == pytest.approx(1.0 if sum(row.weight for row in result.table) > 0 else 0.0)


def test_recorded_measures_stand_in_for_the_confidences_they_were_taken_of() -> None:
    confidence = np.array([3.0, 1.0, 2.0, 8.0, 5.0], np.float32)
    recorded = {"window": 2, "mean": 3.8, "tail": 6.5, "bottom_window": 1.5, "lowest_window": 1.5}
    with_tokens = Trace("q", 0, answer="1", confidence=confidence)
    with_measures = Trace("q", 0, answer="1", meta={"deepconf": recorded})
    for method, options in [
        ("deepconf", {"window": 2}),
        ("deepconf-mean", {}),
        ("deepconf-tail", {"tail": 2}),
        ("deepconf-lowest", {"window": 2}),
    ]:
        expected = vote([with_tokens], method, **options).weights
        assert vote([with_measures], method, **options).weights == pytest.approx(expected)
    with pytest.raises(ValueError, match="wants windows of 3 tokens, and .* was measured with 2"):
        vote([with_measures], "deepconf", window=3)
    with pytest.raises(ValueError, match="needs Trace.confidence"):
        vote([with_measures], "deepconf", window=2, share=0.5)
