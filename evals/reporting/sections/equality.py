"""How often answer equality errs, on judged pairs of answers."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Section
from .parts import Figures, table

STRATA = {
    "merged": "merged by equality",
    "near": "kept apart, the same numbers in both",
    "apart": "kept apart, other numbers",
}


def show(figures: Figures) -> Iterator[str]:
    """Agreement by stratum, ours beside math-verify's."""
    ours, theirs = figures["answers_equal"], figures["math_verify"]
    yield table(
        ["pairs", "judged", "answers_equal agrees", "math-verify agrees"],
        [
            [
                words,
                str(ours["by_stratum"][name]["judged"]),
                str(ours["by_stratum"][name]["agree"]),
                str(theirs["by_stratum"][name]["agree"]),
            ]
            for name, words in STRATA.items()
        ],
    )
    low, high = ours["interval"]
    yield (
        f"**What it means.** Of {figures['pairs'] - figures['unclear']} pairs that could be judged, answers_equal "
        f"is right on {ours['agreement']:.1%} [{low:.1%}, {high:.1%}], with {ours['false_merges']} false and "
        f"{ours['missed_merges']} missed merges; math-verify on {theirs['agreement']:.1%}, with "
        f"{theirs['false_merges']} and {theirs['missed_merges']}, most of the missed ones lists of complex roots "
        "of one question. The strata were drawn by answers_equal itself, the samples are ones it was developed "
        "with, and the judge knew the sizes of the strata, so other questions may show more. Pairs of one "
        "question resemble each other, which the interval does not know."
    )


SECTION = Section(
    "Errors of answer equality",
    "Are two answers that a vote counts as one the same, and two that it keeps apart different? Pairs of "
    "distinct answers to the same question, from recorded samples on MATH and BRUMO'25, judged by reading the "
    "two strings.",
    show,
)
