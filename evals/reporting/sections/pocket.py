"""Voting, pruning and waves on the pocket model."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Section
from .parts import NONE, VOTES, Figures, difference, picture, table, to

ROWS = {
    "majority": "majority",
    "deepconf": "DeepConf (bottom window)",
    "quality": "**quality head**",
    "quality_pruned": "**quality head, half pruned at token {position}**",
    "waves": "**quality head, in waves**",
    "random_pruned": "control: half pruned at random, majority",
    "adaptive_consistency": "Adaptive-Consistency, majority",
    "esc": "ESC, majority",
    "deepconf_online": "DeepConf online",
}
STOPPED = tuple(ROWS)[3:]


def main_table(figures: Figures) -> str:
    """The table that README.md has too."""
    rows = []
    full = figures["tokens_per_question"]["majority"]
    for name in ROWS:
        accuracy, tokens = figures[f"accuracy_{name}"], figures["tokens_per_question"][name]
        saved = NONE if tokens == full else f"{1 - tokens / full:.0%}"
        best = "**" in ROWS[name]
        rows.append(
            [
                _label(name, figures),
                f"**{accuracy:.3f}**" if best else f"{accuracy:.3f}",
                to(figures["accuracy_intervals"][name]),
                f"{tokens:,.0f}",
                f"**{saved}**" if best and saved != NONE else saved,
                f"{figures[f'accuracy_{name}_equal_tokens']:.3f}" if name in STOPPED else NONE,
            ]
        )
    heading = ["vote", "accuracy", "95% interval", "tokens a question", "saved", "as many tokens in whole traces"]
    return table(heading, rows)


def _label(name: str, figures: Figures) -> str:
    return ROWS[name].format(position=figures["detection_position"])


def readme_part(figures: Figures) -> str:
    """What README.md says of it."""
    return "\n\n".join(
        [
            f"On the built-in pocket model (**synthetic**: {_samples(figures)}; `make bench-pocket` makes "
            "[evals/results/pocket.json](evals/results/pocket.json)):",
            main_table(figures),
            f"{_saved(figures)} *As many tokens in whole traces* is the same vote over fewer traces, none of them "
            "stopped: what stopping early has to beat.",
        ]
    )


def saved_part(figures: Figures) -> str:
    """What docs/voting.md says of it."""
    return f"On the built-in model (synthetic; {_samples(figures)}): {_saved(figures)}"


def _samples(figures: Figures) -> str:
    seeds = len(figures["tokens_saved_share_per_seed"])
    return (
        f"{figures['questions']} held-out questions x {figures['traces_per_question']} traces, {seeds} "
        f"seed{'s' * (seeds > 1)}"
    )


def _saved(figures: Figures) -> str:
    """Both numbers of pruning and of waves: beside all traces, and beside fewer of them."""
    n = figures["traces_per_question"]
    return " ".join(
        [
            f"{what} takes {1 - figures[f'tokens_{name}_share']:.0%} fewer tokens than all {n} traces, and "
            f"{_than_as_good(figures[f'tokens_{name}_saved_at_equal_accuracy'], n)}; its difference to whole "
            f"traces for as many tokens is {_against(name, figures)}."
            for name, what in (("quality_pruned", "Pruning half"), ("waves", "Asking in waves"))
        ]
    )


def _than_as_good(saved: float | None, n: int) -> str:
    if saved is None:
        return f"no number of whole traces up to {n} is right as often"
    return f"{abs(saved):.0%} {'fewer' if saved >= 0 else 'more'} than whole traces that are right as often"


def show(figures: Figures) -> Iterator[str]:
    """The main table, the equal-token control, every method, and keep ratios."""
    position, settings = figures["detection_position"], figures["settings"]
    waves = settings["waves"]
    yield f"{_samples(figures)}:"
    yield main_table(figures)
    yield (
        "*As many tokens in whole traces* is the control of stopping early: the same vote over so few whole "
        "traces that they cost as much, the mean over random choices of them. What stops early is worth it where "
        "it beats that, not where it beats the vote over all traces."
    )
    yield picture(
        "pocket_accuracy_tokens.png", "accuracy against generated tokens: waves and pruning above whole traces"
    )
    yield "Each way of stopping early beside its control:"
    yield table(
        ["way", "share of all tokens", "whole traces for them", "right", "whole traces right", "difference"],
        [
            [
                _label(name, figures).replace("*", ""),
                f"{figures[f'tokens_{name}_share']:.1%}",
                f"{figures[f'whole_traces_for_{name}']:.1f}",
                f"{figures[f'accuracy_{name}']:.3f}",
                f"{figures[f'accuracy_{name}_equal_tokens']:.3f}",
                _against(name, figures),
            ]
            for name in STOPPED
        ],
    )
    yield (
        f"Waves start {waves['start']} traces and add {waves['step']} at a time until the leading answer has "
        f"{waves['certainty']:g} of the odds. This and the settings of the others (Adaptive-Consistency: "
        f"certainty {settings['adaptive_consistency']['certainty']:g}; ESC: windows of "
        f"{settings['esc']['window']:g}; DeepConf online: {_online(settings['deepconf_online'])}) were "
        "chosen on other questions, from the training split: the cheapest that is at most half a point below the "
        "same vote over all traces."
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
    yield f"How many traces are kept, and where, replayed (half at token {position} is sampled, too):"
    yield table(
        [
            "at token",
            "keep ratio",
            "tokens saved",
            "quality head",
            "whole traces",
            "majority of the kept",
            "whole traces",
        ],
        [
            [
                str(row["position"]),
                f"{row['keep']:g}",
                f"{row['tokens_saved_share']:.1%}",
                *(
                    f"{row[f'accuracy_{method}{which}']:.3f}"
                    for method in ("quality", "majority")
                    for which in ("", "_equal_tokens")
                ),
            ]
            for row in (*figures["keep_ratios_replayed"], *figures["keep_ratios_elsewhere"])
        ],
    )
    yield "How well the head ranks the traces of a question on their way (AUROC within questions):"
    positions = [name for name in figures if name.startswith("auroc_within_")]
    yield table(
        ["at token", *(name.removeprefix("auroc_within_") for name in positions)],
        [["quality head", *(f"{figures[name]:.3f}" for name in positions)]],
    )
    yield _meaning(figures)


def _online(setting: Figures) -> str:
    clear = f", until an answer has {setting['consensus']:.0%} of the vote" if "consensus" in setting else ""
    return (
        f"the first {setting['warmup']:g} traces, of whose lowest windows of {setting['window']:g} tokens "
        f"{setting['keep']:.0%} stay above the floor{clear}"
    )


def _against(name: str, figures: Figures) -> str:
    return difference(figures[f"{name}_above_equal_tokens"], figures[f"{name}_above_equal_tokens_interval"])


def _meaning(figures: Figures) -> str:
    gain = to(figures["above_majority_intervals"]["quality_pruned"], "+.3f")
    confidence = to(figures["above_majority_intervals"]["deepconf"], "+.3f")
    below = difference(figures["waves_above_quality"], figures["waves_above_quality_interval"])
    n = figures["traces_per_question"]
    return (
        "**What it means.** With half of the traces pruned inside vLLM the head's vote is right "
        f"{figures['accuracy_quality_pruned']:.3f} of the time against {figures['accuracy_majority']:.3f} for "
        f"majority (difference {gain}). {_saved(figures)} With waves the vote is right "
        f"{figures['accuracy_waves']:.3f} of the time ({below} beside all {n} traces). "
        "Majority gains nothing from more traces, however they are spent, because this model is wrong together. "
        f"DeepConf's difference to majority is {confidence}, and votes of its most confident tenth are right "
        f"{figures['accuracy_every_method']['deepconf-top10']:.3f} of the time. The task is made so that a "
        "misconception can be seen in the hidden states; on a real model the gain is smaller, see *Quality heads*."
    )


SECTION = Section(
    "Voting, pruning and waves (synthetic)",
    "How much more often is the head's vote right than majority and DeepConf on the same traces, and what does it "
    "cost, beside as many tokens spent on fewer whole traces? Held-out questions of the pocket model; the head, "
    "DeepConf's windows and every setting were fitted or chosen on training questions. Intervals are over "
    "questions, each with its mean over the seeds.",
    show,
)
