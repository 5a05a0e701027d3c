"""Weighted voting: a method turns a question's traces into weights, and the heaviest answer wins.

A method is one function ``traces -> weights``; `METHODS` names the built-in ones and `register` adds
yours::

    @register("short")
    def short(traces):
        '''Shorter traces weigh more.'''
        return np.array([1 / trace.num_tokens for trace in traces])

    vote(traces, "short").answer
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from arrol_tts import confidence as measures
from arrol_tts.answers import canonical_answer, group_answers
from arrol_tts.calibration import logit, sigmoid
from arrol_tts.confidence import BOTTOM_SHARE, WINDOW

if TYPE_CHECKING:
    from arrol_tts.calibration import AnswerCalibration
    from arrol_tts.trace import Trace

Weights = NDArray[np.float64]
Method = Callable[..., Weights]
"""``method(traces, **options) -> weights``: the answered traces of one question in, one finite
non-negative float64 weight a trace out."""
MethodT = TypeVar("MethodT", bound=Method)


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A registered method.

    Attributes:
        name: what `vote` and the command line call it.
        weigh: the function.
        description: first line of its docstring.
        options: keyword options and their defaults.
        needs: the signals each voting trace must carry: ``confidence``, ``scores``, ``self_certainty``.
    """

    name: str
    weigh: Method
    description: str
    options: Mapping[str, Any]
    needs: tuple[str, ...] = ()


def _options_of(method: Method) -> Mapping[str, Any]:
    _, *options = inspect.signature(method).parameters.values()
    return {p.name: p.default for p in options if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


_methods: dict[str, MethodInfo] = {}
METHODS: Mapping[str, MethodInfo] = MappingProxyType(_methods)
"""Every registered method by name; read-only, extend it with `register`."""


def register(name: str, *, needs: Iterable[str] = ()) -> Callable[[MethodT], MethodT]:
    """Decorator that adds a method to `METHODS`.

    Args:
        name: the method's name.
        needs: signals the method reads from every trace, for listings.

    Raises:
        ValueError: the name is taken.
    """
    if name in _methods:
        raise ValueError(f"voting method {name!r} is already registered; choose another name")

    def add(weigh: MethodT) -> MethodT:
        description = (inspect.getdoc(weigh) or "").partition("\n")[0]
        _methods[name] = MethodInfo(name, weigh, description, _options_of(weigh), tuple(needs))
        return weigh

    return add


def resolve_method(method: str | Method, options: Mapping[str, Any]) -> tuple[str, Method]:
    """The name and the function of a method, once it is known to take the options.

    Raises:
        ValueError: unknown method or option; the message lists what there is.
    """
    weigh: Method
    known: Mapping[str, Any]
    if not isinstance(method, str):
        name = str(getattr(method, "name", None) or getattr(method, "__name__", type(method).__name__))
        weigh, known = method, _options_of(method) if options else {}
    elif method in METHODS:
        name, weigh, known = method, METHODS[method].weigh, METHODS[method].options
    else:
        raise ValueError(f"unknown voting method {method!r}; choose from {', '.join(sorted(METHODS))}")
    for option in options:
        if option not in known:
            raise ValueError(
                f"voting method {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}"
            )
    return name, weigh


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One distinct answer of a vote.

    Attributes:
        answer: its canonical spelling.
        votes: traces that gave it.
        weight: sum of their weights.
        share: its part of all weight, in [0, 1]; 0 when all weights are zero.
        probability: that it is right: its share, or, in a calibrated vote, the calibrated confidence for the
            winner and for the others their part, by share, of what that leaves.
    """

    answer: str
    votes: int
    weight: float
    share: float
    probability: float


@dataclass(frozen=True, slots=True)
class TokenLedger:
    """Tokens a question cost.

    Attributes:
        generated: tokens of all traces.
        pruned_traces: traces a rule stopped.
        saved: an estimate of what pruning saved: that each pruned trace would have run to the mean
            length of the question's finished traces (``stop`` or ``length``); 0 when none finished.
    """

    generated: int
    pruned_traces: int
    saved: int

    @classmethod
    def of(cls, traces: Sequence[Trace]) -> TokenLedger:
        """Count over all traces of a question, voting or not."""
        pruned = [t.num_tokens for t in traces if t.finish_reason == "pruned"]
        finished = [t.num_tokens for t in traces if t.finish_reason in ("stop", "length")]
        saved = 0
        if pruned and finished:
            expected = sum(finished) / len(finished)
            saved = round(sum(max(0.0, expected - n) for n in pruned))
        return cls(sum(t.num_tokens for t in traces), len(pruned), saved)


@dataclass(frozen=True, slots=True)
class VoteResult:
    """The outcome of a vote, with what explains it.

    Attributes:
        question_id: the question.
        answer: the winning answer; None when nobody answered or the vote abstained.
        confidence: in [0, 1]: the winner's share of the weight, or, with a calibration, the probability
            that it is right. 0 when nobody answered.
        method: name of the method.
        table: every distinct answer, heaviest first; ``table[0]`` is the winner, abstained or not.
        traces: the traces, in the given order.
        weights: the weight of each trace, in the same order; 0 for a trace without an answer.
        choices: the row of ``table`` each trace voted for, in the same order; -1 without an answer.
        tokens: what the question cost.
        abstained: there is a winner, but its confidence is below ``min_confidence``.
    """

    question_id: str
    answer: str | None
    confidence: float
    method: str
    table: tuple[AnswerRow, ...]
    traces: tuple[Trace, ...]
    weights: tuple[float, ...]
    choices: tuple[int, ...]
    tokens: TokenLedger
    abstained: bool = False

    @property
    def correct(self) -> bool | None:
        """Whether the winner is right by ``Trace.correct`` of the traces that gave it; None if unlabelled.

        Where grouping merged answers that were graded apart, most of the labels decide.
        """
        labels = [
            trace.correct
            for trace, choice in zip(self.traces, self.choices, strict=True)
            if choice == 0 and trace.correct is not None
        ]
        return 2 * sum(labels) > len(labels) if labels else None

    def __str__(self) -> str:
        rows = [(row, _one_line(row.answer)) for row in self.table]
        verdict = "abstained" if self.abstained else rows[0][1] if rows else "no answer"
        lines = [
            f"{self.question_id}: {verdict} (confidence {self.confidence:.2f}, {self.method})",
            *(f"  {row.probability:6.1%}  {row.votes:4d} votes  {row.weight:9.3f}  {text}" for row, text in rows),
            f"  {self.tokens.generated} tokens, {self.tokens.pruned_traces} traces pruned, "
            f"about {self.tokens.saved} tokens saved",
        ]
        return "\n".join(lines)


def vote(
    traces: Sequence[Trace],
    method: str | Method = "majority",
    *,
    min_confidence: float | None = None,
    calibration: AnswerCalibration | None = None,
    **options: Any,
) -> VoteResult:
    """Vote on the answer of one question.

    Answers are grouped by mathematical equality. Only traces with an answer vote. Ties in weight go to the
    answer with more votes, then to the one that the lowest sample id gave, so the outcome never depends on
    the order of the traces. When all weights are zero the votes decide, with confidence 0.

    Args:
        traces: all traces of one question, pruned ones included.
        method: a name in `METHODS`, or a function ``traces -> weights``.
        min_confidence: abstain (answer None) below this confidence, in [0, 1].
        calibration: turns the shares of the vote into a probability that the winner is right.
        options: the method's own, such as ``window=``, ``tail=`` or ``top_share=``.

    Raises:
        ValueError: no traces, traces of several questions, a repeated sample id, an unknown method or
            option, a signal the method needs and a trace lacks, or weights that are not finite and
            non-negative.
    """
    question_id = _check_traces(traces)
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence is {min_confidence}; it must be in [0, 1]")
    name, weigh = resolve_method(method, options)

    # By sample id: sums round and ties break the same way, whatever the order of the traces.
    voters = sorted((i for i, trace in enumerate(traces) if answered(trace)), key=lambda i: traces[i].sample_id)
    weights = [0.0] * len(traces)
    choices = [-1] * len(traces)
    table: list[AnswerRow] = []
    if voters:
        voting = [traces[i] for i in voters]
        ballot = _check_weights(weigh(voting, **options), name, voting)
        groups = group_answers([trace.answer for trace in voting])
        table, rows = _tally(voting, ballot, groups)
        for i, weight, group in zip(voters, ballot, groups, strict=True):
            weights[i], choices[i] = weight, rows[group]

    result = VoteResult(
        question_id=question_id,
        answer=table[0].answer if table else None,
        confidence=table[0].share if table else 0.0,
        method=name,
        table=tuple(table),
        traces=tuple(traces),
        weights=tuple(weights),
        choices=tuple(choices),
        tokens=TokenLedger.of(traces),
    )
    if calibration is not None and table:
        confidence = calibration.probability(result)
        result = replace(result, confidence=confidence, table=_calibrated(table, confidence))
    if min_confidence is not None and table and result.confidence < min_confidence:
        result = replace(result, answer=None, abstained=True)
    return result


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
        raise ValueError(f"power is {power}; it must be at least 0")
    values = _require(
        [trace.meta.get("self_certainty") for trace in traces],
        traces,
        "self-certainty",
        'Trace.meta["self_certainty"] (-mean(log(V * p)) over the whole vocabulary)',
        "have the sampler record it, or use deepconf-mean, which needs the top-k log-probabilities only",
    )
    for trace, value in zip(traces, values, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"the self-certainty of {_label(trace)} is {value}; it must be finite")
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
        raise ValueError(f"over is {over!r}; it must be 'last' or 'mean'")
    if odds_power is not None and not 0 < odds_power <= 10:
        raise ValueError(f"odds_power is {odds_power}; it must be in (0, 10], or None")
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
        raise ValueError(f"wrong_answers is {wrong_answers}; it must be at least 1")
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


def _check_traces(traces: Sequence[Trace]) -> str:
    if not traces:
        raise ValueError("no traces to vote on; pass at least one trace of the question")
    question_id = traces[0].question_id
    seen: set[int] = set()
    for trace in traces:
        if trace.question_id != question_id:
            raise ValueError(
                f"the traces mix questions {question_id!r} and {trace.question_id!r}; vote on one question "
                "at a time"
            )
        if trace.sample_id in seen:
            raise ValueError(
                f"sample id {trace.sample_id} occurs twice in question {question_id!r}; "
                "number its traces apart, or drop the repeated one"
            )
        seen.add(trace.sample_id)
    return question_id


def answered(trace: Trace) -> bool:
    """Whether the trace votes: it has an answer that is not blank."""
    return trace.answer is not None and bool(trace.answer.strip())


def _one_line(answer: str, width: int = 80) -> str:
    answer = " ".join(answer.split())
    return answer if len(answer) <= width else answer[: width - 3] + "..."


def _label(trace: Trace) -> str:
    return f"sample {trace.sample_id} of question {trace.question_id!r}"


def _check_weights(weights: Weights, method: str, traces: Sequence[Trace]) -> list[float]:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(traces),):
        raise ValueError(
            f"voting method {method!r} returned weights of shape {weights.shape}; "
            f"it must return one weight for each of the {len(traces)} traces"
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        bad = int(np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))[0])
        raise ValueError(
            f"voting method {method!r} gave {_label(traces[bad])} the weight {weights[bad]}; "
            "weights must be finite and not negative"
        )
    return [float(w) for w in weights]


def _tally(
    traces: Sequence[Trace], weights: Sequence[float], groups: Sequence[int]
) -> tuple[list[AnswerRow], dict[int, int]]:
    """The table, and the row of each group; ``traces`` come by sample id."""
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    total = math.fsum(weights)
    rows = []
    for group, indices in members.items():
        # fsum rounds once, so equal weights tie exactly, whatever their order.
        weight = math.fsum(weights[i] for i in indices)
        answer = canonical_answer([traces[i].answer or "" for i in indices])
        share = weight / total if total else 0.0
        rows.append((AnswerRow(answer, len(indices), weight, share, probability=share), group))
    # The sort is stable: what still ties stays in the order of first sample ids. An order by spelling would
    # favour some answers over others in every question.
    rows.sort(key=lambda row: (-row[0].weight, -row[0].votes))
    return [row for row, _ in rows], {group: i for i, (_, group) in enumerate(rows)}


def _calibrated(table: Sequence[AnswerRow], confidence: float) -> tuple[AnswerRow, ...]:
    winner, *others = table
    rest = sum(row.share for row in others)
    return (
        replace(winner, probability=confidence),
        *(replace(row, probability=(1 - confidence) * row.share / rest if rest else 0.0) for row in others),
    )


def _require(values: list[Any], traces: Sequence[Trace], method: str, signal: str, how: str) -> list[Any]:
    for trace, value in zip(traces, values, strict=True):
        if value is None:
            raise ValueError(
                f"voting method {method!r} needs {signal} on every voting trace, and {_label(trace)} has "
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
            raise ValueError(f"voting method {method!r}, {_label(trace)}: {error}") from error
    return values


def _recorded(trace: Trace, method: str, name: str, window: int | None) -> float:
    found = trace.meta["deepconf"]
    if window not in (None, found["window"]):
        raise ValueError(
            f"voting method {method!r} wants windows of {window} tokens, and {_label(trace)} was measured with "
            f"{found['window']}: vote with that window, or sample with confidence=True"
        )
    return float(found[name])


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
            raise ValueError(
                f"the score of {_label(trace)} is {score}; scores are probabilities in [0, 1] "
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
        raise ValueError(f"top_share is {top_share}; it must be in (0, 1], or None to keep every trace")
    threshold = np.percentile(values, (1 - top_share) * 100)
    return np.where(values >= threshold, values, 0.0)
