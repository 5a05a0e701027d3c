"""Reinforcement learning with pruned rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from .base import Section
from .parts import NONE, VOTES, Figures, difference, picture, table, to

PHASES = {"rollout": "rollouts", "update": "update", "total": "whole step"}
POLICIES = {
    "none": "nothing is pruned",
    "tails": "tails (ours)",
    "random": "at random",
    "published": "as published",
    "group_signed": "signed, by group",
    "max_variance": "largest variance",
}


def show(figures: Figures) -> Iterator[str]:
    """Speed and accuracy against all rollouts, votes, and what the choices change."""
    group, keep = figures["group"], figures["keep"]
    kept = round(group * keep)
    yield (
        f"{figures['steps']} steps of GRPO, {figures['prompts']} questions of {group} rollouts each, of which "
        f"{kept} are kept at token {figures['detection_position']} by an online head (the first "
        f"{figures['cold_start']} steps prune nothing and are left out of times). Times are processor seconds; "
        "intervals are over the seeds."
    )
    yield table(
        ["measure", f"all {group} finished", f"{kept} of {group} kept", "ratio or difference", "95% interval"],
        [
            *(
                [
                    f"seconds of a step: {label}",
                    f"{fmean(figures[f'seconds_{phase}']['unpruned']):.2f}",
                    f"{fmean(figures[f'seconds_{phase}']['pruned']):.2f}",
                    f"{figures[f'speedup_{phase}']:.2f}x as fast",
                    to(figures[f"speedup_{phase}_interval"], ".2f"),
                ]
                for phase, label in PHASES.items()
            ),
            [
                "the same by the clock",
                NONE,
                NONE,
                f"{figures['speedup_wall_clock']:.2f}x as fast",
                to(figures["speedup_wall_clock_interval"], ".2f"),
            ],
            [
                "generated tokens of a step",
                NONE,
                NONE,
                f"{figures['tokens_ratio']:.2f}x as few",
                to(figures["tokens_ratio_interval"], ".2f"),
            ],
            [
                "test accuracy before",
                f"{figures['accuracy_before']:.3f}",
                f"{figures['accuracy_before']:.3f}",
                NONE,
                NONE,
            ],
            [
                "test accuracy after as many steps",
                f"{figures['accuracy_unpruned']:.3f}",
                f"{figures['accuracy_pruned']:.3f}",
                f"{figures['accuracy_gain']:+.3f}",
                to(figures["accuracy_gain_interval"], "+.3f"),
            ],
            [
                "test accuracy after equal time",
                NONE,
                NONE,
                f"{figures['accuracy_gain_at_equal_time']:+.3f}",
                to(figures["accuracy_gain_at_equal_time_interval"], "+.3f"),
            ],
        ],
    )
    yield picture("rl_curves.png", "test accuracy against steps and against seconds of training")
    yield "The same comparison elsewhere:"
    second, slots = figures["second_task"], figures["as_many_slots_as_rollouts"]
    source = second["task"]["source"].partition(":")[2].replace("_", " ")
    yield table(
        ["where", "speed of a step", "95% interval", "accuracy after as many steps", "accuracy after equal time"],
        [
            _elsewhere("pocket arithmetic (above)", figures),
            _elsewhere(f"reasoning-gym's {source}", second),
            _elsewhere("pocket arithmetic, as many slots as rollouts", slots),
        ],
    )
    yield "The online head at the detection position:"
    yield table(
        ["task", "AUROC", "AUROC within a question", "accuracy", "calibration error"],
        [
            [label, *(f"{of[f'head_{name}']:.3f}" for name in ("auroc", "auroc_within", "accuracy", "ece"))]
            for label, of in (("pocket arithmetic", figures), (f"reasoning-gym's {source}", second))
        ],
    )
    votes = figures["voting"]
    yield (
        f"Votes with the head that came out of each pruned run, {votes['questions']} test questions of "
        f"{votes['traces_per_question']} traces:"
    )
    yield table(
        ["vote", "accuracy", "95% interval", "above majority (95%)", "tokens a question"],
        [
            [
                VOTES.get(name, name),
                f"{accuracy:.3f}",
                to(votes["intervals"][name]),
                to(votes["above_majority_intervals"][name], "+.3f")
                if name in votes["above_majority_intervals"]
                else NONE,
                f"{votes['tokens_per_question'][name]:,.0f}",
            ]
            for name, accuracy in votes["accuracy"].items()
        ],
    )
    yield (
        f"What the choices change ({figures['seeds_of_tables']} seeds). No signal: share of the groups whose kept "
        "rollouts are all right or all wrong. Balance: 1 where half of the kept are right. Speed: against "
        "nothing pruned."
    )
    for heading, name in (("who is pruned", "policies"), ("keep ratio", "keep_ratios"), ("position", "positions")):
        yield table(
            [heading, "variance of kept rewards", "no signal", "balance", "test accuracy", "speed of a step"],
            [
                [
                    POLICIES.get(row, row),
                    *(_cell(of, key) for key in ("variance", "no_signal", "balance", "accuracy")),
                    f"{of['speedup']:.2f}x",
                ]
                for row, of in figures[name].items()
            ],
        )
    yield picture("rl_policies.png", "variance of the kept rewards, and groups without signal, by policy")
    variance = {POLICIES.get(name, name): row["variance"] for name, row in figures["policies"].items()}
    most, least = max(variance, key=variance.__getitem__), min(variance, key=variance.__getitem__)
    gain = difference(figures["accuracy_gain"], figures["accuracy_gain_interval"])
    equal = difference(figures["accuracy_gain_at_equal_time"], figures["accuracy_gain_at_equal_time_interval"])
    other = difference(second["accuracy_gain_at_equal_time"], second["accuracy_gain_at_equal_time_interval"])
    yield (
        f"**What it means.** With half of the rollouts pruned a step takes 1/{figures['speedup_total']:.2f} of "
        f"the time; test accuracy after as many steps differs by {gain}, after equal time by {equal}, and on the "
        f"second task by {other}. **Pruning is compared with finishing all {group} rollouts. The control of fewer "
        f"rollouts from the start, {kept} instead of {group}, is not in this benchmark yet**, so these figures do "
        "not say that pruning is better than sampling less. Pruning at random is as fast, and no policy's "
        "accuracy can be told from another's with these seeds, so that the head's choice pays off in accuracy is "
        "not shown either. The "
        f'kept rewards vary most with the policy "{most}" and least with "{least}". The head\'s probabilities are '
        f"not calibrated while the policy moves (calibration error {figures['head_ece']:.2f}). All of it is one "
        "small model on synthetic arithmetic."
    )


def _elsewhere(label: str, of: Figures) -> list[str]:
    def accuracy(name: str) -> str:
        return difference(of[name], of[f"{name}_interval"]) if name in of else NONE

    speed = f"{of['speedup_total']:.2f}x"
    gains = map(accuracy, ("accuracy_gain", "accuracy_gain_at_equal_time"))
    return [label, speed, to(of["speedup_total_interval"], ".2f"), *gains]


def _cell(of: Figures, key: str) -> str:
    ends: Sequence[float] | None = of[f"{key}_interval"]
    return f"{of[key]:.3f}" + (f" ({to(ends, '.2f')})" if ends else "")


SECTION = Section(
    "Reinforcement learning with pruned rollouts (synthetic)",
    "Does pruning rollouts while they are generated make GRPO faster at the same accuracy? The pocket model "
    "learns pocket arithmetic, and a task of reasoning-gym, on two cores.",
    show,
)
