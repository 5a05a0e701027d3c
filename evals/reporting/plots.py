"""Plots of comparisons. matplotlib draws to files only; no display is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from arrol_tts.errors import InputError
from arrol_tts.metrics import reliability
from arrol_tts.plots import draw_reliability

from .compare_methods import Comparison

_COLUMNS = 4
_PANEL_INCHES = 2.6


def curve_figure(entry: Mapping[str, Any]) -> Figure:
    """Accuracy against tokens per question, of one benchmark's entry in a report.

    Curves are votes over 1, 2, 4 .. traces, each dot a way of stopping early: it is worth its tokens where it lies
    above the curve of its own vote over whole traces.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(dict.fromkeys(p["method"] for p in entry["curve"]), "os^D", strict=False):
        points = [p for p in entry["curve"] if p["method"] == name]
        axes.plot(
            [p["tokens_per_question"] for p in points],
            [p["accuracy"] for p in points],
            marker=marker,
            markersize=4,
            label=name.replace("_", " ") + " of whole traces" * ("_" not in name),
        )
    stopped = [row for row in entry["stopping"] if row.get("equal_tokens")]
    for row, marker in zip(stopped, "PX*vph<>", strict=False):
        at = [row["tokens_per_question"]], [row["accuracy"]]
        label = f"{row['name'].replace('_', ' ')} ({row['vote']})"
        axes.plot(*at, marker=marker, color="black", linestyle="", label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("generated tokens per question (1, 2, 4 .. traces)")
    axes.set_ylabel("accuracy")
    kind = " (synthetic)" if entry["synthetic"] else ""
    axes.set_title(f"{entry['name']}{kind}: {entry['questions']} questions x {entry['n']} traces", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def pocket_figure(figures: Mapping[str, Any]) -> Figure:
    """Accuracy against tokens of the pocket benchmark: what stops early beside whole traces, the line to beat."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    whole = figures["whole_traces"]
    tokens = [row["tokens_per_question"] for row in whole]
    for method, color in (("quality", "tab:blue"), ("majority", "tab:gray")):
        values = [row[f"accuracy_{method}"] for row in whole]
        axes.plot(tokens, values, marker="o", markersize=4, color=color, label=f"{method}, 1 to 32 whole traces")
    full = figures["tokens_per_question"]["majority"]
    every = [*figures["keep_ratios_replayed"], *figures["keep_ratios_elsewhere"]]
    positions = dict.fromkeys(row["position"] for row in every)
    for position, color in zip(positions, ("tab:orange", "tab:red", "tab:purple"), strict=False):
        kept = [row for row in every if row["position"] == position]
        axes.plot(
            [full * (1 - row["tokens_saved_share"]) for row in kept],
            [row["accuracy_quality"] for row in kept],
            marker="D",
            markersize=4,
            color=color,
            label=f"quality, 1/8 to 3/4 kept at token {position}",
        )
    waves = figures["waves_by_certainty"]
    axes.plot(
        [row["tokens_per_question"] for row in waves],
        [row["accuracy"] for row in waves],
        marker="^",
        markersize=5,
        color="tab:green",
        label=f"quality, waves until {waves[0]['certainty']:g} to {waves[-1]['certainty']:g} sure",
    )
    others = {"adaptive_consistency": "Adaptive-Consistency", "esc": "ESC", "deepconf_online": "DeepConf online"}
    for (name, label), marker in zip(others.items(), "PXv", strict=True):
        at = [figures["tokens_per_question"][name]], [figures[f"accuracy_{name}"]]
        axes.plot(*at, marker=marker, color="black", linestyle="", label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("generated tokens per question")
    axes.set_ylabel("accuracy")
    seeds = len(figures["tokens_saved_share_per_seed"])
    axes.set_title(f"pocket (synthetic): {figures['questions']} questions, {seeds} seeds", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def reliability_figure(head: Mapping[str, Any]) -> Figure:
    """How often traces with a score are right, of the head's entry in a report."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    draw_reliability(figure.subplots(), head["reliability"]["count"], head["reliability"]["accuracy"])
    figure.supxlabel("score of the head at the finish")
    figure.supylabel("share of right traces")
    return figure


def keep_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against the share of tokens saved, by keep ratio; dashed: as many tokens in whole traces."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    saved = [row["tokens_saved"] for row in rows]
    for method, marker, color in (("quality", "o", "tab:blue"), ("majority", "s", "tab:orange")):
        axes.plot(saved, [row[method] for row in rows], marker=marker, color=color, label=method)
        whole = [row.get(f"{method}_equal_tokens", np.nan) for row in rows]
        axes.plot(saved, whole, linestyle="--", color=color, label=f"{method} of fewer whole traces")
    for row in rows:
        axes.annotate(
            f"keep {row['keep']:g}", (row["tokens_saved"], row["quality"]), (0, 6), textcoords="offset points"
        )
    axes.set(xlabel="share of tokens saved", ylabel="accuracy", title="pocket (synthetic), replayed")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_reliability(comparison: Comparison, path: Path, *, bins: int = 10) -> None:
    """Draw each method's reliability: observed accuracy against the confidence of its votes, by bins.

    On the diagonal a confidence can be taken at its word; a bar below it is overconfident. The number on
    a bar is how many questions it holds.

    Args:
        comparison: with labelled questions.
        path: the picture's file; its ending says the format, such as .png or .svg.
        bins: equal-width bins of confidence.

    Raises:
        InputError: when no method has graded verdicts, or the format is unknown.
    """
    reports = [report for report in comparison.methods if report.accuracy is not None]
    if not reports:
        raise InputError("a reliability plot needs questions with reference answers")
    rows = -(-len(reports) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _PANEL_INCHES, rows * _PANEL_INCHES), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, report in zip(panels, reports, strict=False):
        graded = [verdict for verdict in report.verdicts if verdict.correct is not None]
        result = reliability([v.confidence for v in graded], [bool(v.correct) for v in graded], bins=bins)
        draw_reliability(panel, result.count.tolist(), result.accuracy.tolist())
        panel.set_title(f"{report.method}, ECE {result.ece:.2f}", fontsize=9)
    for panel in panels[len(reports) :]:
        panel.set_axis_off()
    figure.supxlabel("confidence of the vote")
    figure.supylabel("share of right answers")
    figure.savefig(path, dpi=150)
