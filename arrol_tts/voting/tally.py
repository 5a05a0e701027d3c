"""The vote itself: checks, weights by a method, and the tally."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arrol_tts.errors import VoteError
from arrol_tts.voting.registry import Method, Weights, resolve_method
from arrol_tts.voting.result import AnswerRow, TokenLedger, VoteResult

if TYPE_CHECKING:
    from arrol_tts.answers import Equality, PercentSign
    from arrol_tts.calibration import AnswerCalibration
    from arrol_tts.trace import Trace


def vote(
    traces: Sequence[Trace],
    method: str | Method = "majority",
    *,
    equality: Equality = "math",
    percent: PercentSign = "fraction",
    min_confidence: float | None = None,
    calibration: AnswerCalibration | None = None,
    **options: Any,
) -> VoteResult:
    """Vote on the answer of one question.

    Answers are grouped by equality. Only traces with an answer vote. Ties in weight go to the
    answer with more votes, then to the one that the lowest sample id gave, so the outcome never depends on
    the order of the traces. When all weights are zero the votes decide, with confidence 0.

    Args:
        traces: all traces of one question, pruned ones included.
        method: a name in `METHODS`, or a function ``traces -> weights``.
        equality: what makes two answers one: ``math``, ``text``, ``exact``, ``choice``, ``json``, or a function
            ``answer -> key`` (`arrol_tts.answers.key_function`).
        percent: what a per cent sign means in ``math``: a ``fraction`` (50% is 0.5) or a ``unit`` (50% is 50).
        min_confidence: abstain (answer None) below this confidence, in [0, 1].
        calibration: turns the shares of the vote into a probability that the winner is right.
        options: the method's own, such as ``window=``, ``tail=`` or ``top_share=``.

    Raises:
        VoteError: no traces, traces of several questions, a repeated sample id, a signal the method needs and a
            trace lacks, or weights that are not finite and non-negative.
        InputError: an unknown method, option, equality or reading of per cent signs; a calibration of another
            method.
    """
    from arrol_tts.answers import group_answers, key_function  # not at the top: importing arrol_tts is quick

    question_id = _check_traces(traces)
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise VoteError(f"min_confidence is {min_confidence}; it must be in [0, 1]")
    key_function(equality, percent)  # says what is wrong with them, if anything
    name, weigh = resolve_method(method, options)

    # By sample id: sums round and ties break the same way, whatever the order of the traces.
    voters = sorted((i for i, trace in enumerate(traces) if answered(trace)), key=lambda i: traces[i].sample_id)
    weights = [0.0] * len(traces)
    choices = [-1] * len(traces)
    table: list[AnswerRow] = []
    if voters:
        voting = [traces[i] for i in voters]
        ballot = _check_weights(weigh(voting, **options), name, voting)
        groups = group_answers([trace.answer for trace in voting], equality=equality, percent=percent)
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


def answered(trace: Trace) -> bool:
    """Whether the trace votes: it has an answer that is not blank."""
    return trace.answer is not None and bool(trace.answer.strip())


def label(trace: Trace) -> str:
    """A trace's name in messages."""
    return f"sample {trace.sample_id} of question {trace.question_id!r}"


def _check_traces(traces: Sequence[Trace]) -> str:
    if not traces:
        raise VoteError("no traces to vote on; pass at least one trace of the question")
    question_id = traces[0].question_id
    seen: set[int] = set()
    for trace in traces:
        if trace.question_id != question_id:
            raise VoteError(
                f"the traces mix questions {question_id!r} and {trace.question_id!r}; vote on one question "
                "at a time"
            )
        if trace.sample_id in seen:
            raise VoteError(
                f"sample id {trace.sample_id} occurs twice in question {question_id!r}; "
                "number its traces apart, or drop the repeated one"
            )
        seen.add(trace.sample_id)
    return question_id


def _check_weights(weights: Weights, method: str, traces: Sequence[Trace]) -> list[float]:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(traces),):
        raise VoteError(
            f"voting method {method!r} returned weights of shape {weights.shape}; "
            f"it must return one weight for each of the {len(traces)} traces"
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        bad = int(np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))[0])
        raise VoteError(
            f"voting method {method!r} gave {label(traces[bad])} the weight {weights[bad]}; "
            "weights must be finite and not negative"
        )
    return [float(w) for w in weights]


def _tally(
    traces: Sequence[Trace], weights: Sequence[float], groups: Sequence[int]
) -> tuple[list[AnswerRow], dict[int, int]]:
    """The table, and the row of each group; ``traces`` come by sample id."""
    from arrol_tts.answers import canonical_answer

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
