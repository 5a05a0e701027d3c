"""Figures of the reinforcement benchmark, from the logs of its runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arrol_tts.metrics import bootstrap_interval

from .compared import student_interval
from .rl_runs import PHASES, Floats, Log, Regime

BASELINES = ("unpruned_m", "unpruned_g", "unpruned_wide")
AXES = {"steps": 0, "time": 1}


def figure(name: str, values: Sequence[float]) -> dict[str, Any]:
    """A mean over seeds, Student's 95% interval of it (null with one seed), and the values."""
    return {
        name: float(np.mean(values)),
        f"{name}_interval": list(student_interval(values)) if len(values) > 1 else None,
        f"{name}_per_seed": [float(v) for v in values],
    }


def comparison(regime: Regime, arms: Mapping[str, Sequence[Log]]) -> dict[str, Any]:
    """Pruned runs beside both baselines, of the same seeds in the same order.

    For every seed the curves are compared up to where the shortest of the three ends, in steps and in processor
    seconds: accuracy there, and the mean accuracy up to there (``area_``), which is the number that was chosen
    beforehand to tell arms apart.

    Args:
        regime: of the runs.
        arms: ``pruned`` and some of `BASELINES`.
    """
    pruned = arms["pruned"]
    figures: dict[str, Any] = {
        "task": regime.task,
        "rare": regime.rare,
        "group": regime.group,
        "survivors": regime.survivors,
        "prompts": regime.prompts,
        "detection_position": regime.detect,
        "cold_start": regime.cold_start,
        "steps": regime.steps,
        "test_questions": len(pruned[0].tests[-1]["eval/right"]),
        "test_samples_per_question": int(pruned[0].tests[-1]["eval/samples"]),
        **figure("accuracy_before", [log.tests[0]["eval/accuracy"] for log in pruned]),
    }
    for name, logs in arms.items():
        figures |= figure(f"accuracy_{name}", [log.accuracy for log in logs])
        figures[f"accuracy_{name}_interval_over_questions"] = list(bootstrap_interval(per_question(logs)))
        figures[f"curve_{name}"] = np.mean([log.curve for log in logs], axis=0).tolist()
        for phase in PHASES:
            figures |= figure(f"seconds_{phase}_{name}", [log.seconds(phase, regime.cold_start) for log in logs])
        figures |= figure(
            f"tokens_{name}", [log.mean("rollout/generated_tokens", regime.cold_start) for log in logs]
        )
    for axis, column in AXES.items():
        # A step of the wide arm is another one: its curve counts for equal time only.
        compared = {name: logs for name, logs in arms.items() if axis == "time" or name != "unpruned_wide"}
        until = np.min([[log.curve[-1, column] for log in logs] for logs in compared.values()], axis=0)
        for name, logs in compared.items():
            figures |= figure(
                f"area_{axis}_{name}", [log.area(column, end) for log, end in zip(logs, until, strict=True)]
            )
        for name in (name for name in BASELINES if name in compared):
            for what, value in (("accuracy", Log.accuracy_at), ("area", Log.area)):
                gains = [
                    value(ours, column, end) - value(other, column, end)
                    for ours, other, end in zip(pruned, arms[name], until, strict=True)
                ]
                figures |= figure(f"{what}_gain_equal_{axis}_over_{name}", gains)
    for name in (name for name in BASELINES if name in arms):
        for phase in PHASES:
            ratios = [
                b.seconds(phase, regime.cold_start) / a.seconds(phase, regime.cold_start)
                for a, b in zip(pruned, arms[name], strict=True)
            ]
            figures |= figure(f"speedup_{phase}_over_{name}", ratios)
    for name in ("auroc", "auroc_within", "auroc_within_all", "accuracy", "ece"):
        values = [log.mean(f"head/{regime.detect}/{name}", regime.cold_start) for log in pruned]
        if np.isfinite(values).all():
            figures |= figure(f"head_{name}", values)
    return figures


def rates(regime: Regime, arms: Mapping[float, Mapping[str, Sequence[Log]]]) -> dict[str, Any]:
    """The comparison at several learning rates, and with each arm at its best.

    The best of an arm is the rate with the largest area at equal time, by the same test questions as the arms are
    compared on: all of them gain alike from that.

    Args:
        regime: of the runs.
        arms: by multiple of the learning rate: as `comparison` takes them, all of the same seeds.
    """
    made = {f"{times:g}": comparison(regime, logs) for times, logs in arms.items()}
    until = np.min([[log.curve[-1, 1] for log in logs] for at in arms.values() for logs in at.values()], axis=0)
    best = {
        name: max(
            arms,
            key=lambda times: np.mean(
                [log.area(1, end) for log, end in zip(arms[times][name], until, strict=True)]
            ),
        )
        for name in next(iter(arms.values()))
    }
    made["best"] = comparison(regime, {name: arms[times][name] for name, times in best.items()})
    kept = ("accuracy_", "area_")
    return {
        "best": {name: float(times) for name, times in best.items()},
        "areas": {
            times: {name: value for name, value in found.items() if name.startswith(kept)}
            for times, found in made.items()
        },
    }


def row(regime: Regime, logs: Sequence[Log], others: Mapping[str, Sequence[Log]]) -> dict[str, Any]:
    """One line of the ablation; ``others`` are runs of the same seeds, by the names of their arms."""
    made: dict[str, Any] = {}
    for name in ("variance", "no_signal", "balance"):
        made |= figure(name, [log.mean(f"rollout/{name}", regime.cold_start) for log in logs])
    made |= figure("accuracy", [log.accuracy for log in logs])
    made |= figure("seconds_step", [log.seconds("total", 0) for log in logs])
    for (axis, column), (other, theirs) in itertools.product(AXES.items(), others.items()):
        ends = [min(a.curve[-1, column], b.curve[-1, column]) for a, b in zip(logs, theirs, strict=True)]
        gains = [a.area(column, end) - b.area(column, end) for a, b, end in zip(logs, theirs, ends, strict=True)]
        made |= figure(f"area_gain_equal_{axis}_over_{other}", gains)
    return made


def per_question(logs: Sequence[Log]) -> Floats:
    """Share of right test rollouts of every question at the end, mean over seeds: float64 ``[questions]``."""
    tests = [log.tests[-1] for log in logs]
    shares: Floats = np.mean([np.array(test["eval/right"]) / test["eval/samples"] for test in tests], axis=0)
    return shares
