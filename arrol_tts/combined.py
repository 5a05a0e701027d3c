"""The combined method: learns from recorded traces how to weigh score, confidence, agreement and length.

A trace weighs ``exp(theta . x)``, and theta maximises the log of the weight share that right traces hold,
averaged over questions: a conditional logit (McFadden, 1974) in which a question chooses among its traces.
Against a logistic regression of right and wrong over all traces, this fits the vote itself: what makes a
whole question hard cancels out, weights may differ as much as the signals deserve, and agreement is not
counted twice, because a negative weight on it can undo that each vote counts already.

A combination of signals of which few say something can be worse than the one that does. So the fit shrinks
towards its best part (the majority, or one signal alone), as far as cross-validation asks for: it leaves that part
only for a gain in held-out likelihood that exceeds its standard error.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from arrol_tts.answers import Equality, PercentSign, group_answers
from arrol_tts.calibration import logit
from arrol_tts.confidence import WINDOW, measures
from arrol_tts.errors import InputError
from arrol_tts.voting import VoteResult, answered, linear_ranks, vote

if TYPE_CHECKING:
    from arrol_tts.trace import Trace

FEATURES: Mapping[str, tuple[str, ...]] = {
    "scores": ("score_log_odds", "score_rank"),
    "confidence": ("mean", "tail", "bottom_window", "lowest_window"),
    "agreement": ("log_share",),
    "length": ("log_num_tokens",),
    "finish": ("finished",),
}
"""Features by the signal they are read from, see `trace_features`."""
PENALTIES = (100.0, 10.0, 1.0)
"""Tried in `fit_combined`, the strongest first."""
FOLDS = 5
"""Of the cross-validation that chooses among them."""


def trace_features(
    traces: Sequence[Trace],
    signals: Sequence[str],
    *,
    window: int = WINDOW,
    tail: int = WINDOW,
    equality: Equality = "math",
    percent: PercentSign = "fraction",
) -> NDArray[np.float64]:
    """Features of a question's voting traces, float64 ``[num_traces, num_features]``.

    scores: log-odds of the last score, and its rank mapped to [0, 1]; confidence: DeepConf's four measures,
    standardised within the question; agreement: log of the share of the traces that give the same answer;
    length: log of the tokens, standardised within the question; finish: 1 where a trace ended by itself.

    Args:
        traces: the voting traces of one question.
        signals: keys of `FEATURES`; their features come in that order.
        window: tokens in a sliding window of the confidence measures.
        tail: tokens in their tail.
        equality, percent: what makes two answers the same, see `arrol_tts.vote`.

    Raises:
        InputError: an unknown signal, or one that a trace lacks.
    """
    columns: list[NDArray[np.float64]] = []
    for signal in signals:
        if signal not in FEATURES:
            raise InputError(f"unknown signal {signal!r}; choose from {', '.join(FEATURES)}")
        for trace in traces:
            if not _carries(trace, signal):
                raise InputError(
                    f"the combined method reads the signal {signal!r}, and sample {trace.sample_id} of "
                    f"question {trace.question_id!r} has none; record it, or fit without it (signals=)"
                )
        match signal:
            case "scores":
                log_odds = logit([trace.score or 0.0 for trace in traces])
                columns += [log_odds, linear_ranks(log_odds)]
            case "confidence":
                recorded = [trace.confidence for trace in traces if trace.confidence is not None]
                found = measures(recorded, window=window, tail=tail)
                columns += [_standardise(getattr(found, name)) for name in FEATURES[signal]]
            case "agreement":
                groups = group_answers([trace.answer for trace in traces], equality=equality, percent=percent)
                votes = Counter(groups)
                columns.append(np.log([votes[group] / len(traces) for group in groups]))
            case "length":
                columns.append(_standardise(np.log([trace.num_tokens for trace in traces])))
            case "finish":
                columns.append(np.array([float(trace.finish_reason == "stop") for trace in traces]))
    return np.stack(columns, axis=1)


@dataclass(frozen=True, slots=True)
class CombinedVoter:
    """A fitted combined method: pass it to `arrol_tts.vote` as the method.

    Attributes:
        signals: the signals it reads, keys of `FEATURES`.
        coefficients: one a feature.
        window: tokens in a sliding window of the confidence measures.
        tail: tokens in their tail.
        towards: the part that it was shrunk towards: a signal, or ``majority``; "" when none was chosen.
        cross_validation: what `fit_combined` measured on held-out questions.
        equality, percent: what makes two answers agree, as it was fitted; a vote with it wants the same.
    """

    signals: tuple[str, ...]
    coefficients: tuple[float, ...]
    window: int = WINDOW
    tail: int = WINDOW
    towards: str = ""
    cross_validation: dict[str, float] = field(default_factory=dict)
    equality: Equality = "math"
    percent: PercentSign = "fraction"

    @property
    def name(self) -> str:
        """The method's name in a `VoteResult`."""
        return "combined"

    def __call__(self, traces: Sequence[Trace]) -> NDArray[np.float64]:
        """Weights of a question's voting traces, float64 ``[num_traces]``, the largest 1."""
        features = trace_features(
            traces,
            self.signals,
            window=self.window,
            tail=self.tail,
            equality=self.equality,
            percent=self.percent,
        )
        utility = features @ np.array(self.coefficients)
        return np.asarray(np.exp(utility - utility.max()))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-serialisable values, for `from_dict`.

        Raises:
            InputError: the equality is a function, which cannot be written down.
        """
        if callable(self.equality):
            raise InputError("this voter's equality is a function, which cannot be stored; name one to store it")
        return {"features": [f for s in self.signals for f in FEATURES[s]], **asdict(self)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> CombinedVoter:
        """Restore from `to_dict`, also after a round trip through JSON.

        Raises:
            InputError: a field is missing, or the features are not those this version reads.
        """
        try:
            signals = tuple(state["signals"])
            expected = [f for s in signals for f in FEATURES.get(s, ())]
            if list(state["features"]) != expected or len(state["coefficients"]) != len(expected):
                raise InputError(
                    f"the stored voter reads features {state['features']}, this version reads {expected}; "
                    "fit it again"
                )
            return cls(
                signals,
                tuple(map(float, state["coefficients"])),
                int(state["window"]),
                int(state["tail"]),
                state.get("towards", ""),
                dict(state["cross_validation"]),
                state.get("equality", "math"),
                state.get("percent", "fraction"),
            )
        except KeyError as error:
            raise InputError(f"the stored voter lacks {error}; write it with to_dict") from error


def fit_combined(
    questions: Sequence[Sequence[Trace]],
    *,
    signals: Sequence[str] | None = None,
    window: int = WINDOW,
    tail: int = WINDOW,
    penalty: float | None = None,
    folds: int = 5,
    seed: int = 0,
    equality: Equality = "math",
    percent: PercentSign = "fraction",
) -> CombinedVoter:
    """Fit the combined method on recorded questions with ``Trace.correct`` set.

    Args:
        questions: the traces of each question; those without an answer are passed over.
        signals: keys of `FEATURES`; by default all that every voting trace carries.
        window: tokens in a sliding window of the confidence measures.
        tail: tokens in their tail.
        penalty: strength of the ridge penalty on the coefficients of the scaled features, towards 0. None: towards
            the best part, and as strong as cross-validation over the mixed questions says, of which there must be
            ten; with fewer it is 1, towards 0.
        folds: parts the questions are dealt into for `cross_val_vote`; 0 skips cross-validation.
        seed: seed of the dealing.
        equality, percent: what makes two answers the same, see `arrol_tts.vote`.

    Returns:
        The voter; its ``cross_validation`` holds ``questions``, ``folds``, and the ``accuracy`` and
        ``majority_accuracy`` of votes on held-out questions.

    Raises:
        InputError: no question has both right and wrong voting traces, a label or a signal is missing, or
            there are fewer questions than folds.
    """
    voters = [[trace for trace in traces if answered(trace)] for traces in questions]
    voters = [traces for traces in voters if traces]
    chosen = _shared_signals(voters) if signals is None else tuple(signals)
    samples = [_sample(v, chosen, window, tail, equality, percent) for v in voters]
    coefficients, towards = _fit(samples, chosen, penalty, seed)
    cross_validation: dict[str, float] = {}
    if folds:
        held_out = cross_val_vote(
            voters,
            signals=chosen,
            window=window,
            tail=tail,
            penalty=penalty,
            folds=folds,
            seed=seed,
            equality=equality,
            percent=percent,
        )
        cross_validation = {
            "questions": len(voters),
            "folds": folds,
            "accuracy": sum(bool(r.correct) for r in held_out) / len(voters),
            "majority_accuracy": sum(bool(vote(v, equality=equality, percent=percent).correct) for v in voters)
            / len(voters),
        }
    fitted = tuple(coefficients.tolist())
    return CombinedVoter(chosen, fitted, window, tail, towards, cross_validation, equality, percent)


def cross_val_vote(
    questions: Sequence[Sequence[Trace]], *, folds: int = 5, seed: int = 0, **fit_options: Any
) -> list[VoteResult]:
    """Vote on each question with a combined method fitted on the other folds' questions only.

    Args:
        questions: the traces of each question.
        folds: parts the questions are dealt into at random.
        seed: seed of the dealing.
        fit_options: as in `fit_combined`.

    Returns:
        One result a question, in the given order.

    Raises:
        InputError: as `fit_combined`.
    """
    if not 2 <= folds <= len(questions):
        raise InputError(
            f"folds is {folds}; it must be from 2 to the number of questions, which is {len(questions)}"
        )
    fold = np.random.default_rng(seed).permutation(len(questions)) % folds
    fitted = [
        fit_combined([q for q, f in zip(questions, fold, strict=True) if f != k], folds=0, **fit_options)
        for k in range(folds)
    ]
    return [
        vote(traces, fitted[k], equality=fitted[k].equality, percent=fitted[k].percent)
        for traces, k in zip(questions, fold, strict=True)
    ]


Sample = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Features ``[num_traces, num_features]`` and labels ``[num_traces]`` of a question."""


def _sample(
    traces: Sequence[Trace],
    signals: Sequence[str],
    window: int,
    tail: int,
    equality: Equality,
    percent: PercentSign,
) -> Sample:
    for trace in traces:
        if trace.correct is None:
            raise InputError(
                f"sample {trace.sample_id} of question {trace.question_id!r} has no label; set Trace.correct"
            )
    labels = np.array([trace.correct for trace in traces], dtype=bool)
    features = trace_features(traces, signals, window=window, tail=tail, equality=equality, percent=percent)
    return features, labels


def _fit(
    samples: Sequence[Sample], signals: Sequence[str], penalty: float | None, seed: int
) -> tuple[NDArray[np.float64], str]:
    """The coefficients, and the part that they were shrunk towards."""
    # The share of right traces is fixed at 0 or 1 where all are wrong or right: nothing to learn.
    samples = [(x, y) for x, y in samples if y.any() and not y.all()]
    if not samples:
        raise InputError("no question has both right and wrong voting traces; there is nothing to learn from")
    scale = np.concatenate([x - x.mean(axis=0) for x, _ in samples]).std(axis=0)
    scale[scale < 1e-12] = 1.0
    samples = [(x / scale, y) for x, y in samples]
    zero = np.zeros(len(scale))
    if penalty is not None or len(samples) < 2 * FOLDS:
        return _maximise(samples, 1.0 if penalty is None else penalty, zero) / scale, ""
    named = [signal for signal in signals for _ in FEATURES[signal]]
    columns = {"majority": np.array([], int)}
    columns |= {signal: np.flatnonzero(np.array(named) == signal) for signal in signals}
    towards, strength = _choose(samples, columns, seed)
    part = _part(samples, columns[towards])
    return (part if math.isinf(strength) else _maximise(samples, strength, part)) / scale, towards


def _choose(samples: Sequence[Sample], columns: Mapping[str, NDArray[np.int64]], seed: int) -> tuple[str, float]:
    """The part with the largest held-out likelihood, and how strongly to shrink towards it."""
    fold = np.random.default_rng(seed).permutation(len(samples)) % FOLDS
    parts = {name: np.empty(len(samples)) for name in columns}
    whole = {(name, penalty): np.empty(len(samples)) for name in columns for penalty in PENALTIES}
    for k in range(FOLDS):
        fit = [sample for sample, f in zip(samples, fold, strict=True) if f != k]
        held_out = _Stacked([sample for sample, f in zip(samples, fold, strict=True) if f == k])
        for name in columns:
            start = _part(fit, columns[name])
            parts[name][fold == k] = held_out.log_shares(start)
            for penalty in PENALTIES:
                whole[name, penalty][fold == k] = held_out.log_shares(_maximise(fit, penalty, start))
    best = max(parts, key=lambda name: parts[name].mean())
    # The simplest that is no worse than any by more than a standard error: beyond that it is noise.
    candidates = [("majority", math.inf, parts["majority"]), (best, math.inf, parts[best])]
    candidates += [(best, penalty, whole[best, penalty]) for penalty in PENALTIES]
    top = max((log_shares for *_, log_shares in candidates), key=lambda log_shares: log_shares.mean())
    for towards, penalty, log_shares in candidates:
        behind = top - log_shares
        if behind.mean() <= behind.std() / np.sqrt(len(behind)):
            return towards, penalty
    raise AssertionError("the best is not behind itself")


def _part(samples: Sequence[Sample], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Coefficients of all features of which only some may differ from 0."""
    theta = np.zeros(samples[0][0].shape[1])
    if len(columns):
        theta[columns] = _maximise([(x[:, columns], y) for x, y in samples], 1.0, theta[columns])
    return theta


class _Stacked:
    """Questions stacked, for the share of the weights that right traces hold."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._all = _Segments([x for x, _ in samples])
        self._right = _Segments([x[y] for x, y in samples])

    def log_shares(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log of the share in each question, ``[questions]``."""
        return self._right.log_sums(theta)[0] - self._all.log_sums(theta)[0]

    def loss(self, theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Minus the sum of the log shares, and its gradient."""
        (right, right_gradient), (total, gradient) = self._right.log_sums(theta), self._all.log_sums(theta)
        return float(total.sum() - right.sum()), gradient - right_gradient


class _Segments:
    """Rows of several questions, one after the other."""

    def __init__(self, rows: Sequence[NDArray[np.float64]]) -> None:
        lengths = [len(x) for x in rows]
        self._x, self._starts = np.concatenate(rows), np.cumsum([0, *lengths[:-1]])
        self._question = np.repeat(np.arange(len(rows)), lengths)

    def log_sums(self, theta: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log of the sum of a question's weights, ``[questions]``, and the gradient of their sum."""
        utility = self._x @ theta
        peak = np.maximum.reduceat(utility, self._starts)
        weights = np.exp(utility - peak[self._question])
        total = np.add.reduceat(weights, self._starts)
        return np.log(total) + peak, (weights / total[self._question]) @ self._x


def _maximise(samples: Sequence[Sample], penalty: float, towards: NDArray[np.float64]) -> NDArray[np.float64]:
    """The coefficients with the largest penalised log-likelihood, float64 ``[num_features]``."""
    from scipy.optimize import minimize

    stacked = _Stacked(samples)

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = stacked.loss(theta)
        away = theta - towards
        return value + 0.5 * penalty * float(away @ away), gradient + penalty * away

    return np.asarray(minimize(loss, towards, jac=True, method="L-BFGS-B").x)


def _shared_signals(questions: Sequence[Sequence[Trace]]) -> tuple[str, ...]:
    return tuple(s for s in FEATURES if all(_carries(trace, s) for traces in questions for trace in traces))


def _carries(trace: Trace, signal: str) -> bool:
    match signal:
        case "scores":
            return trace.score is not None
        case "confidence":
            return trace.confidence is not None
        case "length":
            return trace.num_tokens > 0
        case _:
            return True


def _standardise(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Zero mean and unit standard deviation; zeros when all values are equal."""
    scale = values.std()
    return (values - values.mean()) / scale if scale > 1e-12 else np.zeros(len(values))
