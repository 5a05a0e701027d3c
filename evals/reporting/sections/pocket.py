"""Voting and pruning on the pocket model, over three seeds."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Section
from .parts import NONE, VOTES, Figures, picture, table, to

ROWS = {
    "majority": "majority",
    "deepconf": "DeepConf (bottom window)",
    "quality": "**quality head**",
    "quality_pruned": "**quality head, half pruned at token 32**",
    "random_pruned": "control: half pruned at random, majority",
}


def main_table(figures: Figures) -> str:
    """The table that README.md has too."""
    rows = []
    full = figures["tokens_per_question"]["majority"]
    for name, label in ROWS.items():
        accuracy, tokens = figures[f"accuracy_{name}"], figures["tokens_per_question"][name]
        saved = NONE if tokens == full else f"{1 - tokens / full:.0%}"
        best = name.startswith("quality")
        rows.append(
            [
                label,
                f"**{accuracy:.3f}**" if best else f"{accuracy:.3f}",
                to(figures["accuracy_intervals"][name]),
                f"{tokens:,.0f}",
                f"**{saved}**" if best and saved != NONE else saved,
            ]
        )
    return table(["vote", "accuracy", "95% interval", "tokens a question", "saved"], rows)


def show(figures: Figures) -> Iterator[str]:
    """The main table, every method, and keep ratios."""
    yield main_table(figures)
    yield picture(
        "pocket_accuracy_tokens.png", "accuracy against generated tokens: one make eval, one seed, 120 questions"
    )
    yield "Every voting method on the traces that were sampled in full:"
    methods = figures["accuracy_every_method"]
    yield table(
        ["vote", "accuracy"],
        [
            [VOTES.get(name, name), f"{accuracy:.3f}"]
            for name, accuracy in sorted(methods.items(), key=lambda row: -row[1])
        ],
    )
    yield "How many traces are kept at token 32, replayed over the same traces:"
    yield table(
        ["keep ratio", "tokens saved", "quality head", "majority of the kept"],
        [
            [
                f"{row['keep']:g}",
                f"{row['tokens_saved_share']:.1%}",
                f"{row['accuracy_quality']:.3f}",
                f"{row['accuracy_majority']:.3f}",
            ]
            for row in figures["keep_ratios_replayed"]
        ],
    )
    gain = to(figures["above_majority_intervals"]["quality_pruned"], "+.3f")
    confidence = to(figures["above_majority_intervals"]["deepconf"], "+.3f")
    yield (
        "**What it means.** With half of the traces pruned inside vLLM the head's vote is right "
        f"{figures['accuracy_quality_pruned']:.3f} of the time against {figures['accuracy_majority']:.3f} for "
        f"majority (difference {gain}), for {figures['tokens_saved_share']:.0%} fewer tokens. Even a plain "
        "majority of the traces that the head keeps is far above majority: most of the gain is in which traces "
        f"may vote. DeepConf's difference to majority is {confidence}, and votes of its most confident tenth are "
        f"right {methods['deepconf-top10']:.3f} of the time: this model is confident in its misconception. The "
        "task is made so that a misconception can be seen in the hidden states; on a real model the gain is "
        "smaller, see *Quality heads*."
    )


SECTION = Section(
    "Voting and pruning over three seeds (synthetic)",
    "How much more often is the head's vote right than majority and DeepConf on the same traces, and what does "
    "pruning half of them cost? 200 held-out questions of the pocket model, 32 traces each, three seeds; head, "
    "threshold and DeepConf's windows were fitted on training questions. Intervals are over questions, each "
    "with its mean over the seeds.",
    show,
)
