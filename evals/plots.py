"""Plots of comparisons. matplotlib draws to files only; no display is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arrol_tts.metrics import reliability
from evals.comparison import Comparison

_COLUMNS = 4
_PANEL_INCHES = 2.6


def plot_reliability(comparison: Comparison, path: Path, *, bins: int = 10) -> None:
    """Draw each method's reliability: observed accuracy against the confidence of its votes, by bins.

    On the diagonal a confidence can be taken at its word; a bar below it is overconfident. The number on
    a bar is how many questions it holds.

    Args:
        comparison: with labelled questions.
        path: the picture's file; its ending says the format, such as .png or .svg.
        bins: equal-width bins of confidence.

    Raises:
        ValueError: when no method has graded verdicts, or the format is unknown.
    """
    from matplotlib.figure import Figure

    reports = [report for report in comparison.methods if report.accuracy is not None]
    if not reports:
        raise ValueError("a reliability plot needs questions with reference answers")
    rows = -(-len(reports) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _PANEL_INCHES, rows * _PANEL_INCHES), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, report in zip(panels, reports, strict=False):
        graded = [verdict for verdict in report.verdicts if verdict.correct is not None]
        result = reliability([v.confidence for v in graded], [bool(v.correct) for v in graded], bins=bins)
        middles = (result.edges[:-1] + result.edges[1:]) / 2
        bars = panel.bar(middles, np.nan_to_num(result.accuracy), width=0.9 / bins, color="tab:blue")
        panel.bar_label(bars, [str(count or "") for count in result.count], fontsize=7)
        panel.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
        panel.set(xlim=(0, 1), ylim=(0, 1.1))
        panel.set_title(f"{report.method}, ECE {result.ece:.2f}", fontsize=9)
    for panel in panels[len(reports) :]:
        panel.set_axis_off()
    figure.supxlabel("confidence of the vote")
    figure.supylabel("share of right answers")
    figure.savefig(path, dpi=150)
