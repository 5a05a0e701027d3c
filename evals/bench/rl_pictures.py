"""Pictures of the reinforcement benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

COLORS = {"pruned": "tab:blue", "unpruned_m": "tab:orange", "unpruned_g": "tab:gray"}


def plot_curves(regimes: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw test accuracy against steps and against seconds of training, mean over seeds, a row for each regime."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3 * len(regimes)), layout="constrained")
    panels = figure.subplots(len(regimes), 2, squeeze=False)
    for (name, found), (by_step, by_time) in zip(regimes.items(), panels, strict=True):
        survivors = {"pruned": f"{found['group']} pruned to 8", "unpruned_m": "8, none pruned"}
        for arm, color in COLORS.items():
            curve = np.array(found[f"curve_{arm}"])
            label = survivors.get(arm, f"{found['group']}, none pruned")
            by_step.plot(curve[:, 0], curve[:, 2], color=color, marker="o", label=label)
            by_time.plot(curve[:, 1], curve[:, 2], color=color, marker="o")
        by_time.set_xlim(0, 1.3 * found["curve_pruned"][-1][1])
        by_step.set(xlabel="optimiser steps", ylabel="test accuracy", title=f"{name} (synthetic)")
        by_time.set(xlabel="processor seconds of training")
        by_step.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def plot_policies(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the reward variance that survives under each option, and the groups without signal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.3 * len(rows) + 1), layout="constrained")
    for panel, name, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("variance", "no_signal"),
        ("variance of the survivors' rewards", "groups without signal"),
        strict=True,
    ):
        bars = panel.barh(list(rows), [row[name] for row in rows.values()], color="tab:blue")
        panel.bar_label(bars, fmt="%.3f", padding=2, fontsize=8)
        panel.set_title(title + " (synthetic)", fontsize=9)
        panel.margins(x=0.15)
    figure.savefig(path, dpi=150)
