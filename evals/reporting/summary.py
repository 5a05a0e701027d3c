"""The report of a run as plain data: figures with intervals, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from arrol_tts.voter import WeightedVoter

from ..sampling.folder import Manifest
from ..sampling.passes import FULL, Run
from .rows import (
    CURVE_METHODS,
    Row,
    full_seconds,
    head_figures,
    is_right,
    keep_rule,
    sample_figures,
    stopping_rows,
    token_curve,
    vote_row,
    vote_rows,
)

__all__ = ["average", "benchmark_report", "interval", "is_right", "keep_rule", "rows_of", "summarise"]

RESAMPLES = 10_000


def rows_of(run: Run, voter: WeightedVoter) -> list[Row]:
    """The methods that are drawn against tokens, and each way of stopping early, on one run."""
    return [*(vote_row([run], voter, method) for method in CURVE_METHODS), *stopping_rows([run], voter)]


def summarise(runs: Sequence[Sequence[Run]], voter: WeightedVoter, manifest: Manifest) -> dict[str, Any]:
    """The report of a results folder.

    Args:
        runs: for each benchmark, its runs by seed.
        voter: with the head's options.
        manifest: of the folder; all of it is in the report.

    Returns:
        JSON-ready figures: one entry a benchmark, their average, and the manifest.
    """
    entries = [benchmark_report(of_benchmark, voter) for of_benchmark in runs]
    return {
        **asdict(manifest),
        "n": runs[0][0].n,
        "benchmarks": entries,
        "average": average(entries) if len(entries) > 1 else None,
    }


def benchmark_report(runs: Sequence[Run], voter: WeightedVoter) -> dict[str, Any]:
    """One benchmark's entry: samples, votes, early stopping, head, curve, and verdicts by question."""
    votes, skipped = vote_rows(runs, voter)
    majority = next(row for row in votes if row.name == "majority")
    benchmark = runs[0].benchmark
    stopped = stopping_rows(runs, voter)
    whole = [row for row in votes if row.name in CURVE_METHODS]
    return {
        "name": benchmark.name,
        "synthetic": benchmark.synthetic,
        "source": benchmark.source,
        "questions": len(benchmark.problems),
        "n": runs[0].n,
        "seeds": [run.seed for run in runs],
        "samples": sample_figures(runs),
        "votes": [
            {**_figures(row, majority), "at": {str(k): value for k, value in sorted((row.at or {}).items())}}
            for row in sorted(votes, key=lambda row: -row.right.mean())
        ],
        "skipped": skipped,
        "stopping": [_stopping(row, majority, full_seconds(runs)) for row in (*whole, *stopped)],
        "keep": runs[0].keep,
        "head": head_figures(runs, voter),
        "curve": token_curve(runs, voter, votes),
        "verdicts": {
            "questions": [problem.id for problem in benchmark.problems],
            "right": {row.name: row.right.tolist() for row in (*votes, *stopped)},
            "tokens": {FULL: majority.tokens.tolist(), **{row.name: row.tokens.tolist() for row in stopped}},
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
    seconds = full if row.name in CURVE_METHODS else row.seconds
    return {
        **_figures(row, majority),
        "vote": row.method,
        "tokens_per_question": float(row.tokens.mean()),
        "tokens_saved": 1 - float(row.tokens.sum() / majority.tokens.sum()),
        "tokens_saved_interval": [1 - ratio[1], 1 - ratio[0]],
        "seconds": seconds,
        "speedup": full / seconds if full and seconds else None,
    }


def average(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over benchmarks, each counting once; intervals resample the questions inside each benchmark."""
    rights = [{name: np.array(v) for name, v in entry["verdicts"]["right"].items()} for entry in entries]
    names = [name for name in rights[0] if all(name in right for right in rights)]
    rows = []
    for name in names:
        values = [right[name] for right in rights]
        majority = [right["majority"] for right in rights]
        differences = [a - b for a, b in zip(values, majority, strict=True)]
        # Weighted so that the mean over all questions is the mean over benchmarks.
        scale = [1 / (len(value) * len(values)) for value in values]
        first = np.concatenate([value * s for value, s in zip(values, scale, strict=True)])
        second = np.concatenate([value * s for value, s in zip(majority, scale, strict=True)])
        rows.append(
            {
                "name": name,
                "accuracy": float(first.sum()),
                "interval": _stratified_interval(values),
                "above_majority": float((first - second).sum()),
                "above_majority_interval": _stratified_interval(differences),
                "p_value": paired_permutation_test(first, second),
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
