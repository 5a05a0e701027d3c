"""The built-in voting methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from arrol_tts import confidence as measures
from arrol_tts.calibration import logit, sigmoid
from arrol_tts.confidence import BOTTOM_SHARE, WINDOW
from arrol_tts.errors import VoteError
from arrol_tts.voting.registry import Weights, register
from arrol_tts.voting.tally import label

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arrol_tts.trace import Trace


@register("majority")
def majority(traces: Sequence[Trace]) -> Weights:
    """One trace, one vote (self-consistency, arXiv 2203.11171)."""
    return np.ones(len(traces))


@register("deepconf", needs=["confidence"])
def deepconf(
    traces: Sequence[Trace],
    *,
    window: int = WINDOW,
    share: float = BOTTOM_SHARE,
    top_share: float | None = None,
) -> Weights:
    """DeepConf: the mean confidence of the weakest 10% of sliding windows (arXiv 2508.15260).

    Options: ``window`` in tokens; ``share`` of the windows that is the bottom; ``top_share`` keeps only
    that share of the traces, the most confident ones (DeepConf: 0.1).
    """
    recorded = ("bottom_window", window) if share == BOTTOM_SHARE else None
    values = _measure(traces, "deepconf", lambda c: measures.bottom_window(c, window, share), recorded)
    return _keep_top(values, top_share)


@register("deepconf-mean", needs=["confidence"])
def deepconf_mean(traces: Sequence[Trace], *, top_share: float | None = None) -> Weights:
    """DeepConf: the mean confidence of all tokens; ``top_share`` as in `deepconf`."""
    values = _measure(traces, "deepconf-mean", measures.mean, ("mean", None))
    return _keep_top(values, top_share)


@register("deepconf-tail", needs=["confidence"])
def deepconf_tail(traces: Sequence[Trace], *, tail: int = WINDOW, top_share: float | None = None) -> Weights:
    """DeepConf: the mean confidence of the last ``tail`` tokens; ``top_share`` as in `deepconf`."""
    values = _measure(traces, "deepconf-tail", lambda c: measures.tail(c, tail), ("tail", tail))
    return _keep_top(values, top_share)


@register("deepconf-lowest", needs=["confidence"])
def deepconf_lowest(traces: Sequence[Trace], *, window: int = WINDOW, top_share: float | None = None) -> Weights:
    """DeepConf: the confidence of the weakest sliding window; ``top_share`` as in `deepconf`."""
    recorded = ("lowest_window", window)
    values = _measure(traces, "deepconf-lowest", lambda c: measures.lowest_window(c, window), recorded)
    return _keep_top(values, top_share)


@register("deepconf-top10", needs=["confidence"])
def deepconf_top10(traces: Sequence[Trace], *, window: int = WINDOW, top_share: float = 0.1) -> Weights:
    """`deepconf` over the most confident tenth of the traces."""
    recorded = ("bottom_window", window)
    values = _measure(traces, "deepconf-top10", lambda c: measures.bottom_window(c, window), recorded)
    return _keep_top(values, top_share)


@register("deepconf-tail-top10", needs=["confidence"])
def deepconf_tail_top10(traces: Sequence[Trace], *, tail: int = WINDOW, top_share: float = 0.1) -> Weights:
    """`deepconf-tail` over the most confident tenth of the traces."""
    values = _measure(traces, "deepconf-tail-top10", lambda c: measures.tail(c, tail), ("tail", tail))
    return _keep_top(values, top_share)


@register("self-certainty", needs=["self_certainty"])
def self_certainty(traces: Sequence[Trace], *, power: float = 0.5) -> Weights:
    """Borda vote by self-certainty: rank r of n counts (n - r + 1) ** power (arXiv 2502.18581).

    Reads ``Trace.meta["self_certainty"]``: the mean over tokens of the divergence between the uniform and
    the model's distribution, ``-mean(log(V * p))`` over the whole vocabulary of V tokens. The top-k
    confidences of DeepConf do not contain it.
    """
    if not power >= 0:
        raise VoteError(f"power is {power}; it must be at least 0")
    values = _require(
        [trace.meta.get("self_certainty") for trace in traces],
        traces,
        "self-certainty",
        'Trace.meta["self_certainty"] (-mean(log(V * p)) over the whole vocabulary)',
        "have the sampler record it, or use deepconf-mean, which needs the top-k log-probabilities only",
    )
    for trace, value in zip(traces, values, strict=True):
        if not math.isfinite(value):
            raise VoteError(f"the self-certainty of {label(trace)} is {value}; it must be finite")
    return np.asarray(_ranks(np.array(values, dtype=np.float64)) ** power)


@register("quality", needs=["scores"])
def quality(
    traces: Sequence[Trace],
    *,
    over: Literal["last", "mean"] = "last",
    odds_power: float | None = None,
    platt: tuple[float, float] | None = None,
    unscored: float | None = None,
) -> Weights:
    """The probability p that the trace is right, by the quality head's last score.

    Options: ``over="mean"`` averages the log-odds of all the trace's scores, since the head knows other
    things at other positions; ``odds_power`` weighs by (p / (1 - p)) ** odds_power instead of p, so that
    few good traces can outweigh many bad ones (p is kept 1e-4 away from 0 and 1); ``platt=(a, b)``
    recalibrates a score s to sigmoid(a * logit(s) + b) (`arrol_tts.calibration.platt_scale`); ``unscored``
    is the score of traces the head never read, such as those that ended before its first position; without
    it they are an error.
    """
    if over not in ("last", "mean"):
        raise VoteError(f"over is {over!r}; it must be 'last' or 'mean'")
    if odds_power is not None and not 0 < odds_power <= 10:
        raise VoteError(f"odds_power is {odds_power}; it must be in (0, 10], or None")
    p = _probabilities(traces, "quality", platt, unscored)
    if over == "mean":
        a, b = platt or (1.0, 0.0)
        every = [a * logit(list(trace.scores.values())) + b for trace in traces]
        p = np.array([sigmoid(e.mean()) if e.size else last for e, last in zip(every, p, strict=True)])
    if odds_power is None:
        return p
    p = np.clip(p, 1e-4, 1 - 1e-4)
    return np.asarray((p / (1 - p)) ** odds_power)


@register("quality-logodds", needs=["scores"])
def quality_logodds(
    traces: Sequence[Trace],
    *,
    platt: tuple[float, float] | None = None,
    unscored: float | None = None,
    wrong_answers: float = 3.0,
) -> Weights:
    """The log-odds that the trace is right, plus the log of how many wrong answers compete with it.

    If traces are independent, right with probability p and otherwise give one of ``wrong_answers`` equally
    likely wrong answers, the likeliest answer has the largest sum of log(p / (1 - p)) + log(wrong_answers)
    (for two answers: Nitzan and Paroush, 1982). The default is low because real wrong answers bunch.
    Weights below 0 count as 0: a trace that does worse than chance does not vote. Other options as in
    `quality`.
    """
    if not wrong_answers >= 1:
        raise VoteError(f"wrong_answers is {wrong_answers}; it must be at least 1")
    log_odds = logit(_probabilities(traces, "quality-logodds", platt, unscored))
    return np.maximum(log_odds + math.log(wrong_answers), 0.0)


@register("quality-ranks", needs=["scores"])
def quality_ranks(traces: Sequence[Trace], *, unscored: float | None = None) -> Weights:
    """The rank of the score among the question's voting traces, mapped linearly to [0, 1].

    Test-time weights of "Prune as You Generate" (arXiv 2603.24840). Equal scores share the mean of their
    ranks; when all are equal, all weigh 1. A rank depends on the other traces, so unlike the methods
    that weigh each trace by itself, one more low-scored vote for the winner can lift the others past it.
    """
    return linear_ranks(_scores(traces, "quality-ranks", unscored))


@register("best-of-n", needs=["scores"])
def best_of_n(traces: Sequence[Trace], *, unscored: float | None = None) -> Weights:
    """All weight on the trace with the highest score (on each of them, when several share it).

    The winner's share is therefore 1 unless top scores tie; calibrate it before reading it as a probability.
    """
    scores = _scores(traces, "best-of-n", unscored)
    return np.asarray(scores == scores.max(), dtype=np.float64)


def _require(values: list[Any], traces: Sequence[Trace], method: str, signal: str, how: str) -> list[Any]:
    for trace, value in zip(traces, values, strict=True):
        if value is None:
            raise VoteError(
                f"voting method {method!r} needs {signal} on every voting trace, and {label(trace)} has "
                f"none; {how}"
            )
    return values


def _measure(
    traces: Sequence[Trace],
    method: str,
    measure: Callable[[NDArray[np.float32]], float],
    recorded: tuple[str, int | None] | None,
) -> NDArray[np.float64]:
    """A measure of each trace, taken of its tokens' confidences or, without them, from ``meta["deepconf"]``.

    Args:
        traces: of one question.
        method: for messages.
        measure: takes the measure of a trace's confidences.
        recorded: its name there and the window it must have been recorded with, None for any.
    """
    if recorded is not None and all(trace.confidence is None and "deepconf" in trace.meta for trace in traces):
        return np.array([_recorded(trace, method, *recorded) for trace in traces])
    confidences = _require(
        [trace.confidence for trace in traces],
        traces,
        method,
        "Trace.confidence (per-token confidences)",
        "record it while sampling, or set it to minus the mean of each token's top-k log-probabilities",
    )
    values = np.empty(len(traces))
    for i, (trace, confidence) in enumerate(zip(traces, confidences, strict=True)):
        try:
            values[i] = measure(confidence)
        except ValueError as error:
            raise VoteError(f"voting method {method!r}, {label(trace)}: {error}") from error
    return values


def _recorded(trace: Trace, method: str, name: str, window: int | None) -> float:
    found = trace.meta["deepconf"]
    if window not in (None, found["window"]):
        raise VoteError(
            f"voting method {method!r} wants windows of {window} tokens, and {label(trace)} was measured with "
            f"{found['window']}: vote with that window, or sample with confidence=True"
        )
    return float(found[name] or 0.0)  # older versions recorded None where a confidence was not finite


def _scores(traces: Sequence[Trace], method: str, unscored: float | None) -> NDArray[np.float64]:
    values = _require(
        [unscored if trace.score is None else trace.score for trace in traces],
        traces,
        method,
        "Trace.scores (a quality head's)",
        "sample with a quality head, read recorded scores into Trace.scores, or pass unscored= to give "
        "such traces a score",
    )
    scores = np.array(values, dtype=np.float64)
    for trace, score in zip(traces, values, strict=True):
        if not 0 <= score <= 1:
            raise VoteError(
                f"the score of {label(trace)} is {score}; scores are probabilities in [0, 1] "
                "(map a reward r there with 1 / (1 + exp(-r)))"
            )
    return scores


def _probabilities(
    traces: Sequence[Trace], method: str, platt: tuple[float, float] | None, unscored: float | None
) -> NDArray[np.float64]:
    scores = _scores(traces, method, unscored)
    return scores if platt is None else sigmoid(platt[0] * logit(scores) + platt[1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1 (lowest) to n; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def linear_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks mapped linearly to [0, 1], lowest to highest, float64 ``[n]``.

    Equal values share the mean of their ranks; when all are equal, all are 1.
    """
    ranks = _ranks(values)
    low, high = ranks.min(), ranks.max()
    return np.asarray((ranks - low) / (high - low)) if high > low else np.ones(len(ranks))


def _keep_top(values: NDArray[np.float64], top_share: float | None) -> Weights:
    """Zero for traces below the percentile that keeps ``top_share`` of them (ties at it stay)."""
    if top_share is None:
        return values
    if not 0 < top_share <= 1:
        raise VoteError(f"top_share is {top_share}; it must be in (0, 1], or None to keep every trace")
    threshold = np.percentile(values, (1 - top_share) * 100)
    return np.where(values >= threshold, values, 0.0)
