"""DeepConf's confidence measures of a trace, from its per-token confidences.

A token's confidence is ``C_i = -(1/k) * sum of the top-k log-probabilities`` (natural log): high when
the model sees one continuation, low when it sees many. A trace is judged by the mean of all its tokens,
of its last tokens, or of its weakest sliding windows ("groups").

Definitions: "Deep Think with Confidence", arXiv 2508.15260, section 3, and its code
(https://github.com/facebookresearch/deepconf, ``deepconf/utils.py``), edge cases included: a trace
shorter than the window counts as one window, and a trace without tokens measures 0. Every window mean is
the difference of two cumulative sums, so a trace costs O(tokens) whatever the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arrol_tts.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW = 2048
"""Tokens in a sliding window, and in the tail, as DeepConf publishes them."""
BOTTOM_SHARE = 0.1
"""Share of the windows that counts as the bottom."""


@dataclass(frozen=True, slots=True)
class Measures:
    """All measures of several traces, each float64 ``[num_traces]``."""

    mean: NDArray[np.float64]
    tail: NDArray[np.float64]
    bottom_window: NDArray[np.float64]
    lowest_window: NDArray[np.float64]


def mean(confidence: NDArray[np.floating[Any]]) -> float:
    """Mean confidence of all tokens; 0 for no tokens.

    Args:
        confidence: per-token confidences, ``[num_tokens]``.

    Raises:
        InputError: not one-dimensional, or a value is negative, infinite or NaN.
    """
    return _tail(_cumulative(confidence), None)


def tail(confidence: NDArray[np.floating[Any]], n: int = WINDOW) -> float:
    """Mean confidence of the last ``n`` tokens (of all, when there are fewer); 0 for no tokens.

    Raises:
        InputError: as `mean`, or ``n < 1``.
    """
    _check_positive("n", n)
    return _tail(_cumulative(confidence), n)


def group_confidence(confidence: NDArray[np.floating[Any]], window: int = WINDOW) -> NDArray[np.float64]:
    """Mean confidence of every sliding window, float64 ``[max(1, num_tokens - window + 1)]``.

    Fewer tokens than the window make one group of all of them; no tokens make one group of 0.

    Raises:
        InputError: as `mean`, or ``window < 1``.
    """
    _check_positive("window", window)
    return _groups(_cumulative(confidence), window)


def bottom_window(
    confidence: NDArray[np.floating[Any]], window: int = WINDOW, share: float = BOTTOM_SHARE
) -> float:
    """Mean of the lowest ``share`` of the sliding windows, of at least one (bottom 10% in DeepConf).

    Raises:
        InputError: as `group_confidence`, or ``share`` outside (0, 1].
    """
    _check_share("share", share)
    return _bottom(group_confidence(confidence, window), share)


def lowest_window(confidence: NDArray[np.floating[Any]], window: int = WINDOW) -> float:
    """Confidence of the weakest sliding window; errors as `group_confidence`."""
    return float(group_confidence(confidence, window).min())


def measures(
    confidences: Sequence[NDArray[np.floating[Any]]] | NDArray[np.floating[Any]],
    *,
    window: int = WINDOW,
    tail: int = WINDOW,
    share: float = BOTTOM_SHARE,
) -> Measures:
    """All measures of several traces, from one cumulative sum a trace.

    Args:
        confidences: one array ``[num_tokens]`` a trace (lengths may differ), or ``[num_traces, num_tokens]``.
        window: tokens in a sliding window.
        tail: tokens in the tail.
        share: share of the windows that is the bottom.

    Raises:
        InputError: as the single measures; the message names the trace.
    """
    _check_positive("window", window)
    _check_positive("tail", tail)
    _check_share("share", share)
    # Row by row: one trace's sums stay in the cache, and memory does not grow with the batch.
    table = np.empty((4, len(confidences)))
    for i, confidence in enumerate(confidences):
        cumulative = _cumulative(confidence, f" of trace {i}")
        groups = _groups(cumulative, window)
        # The minimum first: _bottom reorders the groups in place.
        table[:, i] = _tail(cumulative, None), _tail(cumulative, tail), 0.0, groups.min()
        table[2, i] = _bottom(groups, share)
    return Measures(*table)


def _cumulative(confidence: NDArray[np.floating[Any]], of: str = "") -> NDArray[np.float64]:
    """Checked cumulative sum with a leading 0, ``[num_tokens + 1]``.

    float64: in float32 the difference of two sums over 30,000 tokens keeps only about 3 digits.
    """
    confidence = np.asarray(confidence)
    if confidence.ndim != 1:
        raise InputError(f"confidence{of} has shape {confidence.shape}; it must be [num_tokens]")
    cumulative = np.zeros(len(confidence) + 1)
    with np.errstate(invalid="ignore"):  # inf - inf; reported below
        np.cumsum(confidence, dtype=np.float64, out=cumulative[1:])
    if not np.isfinite(cumulative[-1]) or (len(confidence) and confidence.min() < 0):
        bad = int(np.flatnonzero(~(np.isfinite(confidence) & (confidence >= 0)))[0])
        raise InputError(
            f"confidence{of} is {confidence[bad]} at token {bad}; a mean negative log-probability is "
            "finite and not negative (drop log-probabilities of -inf before averaging)"
        )
    return cumulative


def _tail(cumulative: NDArray[np.float64], n: int | None) -> float:
    num_tokens = len(cumulative) - 1
    n = num_tokens if n is None else min(n, num_tokens)
    return float(cumulative[-1] - cumulative[num_tokens - n]) / n if n else 0.0


def _groups(cumulative: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    num_tokens = len(cumulative) - 1
    if num_tokens < window:
        return np.array([_tail(cumulative, None)])
    groups: NDArray[np.float64] = cumulative[window:] - cumulative[:-window]
    groups /= window
    return groups


def _bottom(groups: NDArray[np.float64], share: float) -> float:
    # int() truncates, as DeepConf's count does.
    count = max(1, int(len(groups) * share))
    if count < len(groups):
        groups.partition(count - 1)
    return float(groups[:count].mean())


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} is {value}; it must be at least 1 token")


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise InputError(f"{name} is {value}; it must be in (0, 1]")
