"""Pictures and terminal tables of an inspection. matplotlib draws to files only; no display is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from arrol_tts.metrics import reliability
from arrol_tts.plots import draw_reliability

if TYPE_CHECKING:
    from arrol_train.heads.knowledge import Inspection, Knowledge


def shown(interval: tuple[float, float] | None) -> str:
    """An interval in words."""
    return "unknown" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def plot_by_position(inspection: Inspection, path: Path, probe: Inspection | None = None) -> None:
    """Draw AUROC over position, with intervals: over all samples, and within questions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    x = [row.position for row in inspection.positions if row.position is not None]
    x += [round(1.1 * max(x, default=1)) + 1]  # the finish
    signals = {
        "head": [row.head for row in inspection.positions],
        "linear head": [row.head for row in probe.positions] if probe else [],
        "mean confidence": [row.confidence for row in inspection.positions if row.confidence is not None],
    }
    for panel, within in zip(panels, (False, True), strict=True):
        for name, marker in zip(signals, "os^", strict=True):
            _curve(panel, x, signals[name], within, name, marker)
        panel.axhline(0.5, color="gray", linestyle="--", linewidth=1)
        panel.set_xticks([*x[: -1 : max(1, len(x) // 6)], x[-1]])
        panel.set_xticklabels([*map(str, x[: -1 : max(1, len(x) // 6)]), "finish"])
        panel.set_xlabel("generated tokens")
        panel.set_title("within questions" if within else "over all samples", fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("AUROC")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def _curve(
    panel: object, at: Sequence[int], found: Sequence[Knowledge], within: bool, name: str, marker: str
) -> None:
    points = [
        (x, value, interval)
        for x, one in zip(at, found, strict=False)  # none of a signal that was not recorded
        for value, interval in [(one.within, one.within_interval) if within else (one.auroc, one.interval)]
        if value is not None and interval is not None
    ]
    if not points:
        return
    x, values, intervals = zip(*points, strict=True)
    low, high = np.array(intervals).T
    errors = np.abs([np.array(values) - low, high - np.array(values)])
    panel.errorbar(x, values, errors, marker=marker, label=name, capsize=2)  # type: ignore[attr-defined]


def plot_reliability(probabilities: Sequence[float], right: Sequence[bool], path: Path, *, bins: int = 10) -> None:
    """Draw how often samples are right against the probability the head gave them."""
    from matplotlib.figure import Figure

    result = reliability(probabilities, right, bins=bins)
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    draw_reliability(axes, result.count.tolist(), result.accuracy.tolist())
    axes.set(xlabel="probability by the head", ylabel="share of right samples")
    axes.set_title(f"ECE {result.ece:.3f}", fontsize=10)
    figure.savefig(path, dpi=120)


def tables(inspection: Inspection) -> list[Table]:
    """The inspection for the terminal."""
    known = Table(
        "at",
        "reached",
        "all",
        "within questions",
        "confidence: all",
        "within",
        title="How early does it know? AUROC with 95% intervals",
    )
    for row in inspection.positions:
        cells = [*_cells(row.head), *(_cells(row.confidence) if row.confidence else ("", ""))]
        known.add_row("finish" if row.position is None else str(row.position), f"{row.reached:.0%}", *cells)
    parts = Table(
        "samples of",
        "number",
        "right",
        "all",
        "within questions",
        title="By question difficulty and by length, at the finish",
    )
    for part in (*inspection.difficulty, *inspection.length):
        parts.add_row(part.name, f"{part.head.samples:,}", f"{part.accuracy:.1%}", *_cells(part.head))
    pruning = Table(
        "at",
        "kept",
        "tokens saved",
        "accuracy",
        "against no pruning",
        "kept at random",
        title="What pruning saves and costs",
    )
    for cut in inspection.pruning:
        pruning.add_row(
            str(cut.position),
            f"{cut.keep:g}",
            f"{cut.tokens_saved:.1%}",
            f"{cut.accuracy:.3f} ({shown(cut.interval)})",
            f"{cut.above_full:+.3f} ({shown(cut.above_full_interval)})",
            f"{cut.random:.3f}",
        )
    return [known, parts, pruning]


def _cells(found: Knowledge) -> tuple[str, str]:
    return (
        "unknown" if found.auroc is None else f"{found.auroc:.3f} ({shown(found.interval)})",
        "unknown" if found.within is None else f"{found.within:.3f} ({shown(found.within_interval)})",
    )
