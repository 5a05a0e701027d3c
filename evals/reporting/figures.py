"""From traces to figures: votes, early stopping, curves and the head, over questions and seeds.

A question's value is its mean over the seeds, and intervals and tests are over questions: the traces of a
question, and its seeds, are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from arrol_tts import metrics
from arrol_tts.metrics import Floats
from arrol_tts.replay import EqualTokens, equal_tokens, replay, with_random_scores
from arrol_tts.stopping import KeepShare
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from arrol_tts.voting import METHODS, VoteResult

from ..sampling.passes import FULL
from ..sampling.seed_samples import SeedSamples, Traces

CURVE_METHODS = ("majority", "deepconf", "quality")
"""Methods that are drawn against tokens."""

EACH_BY_ITSELF = (
    "majority",
    "deepconf",
    "deepconf-mean",
    "deepconf-tail",
    "deepconf-lowest",
    "quality",
    "quality-logodds",
)
"""Methods that weigh a trace by itself: subsets of a question's traces need no new weights."""

STOPPING_ROWS = {
    "pruned": ("quality_pruned", "quality"),
    "threshold": ("quality_threshold", "quality"),
    "budget": ("quality_budget", "quality"),
    "deepconf-online": ("deepconf_online", "deepconf"),
    "consensus": ("consensus", "majority"),
}
"""``{pass: (its name in a report, how it votes)}``."""

SUBSETS = 50
"""Random subsets of a question's traces per point of a curve, at most."""

REPLAYED_VOTES = 1_500
"""How many votes a curve may take where each subset needs its own: with many questions it takes some of them."""

RELIABILITY_BINS = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One method, or one way of stopping early, on a benchmark.

    Attributes:
        name: of the method or the pass.
        method: that votes.
        right: share of the seeds in which the vote on each question is right, float64 ``[questions]``.
        tokens: generated tokens of each question, mean over seeds, float64 ``[questions]``.
        seconds: of sampling, all seeds; None where nothing was sampled (a replay) or it is not known.
        at: ``{k: accuracy}`` of votes over k traces.
        control: of a way of stopping early: the same vote over as many tokens in whole traces.
    """

    name: str
    method: str
    right: Floats
    tokens: Floats
    seconds: float | None = None
    at: Mapping[int, float] | None = None
    control: EqualTokens | None = None


def rows_of(one: SeedSamples, voter: WeightedVoter) -> list[Row]:
    """The methods that are drawn against tokens, and each way of stopping early, on one seed."""
    return [*(vote_row([one], voter, method) for method in CURVE_METHODS), *stopping_rows([one], voter)]


def vote_rows(samples: Sequence[SeedSamples], voter: WeightedVoter) -> tuple[list[Row], dict[str, str]]:
    """Every voting method on the traces that were sampled in full, and why others could not vote."""
    rows, skipped = [], {}
    for method in METHODS:
        try:
            rows.append(vote_row(samples, voter, method))
        except ValueError as error:
            skipped[method] = str(error)
    return rows, skipped


def vote_row(samples: Sequence[SeedSamples], voter: WeightedVoter, method: str) -> Row:
    """One method on the traces that were sampled in full.

    Raises:
        ValueError: when the traces lack a signal that the method needs.
    """
    results = full_votes(samples, voter, method)
    right = np.mean([[bool(result.correct) for result in of_seed] for of_seed in results], axis=0)
    tokens = np.mean([_tokens(one.full) for one in samples], axis=0)
    at = _at(samples, voter, method, results)
    at[samples[0].n] = float(right.mean())  # the votes themselves, whose ties are broken as users see them
    return Row(method, method, right, tokens, at=at)


def full_votes(samples: Sequence[SeedSamples], voter: WeightedVoter, method: str) -> list[list[VoteResult]]:
    """Each seed's votes over all traces of its questions, sampled in full.

    Raises:
        ValueError: when the traces lack a signal that the method needs.
    """
    return [[voter.vote(group, method) for group in one.full.values()] for one in samples]


def control_of(results: Sequence[Sequence[VoteResult]], tokens: float) -> EqualTokens:
    """The equal-token control of a figure: the mean over seeds of ``full_votes`` over fewer whole traces.

    Args:
        results: by seed, from ``full_votes``.
        tokens: a question, that the way of stopping early took on average.
    """
    every = equal_tokens([result for of_seed in results for result in of_seed], tokens)
    return EqualTokens(every.traces, every.accuracy.reshape(len(results), -1).mean(axis=0))


def _at(
    samples: Sequence[SeedSamples], voter: WeightedVoter, method: str, results: Sequence[Sequence[VoteResult]]
) -> dict[int, float]:
    """``{k: accuracy}`` for k = 1, 2, 4 .. below n, over random subsets of the traces."""
    sizes = [k for k in metrics.curve_sizes(samples[0].n) if k < samples[0].n]
    if not sizes:
        return {}
    every = [result for of_seed in results for result in of_seed]
    if method in EACH_BY_ITSELF:
        curves = [
            metrics.vote_curve(
                result.choices,
                [bool(trace.correct) for trace in result.traces],
                sizes,
                weights=result.weights,
                subsets=SUBSETS,
            )
            for result in every
        ]
    else:
        stride, subsets = _thinned(len(every), len(sizes))
        curves = [
            metrics.curve_of(_right_of(result.traces, voter, method), len(result.traces), sizes, subsets=subsets)
            for result in every[::stride]
        ]
    return dict(zip(sizes, np.mean(curves, axis=0).tolist(), strict=True))


def _right_of(traces: Sequence[Trace], voter: WeightedVoter, method: str) -> Any:
    return lambda indices: float(is_right(voter, [traces[i] for i in indices], method))


def _thinned(questions: int, sizes: int) -> tuple[int, int]:
    """Every which question, and how many random subsets of it, a curve takes to stay within its votes."""
    votes = questions * sizes
    return max(1, votes // REPLAYED_VOTES), max(1, min(SUBSETS, REPLAYED_VOTES // votes))


def is_right(voter: WeightedVoter, traces: Sequence[Trace], method: str) -> bool:
    """Whether the vote over a question's labelled traces is right."""
    return bool(voter.vote(traces, method).correct)


def stopping_rows(samples: Sequence[SeedSamples], voter: WeightedVoter) -> list[Row]:
    """Each way of stopping early, with the vote that goes with it; ``random_pruned`` prunes without a head.

    That keeps as many traces as ``pruned``, at random, and takes a majority vote; it is replayed. Each row has the
    equal-token control of its vote.
    """
    rows = []
    whole: dict[str, list[list[VoteResult]]] = {}

    def add(called: str, method: str, traces: Sequence[Traces], seconds: float | None) -> None:
        row = _row(called, method, traces, voter, seconds)
        if method not in whole:
            whole[method] = full_votes(samples, voter, method)
        rows.append(replace(row, control=control_of(whole[method], float(row.tokens.mean()))))

    for name in samples[0].passes:
        if name == FULL:
            continue
        called, method = waves_row(voter) if name == "waves" else STOPPING_ROWS[name]
        add(called, method, [one.passes[name] for one in samples], _seconds(samples, name))
        if name == "pruned":
            rule = keep_rule(voter, samples[0].keep)
            at_random = [
                {q: replay(with_random_scores(group, one.seed), rule) for q, group in one.full.items()}
                for one in samples
            ]
            add("random_pruned", "majority", at_random, None)
    return rows


def waves_row(voter: WeightedVoter) -> tuple[str, str]:
    """The name of the pass in waves in a report, and how it votes: as the voter that sampled it did."""
    method = "majority" if voter.config is None else "quality"
    return f"{method}_waves", method


def waves_traces(samples: Sequence[SeedSamples]) -> float | None:
    """Traces that waves started of a question on average; None without such a pass."""
    groups = [group for one in samples for group in one.passes.get("waves", {}).values()]
    return float(np.mean([sum(trace.num_tokens > 0 for trace in g) for g in groups])) if groups else None


def _row(name: str, method: str, traces: Sequence[Traces], voter: WeightedVoter, seconds: float | None) -> Row:
    right = np.mean([[is_right(voter, group, method) for group in of_seed.values()] for of_seed in traces], axis=0)
    return Row(name, method, right, np.mean([_tokens(of_seed) for of_seed in traces], axis=0), seconds)


def full_seconds(samples: Sequence[SeedSamples]) -> float | None:
    """Seconds that the full passes took."""
    return _seconds(samples, FULL)


def _seconds(samples: Sequence[SeedSamples], name: str) -> float | None:
    known = [one.seconds[name] for one in samples if name in one.seconds]
    return sum(known) if len(known) == len(samples) else None


def _tokens(traces: Traces) -> Floats:
    return np.array([sum(t.num_tokens for t in group) for group in traces.values()], float)


def keep_rule(voter: WeightedVoter, share: float) -> KeepShare:
    """The head's own pruning rule at another keep ratio."""
    assert voter.config is not None
    return KeepShare(voter.config.positions[0], share)


def token_curve(samples: Sequence[SeedSamples], voter: WeightedVoter, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Accuracy against tokens: methods over random subsets of 1, 2, 4 .. n traces; pruning is replayed."""
    points = []
    for row in rows:
        if row.name in CURVE_METHODS and row.at:
            mean = float(row.tokens.mean()) / samples[0].n
            points += [_point(row.name, k, row.at[k], k * mean) for k in sorted(row.at)]
    if "pruned" in samples[0].passes:
        rule = keep_rule(voter, samples[0].keep)
        sizes = metrics.curve_sizes(samples[0].n)
        groups = [group for one in samples for group in one.full.values()]
        stride, subsets = _thinned(len(groups), len(sizes))
        for k in sizes:
            right, tokens = [], []
            for number, group in enumerate(groups[::stride]):
                for chosen in metrics.random_subsets(len(group), k, subsets=subsets, seed=number):
                    kept = replay([group[i] for i in chosen], rule)
                    right.append(is_right(voter, kept, "quality"))
                    tokens.append(sum(trace.num_tokens for trace in kept))
            points.append(_point("quality_pruned", k, float(np.mean(right)), float(np.mean(tokens))))
    return points


def _point(method: str, k: int, accuracy: float, tokens: float) -> dict[str, Any]:
    return {"method": method, "n": k, "accuracy": accuracy, "tokens_per_question": tokens}


def sample_figures(samples: Sequence[SeedSamples]) -> dict[str, Any]:
    """Accuracy of a trace alone, pass@k, lengths and how traces ended, without early stopping."""
    right = np.array([[sum(bool(t.correct) for t in g) for g in one.full.values()] for one in samples])
    n = samples[0].n
    per_question = right.mean(axis=0) / n
    traces = [trace for one in samples for group in one.full.values() for trace in group]
    return {
        "accuracy": float(per_question.mean()),
        "interval": list(metrics.bootstrap_interval(per_question)),
        "pass_at": {str(k): float(metrics.pass_at_k(n, right, k).mean()) for k in metrics.curve_sizes(n)},
        "mean_tokens": float(np.mean([trace.num_tokens for trace in traces])),
        "finish_reasons": dict(Counter(trace.finish_reason for trace in traces)),
    }


def head_figures(samples: Sequence[SeedSamples], voter: WeightedVoter) -> dict[str, Any] | None:
    """AUROC at the detection position and at the finish, and reliability at the finish; None without a head."""
    if voter.config is None:
        return None
    at = voter.config.positions[0]
    scored = [
        (t, one.seed) for one in samples for group in one.full.values() for t in group if t.score is not None
    ]
    if not scored:
        return None
    correct = np.array([bool(trace.correct) for trace, _ in scored])
    # Seeds are not compared with each other: a group is a question in one seed.
    names = np.array([f"{seed}/{trace.question_id}" for trace, seed in scored])
    detected = np.array([trace.scores.get(at, trace.score) for trace, _ in scored])
    finished = np.array([trace.score for trace, _ in scored])
    reliability = metrics.reliability(finished, correct, bins=RELIABILITY_BINS)
    return {
        "detection_position": at,
        "auroc_detection": metrics.auroc(correct, detected),
        "auroc_within_detection": metrics.within_question_auroc(correct, detected, names),
        "auroc_finish": metrics.auroc(correct, finished),
        "auroc_within_finish": metrics.within_question_auroc(correct, finished, names),
        "ece": reliability.ece,
        "reliability": {
            "count": reliability.count.tolist(),
            "confidence": reliability.confidence.tolist(),
            "accuracy": reliability.accuracy.tolist(),
        },
    }
