"""Rollouts pruned in the engine and beside the trainer."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Section
from .parts import Figures, table, to

MODELS = {
    "pocket": "pocket model (synthetic), an eighth of a step's rollouts at once",
    "pocket_all_slots": "pocket model (synthetic), all of them",
    "smollm2_135m": "SmolLM2-135M-Instruct",
}


def show(figures: Figures) -> Iterator[str]:
    """Seconds of a step's rollouts both ways."""
    measured = {name: figures[name] for name in MODELS if name in figures}
    yield table(
        ["model", "in the engine, s", "resubmitted, s", "engine, a token", "95% interval", "groups handed back"],
        [
            [
                MODELS[name],
                f"{row['seconds']['engine']:.2f}",
                f"{row['seconds']['trainer']:.2f}",
                f"{row['engine_times_as_fast']:.2f}x as fast",
                to(row["engine_times_as_fast_interval"], ".2f"),
                f"{row['groups_handed_back']} of {row['groups']}",
            ]
            for name, row in measured.items()
        ],
    )
    ends = [row["engine_times_as_fast_interval"] for row in measured.values()]
    faster, slower = sum(low > 1 for low, _ in ends), sum(high < 1 for _, high in ends)
    yield (
        f"**What it means.** Of {len(ends)} settings the engine's way is faster in {faster} and slower in "
        f"{slower}; elsewhere the interval holds 1. It spares the survivors a second request, whose last block is "
        "computed again, and pays for the head at every token up to the position. A group in which a rollout "
        "ended before the position is handed back, and goes on the other way. Neither was measured on a GPU."
    )


SECTION = Section(
    "Pruning in the engine",
    "Survivors of a group can be chosen inside the engine, where they go on as the requests that they are, or "
    "beside the trainer, where all requests end and theirs are sent again. What do a step's rollouts take each "
    "way? Processor seconds, the same steps in turns; the interval resamples steps. The ratio is that of "
    "the seconds of a token, since rounding makes rollouts end at different ones.",
    show,
    once_measured=True,
)
