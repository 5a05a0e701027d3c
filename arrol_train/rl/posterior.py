"""From a head's score to the posterior probability that the rollout ends right.

Two curves with one interface: the histograms of the paper and isotonic regression. What is fitted is a few
plain lists, stored as JSON. Before anything was seen, both say 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arrol_tts.errors import InputError

Floats = NDArray[np.float64]
Corners = tuple[tuple[float, ...], tuple[float, ...]]
"""Scores, which ascend, and as many probabilities; see `arrol_tts.stopping.KeepSubset`."""


class Posterior(Protocol):
    """A curve from score to probability."""

    def fit(self, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Fit to scores in [0, 1], labels 0/1 and non-negative weights, ``[n]`` each."""

    def __call__(self, scores: ArrayLike) -> Floats:
        """Probabilities of being right: float64 ``[n]``."""

    def corners(self) -> Corners:
        """The same curve as its corners, between which it is linear: how it travels into an engine."""

    def state_dict(self) -> dict[str, Any]:
        """What was fitted, as JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


class HistogramPosterior:
    """Bayes' rule over histograms of the scores of right and wrong rollouts.

    ``P(b | right) = (c_b + alpha) / (sum c + alpha B)``, likewise for wrong, and
    ``q = pi P(b | right) / (pi P(b | right) + (1 - pi) P(b | wrong))``, pi being the share of right rollouts.

    Args:
        bins: B, equal-width bins of [0, 1].
        alpha: smoothing count of each bin.

    Source: arXiv 2603.24840, calibrated posterior.
    """

    def __init__(self, bins: int = 20, alpha: float = 1.0) -> None:
        if bins < 1 or alpha <= 0:
            raise InputError(f"bins is {bins} and alpha {alpha}; there must be a bin, and alpha above 0")
        self.bins = bins
        self.alpha = alpha
        self.right: Floats = np.zeros(bins)
        self.wrong: Floats = np.zeros(bins)

    def fit(self, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Count; see `Posterior`.

        Raises:
            InputError: as `check_rows`.
        """
        x, y, w = check_rows(scores, labels, weights)
        bin_of = self._bin(x)
        self.right = np.bincount(bin_of, w * y, self.bins).astype(np.float64)
        self.wrong = np.bincount(bin_of, w * (1 - y), self.bins).astype(np.float64)

    def __call__(self, scores: ArrayLike) -> Floats:
        """Probabilities of being right: float64 ``[n]``."""
        return self._levels()[self._bin(np.asarray(scores, np.float64))]

    def corners(self) -> Corners:
        """Two a bin: its lowest and its highest number, so that nothing lies between it and the next."""
        edges = np.arange(self.bins + 1) / self.bins
        ends = [*np.nextafter(edges[1:-1], 0).tolist(), 1.0]
        scores = tuple(each for bin_ in zip(edges[:-1].tolist(), ends, strict=True) for each in bin_)
        return scores, tuple(self._levels().repeat(2).tolist())

    def _levels(self) -> Floats:
        """The probability in each bin: float64 ``[bins]``."""
        right, wrong = self.right.sum(), self.wrong.sum()
        share = right / (right + wrong) if right + wrong else 0.5
        given_right = (self.right + self.alpha) / (right + self.alpha * self.bins)
        given_wrong = (self.wrong + self.alpha) / (wrong + self.alpha * self.bins)
        levels: Floats = share * given_right / (share * given_right + (1 - share) * given_wrong)
        return levels

    def _bin(self, scores: Floats) -> NDArray[np.int64]:
        return np.clip((scores * self.bins).astype(np.int64), 0, self.bins - 1)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"alpha": self.alpha, "right": self.right.tolist(), "wrong": self.wrong.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the counts of `state_dict`."""
        self.alpha = float(state["alpha"])
        self.right, self.wrong = np.array(state["right"]), np.array(state["wrong"])
        self.bins = len(self.right)


class IsotonicPosterior:
    """The non-decreasing curve with the least squared error (isotonic regression).

    Probabilities stay within 1 / (n + 2) and its complement: n rollouts can say no more.
    """

    def __init__(self) -> None:
        self.thresholds: Floats = np.zeros(1)
        self.probabilities: Floats = np.full(1, 0.5)

    def fit(self, scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Fit; see `Posterior`.

        Raises:
            InputError: as `check_rows`.
        """
        from sklearn.isotonic import IsotonicRegression

        x, y, w = check_rows(scores, labels, weights)
        margin = 1 / (len(x) + 2)
        model = IsotonicRegression(y_min=margin, y_max=1 - margin).fit(x, y, sample_weight=w)
        self.thresholds = np.asarray(model.X_thresholds_, np.float64)
        self.probabilities = np.asarray(model.y_thresholds_, np.float64)

    def __call__(self, scores: ArrayLike) -> Floats:
        """Probabilities of being right: float64 ``[n]``."""
        return np.interp(np.asarray(scores, np.float64), self.thresholds, self.probabilities)

    def corners(self) -> Corners:
        """What was fitted."""
        return tuple(self.thresholds.tolist()), tuple(self.probabilities.tolist())

    def state_dict(self) -> dict[str, Any]:
        """The curve's corners."""
        return {"thresholds": self.thresholds.tolist(), "probabilities": self.probabilities.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the corners of `state_dict`."""
        self.thresholds, self.probabilities = np.array(state["thresholds"]), np.array(state["probabilities"])


POSTERIORS: dict[str, Callable[[], Posterior]] = {"histogram": HistogramPosterior, "isotonic": IsotonicPosterior}
"""``{name: make}``."""


def check_rows(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> tuple[Floats, Floats, Floats]:
    """Scores, labels and weights as float64 ``[n]``.

    Raises:
        InputError: no rows, lengths that differ, scores outside [0, 1], labels other than 0 and 1, weights
            that are negative or not finite.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    w = np.ones(x.shape) if weights is None else np.asarray(weights, np.float64)
    if x.ndim != 1 or not len(x) or not x.shape == y.shape == w.shape:
        raise InputError(
            f"scores, labels and weights have shapes {x.shape}, {y.shape}, {w.shape}; "
            "give one of each per rollout, and at least one"
        )
    if not ((x >= 0) & (x <= 1)).all():
        raise InputError("scores must lie in [0, 1]")
    if not np.isin(y, (0.0, 1.0)).all():
        raise InputError("labels must be 0/1: threshold a graded reward first (score >= 1.0)")
    if not np.isfinite(w).all() or (w < 0).any():
        raise InputError("weights must be finite and not negative")
    return x, y, w
