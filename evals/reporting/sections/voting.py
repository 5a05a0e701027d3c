"""Speed of votes, of the confidence measures and of answer equality."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Section
from .parts import NONE, Figures, table


def show(figures: Figures) -> Iterator[str]:
    """Seconds and speed-ups."""
    yield table(
        ["what", "seconds", "against DeepConf's own post-processing"],
        [
            [
                "DeepConf's measures of 512 traces of 32,768 tokens",
                f"{figures['deepconf_measures_seconds']:.2f}",
                f"{figures['deepconf_measures_speedup']:,.0f}x as fast; "
                f"{figures['deepconf_measures_speedup_without_groups']:.0f}x without its group sums",
            ],
            [
                f"equality of 10,000 answers of {figures['equality_10000_classes']:.0f} kinds",
                f"{figures['equality_10000_seconds']:.2f}",
                NONE,
            ],
            *(
                ["equality of 5,000 different expressions", f"{figures[name]:.2f}", NONE]
                for name in ("distinct_expressions_5000_seconds",)
                if name in figures  # older figures lack it
            ),
            ["votes on 10,000 questions of 64 traces", f"{figures['vote_10000_seconds']:.2f}", NONE],
        ],
    )
    yield (
        "**What it means.** Voting is not what a run waits for. The measures take "
        f"{figures['deepconf_measures_peak_gib']:.2f} GiB at their peak. DeepConf's side is written anew from its "
        "published definitions, in Python lists as its code works, and timed on 2 traces and scaled to 512; the "
        "larger speed-up counts the group means that its online mode sums from slices on every output, the "
        "smaller one is what its offline mode does. Random confidences stand in for a model's: time does not "
        "depend on them."
    )


SECTION = Section(
    "Speed of voting and of the confidence measures",
    "What do votes cost beside generating? Confidence measures against DeepConf's own way of computing them, "
    "equality of answers, and votes.",
    show,
)
