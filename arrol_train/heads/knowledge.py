"""What a head knows, and when: figures of scored traces, as plain data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrol_train.heads.dataset import Collected, Group
from arrol_tts.errors import InputError
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.metrics import (
    auroc,
    auroc_per_question,
    bootstrap_interval,
    expected_calibration_error,
)
from arrol_tts.replay import replay, with_random_scores
from arrol_tts.stopping import KeepShare
from arrol_tts.trace import Trace
from arrol_tts.voting import vote

Interval = tuple[float, float] | None

POINTS = 16
"""Of a curve over positions."""
KEEPS = (0.25, 0.5, 0.75)
RESAMPLES = 200
"""Of the AUROC over all samples, which is computed anew for each."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """How well a signal tells right from wrong.

    Attributes:
        samples, questions: how many were looked at.
        auroc: over all samples, with its 95% ``interval`` by questions; None where all are right or all wrong.
        within: mean AUROC inside questions with both, with its interval; None where there is no such question.
    """

    samples: int
    questions: int
    auroc: float | None
    interval: Interval
    within: float | None
    within_interval: Interval


@dataclass(frozen=True, slots=True)
class AtPosition:
    """What is known when traces have reached a position.

    Attributes:
        position: generated tokens, None for the finish.
        reached: share of the traces that were still being written there.
        head: the head's score.
        confidence: the mean token confidence so far, None where it was not recorded.
    """

    position: int | None
    reached: float
    head: Knowledge
    confidence: Knowledge | None


@dataclass(frozen=True, slots=True)
class Pruned:
    """A vote over the traces that pruning at a position leaves.

    Attributes:
        position, keep: of the rule.
        tokens_saved: share of the unpruned traces' tokens.
        accuracy: of the quality vote, with its interval; ``above_full`` compares it with the unpruned one.
        random: accuracy of a majority vote when the same number is kept at random.
    """

    position: int
    keep: float
    tokens_saved: float
    accuracy: float
    interval: Interval
    above_full: float
    above_full_interval: Interval
    random: float


@dataclass(frozen=True, slots=True)
class Part:
    """The head's last score on a part of the traces."""

    name: str
    accuracy: float
    head: Knowledge


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that ``arrol-train inspect`` and a head's card tell.

    Attributes:
        questions, samples: how many.
        sample_accuracy: share of right samples.
        ece: expected calibration error of the last scores.
        positions: along the curve, the finish last.
        difficulty: by the share of right samples of the question.
        length: by thirds of the traces' lengths.
        pruning: by position and keep ratio.
    """

    questions: int
    samples: int
    sample_accuracy: float
    ece: float
    positions: list[AtPosition]
    difficulty: list[Part]
    length: list[Part]
    pruning: list[Pruned]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def inspect_traces(
    groups: Sequence[Group],
    positions: Sequence[int],
    options: Mapping[str, Any] | None = None,
    *,
    curve: Sequence[int] = (),
) -> Inspection:
    """Everything that is known of scored traces.

    Args:
        groups: finished traces by question, with labels, and scores at all positions and the finish.
        positions: detection positions.
        options: of the quality vote.
        curve: further positions at which it is asked what the head knows.

    Raises:
        InputError: when there are no traces.
    """
    traces = [trace for group in groups for trace in group]
    if not traces:
        raise InputError("there are no traces to look at")
    last = [trace.score or 0.0 for trace in traces]
    right = [bool(trace.correct) for trace in traces]
    return Inspection(
        questions=len(groups),
        samples=len(traces),
        sample_accuracy=float(np.mean(right)),
        ece=expected_calibration_error(last, right),
        positions=[_at(traces, position) for position in (*sorted({*positions, *curve}), None)],
        difficulty=_by_difficulty(groups),
        length=_by_length(traces),
        pruning=[pruned(groups, position, keep, options) for position in positions for keep in KEEPS],
    )


def curve_positions(collected: Collected, config: QualityHeadConfig) -> list[int]:
    """Where it is asked what a head knows: at its detection positions and, if it pools, all along the traces.

    These are multiples of its stride, up to the length that one trace in ten exceeds.
    """
    if config.pooling == "last":
        return sorted(config.positions)
    longest = np.quantile([trace.num_tokens for trace in collected.traces], 0.9)
    step = math.ceil(longest / POINTS / config.stride) * config.stride
    return sorted({*config.positions, *range(step, int(longest), step)})


def knowledge(traces: Sequence[Trace], signal: Callable[[Trace], float]) -> Knowledge:
    """How well a signal tells right from wrong traces."""
    right = np.array([bool(trace.correct) for trace in traces])
    values = np.array([signal(trace) for trace in traces])
    names = [trace.question_id for trace in traces]
    if right.all() or not right.any():
        return Knowledge(len(traces), len(set(names)), None, None, None, None)
    per_question = auroc_per_question(right, values, names)
    per_question = per_question[~np.isnan(per_question)]
    known = len(per_question) > 0
    return Knowledge(
        samples=len(traces),
        questions=len(set(names)),
        auroc=auroc(right, values),
        interval=_auroc_interval(right, values, names),
        within=float(per_question.mean()) if known else None,
        within_interval=bootstrap_interval(per_question) if known else None,
    )


def pruned(
    groups: Sequence[Group], position: int, keep: float, options: Mapping[str, Any] | None = None
) -> Pruned:
    """Replay pruning at a position; the survivors vote."""
    options = options or {}
    kept = [replay(group, KeepShare(position, keep)) for group in groups]
    at_random = [replay(with_random_scores(group), KeepShare(position, keep)) for group in groups]
    accuracy = rights(kept, "quality", **options)
    difference = accuracy - rights(groups, "quality", **options)
    spent = sum(trace.num_tokens for group in kept for trace in group)
    return Pruned(
        position=position,
        keep=keep,
        tokens_saved=1 - spent / sum(trace.num_tokens for group in groups for trace in group),
        accuracy=float(accuracy.mean()),
        interval=bootstrap_interval(accuracy),
        above_full=float(difference.mean()),
        above_full_interval=bootstrap_interval(difference),
        random=float(rights(at_random, "majority").mean()),
    )


def rights(groups: Sequence[Group], method: Any, **options: Any) -> NDArray[np.float64]:
    """Whether the vote on each question is right: 0 or 1, float64 ``[questions]``."""
    return np.array([float(bool(vote(group, method, **options).correct)) for group in groups])


def mean_confidence(trace: Trace, position: int | None = None) -> float:
    """Mean token confidence of the tokens up to a position, or of all."""
    assert trace.confidence is not None
    return float(trace.confidence[:position].mean()) if len(trace.confidence) else 0.0


def _at(traces: Sequence[Trace], position: int | None) -> AtPosition:
    """Traces that ended before the position count with their finish, as in pruning."""

    def score(trace: Trace) -> float:
        end = trace.num_tokens - 1
        return trace.scores[end if position is None else min(position, end)]

    recorded = all(trace.confidence is not None for trace in traces)
    reached = [position is not None and trace.num_tokens > position for trace in traces]
    return AtPosition(
        position=position,
        reached=float(np.mean(reached)) if position is not None else 1.0,
        head=knowledge(traces, score),
        confidence=knowledge(traces, lambda trace: mean_confidence(trace, position)) if recorded else None,
    )


def _by_difficulty(groups: Sequence[Group]) -> list[Part]:
    edges = (0.0, 0.25, 0.5, 0.75, 1.0)
    shares = [float(np.mean([bool(trace.correct) for trace in group])) for group in groups]
    parts = []
    for low, high in itertools.pairwise(edges):
        inside = [g for g, s in zip(groups, shares, strict=True) if low <= s < high or s == high == 1.0]
        parts.append((f"{low:.0%} to {high:.0%} right", [trace for group in inside for trace in group]))
    return _parts(parts)


def _by_length(traces: Sequence[Trace]) -> list[Part]:
    lengths = [trace.num_tokens for trace in traces]
    low, high = (int(bound) for bound in np.quantile(lengths, [1 / 3, 2 / 3]))
    return _parts(
        [
            (f"up to {low} tokens", [t for t in traces if t.num_tokens <= low]),
            (f"{low + 1} to {high} tokens", [t for t in traces if low < t.num_tokens <= high]),
            (f"over {high} tokens", [t for t in traces if t.num_tokens > high]),
        ]
    )


def _parts(named: Sequence[tuple[str, Sequence[Trace]]]) -> list[Part]:
    return [
        Part(
            name,
            float(np.mean([bool(trace.correct) for trace in traces])),
            knowledge(traces, lambda trace: trace.score or 0.0),
        )
        for name, traces in named
        if traces
    ]


def _auroc_interval(right: NDArray[np.bool_], values: NDArray[np.float64], names: Sequence[str]) -> Interval:
    """Percentile bootstrap over questions; resamples without both kinds are passed over."""
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        rows.setdefault(name, []).append(i)
    of_question = [np.array(indices) for indices in rows.values()]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([of_question[i] for i in rng.integers(len(of_question), size=len(of_question))])
        if right[chosen].any() and not right[chosen].all():
            draws.append(auroc(right[chosen], values[chosen]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
