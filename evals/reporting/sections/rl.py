"""Reinforcement learning with pruned rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .base import Section
from .parts import NONE, VOTES, Figures, difference, picture, table, to

REGIMES = {
    "pocket": "pocket arithmetic",
    "pocket_rare": "pocket arithmetic, successes rare",
    "second": "reasoning-gym's basic arithmetic",
    "second_rare": "reasoning-gym's basic arithmetic, successes rare",
}
OPTIONS = {
    "pruned": "as above",
    "unpruned_g": "all finished and trained on",
    "warm": "with the head of an earlier run, no cold start",
    "policy-random": "pruned at random",
    "policy-published": "pruned as published",
    "policy-group_signed": "signed, by group",
    "policy-max_variance": "largest variance",
    "after": "all finished, M chosen by their rewards (PODS)",
    "group-16": "16 started",
    "group-64": "64 started",
    "late": "pruned at token 32",
    "candidates": "position chosen among 8, 16 and 32",
    "baseline-all": "baseline from all that were started",
    "start_prompts": "twice the prompts started, half of the groups pruned whole",
    "refills": "groups without signal replaced once (DAPO)",
    "revisit": "prompts without signal skipped half of the time (GRESO)",
    "max_group": "up to 64 started, by prompt",
}


def show(figures: Figures) -> Iterator[str]:
    """Pruned runs beside both baselines, votes, and what the options change."""
    yield (
        "A step trains on the kept rollouts of each of a few questions; the baselines train on all that were "
        "started, or start no more than are kept, or (in one table) these of so many more questions that a step "
        "starts as many. The policy starts as the pocket model is, or, where successes are rare, tuned on texts "
        "that seldom take the strategy that is rewarded. Times are processor seconds; *area* is the mean test "
        "accuracy over the steps, or over the seconds, up to where the shortest of a seed's runs ends. Intervals "
        "are over the seeds."
    )
    for name, found in figures["regimes"].items():
        yield (
            f"**{REGIMES[name]}** ({len(found['seeds'])} seeds, {found['steps']} steps of {found['prompts']} "
            f"questions, pruned at token {found['detection_position']} by a head that starts untrained; the first "
            f"{found['cold_start']} steps prune nothing; {found['test_questions']} test questions x "
            f"{found['test_samples_per_question']}):"
        )
        yield regime_table(found)
        yield (
            "Of the pruned runs' own logs `arrol-train advise` says that they have "
            f"{found['advised_gain']:.2f}{_ends(found, 'advised_gain')} times the signal a second of "
            f"{found['survivors']} that are not pruned."
        )
    yield picture("rl_curves.png", "test accuracy against steps and against seconds of training")
    yield "The head at the detection position, on rollouts that it had not learned from:"
    heads = {name: found for name, found in figures["regimes"].items() if "head_auroc_within" in found}
    yield table(
        ["where", "AUROC", "AUROC within a question", "accuracy", "calibration error"],
        [
            [
                REGIMES[name],
                *(f"{of[f'head_{what}']:.3f}" for what in ("auroc", "auroc_within", "accuracy", "ece")),
            ]
            for name, of in heads.items()
        ],
    )
    if tried := figures.get("rates"):
        yield from _rates(tried)
    if options := figures["options"]:
        yield from _options(options)
    yield picture(
        "rl_map.png", "AUROC within groups from which on pruning pays, by success rate, and what was found"
    )
    yield (
        "Lines say from which AUROC on pruning pays against fewer rollouts, by this machine's times of a token "
        "and an update (`arrol_train/rl/breakeven.py`); bars are the regimes, from the success rate before "
        "training to that after it, at the AUROC that their heads had among survivors: green where pruned runs "
        "were better at equal time, red where they were worse, grey where that cannot be told."
    )
    for name, votes in figures["voting"].items():
        yield from _votes(REGIMES[name], votes)
    yield _meaning(figures)


def readme_part(figures: Figures) -> str:
    """What README.md says of it."""
    regimes = {REGIMES[name]: found for name, found in figures["regimes"].items()}
    return "\n\n".join(
        [
            "**Training with pruned rollouts**, on the pocket model (**synthetic**; `make bench-rl` makes "
            "[evals/results/rl.json](evals/results/rl.json)), beside what costs as little: mean test accuracy "
            "over as many seconds of training (seconds of a step), and what pruned runs gain; 95% intervals over "
            f"{min(len(found['seeds']) for found in regimes.values())} seeds.",
            equal_time_table(regimes),
            "Where successes are rare, pruning teaches more in the same time. Where they are not, or soon are "
            "not, sampling fewer rollouts does as well and needs no head: "
            "[docs/training.md](docs/training.md#does-pruning-pay) has the arithmetic, `arrol-train advise` says "
            "it of your run, and with `rollout.max_group` the run goes by it.",
        ]
    )


def equal_time_table(regimes: Mapping[str, Figures]) -> str:
    """Areas at equal time of every arm, and what pruned runs gain, a row for each regime by what it is called."""
    return table(
        ["where", "G to M", "pruned", "M, none pruned", "G, none pruned", "pruned beats M by", "G by"],
        [
            [
                f"{called}, {found['accuracy_before']:.0%} right before",
                f"{found['group']} to {found['survivors']}",
                *(
                    f"{found[f'area_time_{arm}']:.3f} ({found[f'seconds_total_{arm}']:.1f} s)"
                    for arm in ("pruned", "unpruned_m", "unpruned_g")
                ),
                *(gain(found, f"area_gain_equal_time_over_{arm}") for arm in ("unpruned_m", "unpruned_g")),
            ]
            for called, found in regimes.items()
        ],
    )


def regime_table(found: Figures) -> str:
    """Every arm of a regime, and what pruned runs gain over the others."""
    labels = labels_of(found)
    heading = [
        "rollouts",
        "seconds a step",
        "tokens a step",
        "accuracy before",
        "after as many steps",
        "area, equal steps",
        "area, equal time",
    ]
    rows = [
        [
            label,
            f"{found[f'seconds_total_{arm}']:.2f}",
            f"{found[f'tokens_{arm}']:,.0f}",
            f"{found['accuracy_before']:.3f}",
            f"{found[f'accuracy_{arm}']:.3f}",
            f"{found[f'area_steps_{arm}']:.3f}" if f"area_steps_{arm}" in found else NONE,
            f"{found[f'area_time_{arm}']:.3f}",
        ]
        for arm, label in labels.items()
    ]
    for arm in rivals_of(found):
        rows.append(
            [
                f"pruned against {labels[arm]}",
                f"{found[f'speedup_total_over_{arm}']:.2f}x as fast",
                NONE,
                NONE,
                *(
                    gain(found, name)
                    for name in (
                        f"accuracy_gain_equal_steps_over_{arm}",
                        f"area_gain_equal_steps_over_{arm}",
                        f"area_gain_equal_time_over_{arm}",
                    )
                ),
            ]
        )
    return table(heading, rows)


def labels_of(found: Figures) -> dict[str, str]:
    """Of the arms that were run."""
    group, kept = found["group"], found["survivors"]
    labels = {
        "pruned": f"{group} pruned to {kept}",
        "unpruned_m": f"{kept}, none pruned",
        "unpruned_g": f"{group}, none pruned",
        "unpruned_wide": f"{kept}, none pruned, of {found['prompts'] * group // kept} questions",
    }
    return {arm: label for arm, label in labels.items() if f"accuracy_{arm}" in found}


def rivals_of(found: Figures) -> dict[str, str]:
    """Labels of the arms that pruned runs are compared with."""
    return {arm: label for arm, label in labels_of(found).items() if arm != "pruned"}


def _rates(tried: Figures) -> Iterator[str]:
    best, seeds = tried["best"], ", ".join(map(str, tried["seeds"]))
    yield (
        f"Where successes are rare, at other learning rates (seeds {seeds}; all else is as above): area at equal "
        "time, and what pruned runs gain at the same rate. The last line has each at the rate where its own area "
        "is largest, by the same test questions for all: "
        f"{best['pruned']:g}x pruned, {best['unpruned_m']:g}x and {best['unpruned_g']:g}x not pruned."
    )
    yield table(
        ["learning rate", "pruned", "M, none pruned", "G, none pruned", "gained over M", "over G"],
        [
            [
                "each at its best" if times == "best" else f"{times}x",
                *(f"{found[f'area_time_{arm}']:.3f}" for arm in ("pruned", "unpruned_m", "unpruned_g")),
                *(gain(found, f"area_gain_equal_time_over_{arm}") for arm in ("unpruned_m", "unpruned_g")),
            ]
            for times, found in tried["areas"].items()
        ],
    )


def _options(options: Mapping[str, Figures]) -> Iterator[str]:
    yield (
        "What the options change where successes are rare: the area that each gains over M rollouts from the "
        "start, and over pruned runs without it, of the same seeds. No signal: share of the groups whose kept "
        "rollouts are all right or all wrong. Gains differ more between seeds than between most options: a line "
        "of one seed tells apart only what is far apart."
    )
    yield table(
        [
            "option",
            "seeds",
            "variance of rewards",
            "no signal",
            "seconds a step",
            "gained over M, equal steps",
            "equal time",
            "over pruned, equal steps",
            "equal time",
        ],
        [
            [
                OPTIONS.get(name, name.replace("-", " ")),
                str(len(of["seeds"])),
                f"{of['variance']:.3f}",
                f"{of['no_signal']:.3f}",
                f"{of['seconds_step']:.2f}",
                *(
                    gain(of, f"area_gain_equal_{axis}_over_{other}")
                    for other in ("unpruned_m", "pruned")
                    for axis in ("steps", "time")
                ),
            ]
            for name, of in options.items()
        ],
    )
    yield picture("rl_policies.png", "variance of the kept rewards, and groups without signal, by option")


def _votes(where: str, votes: Figures) -> Iterator[str]:
    yield (
        f"Votes with the head that came out of each pruned run ({where}), {votes['questions']} test questions of "
        f"{votes['traces_per_question']} traces:"
    )
    above: Mapping[str, Any] = votes["above_majority_intervals"]
    yield table(
        ["vote", "accuracy", "95% interval", "above majority (95%)", "tokens a question"],
        [
            [
                VOTES.get(name, name),
                f"{accuracy:.3f}",
                to(votes["intervals"][name]),
                to(above[name], "+.3f") if name in above else NONE,
                f"{votes['tokens_per_question'][name]:,.0f}",
            ]
            for name, accuracy in votes["accuracy"].items()
        ],
    )


def _meaning(figures: Figures) -> str:
    said = [f"{REGIMES[name]}: {gains_at_equal_time(found)}" for name, found in figures["regimes"].items()]
    return (
        "**What it means.** Differences in area at equal processor time, pruned against nothing pruned: "
        f"{'; '.join(said)}. Where a difference cannot be told from none, sampling fewer rollouts does as well as "
        "pruning, and needs no head. All of it is one small model on synthetic arithmetic."
    )


def gains_at_equal_time(found: Figures) -> str:
    """What pruned runs gain in area over every other arm, in words."""
    return " and ".join(
        f"{gain(found, f'area_gain_equal_time_over_{arm}')} against {label}"
        for arm, label in rivals_of(found).items()
    )


def gain(found: Figures, name: str) -> str:
    """A difference with its interval over seeds."""
    if name not in found:  # steps of another size are not compared
        return NONE
    ends = found[f"{name}_interval"]
    return difference(found[name], ends) if ends else f"{found[name]:+.3f} (one seed)"


def _ends(found: Figures, name: str) -> str:
    ends = found[f"{name}_interval"]
    return f" ({to(ends, '.2f')})" if ends else ""


SECTION = Section(
    "Reinforcement learning with pruned rollouts (synthetic)",
    "Does pruning rollouts while they are generated teach a policy more in the same time? Against finishing all "
    "rollouts, and against starting only as many as survive. The pocket model learns, from policies that are "
    "right seldom and, where that has been run, often.",
    show,
)
