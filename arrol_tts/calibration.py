"""Calibration: scores and votes as probabilities that can be taken at their word.

Fitting uses scikit-learn; what is fitted is a handful of plain numbers, applied with numpy alone and
stored as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from arrol_tts.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from arrol_tts.voting import VoteResult

FEATURES = ("share", "margin", "agreement", "log_effective_votes")
"""What `AnswerCalibration` reads of a vote, see `vote_features`."""


def sigmoid(x: ArrayLike) -> NDArray[np.float64]:
    """``1 / (1 + exp(-x))``, element by element, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(x, dtype=np.float64))))


def logit(probability: ArrayLike, eps: float = 1e-6) -> NDArray[np.float64]:
    """``log(p / (1 - p))``, element by element, with p clipped to [eps, 1 - eps] so that it is finite."""
    p = np.clip(np.asarray(probability, dtype=np.float64), eps, 1 - eps)
    return np.asarray(np.log(p) - np.log1p(-p))


def platt_scale(logits: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Fit ``P(right) = sigmoid(a * logit + b)`` by maximum likelihood.

    Labels are smoothed to (n1 + 1) / (n1 + 2) and 1 / (n0 + 2) as in Platt, "Probabilistic Outputs for
    Support Vector Machines" (1999), which keeps a and b finite on perfectly separated data.

    Args:
        logits: uncalibrated log-odds, ``[num_traces]``.
        labels: whether each trace is right, ``[num_traces]``.

    Returns:
        ``(a, b)``; apply them with ``sigmoid(a * logits + b)``.

    Raises:
        InputError: lengths differ, a logit is not finite, or the labels are all the same.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = _check_sample(logits, labels)
    num_right = int(y.sum())
    target = np.where(y, (num_right + 1) / (num_right + 2), 1 / (len(y) - num_right + 2))
    # A soft label is two weighted hard ones.
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
        np.concatenate([x, x])[:, None],
        np.repeat([True, False], len(x)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def isotonic(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit the non-decreasing curve from score to probability with the least squared error.

    Args:
        scores: any increasing sign of being right, ``[num_traces]``.
        labels: whether each trace is right, ``[num_traces]``.

    Returns:
        ``(thresholds, probabilities)``, increasing and non-decreasing float64 ``[num_steps]``; apply them
        with ``np.interp(scores, thresholds, probabilities)``, which is flat outside the thresholds.

    Raises:
        InputError: as `platt_scale`.
    """
    from sklearn.isotonic import IsotonicRegression

    x, y = _check_sample(scores, labels)
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(x, y)
    return np.asarray(model.X_thresholds_, np.float64), np.asarray(model.y_thresholds_, np.float64)


def vote_features(result: VoteResult) -> NDArray[np.float64]:
    """`FEATURES` of a vote in which somebody answered, float64 ``[4]``.

    share: the winner's part of the weight; margin: that less the runner-up's; agreement: the winner's part
    of the votes; log_effective_votes: log(1 + n) of Kish's effective number of votes,
    n = (sum of weights)^2 / sum of squared weights.
    """
    shares = [row.share for row in result.table[:2]] + [0.0]
    agreement = result.table[0].votes / sum(row.votes for row in result.table)
    squares = math.fsum(w * w for w in result.weights)
    effective = math.fsum(result.weights) ** 2 / squares if squares else 0.0
    return np.array([shares[0], shares[0] - shares[1], agreement, math.log1p(effective)])


@dataclass(frozen=True, slots=True)
class AnswerCalibration:
    """The probability that the winner of a vote is right: a logistic model on `vote_features`.

    Fit it on questions with known answers, some of which the vote gets wrong (errors are what it learns
    from: with a handful of them it is noise), then pass it to `arrol_tts.vote`.

    Attributes:
        method: the voting method it was fitted on; shares of another method mean something else.
        coefficients: one a feature, in the order of `FEATURES`.
        intercept: the constant term.
        thresholds: for isotonic calibration, log-odds at which ``probabilities`` are given; else empty.
        probabilities: the isotonic probabilities at ``thresholds``; else empty.

    Raises:
        InputError: when there is not one coefficient a feature, not one probability a threshold, or a number that
            is not finite.
    """

    method: str
    coefficients: tuple[float, ...]
    intercept: float
    thresholds: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, count in (("coefficients", len(FEATURES)), ("probabilities", len(self.thresholds))):
            if len(getattr(self, name)) != count:
                raise InputError(f"the calibration has {len(getattr(self, name))} {name}, and needs {count}")
        if not np.isfinite([self.intercept, *self.coefficients, *self.thresholds, *self.probabilities]).all():
            raise InputError("the calibration has a number that is not finite: fit it again")

    @classmethod
    def fit(
        cls,
        results: Sequence[VoteResult],
        correct: Sequence[bool] | None = None,
        *,
        kind: Literal["platt", "isotonic"] = "platt",
    ) -> AnswerCalibration:
        """Fit on votes of one method.

        Args:
            results: one vote a question; those nobody answered are left out.
            correct: whether each winner (``table[0]``, abstained or not) is right; by default
                ``VoteResult.correct``, from the labels of the traces.
            kind: ``platt``, the logistic model itself; ``isotonic``, a monotone curve on top of it, for
                some hundred questions and more.

        Raises:
            InputError: an unknown kind, several voting methods, a missing label, or only right or only
                wrong winners.
        """
        from sklearn.linear_model import LogisticRegression

        if kind not in ("platt", "isotonic"):
            raise InputError(f"kind is {kind!r}; it must be 'platt' or 'isotonic'")
        labels = [r.correct for r in results] if correct is None else list(correct)
        if len(labels) != len(results):
            raise InputError(f"{len(results)} results and {len(labels)} labels; give one label a result")
        voted = []
        for result, label in zip(results, labels, strict=True):
            if label is None and result.table:
                raise InputError(
                    f"question {result.question_id!r} has no label; pass correct=, or set Trace.correct"
                )
            if result.table:
                voted.append((result, bool(label)))
        methods = sorted({result.method for result, _ in voted})
        if len(methods) > 1:
            raise InputError(f"the results mix voting methods {', '.join(methods)}; fit one calibration each")
        _check_labels([label for _, label in voted])

        x = np.array([vote_features(result) for result, _ in voted])
        y = np.array([label for _, label in voted], dtype=bool)
        # Standardised, so that the penalty, which few questions need, treats the features alike.
        center, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale < 1e-12] = 1.0
        model = LogisticRegression(C=1.0, max_iter=1000).fit((x - center) / scale, y)
        coefficients = model.coef_[0] / scale
        intercept = float(model.intercept_[0] - coefficients @ center)
        thresholds, probabilities = (
            isotonic(x @ coefficients + intercept, y) if kind == "isotonic" else (np.empty(0), np.empty(0))
        )
        return cls(
            methods[0],
            tuple(coefficients.tolist()),
            intercept,
            tuple(thresholds.tolist()),
            tuple(probabilities.tolist()),
        )

    def probability(self, result: VoteResult) -> float:
        """Probability that ``result.table[0]`` is right; 0 when nobody answered.

        Raises:
            InputError: the vote used another method than the calibration was fitted on.
        """
        self.check(result.method)
        if not result.table:
            return 0.0
        log_odds = float(vote_features(result) @ np.array(self.coefficients)) + self.intercept
        if self.thresholds:
            return float(np.interp(log_odds, self.thresholds, self.probabilities))
        return float(sigmoid(log_odds))

    def check(self, method: str) -> None:
        """Refuse votes of another method than it was fitted on.

        Raises:
            InputError: naming both.
        """
        if method != self.method:
            raise InputError(
                f"this calibration was fitted on votes by {self.method!r} and does not hold for "
                f"{method!r}; fit one on {method!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-serialisable numbers, for `from_dict`."""
        return {"features": list(FEATURES), **asdict(self)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> AnswerCalibration:
        """Restore from `to_dict`, also after a round trip through JSON.

        Raises:
            InputError: the state lists other features than this version reads, lacks a field, or holds what is no
                calibration.
        """
        if tuple(state.get("features", ())) != FEATURES:
            raise InputError(
                f"the stored calibration reads features {state.get('features')}, this version reads "
                f"{list(FEATURES)}; fit it again"
            )
        lists = ("coefficients", "thresholds", "probabilities")
        try:
            method, intercept = str(state["method"]), float(state["intercept"])
            numbers = {name: tuple(map(float, state[name])) for name in lists}
        except KeyError as error:
            raise InputError(f"the stored calibration lacks {error}; write it with to_dict") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"the stored calibration is none ({error}); write it with to_dict") from error
        return cls(method, intercept=intercept, **numbers)


def _check_sample(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(f"scores and labels have shapes {x.shape} and {y.shape}; both must be [num_traces]")
    if not np.isfinite(x).all():
        raise InputError(f"the score at index {int(np.flatnonzero(~np.isfinite(x))[0])} is not finite")
    _check_labels(y)
    return x, y


def _check_labels(labels: ArrayLike) -> None:
    y = np.asarray(labels, dtype=bool)
    if len(y) == 0 or y.all() or not y.any():
        kind = "missing" if len(y) == 0 else f"all {bool(y[0])}"
        raise InputError(f"the labels are {kind}; calibration needs both right and wrong examples")
