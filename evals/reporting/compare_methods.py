"""Every voting method on the same recorded samples: accuracies, paired tests, calibration, curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrol_tts import metrics, voting
from arrol_tts.answers import Equality, PercentSign
from arrol_tts.calibration import AnswerCalibration
from arrol_tts.combined import cross_val_vote
from arrol_tts.errors import InputError
from arrol_tts.replay import equal_tokens
from arrol_tts.trace import FINISH_REASONS, Trace
from arrol_tts.voting import METHODS, VoteResult
from arrol_tts.waves import Waves, replay_waves

from .figures import EACH_BY_ITSELF
from .recorded_questions import Questions

Interval = tuple[float, float]

COMBINED = "combined"
"""Not in the registry: it is fitted, here on the other folds' questions."""

FOLDS = 5


@dataclass(frozen=True, slots=True)
class QuestionOutcome:
    """What a method made of one question; ``correct`` is None when the question has no reference."""

    question_id: str
    answer: str | None
    confidence: float
    correct: bool | None


@dataclass(frozen=True, slots=True)
class WavesReport:
    """A method in waves over the same traces, replayed in the order of their sample ids.

    Attributes:
        accuracy: over the labelled questions; None without references.
        traces: started a question, mean.
        tokens_share: of the tokens of all traces; None where traces have none.
        equal_tokens: accuracy of the same vote over as many tokens in whole traces, the same number of each
            question; None where traces have no tokens, or the method weighs a trace by the others.
    """

    accuracy: float | None
    traces: float
    tokens_share: float | None
    equal_tokens: float | None


@dataclass(frozen=True, slots=True)
class MethodReport:
    """One method over all questions; figures are None without reference answers or when skipped.

    Attributes:
        method: its name.
        skipped: why it did not vote, such as a signal the traces lack.
        accuracy: share of the labelled questions it gets right, with its 95% Wilson ``interval``.
        gained, lost: questions it alone, and majority alone, gets right; ``p_value`` of the exact
            McNemar test on them.
        brier, ece: of the winner's share of the weight as the probability of being right.
        calibrated_brier, calibrated_ece: the same after calibration on the other folds' questions.
        curve: ``{k: accuracy}`` over random subsets of k traces a question.
        waves: the method in waves, where that was asked for.
        verdicts: question by question.
    """

    method: str
    skipped: str | None = None
    accuracy: float | None = None
    interval: Interval | None = None
    gained: int | None = None
    lost: int | None = None
    p_value: float | None = None
    brier: float | None = None
    ece: float | None = None
    calibrated_brier: float | None = None
    calibrated_ece: float | None = None
    curve: dict[int, float] = field(default_factory=dict)
    waves: WavesReport | None = None
    verdicts: list[QuestionOutcome] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SignalReport:
    """How well a signal tells right from wrong traces, over all and inside questions (nan: unknown)."""

    signal: str
    auroc: float
    within_question_auroc: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All methods on one set of samples.

    Attributes:
        questions, traces: how many there are; ``labelled`` questions have reference answers.
        finish_reasons: traces by finish reason.
        sample_accuracy: mean over questions, with its bootstrap ``sample_interval``, clustered by question.
        pass_at_k: unbiased, mean over questions.
        signals: what there is to weigh votes with.
        methods: best first; skipped ones last.
    """

    questions: int
    traces: int
    labelled: int
    finish_reasons: dict[str, int]
    sample_accuracy: float | None
    sample_interval: Interval | None
    pass_at_k: dict[int, float]
    signals: list[SignalReport]
    methods: list[MethodReport]


def compare_methods(
    questions: Questions,
    methods: Sequence[str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    equality: Equality = "math",
    percent: PercentSign = "fraction",
    curve_subsets: int = 0,
    waves: Waves | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Comparison:
    """Vote with every method on the same traces and compare.

    Args:
        questions: traces by question.
        methods: names; None tries all, and reports those that cannot vote on these traces as skipped.
        options: options of the methods, each passed to the methods that have it.
        equality, percent: what makes two answers one, see `arrol_tts.vote`.
        curve_subsets: random subsets per point of the accuracy curves; 0 draws no curves.
        waves: replays every method but the fitted one in waves, too.
        on_step: called after each method.

    Raises:
        InputError: an unknown method or option, or a named method that cannot vote on these traces.
    """
    options = dict(options or {})
    same: dict[str, Any] = {"equality": equality, "percent": percent}
    names = method_names() if methods is None else list(methods)
    for name in names:
        if name not in method_names():
            raise InputError(f"unknown voting method {name!r}; choose from {', '.join(method_names())}")
    for option in options:
        if not any(option in METHODS[name].options for name in names if name in METHODS):
            raise InputError(f"none of the methods {', '.join(names)} has an option {option!r}")

    if waves is not None:
        waves.check(min(map(len, questions.values())))
    majority = _vote_all(questions, "majority", options, same)
    reports = []
    for name in names:
        try:
            results = majority if name == "majority" else _vote_all(questions, name, options, same)
            curve = _curve(questions, name, options, same, curve_subsets)
        except ValueError as error:
            if methods is not None:
                raise
            reports.append(MethodReport(name, skipped=str(error)))
        else:
            in_waves = None if waves is None else _in_waves(questions, results, name, options, same, waves)
            reports.append(replace(_report(name, results, majority, curve), waves=in_waves))
        on_step()
    reports.sort(key=lambda report: (report.skipped is not None, -(report.accuracy or 0.0)))
    return _summary(questions, reports)


def method_names() -> list[str]:
    """The registered methods and the combined one."""
    return [*METHODS, COMBINED]


def _vote_all(
    questions: Questions, method: str, options: Mapping[str, Any], same: dict[str, Any]
) -> list[VoteResult]:
    if method == COMBINED:
        if not all(_labelled(traces) for traces in questions.values()):
            raise InputError("the combined method is fitted, and needs reference answers")
        return cross_val_vote(list(questions.values()), folds=FOLDS, **same)
    own = _own_options(method, options) | same
    return [voting.vote(traces, method, **own) for traces in questions.values()]


def _own_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in METHODS[method].options}


def _in_waves(
    questions: Questions,
    results: Sequence[VoteResult],
    method: str,
    options: Mapping[str, Any],
    same: dict[str, Any],
    waves: Waves,
) -> WavesReport | None:
    if method == COMBINED:
        return None
    own = _own_options(method, options) | same
    asked = [replay_waves(traces, waves, method=method, **own) for traces in questions.values()]
    right = [
        bool(voting.vote(traces, method, **own).correct)
        for traces, group in zip(asked, questions.values(), strict=True)
        if _labelled(group)
    ]
    tokens, whole = (
        sum(trace.num_tokens for traces in groups for trace in traces) for groups in (asked, questions.values())
    )
    return WavesReport(
        accuracy=float(np.mean(right)) if right else None,
        traces=float(np.mean([len(traces) for traces in asked])),
        tokens_share=tokens / whole if whole else None,
        equal_tokens=_control(asked, results, method),
    )


def _control(asked: Sequence[Sequence[Trace]], results: Sequence[VoteResult], method: str) -> float | None:
    """The equal-token control of what was asked for, over the labelled questions."""
    labelled = [i for i, traces in enumerate(asked) if _labelled(results[i].traces)]
    tokens = sum(trace.num_tokens for i in labelled for trace in asked[i])
    if method not in EACH_BY_ITSELF or not tokens:
        return None
    control = equal_tokens([results[i] for i in labelled], tokens / len(labelled))
    return float(control.accuracy.mean())


def _report(
    name: str, results: Sequence[VoteResult], majority: Sequence[VoteResult], curve: dict[int, float]
) -> MethodReport:
    verdicts = [QuestionOutcome(r.question_id, r.answer, r.confidence, _is_right(r)) for r in results]
    labelled = [i for i, verdict in enumerate(verdicts) if verdict.correct is not None]
    if not labelled:
        return MethodReport(name, verdicts=verdicts)
    right = np.array([verdicts[i].correct for i in labelled], bool)
    confidence = np.array([verdicts[i].confidence for i in labelled])
    test = metrics.mcnemar(right, [bool(_is_right(majority[i])) for i in labelled])
    calibrated = _calibrated([results[i] for i in labelled], right)
    return MethodReport(
        name,
        accuracy=float(right.mean()),
        # One verdict a question: Wilson's interval, unlike the bootstrap, is not a point at 0 or 1.
        interval=metrics.wilson_interval(int(right.sum()), len(right)),
        gained=test.only_first,
        lost=test.only_second,
        p_value=test.p_value,
        brier=metrics.brier(confidence, right),
        ece=metrics.expected_calibration_error(confidence, right),
        calibrated_brier=None if calibrated is None else metrics.brier(calibrated, right),
        calibrated_ece=None if calibrated is None else metrics.expected_calibration_error(calibrated, right),
        curve=curve,
        verdicts=verdicts,
    )


def _labelled(traces: Sequence[Trace]) -> bool:
    """Whether a question's right answer is known, though all of its traces may have been stopped before theirs."""
    return any(trace.correct is not None or trace.meta.get("reference") is not None for trace in traces)


def _is_right(result: VoteResult) -> bool | None:
    """Whether a vote is right; no answer is wrong; None without labels."""
    return bool(result.correct) if _labelled(result.traces) else None


def _calibrated(results: Sequence[VoteResult], right: NDArray[np.bool_]) -> metrics.Floats | None:
    """Probability of each winner from a calibration on the other folds; None where one cannot be fitted."""
    fold = np.random.default_rng(0).permutation(len(results)) % FOLDS
    probabilities = np.zeros(len(results))
    for k in range(FOLDS):
        train = [i for i in np.flatnonzero(fold != k) if results[i].table]
        if len({bool(right[i]) for i in train}) < 2:
            return None
        calibration = AnswerCalibration.fit([results[i] for i in train], [bool(right[i]) for i in train])
        for i in np.flatnonzero(fold == k):
            probabilities[i] = calibration.probability(results[i])
    return probabilities


def _curve(
    questions: Questions, method: str, options: Mapping[str, Any], same: dict[str, Any], subsets: int
) -> dict[int, float]:
    """Mean accuracy of votes over k traces for k = 1, 2, 4, ... and all that every question has."""
    labelled = [traces for traces in questions.values() if _labelled(traces)]
    if not subsets or not labelled or method == COMBINED:
        return {}
    sizes = metrics.curve_sizes(min(map(len, labelled)))
    own = _own_options(method, options) | same

    def accuracies(traces: Sequence[Trace]) -> metrics.Floats:
        def is_right(indices: NDArray[np.intp]) -> float:
            return float(bool(_is_right(voting.vote([traces[i] for i in indices], method, **own))))

        return metrics.curve_of(is_right, len(traces), sizes, subsets=subsets)

    mean = np.mean([accuracies(traces) for traces in labelled], axis=0)
    return dict(zip(sizes, mean.tolist(), strict=True))


def _summary(questions: Questions, reports: list[MethodReport]) -> Comparison:
    traces = [trace for group in questions.values() for trace in group]
    labels = [[bool(t.correct) for t in group] for group in questions.values() if _labelled(group)]
    accuracy = [sum(group) / len(group) for group in labels]
    sizes = metrics.curve_sizes(min(map(len, labels))) if labels else []
    samples, right = [len(group) for group in labels], [sum(group) for group in labels]
    reasons = [trace.finish_reason for trace in traces]
    return Comparison(
        questions=len(questions),
        traces=len(traces),
        labelled=len(labels),
        finish_reasons={name: reasons.count(name) for name in FINISH_REASONS if name in reasons},
        sample_accuracy=float(np.mean(accuracy)) if accuracy else None,
        sample_interval=metrics.bootstrap_interval(accuracy) if accuracy else None,
        pass_at_k={k: float(metrics.pass_at_k(samples, right, k).mean()) for k in sizes},
        signals=_signals(traces),
        methods=reports,
    )


def _signals(traces: Iterable[Trace]) -> list[SignalReport]:
    """The signals that every labelled trace with an answer carries."""
    known = [trace for trace in traces if trace.correct is not None and trace.answer is not None]
    if not known:
        return []
    signals: dict[str, Callable[[Trace], float | None]] = {
        "score": lambda trace: trace.score,
        "mean confidence": _mean_confidence,
        "shortness": lambda trace: -trace.num_tokens or None,
        "finished by itself": lambda trace: float(trace.finish_reason == "stop"),
    }
    correct, questions = [bool(t.correct) for t in known], [t.question_id for t in known]
    reports = []
    for name, read in signals.items():
        values = [value for trace in known if (value := read(trace)) is not None]
        if len(values) == len(known):
            overall = metrics.auroc(correct, values)
            reports.append(SignalReport(name, overall, metrics.within_question_auroc(correct, values, questions)))
    return reports


def _mean_confidence(trace: Trace) -> float | None:
    return None if trace.confidence is None or not len(trace.confidence) else float(trace.confidence.mean())
