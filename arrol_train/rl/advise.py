"""What a run's own figures say about how it spends its seconds: ``arrol-train advise``.

From a run's log come how often prompts are solved, how well the head ranks within groups at each position, and
what a token, an update and a step cost. From these, `breakeven.choices` says which way of sampling the M rollouts
that are trained on gives most signal a second, sampling M and pruning nothing among them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from arrol_train.rl.breakeven import (
    Choice,
    Floats,
    StepCost,
    choices,
    pruned_after,
    success_rates,
    worth_at,
)
from arrol_train.rl.run_log import read_log
from arrol_tts.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

RECENT = 20
"""Steps that are looked at: the newest, since what pays changes as the policy learns."""
MULTIPLES = (1, 2, 4, 8)
"""Of M, the rollouts that might be started."""
SHARES = (0.05, 0.1, 0.2)
"""Of the mean length: positions of which is said what a head would have to know there."""

Clock = Literal["cpu", "time"]


@dataclass(frozen=True, slots=True)
class Advice:
    """What a run's figures say.

    Attributes:
        steps: that were looked at.
        rates: success rates of prompts, float64 ``[n]``, equally likely.
        cost: of a step.
        aurocs: within groups, by position; empty without a head.
        present: what the run does; where it chooses G for each prompt, as though each had the mean one.
        best: of the ways to spend a step, that with most signal a second first.
        needed: by position, the AUROC within groups from which pruning 2 M rollouts to M would pay; nan: never.
    """

    steps: int
    rates: Floats
    cost: StepCost
    aurocs: dict[int, float]
    present: Choice
    best: list[Choice]
    needed: dict[int, float]

    @property
    def alone(self) -> Choice:
        """M rollouts, nothing pruned."""
        return next(c for c in self.best if c.group == c.survivors == self.present.survivors)

    @property
    def present_gain(self) -> float:
        """Signal a second of what the run does, over that of M rollouts of which nothing is pruned."""
        return self.present.rate / self.alone.rate

    def sentence(self) -> str:
        """The advice in one line."""
        gain, first = self.best[0].rate / self.alone.rate, self.best[0]
        what = f"{first.group} pruned to {first.survivors} at token {first.position} by {first.policy}"
        if first is self.alone:
            what = f"sampling {first.survivors} and pruning nothing"
        elif first.policy == "after":
            what = f"{first.group} finished and pruned to {first.survivors} by their rewards"
        return (
            f"at a success rate of {self.rates.mean():.2f}, most signal a second comes from {what} "
            f"({gain:.2f} times that of {self.alone.group} unpruned; this run has {self.present_gain:.2f} times)"
        )


def advise(run: Path, clock: Clock = "cpu") -> Advice:
    """Read a run's folder; see `advice_of`.

    Args:
        run: the folder; the run may be going on.
        clock: ``cpu``: processor seconds of this process, right where the engine is in it and there is no GPU;
            ``time``: seconds on the wall.

    Raises:
        InputError: when it holds no run, or one without a step yet.
    """
    config = run / "run.json"
    if not config.is_file():
        raise InputError(f"{run} holds no run: name the folder that `arrol-train rl --out` was given")
    return advice_of(read_log(run / "log.jsonl"), json.loads(config.read_text()), clock)


def advice_of(lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any], clock: Clock = "cpu") -> Advice:
    """What the lines of a log say.

    Args:
        lines: of ``log.jsonl``.
        config: ``model_dump`` of the run's configuration.
        clock: see `advise`.

    Raises:
        InputError: when no line has what is needed.
    """
    rollout = config["rollout"]
    batches = _batches(lines, clock)
    steps = [line for line in batches if "rollout/success" in line and f"{clock}/step" in line]
    # The cold start prunes nothing; where there is nothing else yet, it says enough.
    steps = [line for line in steps if line["step"] > rollout["cold_start"]] or steps
    steps = steps[-RECENT:]
    if not steps:
        raise InputError("the log has no step with the figures that are needed: let the run take a step first")
    mean = _means(steps)
    group, survivors = rollout["group"], round(mean["rollout/survivors"] / config["prompts"])
    # No success so far does not mean that there is none: half of one, in all that were finished.
    least = 0.5 / (mean["rollout/survivors"] * len(steps))
    success = min(max(mean["rollout/success"], least), 1 - least)
    unclear = success != mean["rollout/success"]
    rates = success_rates(success, success**2 if unclear else mean["rollout/success_square"])
    cost = StepCost(
        token=mean[f"{clock}/rollout"] / mean["rollout/generated_tokens"],
        rollout=(mean[f"{clock}/logprob"] + mean[f"{clock}/update"]) / mean["rollout/survivors"],
        fixed=sum(mean.get(f"{clock}/{phase}", 0.0) for phase in ("push", "head")),
        length=mean["rollout/length"],
        prompts=config["prompts"],
    )
    aurocs = _aurocs(mean)
    detect = rollout["detect"]
    if rollout.get("max_group"):  # chosen for each prompt
        begun = config["prompts"] + mean["rollout/given_up"]
        group = max(survivors, round(mean["rollout/started"] / begun))
    position = detect[-1]["at"] if detect and survivors < group else 0
    if position and "rollout/position" in steps[-1]:  # chosen among candidates
        position = int(steps[-1]["rollout/position"])
    groups = sorted({multiple * survivors for multiple in MULTIPLES} | {group})
    found = choices(rates, cost, aurocs, survivors, groups)
    if position and rollout.get("prune") == "after":
        present = pruned_after(rates, cost, group, survivors)
        found = sorted([*found, present], key=lambda choice: -choice.rate)
    else:
        policy = "none" if not position else "random" if rollout["policy"] == "random" else "tails"
        ways = choices(rates, cost, {position: aurocs.get(position, 0.5)}, survivors, [group])
        present = next(c for c in ways if c.group == group and (c.position, c.policy) == (position, policy))
    positions = sorted({max(1, round(share * cost.length)) for share in SHARES})
    return Advice(
        steps=len(steps),
        rates=rates,
        cost=cost,
        aurocs=aurocs,
        present=present,
        best=[choice for choice in found if choice.policy != "none" or choice.group == survivors],
        needed={at: worth_at(rates, cost, 2 * survivors, survivors, at) for at in positions},
    )


def _batches(lines: Sequence[Mapping[str, Any]], clock: Clock) -> list[dict[str, Any]]:
    """A line for each batch of rollouts, with the seconds of all steps that were taken on it.

    TRL may take several (``num_iterations``), and the first one's line has what is known of the rollouts.
    """
    batches: list[list[Mapping[str, Any]]] = []
    for line in lines:
        if "rollout/generated_tokens" in line:
            batches.append([])
        if batches:
            batches[-1].append(line)
    if len(batches) > 1 and len(batches[-1]) < len(batches[-2]):  # further steps are to come
        batches.pop()
    seconds = [
        {name: sum(line.get(name, 0.0) for line in batch) for name in batch[0] if name.startswith(f"{clock}/")}
        for batch in batches
    ]
    return [{**batch[0], **whole} for batch, whole in zip(batches, seconds, strict=True)]


def _means(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of every number, over the lines that have it."""
    found: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _aurocs(mean: Mapping[str, float]) -> dict[int, float]:
    """Within groups by position; weighted to all rollouts where the log has it."""
    found: dict[int, float] = {}
    for kind in ("auroc_within", "auroc_within_all"):
        for name, value in mean.items():
            if match := re.fullmatch(rf"head/(\d+)/{kind}", name):
                found[int(match[1])] = value
    return found


def tables(advice: Advice) -> list[Table]:
    """The advice as tables for a terminal."""
    from rich.table import Table

    cost = advice.cost
    choices = Table(
        title=f"ways to get {advice.alone.survivors} rollouts of a prompt, by signal a second "
        f"(of {advice.steps} steps; success {advice.rates.mean():.2f}, a rollout has {cost.length:.0f} tokens)"
    )
    for heading in ("started", "kept", "at token", "policy", "AUROC there", "signal", "seconds a step", "gain"):
        choices.add_column(heading, justify="left" if heading == "policy" else "right")
    for choice in advice.best:
        auroc = advice.aurocs.get(choice.position)
        choices.add_row(
            str(choice.group),
            str(choice.survivors),
            str(choice.position or "-"),
            choice.policy,
            f"{auroc:.2f}" if auroc is not None and choice.policy == "tails" else "-",
            f"{choice.signal:.2f}",
            f"{choice.seconds:.2f}",
            f"{choice.rate / advice.alone.rate:.2f}",
            style="bold" if (choice.group, choice.position, choice.policy) == _way(advice.present) else None,
        )
    needed = Table(title=f"{2 * advice.alone.group} pruned to {advice.alone.group} would pay")
    needed.add_column("at token", justify="right")
    needed.add_column("from an AUROC within groups of", justify="right")
    for position, auroc in advice.needed.items():
        needed.add_row(str(position), "never" if math.isnan(auroc) else f"{auroc:.2f}")
    return [choices, needed]


def _way(choice: Choice) -> tuple[int, int, str]:
    return choice.group, choice.position, choice.policy
