"""The report of a run as plain data: figures with intervals, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrol_tts.metrics import (
    Floats,
    bootstrap_interval,
    bootstrap_ratio_interval,
    paired_permutation_test,
    wilson_interval,
)
from arrol_tts.replay import EqualTokens
from arrol_tts.voter import WeightedVoter

from ..benchmarks import Benchmark
from ..sampling.folder import RunManifest
from ..sampling.passes import FULL
from ..sampling.seed_samples import SeedSamples
from .figures import (
    CURVE_METHODS,
    Row,
    full_seconds,
    head_figures,
    sample_figures,
    stopping_rows,
    token_curve,
    vote_rows,
    waves_traces,
)

RESAMPLES = 10_000


def summarise(
    samples: Sequence[Sequence[SeedSamples]],
    voter_of: Callable[[Benchmark], WeightedVoter],
    manifest: RunManifest,
) -> dict[str, Any]:
    """The report of a results folder.

    Args:
        samples: for each benchmark, its samples by seed.
        voter_of: a benchmark's voter, with the head's options.
        manifest: of the folder; all of it is in the report.

    Returns:
        JSON-ready figures: one entry a benchmark, their average, and the manifest.
    """
    entries = [benchmark_report(of_benchmark, voter_of(of_benchmark[0].benchmark)) for of_benchmark in samples]
    return {
        **asdict(manifest),
        "n": samples[0][0].n,
        "benchmarks": entries,
        "average": average(entries) if len(entries) > 1 else None,
    }


def benchmark_report(samples: Sequence[SeedSamples], voter: WeightedVoter) -> dict[str, Any]:
    """One benchmark's entry: samples, votes, early stopping, head, curve, and verdicts by question."""
    votes, skipped = vote_rows(samples, voter)
    majority = next(row for row in votes if row.name == "majority")
    benchmark = samples[0].benchmark
    stopped = stopping_rows(samples, voter)
    whole = [row for row in votes if row.name in CURVE_METHODS]
    return {
        "name": benchmark.name,
        "synthetic": benchmark.synthetic,
        "source": benchmark.source,
        "questions": len(benchmark.problems),
        "n": samples[0].n,
        "seeds": [one.seed for one in samples],
        "samples": sample_figures(samples),
        "votes": [
            {**_figures(row, majority), "at": {str(k): value for k, value in sorted((row.at or {}).items())}}
            for row in sorted(votes, key=lambda row: -row.right.mean())
        ],
        "skipped": skipped,
        "stopping": [_stopping(row, majority, full_seconds(samples)) for row in (*whole, *stopped)],
        "keep": samples[0].keep,
        "waves_traces": waves_traces(samples),
        "head": head_figures(samples, voter),
        "curve": token_curve(samples, voter, votes),
        "verdicts": {
            "questions": [problem.id for problem in benchmark.problems],
            "right": {row.name: row.right.tolist() for row in (*votes, *stopped)},
            "tokens": {FULL: majority.tokens.tolist(), **{row.name: row.tokens.tolist() for row in stopped}},
            "equal_tokens": {row.name: row.control.accuracy.tolist() for row in stopped if row.control},
        },
    }


def interval(right: Floats) -> tuple[float, float]:
    """95% interval of an accuracy over questions.

    Wilson's where every question is right or wrong: a bootstrap is a point where all are the same. With several
    seeds a question's value lies between, and questions are resampled.
    """
    if np.isin(right, (0.0, 1.0)).all():
        return wilson_interval(int(right.sum()), len(right))
    return bootstrap_interval(right)


def _figures(row: Row, majority: Row) -> dict[str, Any]:
    difference = row.right - majority.right
    return {
        "name": row.name,
        "accuracy": float(row.right.mean()),
        "interval": list(interval(row.right)),
        "above_majority": float(difference.mean()),
        "above_majority_interval": list(bootstrap_interval(difference)),
        "p_value": paired_permutation_test(row.right, majority.right),
    }


def _stopping(row: Row, majority: Row, full: float | None) -> dict[str, Any]:
    ratio = bootstrap_ratio_interval(row.tokens, majority.tokens)
    control = row.control
    seconds = full if row.name in CURVE_METHODS else row.seconds
    return {
        **_figures(row, majority),
        "vote": row.method,
        "tokens_per_question": float(row.tokens.mean()),
        "tokens_saved": 1 - float(row.tokens.sum() / majority.tokens.sum()),
        "tokens_saved_interval": [1 - ratio[1], 1 - ratio[0]],
        "seconds": seconds,
        "speedup": full / seconds if full and seconds else None,
        "equal_tokens": None if control is None else beside(row.right, control),
    }


def beside(right: Floats, control: EqualTokens) -> dict[str, Any]:
    """A way of stopping early beside the same vote over as many tokens in whole traces."""
    difference = right - control.accuracy
    return {
        "traces": control.traces,
        "accuracy": float(control.accuracy.mean()),
        "above": float(difference.mean()),
        "above_interval": list(bootstrap_interval(difference)),
        "p_value": paired_permutation_test(right, control.accuracy),
    }


def average(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over benchmarks, each counting once; intervals resample the questions inside each benchmark."""
    rights = [{name: np.array(v) for name, v in entry["verdicts"]["right"].items()} for entry in entries]
    controls = [{name: np.array(v) for name, v in entry["verdicts"]["equal_tokens"].items()} for entry in entries]
    names = [name for name in rights[0] if all(name in right for right in rights)]
    rows = []
    for name in names:
        values = [right[name] for right in rights]
        against = _above(values, [right["majority"] for right in rights])
        rows.append(
            {
                "name": name,
                "accuracy": _mean_of_means(values),
                "interval": _stratified_interval(values),
                "above_majority": against["above"],
                "above_majority_interval": against["above_interval"],
                "p_value": against["p_value"],
                "equal_tokens": _above(values, [control[name] for control in controls])
                if all(name in control for control in controls)
                else None,
            }
        )
    samples = [entry["samples"] for entry in entries]
    ks = [k for k in samples[0]["pass_at"] if all(k in sample["pass_at"] for sample in samples)]
    return {
        "benchmarks": len(entries),
        "sample_accuracy": float(np.mean([sample["accuracy"] for sample in samples])),
        "pass_at": {k: float(np.mean([sample["pass_at"][k] for sample in samples])) for k in ks},
        "methods": sorted(rows, key=lambda row: -row["accuracy"]),
    }


def _above(values: Sequence[Floats], others: Sequence[Floats]) -> dict[str, Any]:
    """One method over another, benchmark by benchmark."""
    # Weighted so that the mean over all questions is the mean over benchmarks.
    scale = np.concatenate([np.full(len(value), 1 / (len(value) * len(values))) for value in values])
    return {
        "accuracy": _mean_of_means(others),
        "above": _mean_of_means(values) - _mean_of_means(others),
        "above_interval": _stratified_interval([a - b for a, b in zip(values, others, strict=True)]),
        "p_value": paired_permutation_test(np.concatenate(values) * scale, np.concatenate(others) * scale),
    }


def _mean_of_means(values: Sequence[Floats]) -> float:
    return float(np.mean([value.mean() for value in values]))


def _stratified_interval(values: Sequence[Floats]) -> list[float]:
    """95% bootstrap interval of a mean of means, resampling inside each group."""
    rng = np.random.default_rng(0)
    draws: NDArray[np.float64] = np.zeros(RESAMPLES)
    for group in values:
        # A multinomial count of each question is a resample, in one small matrix a chunk.
        for start in range(0, RESAMPLES, 500):
            counts = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=500)
            draws[start : start + 500] += counts @ group / len(group)
    low, high = np.quantile(draws / len(values), (0.025, 0.975))
    return [float(low), float(high)]
