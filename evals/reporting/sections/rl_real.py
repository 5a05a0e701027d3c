"""Reinforcement learning with pruned rollouts on a real model."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Section
from .parts import Figures, picture
from .rl import equal_time_table, gains_at_equal_time, regime_table, rivals_of


def show(figures: Figures) -> Iterator[str]:
    """Pruned runs beside both baselines."""
    yield (
        f"{figures['model']}, on {figures['questions']}; {figures['steps']} steps of {figures['prompts']} "
        f"questions, pruned at token {figures['detection_position']} by a head that starts untrained; the first "
        f"{figures['cold_start']} steps prune nothing; {figures['test_questions']} test questions x "
        f"{figures['test_samples_per_question']}. Times are processor seconds; *area* is the mean test accuracy "
        "over the steps, or over the seconds, up to where the shortest of a seed's runs ends."
    )
    yield regime_table(figures)
    yield picture("rl_real.png", "test accuracy against steps and against seconds of training")
    if "head_auroc_within" in figures:
        yield (
            f"The head at token {figures['detection_position']}, on rollouts that it had not learned from: AUROC "
            f"{figures['head_auroc']:.3f}, within a question {figures['head_auroc_within']:.3f}."
        )
    yield (
        f"**What it means.** Differences in area at equal processor time: {gains_at_equal_time(figures)}; "
        f"seed by seed {_by_seed(figures)}. With so few seeds an interval is wide: it says what was seen, and not "
        "which way is better, unless it leaves out zero."
    )


def readme_part(figures: Figures) -> str:
    """What README.md says of it."""
    seeds = len(figures["accuracy_pruned_per_seed"])
    return "\n\n".join(
        [
            f"With a real model ({figures['model']}) on {figures['questions']}, {seeds} seeds, too few to tell a "
            "small gain from none (`make bench-rl-real`, "
            "[evals/results/rl_real.json](evals/results/rl_real.json)):",
            equal_time_table({"word problems": figures}),
            f"Seed by seed pruned runs gain {_by_seed(figures)}.",
        ]
    )


def _by_seed(figures: Figures) -> str:
    """What pruned runs gain in area at equal time with each seed, in words."""
    gains = {
        label: figures[f"area_gain_equal_time_over_{arm}_per_seed"] for arm, label in rivals_of(figures).items()
    }
    return " and ".join(
        f"{', '.join(f'{gain:+.3f}' for gain in gained)} against {label}" for label, gained in gains.items()
    )


SECTION = Section(
    "Reinforcement learning with pruned rollouts on a real model",
    "The same comparison with a small real model that is trained with LoRA, on questions that it seldom gets "
    "right.",
    show,
    once_measured=True,
)
