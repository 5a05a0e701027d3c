"""Report a run: every voting method on the same traces, with intervals, tokens and a plot."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from arrol_tts.metrics import (
    auroc,
    bootstrap_interval,
    mcnemar,
    pass_at_k,
    random_subsets,
    within_question_auroc,
)
from arrol_tts.replay import replay
from arrol_tts.stopping import KeepShare
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from evals.runner import Run, Traces

CURVE_SUBSETS = 6
FULL_METHODS = ("majority", "deepconf", "quality")


@dataclass(frozen=True, slots=True)
class Row:
    """One method's result.

    Attributes:
        name: of the method; ``quality_pruned`` votes over the traces that the engine pruned.
        right: whether the vote on each question is right, bool ``[questions]``.
        tokens: generated tokens of each question, int64 ``[questions]``.
    """

    name: str
    right: NDArray[np.bool_]
    tokens: NDArray[np.int64]


def is_right(voter: WeightedVoter, traces: Sequence[Trace], method: str) -> bool:
    """Whether the vote over a question's labelled traces is right."""
    return bool(voter.vote(traces, method).correct)


def rows_of(run: Run, voter: WeightedVoter) -> list[Row]:
    """Every method on the run's traces; ``random_pruned`` is the control that prunes without a head."""

    def row(name: str, traces: Traces, method: str) -> Row:
        groups = [traces[problem.id] for problem in run.benchmark.problems]
        right = np.array([is_right(voter, group, method) for group in groups])
        return Row(name, right, np.array([sum(t.num_tokens for t in group) for group in groups]))

    rule = keep_rule(voter, run.keep)
    at_random = {name: replay(_random_scores(group, run.seed), rule) for name, group in run.full.items()}
    rows = [row(method, run.full, method) for method in FULL_METHODS]
    rows.append(row("quality_pruned", run.pruned, "quality"))
    rows.append(row("random_pruned", at_random, "majority"))
    return rows


def keep_rule(voter: WeightedVoter, share: float) -> KeepShare:
    """The head's own pruning rule at another keep ratio."""
    assert voter.config is not None
    return KeepShare(voter.config.positions[0], share)


def _random_scores(traces: Sequence[Trace], seed: int) -> list[Trace]:
    rng = random.Random(f"{seed}/{traces[0].question_id}")
    return [replace(trace, scores={k: rng.random() for k in trace.scores}) for trace in traces]


def summarise(run: Run, voter: WeightedVoter, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The report as plain data; ``tokens`` are totals, ``tokens_saved`` a share of the unpruned total."""
    rows = rows_of(run, voter)
    majority, full_tokens = rows[0], int(rows[0].tokens.sum())
    methods = {}
    for row in rows:
        difference = row.right.astype(float) - majority.right
        methods[row.name] = {
            "accuracy": float(row.right.mean()),
            "interval": list(bootstrap_interval(row.right.astype(float))),
            "tokens": int(row.tokens.sum()),
            "tokens_saved": 1 - float(row.tokens.sum()) / full_tokens,
            "above_majority": float(difference.mean()),
            "above_majority_interval": list(bootstrap_interval(difference)),
            "mcnemar_p": mcnemar(row.right, majority.right).p_value,
        }
    traces = [trace for group in run.full.values() for trace in group]
    counts = [len(group) for group in run.full.values()]
    right = [sum(bool(trace.correct) for trace in group) for group in run.full.values()]
    return {
        "benchmark": run.benchmark.name,
        "synthetic": run.benchmark.synthetic,
        "questions": len(run.full),
        "n": run.n,
        "seed": run.seed,
        "keep": run.keep,
        "detection_position": keep_rule(voter, run.keep).at,
        "methods": methods,
        "samples": {
            "mean_accuracy": float(np.mean([bool(trace.correct) for trace in traces])),
            f"pass@{run.n}": float(np.mean(pass_at_k(counts, right, run.n))),
            "mean_tokens": float(np.mean([trace.num_tokens for trace in traces])),
        },
        "head_quality": _head_quality(traces, keep_rule(voter, run.keep).at),
        "seconds": dict(run.seconds),
        "curve": curve(run, voter),
        **provenance,
    }


def _head_quality(traces: Sequence[Trace], at: int) -> dict[str, float]:
    """AUROC of the head at the detection position and at the finish, over all and within questions."""
    correct = np.array([bool(trace.correct) for trace in traces])
    names = np.array([trace.question_id for trace in traces])
    detected = np.array([trace.scores.get(at, trace.score) for trace in traces])
    finished = np.array([trace.score for trace in traces])
    return {
        f"{what}_{where}": float(measure)
        for where, scores in (("detection", detected), ("finish", finished))
        for what, measure in (
            ("auroc", auroc(correct, scores)),
            ("auroc_within", within_question_auroc(correct, scores, names)),
        )
    }


def curve(run: Run, voter: WeightedVoter) -> list[dict[str, Any]]:
    """Accuracy against tokens: methods over random subsets of 1, 2, 4 .. n traces of the same run."""
    sizes = [2**i for i in range(run.n.bit_length()) if 2**i <= run.n]
    rule = keep_rule(voter, run.keep)
    series = [(method, method, False) for method in FULL_METHODS] + [("quality_pruned", "quality", True)]
    points = []
    for name, method, pruned in series:
        for size in sizes:
            right, tokens = [], []
            for group in run.full.values():
                for chosen in random_subsets(len(group), size, subsets=CURVE_SUBSETS, seed=run.seed):
                    subset = [group[i] for i in chosen]
                    if pruned:
                        subset = replay(subset, rule)
                    right.append(is_right(voter, subset, method))
                    tokens.append(sum(trace.num_tokens for trace in subset))
            points.append(
                {
                    "method": name,
                    "n": size,
                    "accuracy": float(np.mean(right)),
                    "tokens_per_question": float(np.mean(tokens)),
                }
            )
    return points


def table(report: Mapping[str, Any]) -> Table:
    """The methods as a table for the terminal."""
    result = Table(title=_title(report), title_justify="left")
    result.add_column("method")
    for name in ("accuracy", "95% interval", "tokens", "saved"):
        result.add_column(name, justify="right")
    for cells in _cells(report):
        result.add_row(*cells)
    return result


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    samples, head = report["samples"], report["head_quality"]
    oracle = f"pass@{report['n']}"
    lines = [
        f"# {_title(report)}",
        "",
        "| method | accuracy | 95% interval | tokens | saved |",
        "|---|---:|---:|---:|---:|",
        *("| " + " | ".join(cells) + " |" for cells in _cells(report)),
        "",
        f"One trace alone is right with probability {samples['mean_accuracy']:.3f}; some trace of {report['n']} "
        f"is right on {samples[oracle]:.3f} of the questions. Traces average {samples['mean_tokens']:.0f} tokens.",
        "",
        f"`quality_pruned` was sampled again with the same seeds, keeping {report['keep']:g} of the traces at "
        f"token {report['detection_position']} inside the engine. `random_pruned` is the control: a majority "
        "vote over as many traces, kept at random. Intervals resample questions.",
        "",
        f"The head's AUROC is {head['auroc_detection']:.3f} at the detection position "
        f"({head['auroc_within_detection']:.3f} within a question) and {head['auroc_finish']:.3f} at the finish "
        f"({head['auroc_within_finish']:.3f} within a question).",
        "",
        f"Seconds: {report['seconds']['full']:.1f} unpruned, {report['seconds']['pruned']:.1f} pruned.",
        "",
        "![accuracy against tokens](accuracy_tokens.png)",
        "",
    ]
    return "\n".join(lines)


def _title(report: Mapping[str, Any]) -> str:
    kind = " (synthetic)" if report["synthetic"] else ""
    return f"{report['benchmark']}{kind}: {report['questions']} questions x {report['n']} traces"


def _cells(report: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, row in report["methods"].items():
        low, high = row["interval"]
        yield (
            name,
            f"{row['accuracy']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{row['tokens']:,}",
            f"{row['tokens_saved']:.1%}",
        )


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy against tokens per question."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(dict.fromkeys(p["method"] for p in report["curve"]), "os^D", strict=False):
        points = [p for p in report["curve"] if p["method"] == name]
        axes.plot(
            [p["tokens_per_question"] for p in points],
            [p["accuracy"] for p in points],
            marker=marker,
            label=name.replace("_", " "),
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("generated tokens per question (1, 2, 4 .. traces)")
    axes.set_ylabel("accuracy")
    axes.set_title(_title(report), fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def write(report: Mapping[str, Any], out: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``accuracy_tokens.png`` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / "report.md").write_text(markdown(report))
    plot(report, out / "accuracy_tokens.png")
