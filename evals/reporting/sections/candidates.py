"""Designs of a head: what it reads and how it pools, compared on the same traces."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from .base import Section
from .parts import Figures, difference, table, to

CLEAR = 0.01
"""A difference in AUROC that would be worth more work in the engines."""

MEASURES = ("auroc_early", "auroc_finish", "vote")


def show(figures: Figures) -> Iterator[str]:
    """A table for each setting, the curves, and which design is the default."""
    for part in figures.values():
        made_up = f"; synthetic: {part['synthetic']}" if part["synthetic"] else ""
        yield (
            f"**{part['model']}** on {part['task']}{made_up}. {part['traces_per_question']} traces a question, "
            f"{part['mean_tokens']:.0f} tokens on average; {part['questions_to_learn_from']} questions to learn "
            f"from, {part['questions_to_choose_on']} to choose the epoch on, {part['questions_to_compare_on']} to "
            f"compare on, {part['of_these_with_right_and_wrong']} of them with right and wrong traces. One trace "
            f"is right {part['accuracy_samples']:.3f} of the time, majority {part['accuracy_majority']:.3f}. "
            f"In brackets: 95% intervals of the difference to {part['reference']}."
        )
        yield table(
            [
                "design",
                f"AUROC within a question at token {part['early']}",
                "at the finish",
                "vote",
                "numbers a row, sums a trace",
                "reads besides",
                "in engines today",
            ],
            [
                [
                    f"**{name}**" if name == part["reference"] else name,
                    *(
                        _cell(row, key, name == part["reference"])
                        for key in ("auroc_early", "auroc_finish", "vote")
                    ),
                    f"{row['numbers_a_row']}, {row['sums_a_trace']}",
                    row["beyond_the_last_state"],
                    row["in_engines_today"],
                ]
                for name, row in part["designs"].items()
            ],
        )
        yield "AUROC within a question after so many tokens; a trace that has ended keeps its last score:"
        places = list(next(iter(part["curves"].values())))
        yield table(
            ["design", *places],
            [[name, *(f"{curve[p]:.3f}" for p in places)] for name, curve in part["curves"].items()],
        )
    yield "Over the settings, means of the designs that were measured in all of them:"
    yield table(
        ["design", "AUROC early", "AUROC at the finish", "vote", "clearly better in", "clearly worse in"],
        [
            [
                name,
                *(
                    f"{statistics.fmean(p['designs'][name][key] for p in figures.values()):.3f}"
                    for key in MEASURES
                ),
                *(f"{_clearly(figures, name, sign)} of {len(figures)}" for sign in (1, -1)),
            ]
            for name in _everywhere(figures)
        ],
    )
    yield meaning(figures)


def _cell(row: Figures, key: str, reference: bool) -> str:
    if reference:
        return f"{row[key]:.3f}"
    return f"{row[key]:.3f} ({to(row[f'{key}_above_reference_interval'], '+.3f')})"


def meaning(figures: Figures) -> str:
    """What the tables say, in words that follow from the figures."""
    parts = list(figures.values())
    reference = parts[0]["reference"]
    better = [
        f"{name} in {count}"
        for name in dict.fromkeys(name for part in parts for name in part["designs"])
        if (count := _clearly(figures, name, 1))
    ]
    finish = {
        name: ", ".join(_difference(part, name) for part in parts if name in part["designs"])
        for name in ("gated, MLP", "mean and last, MLP", "last, MLP, fixed positions")
    }
    return (
        f"**What it means.** Clearly better than {reference} is what has an AUROC higher by {CLEAR:g} or more, "
        f"early or at the finish, with an interval that excludes zero: {', '.join(better) or 'nothing'} of "
        f"{len(parts)} settings. A gated mean, which reads two numbers a row, differs at the finish by "
        f"{finish['gated, MLP']}; a mean with a second score of the last state by {finish['mean and last, MLP']}; "
        f"heads that do not pool and are trained at fixed positions, as those of format 1, by "
        f"{finish['last, MLP, fixed positions']}. Limits: the questions are "
        "few, so that differences of some hundredths cannot be told from none outside of the pocket model."
    )


def _difference(part: Figures, name: str) -> str:
    row = part["designs"][name]
    said = difference(row["auroc_finish_above_reference"], row["auroc_finish_above_reference_interval"])
    return f"{said} on {part['model']}"


def _mean(figures: Figures, name: str, key: str) -> float:
    return statistics.fmean(part["designs"][name][key] for part in figures.values())


def _everywhere(figures: Figures) -> list[str]:
    first, *others = figures.values()
    return [name for name in first["designs"] if all(name in part["designs"] for part in others)]


def _clearly(figures: Figures, name: str, sign: int) -> int:
    """In how many settings a design is better (or worse, with the sign -1) by `CLEAR` and more than chance."""
    return sum(
        any(
            sign * row[f"{key}_above_reference"] >= CLEAR
            and min(sign * end for end in row[f"{key}_above_reference_interval"]) > 0
            for key in ("auroc_early", "auroc_finish")
        )
        for part in figures.values()
        if (row := part["designs"].get(name))
    )


SECTION = Section(
    "Designs of a head",
    "What should a head read of each token, and how should it pool over the trace so far? All designs learn by "
    "one recipe from the same training questions, three seeds each, and are compared on other training questions: "
    "no test question of a benchmark is used.",
    show,
)
