"""Pictures of the reinforcement benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arrol_train.rl.breakeven import StepCost, worth_at

COLORS = {"pruned": "tab:blue", "unpruned_m": "tab:orange", "unpruned_g": "tab:gray", "unpruned_wide": "tab:green"}


def plot_curves(regimes: Mapping[str, Mapping[str, Any]], path: Path, synthetic: str = "synthetic") -> None:
    """Draw test accuracy against steps and against seconds of training, mean over seeds, a row for each regime.

    Args:
        regimes: figures by name.
        path: of the picture.
        synthetic: what the titles say of it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3 * len(regimes)), layout="constrained")
    panels = figure.subplots(len(regimes), 2, squeeze=False, sharey="row")
    for (name, found), (by_step, by_time) in zip(regimes.items(), panels, strict=True):
        labels = {
            "pruned": f"{found['group']} pruned to {found['survivors']}",
            "unpruned_m": f"{found['survivors']}, none pruned",
            "unpruned_g": f"{found['group']}, none pruned",
            "unpruned_wide": f"{found['survivors']} of {found['group'] // found['survivors']} times the prompts",
        }
        for arm, color in ((arm, color) for arm, color in COLORS.items() if f"curve_{arm}" in found):
            curve = np.array(found[f"curve_{arm}"])
            by_time.plot(curve[:, 1], curve[:, 2], color=color, marker="o", label=labels[arm])
            if arm != "unpruned_wide":
                by_step.plot(curve[:, 0], curve[:, 2], color=color, marker="o")
        by_time.set_xlim(0, 1.3 * found["curve_pruned"][-1][1])
        by_step.set(
            xlabel="optimiser steps", ylabel="test accuracy", title=f"{name.replace('_', ' ')} ({synthetic})"
        )
        by_time.set(xlabel="processor seconds of training")
        by_time.legend(fontsize=8, loc="lower right")
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


SHARES = (0.05, 0.1, 0.2)
"""Of a rollout's length: detection positions on the map."""
MULTIPLES = (2, 4)
"""Of M: rollouts started on the map."""


def plot_map(regimes: Mapping[str, Mapping[str, Any]], survivors: int, path: Path) -> None:
    """Draw from which AUROC on pruning pays, by success rate, with what the regimes' runs had and found.

    Lines are `worth_at` with the phase times of the first regime's runs of M rollouts. A bar is a regime: from the
    success rate before training to that after it, at its head's AUROC within groups; green where the pruned runs'
    area at equal time is above theirs, red where it is below, grey where the interval holds zero.
    """
    from matplotlib.figure import Figure

    first = next(iter(regimes.values()))
    cost = measured_cost(first, survivors)
    rates = np.geomspace(0.01, 0.9, 24)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, multiple in zip(panels, MULTIPLES, strict=True):
        group = multiple * survivors
        for share, style in zip(SHARES, ("-", "--", ":"), strict=True):
            needed = [worth_at(rate, cost, group, survivors, round(share * cost.length)) for rate in rates]
            panel.plot(rates, needed, style, color="black", label=f"pruned at {share:.0%} of the length")
        for name, found in regimes.items():
            if found["group"] == group:
                ends = found["area_gain_equal_time_over_unpruned_m_interval"] or [-1.0, 1.0]
                color = "tab:green" if ends[0] > 0 else "tab:red" if ends[1] < 0 else "tab:gray"
                spread = [max(found["accuracy_before"], rates[0]), found["accuracy_pruned"]]
                panel.plot(spread, [found["head_auroc_within"]] * 2, color=color, linewidth=4)
                panel.annotate(
                    name.replace("_", " "), (spread[0], found["head_auroc_within"]), fontsize=8, va="bottom"
                )
        panel.set(
            xscale="log", xlabel="success rate", title=f"{group} pruned to {survivors} (synthetic)", ylim=(0.5, 1)
        )
    panels[0].legend(fontsize=8, loc="upper left")
    figure.supylabel("AUROC within groups from which on pruning pays", fontsize=9)
    figure.savefig(path, dpi=150)


def measured_cost(found: Mapping[str, Any], survivors: int) -> StepCost:
    """What a step costs, from the runs of M rollouts of a regime."""
    rollouts = found["prompts"] * survivors
    phases = {phase: found[f"seconds_{phase}_unpruned_m"] for phase in ("rollout", "update", "total")}
    return StepCost(
        token=phases["rollout"] / found["tokens_unpruned_m"],
        rollout=phases["update"] / rollouts,
        fixed=max(0.0, phases["total"] - phases["rollout"] - phases["update"]),
        length=found["tokens_unpruned_m"] / rollouts,
        prompts=found["prompts"],
    )
