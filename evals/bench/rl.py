"""Reinforcement with pruned rollouts, on the pocket model (synthetic): ``python -m evals.bench.rl``.

Pruned runs beside their baselines (all G rollouts finished, only the M that survive started, or these of more
prompts), at equal steps and at equal processor time; what each option changes; and where pruning pays. Times are
processor seconds, which on one core are those of the clock on a machine that does nothing else. Test questions are
disjoint from those trained on; intervals are Student's over seeds. See ``rl_runs.py`` for what is run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from arrol_train.rl.advise import advise

from . import write_result
from .rl_figures import comparison, figure, rates, row
from .rl_pictures import plot_curves, plot_map, plot_policies
from .rl_runs import (
    ARMS,
    PRUNED,
    RATES,
    REGIMES,
    SEEDS,
    SLOTS,
    SURVIVORS,
    UNPRUNED_G,
    UNPRUNED_M,
    Arm,
    Runs,
    arms_of,
    at_rate,
)
from .rl_votes import votes_file, voting

VOTED_QUESTIONS = 400
"""Test questions voted on: heads that differ from majority by a point need many."""
ABLATED = "pocket_rare"
"""The regime in which learning rates and options are compared."""
POLICIES = ("random", "published", "group_signed", "max_variance")
"""Those compared with ``tails``, which all other runs use."""
OPTIONS = (
    # The head of an earlier run, and no cold start.
    Arm("warm", warm=True),
    *(Arm(f"policy-{policy}", rollout={"policy": policy}) for policy in POLICIES),
    Arm("group-16", group=16),
    Arm("group-64", group=64),
    Arm("late", rollout={"detect": [{"at": 32, "keep": 0.25}]}),
    Arm("candidates", rollout={"detect": [{"at": 16, "keep": 0.25, "candidates": [8, 16, 32]}]}),
    # All G are finished, and M of known rewards are trained on: down-sampling after generation (PODS).
    Arm("after", head=False, rollout={"prune": "after"}),
    Arm("baseline-all", rollout={"baseline": "all"}),
    Arm("start_prompts", rollout={"start_prompts": 2.0}),
    # DAPO's dynamic sampling, after groups have been finished.
    Arm("refills", rollout={"refills": 1}),
    Arm("revisit", rollout={"revisit": 0.5}),
    Arm("max_group", rollout={"max_group": 64}),
)
AT_RATES = {times: [at_rate(arm, times) for arm in ARMS] for times in RATES}
"""The compared arms at each learning rate."""
VOTED = ("pocket_rare", "pocket")
"""Regimes of whose heads votes are taken, on the questions that the pocket model is asked."""


def main(
    seeds: Annotated[int, typer.Option(help="of the main comparison")] = SEEDS,
    more_seeds: Annotated[int, typer.Option(help="of rates and options; 0: the main comparison only")] = 3,
    regimes: Annotated[str, typer.Option(help="those to run, in this order")] = ",".join(REGIMES),
    out: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs/rl"),
    figures_only: Annotated[bool, typer.Option(help="write what the finished runs say, and run nothing")] = False,
) -> None:
    """Run what is missing; write evals/results/rl.json and docs/rl_*.png."""
    runs, chosen = Runs(out), [name.strip() for name in regimes.split(",")]
    if unknown := [name for name in chosen if name not in REGIMES]:
        raise typer.BadParameter(f"there is no regime {unknown[0]!r}; choose among {', '.join(REGIMES)}")
    if ABLATED not in chosen:
        more_seeds = 0
    # They are compared with runs of the same seeds, and `warm` starts with the head of the next one.
    needed = max((max(seed, (seed + 1) % SEEDS) + 1 for seed in range(more_seeds)), default=0)
    if not figures_only and needed > seeds:
        raise typer.BadParameter(
            f"{more_seeds} seeds of the options need {needed} of the main comparison, not {seeds}: "
            "raise --seeds, or lower --more-seeds"
        )
    if not figures_only:
        for name in chosen:
            runs.make([(name, arm, seed) for seed in range(seeds) for arm in arms_of(name)])
        arms = [*itertools.chain(*AT_RATES.values()), *OPTIONS]
        runs.make([(ABLATED, arm, seed) for seed in range(more_seeds) for arm in arms])
    figures = figures_of(runs, chosen, seeds, more_seeds, votes=not figures_only)
    write_result("rl", figures, list(range(seeds)))
    plot_curves(figures["regimes"], Path("docs/rl_curves.png"))
    plot_map(figures["regimes"], SURVIVORS, Path("docs/rl_map.png"))
    if figures["options"]:
        plot_policies(figures["options"], Path("docs/rl_policies.png"))
    Console().print_json(data={name: _short(found) for name, found in figures["regimes"].items()})


def figures_of(
    runs: Runs, regimes: Sequence[str], seeds: int, more_seeds: int, *, votes: bool = True
) -> dict[str, Any]:
    """What the finished runs say; a seed counts once all of its arms have ended.

    Args:
        runs: of the benchmark.
        regimes: to report.
        seeds: of the main comparison.
        more_seeds: of learning rates and options.
        votes: whether votes that have not been taken yet are taken now.
    """
    figures: dict[str, Any] = {
        "synthetic": True,
        "slots": SLOTS,
        "regimes": {},
        "rates": {},
        "options": {},
        "voting": {},
    }
    for name in regimes:
        arms = arms_of(name)
        finished = runs.finished(name, arms, range(seeds))
        if finished:
            logs = {arm.name: runs.logs(name, arm, finished) for arm in arms}
            made_at = runs.commits(name, arms, finished)
            said = [advise(runs.folder(name, PRUNED, seed)).present_gain for seed in finished]
            figures["regimes"][name] = {
                **comparison(REGIMES[name], logs),
                **figure("advised_gain", said),
                "seeds": finished,
                "commits": made_at,
            }
    if tried := runs.finished(ABLATED, [*itertools.chain(*AT_RATES.values())], range(more_seeds)):
        logs_at = {
            times: {arm.name: runs.logs(ABLATED, of, tried) for arm, of in zip(ARMS, arms, strict=True)}
            for times, arms in AT_RATES.items()
        }
        figures["rates"] = {"seeds": tried, **rates(REGIMES[ABLATED], logs_at)}
    for arm in (PRUNED, UNPRUNED_G, *OPTIONS):
        others = [other for other in (UNPRUNED_M, PRUNED) if other is not arm]
        if finished := runs.finished(ABLATED, (arm, *others), range(more_seeds)):
            logs_of = {other.name: runs.logs(ABLATED, other, finished) for other in others}
            ours = runs.logs(ABLATED, arm, finished)
            figures["options"][arm.name] = row(REGIMES[ABLATED], ours, logs_of) | {"seeds": finished}
    for name in VOTED:
        if name in regimes and (voted := runs.finished(name, (PRUNED,), range(seeds))):
            heads = [runs.folder(name, PRUNED, seed) for seed in voted]
            if votes or all(votes_file(head, VOTED_QUESTIONS).exists() for head in heads):
                figures["voting"][name] = voting(heads, VOTED_QUESTIONS)
    return figures


def _short(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if not isinstance(value, (dict, list))}


if __name__ == "__main__":
    typer.run(main)
