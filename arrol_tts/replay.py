"""Replay a stopping rule over recorded traces: what it would have kept, and what that would have cost.

Rules on scores are applied by the same Monitor as inside the engines, fed from the recorded scores, so one
sampled set of traces serves every keep ratio and every subset of its samples; DeepConf's floor reads the
recorded confidences of all tokens at once. `equal_tokens` is what every figure of stopping early is to be
compared with.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from arrol_tts.confidence import group_confidence
from arrol_tts.errors import InputError
from arrol_tts.metrics import Floats, vote_curve
from arrol_tts.stopping import ConfidenceFloor, KeepShare, Monitor, Threshold, TraceSpec
from arrol_tts.trace import Trace
from arrol_tts.voting import VoteResult


def replay(traces: Sequence[Trace], rule: KeepShare | Threshold | ConfidenceFloor) -> list[Trace]:
    """The traces of one question as they would have been under a rule.

    Args:
        traces: of one question, sampled without pruning, with scores at the rule's position (or at the
            finish, where a trace ended before); for a confidence floor with token confidences, and the first
            of them warm up.
        rule: the rule.

    Returns:
        The same traces in the same order; the pruned ones are cut to ``rule.at + 1`` tokens (a score at
        k is known when token k + 1 is sampled), or to where their confidence fell too low, and have lost
        their answer. Text is not cut.

    Raises:
        InputError: when a trace that reached the position has no score there, or a confidence floor finds no
            confidences.
    """
    stops = _below_floor(traces, rule) if isinstance(rule, ConfidenceFloor) else _by_score(traces, rule)
    return [trace if i not in stops else _pruned(trace, *stops[i]) for i, trace in enumerate(traces)]


def _pruned(trace: Trace, num_tokens: int, detail: str) -> Trace:
    return replace(
        trace,
        answer=None,
        correct=None,
        tool_calls=None,
        num_tokens=num_tokens,
        finish_reason="pruned",
        detail=detail,
        scores={k: s for k, s in trace.scores.items() if k < num_tokens},
        confidence=None if trace.confidence is None else trace.confidence[:num_tokens],
    )


def _by_score(traces: Sequence[Trace], rule: KeepShare | Threshold) -> dict[int, tuple[int, str]]:
    """``{place of a trace that the rule stops: (its tokens, why)}``."""
    monitor = Monitor()
    spec = TraceSpec(group="replay", size=len(traces), rules=(rule,))
    for i in range(len(traces)):
        monitor.add(i, spec)
    for i, trace in enumerate(traces):
        position = min(rule.at, trace.num_tokens - 1)
        if position not in trace.scores:
            raise InputError(
                f"sample {trace.sample_id} of question {trace.question_id!r} has no score at token {position}; "
                f"sample with score_at=({rule.at},) and score_finish=True"
            )
        finished = trace.num_tokens <= rule.at + 1
        monitor.observe(i, position, score=trace.scores[position], finished=finished)
    stops = {}
    for key, verdict in monitor.take_verdicts().items():
        assert isinstance(key, int)
        stops[key] = (rule.at + 1, verdict.detail)
    return stops


def _below_floor(traces: Sequence[Trace], rule: ConfidenceFloor) -> dict[int, tuple[int, str]]:
    """The same for a confidence floor. All windows of a trace at once: a Monitor reads token by token."""
    windows = []
    for trace in traces:
        if trace.confidence is None:
            raise InputError(
                f"sample {trace.sample_id} of question {trace.question_id!r} has no token confidences; sample "
                "with confidence=True"
            )
        windows.append(group_confidence(trace.confidence, rule.window))
    floor = float(np.quantile([means.min() for means in windows[: rule.warmup]], 1 - rule.keep))
    stops = {}
    for i in range(rule.warmup, len(traces)):
        below = np.flatnonzero(windows[i] < floor)
        tokens = rule.window + int(below[0]) if below.size else traces[i].num_tokens
        if tokens < traces[i].num_tokens:
            detail = f"confidence {windows[i][below[0]]:.3f} of the last {rule.window} tokens is below {floor:.3f}"
            stops[i] = (tokens, detail)
    return stops


def with_random_scores(traces: Sequence[Trace], seed: int = 0) -> list[Trace]:
    """The traces of one question as a head that knows nothing would have scored them: the control of a replay.

    Args:
        traces: of one question, with scores.
        seed: of the draws, which differ from question to question.

    Returns:
        Copies with uniform random scores at the same positions.
    """
    rng = random.Random(f"{seed}/{traces[0].question_id}")
    return [replace(trace, scores={position: rng.random() for position in trace.scores}) for trace in traces]


@dataclass(frozen=True, slots=True)
class EqualTokens:
    """The control of whatever stops early: the same vote over fewer whole traces that cost as many tokens.

    Attributes:
        traces: how many whole traces of each question the tokens pay for, on average.
        accuracy: expected accuracy of the vote over so many on each question, float64 ``[questions]``.
    """

    traces: float
    accuracy: Floats


def equal_tokens(votes: Sequence[VoteResult], tokens: float, *, subsets: int = 200, seed: int = 0) -> EqualTokens:
    """What sampling fewer traces and stopping none would have given for as many tokens.

    Every question gets the same number k of whole traces, or all it has where those are fewer, whatever is known
    of it; k is what the tokens pay for. Where k is no whole number, a part of the questions gets one trace more:
    the accuracy lies on the line between its values at the two whole numbers, and so do the tokens. Below one
    trace, some questions are not asked and count as wrong.

    Args:
        votes: one a question, over its labelled traces that were sampled in full, by a method that weighs every
            trace by itself (else fewer traces would have other weights).
        tokens: generated tokens a question that the control may spend; more than all traces cost buys them all.
        subsets: random subsets of a question's traces that the accuracy is the mean over. seed: of the draw.

    Raises:
        InputError: without votes, tokens to spend, or traces that cost any.
    """
    sizes = np.array([len(result.traces) for result in votes])
    lengths = np.array([result.tokens.generated for result in votes], float) / sizes
    if not len(votes) or tokens <= 0 or not lengths.any():
        raise InputError(
            f"{len(votes)} questions whose traces have {lengths.sum():g} tokens, and {tokens:g} to spend: give at "
            "least one question, traces with num_tokens, and some tokens to spend"
        )
    counts = np.arange(sizes.max() + 1)
    cost = (np.minimum(counts[:, None], sizes) * lengths).mean(axis=1)
    k = float(np.interp(tokens, cost, counts))
    low, high = math.floor(k), math.ceil(k)
    accuracy = [
        float(np.interp(min(k, size), *_curve(result, {min(low, size), min(high, size)}, subsets, seed + i)))
        for i, (result, size) in enumerate(zip(votes, sizes.tolist(), strict=True))
    ]
    return EqualTokens(k, np.array(accuracy))


def _curve(result: VoteResult, sizes: set[int], subsets: int, seed: int) -> tuple[list[int], Floats]:
    """Numbers of traces, in order, and the expected accuracy of the vote over so many."""
    drawn = sorted(sizes)
    right = [bool(trace.correct) for trace in result.traces]
    some = [size for size in drawn if size]
    curve = vote_curve(result.choices, right, some, weights=result.weights, subsets=subsets, seed=seed)
    return drawn, np.concatenate([np.zeros(len(drawn) - len(some)), curve])
