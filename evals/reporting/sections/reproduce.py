"""The quick run: the whole chain on one machine, in minutes."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Section
from .parts import NONE, VOTES, Figures, difference, p_value, picture, table, to


def _control(row: Figures) -> list[str]:
    """The equal-token control of a way of stopping early, and the difference to it."""
    control = row.get("equal_tokens")
    if control is None:
        return [NONE, NONE]
    return [f"{control['accuracy']:.3f}", difference(control["above"], control["above_interval"], "+.2f")]


def _whole(row: Figures, method: str) -> str:
    accuracy = row.get(f"{method}_equal_tokens")
    return NONE if accuracy is None else f"{accuracy:.3f}"


def show(figures: Figures) -> Iterator[str]:
    """Votes, early stopping, and two ablations."""
    votes, stopping = figures["votes"], figures["stopping"]
    n = figures["traces_per_question"]
    yield f"Votes over all {n} traces:"
    yield table(
        ["vote", "right", "95% interval", "gain over majority", "95% interval", "p"],
        [
            [
                VOTES.get(row["name"], row["name"]),
                f"{row['accuracy']:.3f}",
                to(row["interval"], ".2f"),
                *(
                    [NONE] * 3
                    if row["name"] == "majority"
                    else [
                        f"{row['above_majority']:+.3f}",
                        to(row["above_majority_interval"], "+.2f"),
                        p_value(row["p_value"]),
                    ]
                ),
            ]
            for row in votes
        ],
    )
    yield picture("results_accuracy_tokens.png", "accuracy against generated tokens")
    yield (
        "Early stopping, sampled again from the same seeds inside vLLM (the control is replayed), beside the same "
        "vote over as many tokens in whole traces; seconds are not shown here, because the machine did other "
        "things too:"
    )
    yield table(
        ["way", "right", "95% interval", "tokens a question", "tokens saved", "whole traces", "difference"],
        [
            [
                VOTES.get(row["name"], row["name"]),
                f"{row['accuracy']:.3f}",
                to(row["interval"], ".2f"),
                f"{row['tokens_per_question']:,.0f}",
                f"{row['tokens_saved']:.1%}" if row["tokens_saved"] else NONE,
                *_control(row),
            ]
            for row in stopping
        ],
    )
    yield picture("results_reliability.png", "how often traces with a score are right")
    yield "How many traces are kept at the detection position, replayed over the same traces:"
    yield table(
        ["keep ratio", "tokens saved", "majority", "whole traces", "quality head", "95% interval", "whole traces"],
        [
            [
                f"{row['keep']:g}",
                f"{row['tokens_saved']:.1%}",
                f"{row['majority']:.3f}",
                _whole(row, "majority"),
                f"{row['quality']:.3f}",
                to(row["quality_interval"], ".2f"),
                _whole(row, "quality"),
            ]
            for row in figures["keep_ratios"]
        ],
    )
    yield picture("results_keep.png", "accuracy by keep ratio")
    yield "What a trace's scores count in the quality vote:"
    yield table(
        ["weight of a trace", "right", "95% interval"],
        [[row["weight"], f"{row['accuracy']:.3f}", to(row["interval"], ".2f")] for row in figures["weights"]],
    )
    by_name = {row["name"]: row for row in (*votes, *stopping)}
    quality, pruned, control = (by_name[name] for name in ("quality", "quality_pruned", "random_pruned"))
    behind = [
        VOTES.get(name, name)
        for name, row in by_name.items()
        if name not in ("majority", "random_pruned") and row["above_majority_interval"][0] <= 0
    ]
    gain = difference(quality["above_majority"], quality["above_majority_interval"])
    yield (
        f"**What it means.** On these questions the head's vote gains {gain} over majority, and pruning saves "
        f"{pruned['tokens_saved']:.0%} of the tokens at an accuracy of {pruned['accuracy']:.3f}, where the "
        f"control that prunes as many at random is right {control['accuracy']:.3f} of the time. The intervals are "
        f"wide ({figures['questions']} questions, one seed), so neighbours in these tables are not to be ranked; "
        "the next section has more questions and seeds. Not clearly right more often than majority here: "
        f"{'; '.join(behind) or 'none'}. The model falls for its misconception with confidence and in most of its "
        "traces. The vote by ranks is not to be relied on here: "
        "traces of the same text have scores that differ by rounding only, which ranks turn into whole steps."
    )


SECTION = Section(
    "The quick run (synthetic)",
    "Does the whole chain work on this machine: sample in full, sample again under each stopping rule inside "
    "vLLM, vote by every method, and change one thing at a time? The recipe `pocket` asks the pocket model 40 "
    "held-out questions, 32 traces each, in some minutes.",
    show,
)
