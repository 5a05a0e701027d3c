"""Figures of a benchmark whose traces two heads have scored: votes, curves, what is known when, pruning, waves.

A question counts once in every interval and test: its traces are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from arrol_train.heads.dataset import Group
from arrol_train.heads.knowledge import mean_confidence
from arrol_tts.metrics import (
    Floats,
    auroc_per_question,
    bootstrap_interval,
    bootstrap_ratio_interval,
    curve_sizes,
    paired_permutation_test,
    vote_curve,
)
from arrol_tts.replay import equal_tokens, replay, with_random_scores
from arrol_tts.stopping import KeepShare
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from arrol_tts.voting import Method, VoteResult, vote

from ..benchmarks import Benchmark
from ..reporting import replays
from ..reporting.figures import full_votes
from ..sampling.passes import FULL
from ..sampling.seed_samples import SeedSamples
from .compared import compared

FINISH = "finish"
KEEPS = (0.25, 0.5, 0.75)
RANDOM_SEEDS = 10
CURVES = ("majority", "deepconf", "head", "head_v1")
"""Votes that weigh each trace by itself."""


@dataclass(frozen=True, slots=True)
class ChosenVote:
    """A way to vote: a method with its options, and whose scores it reads."""

    method: str | Method
    options: Mapping[str, Any]
    head: str = "head"

    def votes(self, groups: Sequence[Group]) -> list[VoteResult]:
        """The vote on each question."""
        return [vote(group, self.method, **self.options) for group in groups]


def right_of(votes: Sequence[VoteResult]) -> Floats:
    """Whether each is right: 0 or 1, float64 ``[questions]``."""
    return np.array([float(bool(result.correct)) for result in votes])


def scores_at(groups: Sequence[Group], *positions: int) -> list[Group]:
    """Copies whose traces have scores at these positions and at the finish alone, as a sampler records them."""
    return [
        [
            replace(
                trace, scores={k: s for k, s in trace.scores.items() if k in (*positions, trace.num_tokens - 1)}
            )
            for trace in group
        ]
        for group in groups
    ]


def sample_figures(groups: Sequence[Group]) -> dict[str, Any]:
    """What the samples are like, before any vote."""
    per_question = np.array([np.mean([bool(trace.correct) for trace in group]) for group in groups])
    some = np.array([float(any(trace.correct for trace in group)) for group in groups])
    traces = [trace for group in groups for trace in group]
    n = len(groups[0])
    return {
        "questions": len(groups),
        "samples_per_question": n,
        "sample_accuracy": float(per_question.mean()),
        "sample_accuracy_interval": list(bootstrap_interval(per_question)),
        f"pass_at_{n}": float(some.mean()),
        f"pass_at_{n}_interval": list(bootstrap_interval(some)),
        "questions_with_both": int(((per_question > 0) & (per_question < 1)).sum()),
        "mean_tokens": float(np.mean([trace.num_tokens for trace in traces])),
        "cut_off_share": float(np.mean([trace.finish_reason == "length" for trace in traces])),
        "tokens": sum(trace.num_tokens for trace in traces),
    }


def vote_figures(votes: Mapping[str, Sequence[VoteResult]]) -> dict[str, Any]:
    """Accuracies, paired differences, and accuracy over fewer traces: ``maj@k`` and ``weighted@k``.

    Args:
        votes: by name, ``majority`` first, on the same questions.
    """
    return {
        **compared({name: right_of(results) for name, results in votes.items()}),
        "accuracy_over_k": [
            {"k": k, **{name: curve[i] for name, curve in curves.items()}}
            for curves in [{name: _curve(votes[name]) for name in CURVES if name in votes}]
            for i, k in enumerate(_sizes(votes["majority"]))
        ],
    }


def _sizes(votes: Sequence[VoteResult]) -> list[int]:
    return curve_sizes(len(votes[0].traces))


def _curve(votes: Sequence[VoteResult]) -> list[float]:
    curves = [
        vote_curve(
            result.choices, [bool(trace.correct) for trace in result.traces], _sizes(votes), weights=result.weights
        )
        for result in votes
    ]
    return [float(value) for value in np.mean(curves, axis=0)]


# --- what is known when ---------------------------------------------------------------------------


def auroc_figures(
    groups: Mapping[str, Sequence[Group]], positions: Sequence[int], trained_at: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """AUROC within questions by position, of each head and of the mean confidence so far, with paired differences.

    Args:
        groups: by head, ``head`` first; the same traces.
        positions: in tokens; a trace that ended before counts with its finish.
        trained_at: by head, where its scores mean something; a head that is not named is asked everywhere.
    """
    figures: dict[str, Any] = {}
    for position in (*positions, None):
        within = {
            name: _within(found, partial(_score, position=position))
            for name, found in groups.items()
            if position is None or position in trained_at.get(name, (position,))
        }
        within["confidence"] = _within(groups["head"], partial(mean_confidence, position=position))
        row: dict[str, Any] = {}
        for name, values in within.items():
            known = values[~np.isnan(values)]
            row[f"auroc_within_{name}"] = float(known.mean())
            row[f"auroc_within_{name}_interval"] = list(bootstrap_interval(known))
            if name != "head":
                difference = within["head"] - values
                difference = difference[~np.isnan(difference)]
                row[f"head_above_{name}"] = float(difference.mean())
                row[f"head_above_{name}_interval"] = list(bootstrap_interval(difference))
        figures[FINISH if position is None else str(position)] = row
    return figures


def _score(trace: Trace, position: int | None) -> float:
    end = trace.num_tokens - 1
    return trace.scores[end if position is None else min(position, end)]


def _within(groups: Sequence[Group], signal: Callable[[Trace], float]) -> Floats:
    traces = [trace for group in groups for trace in group]
    return auroc_per_question(
        [bool(trace.correct) for trace in traces],
        [signal(trace) for trace in traces],
        [trace.question_id for trace in traces],
    )


# --- fewer tokens ---------------------------------------------------------------------------------


def pruning_figures(
    groups: Sequence[Group],
    ways: Mapping[str, ChosenVote],
    positions: Sequence[int],
    keeps: Sequence[float] = KEEPS,
) -> list[dict[str, Any]]:
    """Pruning by the head, replayed, beside pruning at random and beside fewer whole traces for as many tokens.

    Args:
        groups: scored at the positions and the finish.
        ways: with ``head`` and ``majority``.
        positions: detection positions. keeps: keep ratios.
    """
    rows = []
    for position in positions:
        scored = scores_at(groups, position)
        whole = {name: ways[name].votes(scored) for name in ("head", "majority")}
        for keep in keeps:
            rule = KeepShare(position, keep)
            kept = [replay(group, rule) for group in scored]
            row: dict[str, Any] = {"position": position, "keep": keep}
            row |= _against_whole(right_of(ways["head"].votes(kept)), _tokens(kept), whole)
            for name in whole:
                row[f"random_{name}"] = _at_random(scored, rule, ways[name])
            rows.append(row)
    return rows


def way_figures(
    groups: Sequence[Group], voter: WeightedVoter, asked: Sequence[replays.Way], votes: Mapping[str, ChosenVote]
) -> dict[str, dict[str, Any]]:
    """Ways of asking for fewer traces, replayed over random orders, beside fewer whole traces for as many tokens.

    The whole traces vote as the head, by majority, and by DeepConf's confidence as its online mode does.

    Args:
        groups: as they vote.
        voter: with the head's options.
        asked: each way at its setting.
        votes: with ``head`` and ``majority``.
    """
    whole = {name: votes[name].votes(groups) for name in ("head", "majority")}
    samples = [samples_of(groups)]
    whole["deepconf"] = full_votes(samples, voter, "deepconf")[0]
    found = {}
    for way in asked:
        right, tokens = replays.spent(way, samples, voter)
        setting = ", ".join(f"{name} {value:g}" for name, value in way.setting.items())
        found[way.name] = {"setting": setting, **_against_whole(right, tokens, whole)}
    return found


def samples_of(groups: Sequence[Group]) -> SeedSamples:
    """The groups as a benchmark's samples."""
    traces = {group[0].question_id: group for group in groups}
    benchmark = Benchmark("gsm8k", (), is_right=lambda problem, answer: False)
    return SeedSamples(benchmark, n=len(groups[0]), seed=0, keep=1.0, passes={FULL: traces})


def _against_whole(right: Floats, tokens: Floats, whole: Mapping[str, Sequence[VoteResult]]) -> dict[str, Any]:
    """An early end against all traces, and against as many whole traces as its tokens pay for."""
    full = np.array([float(result.tokens.generated) for result in whole["head"]])
    low, high = bootstrap_ratio_interval(tokens, full)
    above = right - right_of(whole["head"])
    row: dict[str, Any] = {
        "tokens_saved": 1 - float(tokens.sum() / full.sum()),
        "tokens_saved_interval": [1 - high, 1 - low],
        "accuracy": float(right.mean()),
        "accuracy_interval": list(bootstrap_interval(right)),
        "above_all": float(above.mean()),
        "above_all_interval": list(bootstrap_interval(above)),
    }
    for name, votes in whole.items():
        control = equal_tokens(votes, float(tokens.mean())).accuracy
        row[f"equal_tokens_{name}"] = float(control.mean())
        row[f"above_equal_tokens_{name}"] = float((right - control).mean())
        row[f"above_equal_tokens_{name}_interval"] = list(bootstrap_interval(right - control))
        row[f"above_equal_tokens_{name}_p"] = paired_permutation_test(right, control)
    return row


def _at_random(groups: Sequence[Group], rule: KeepShare, way: ChosenVote) -> float:
    """Mean accuracy where as many are kept at random; whoever votes has the scores that it had."""
    found = []
    for seed in range(RANDOM_SEEDS):
        kept = []
        for group in groups:
            chosen = replay(with_random_scores(group, seed), rule)
            kept.append(
                [
                    replace(trace, scores=scored.scores if trace.finish_reason != "pruned" else trace.scores)
                    for trace, scored in zip(chosen, group, strict=True)
                ]
            )
        found.append(right_of(way.votes(kept)).mean())
    return float(np.mean(found))


def _tokens(groups: Sequence[Group]) -> Floats:
    return np.array([float(sum(trace.num_tokens for trace in group)) for group in groups])
