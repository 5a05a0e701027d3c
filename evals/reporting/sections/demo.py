"""The demo under load."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Section
from .parts import Figures, table


def show(figures: Figures) -> Iterator[str]:
    """One page's speed, and what twenty users see."""
    yield "One user, headless Chromium, five questions:"
    yield table(
        ["what", "median", "worst"],
        [
            [label, f"{figures[name]:.2f}{unit}", f"{figures[f'{name}_worst']:.2f}{unit}"]
            for label, name, unit in (
                ("opening the page until it shows", "first_paint_seconds", " s"),
                ("Ask until the first token shows", "first_token_seconds", " s"),
                ("updates of the page with 32 traces", "updates_per_second", " a second"),
            )
        ],
    )
    runs, wait = figures["users_runs_of_each"], figures["users_wait_seconds"]
    yield f"{figures['users']} users who ask one question after the other, for {figures['users_seconds']} seconds:"
    yield table(
        ["what", "figure"],
        [
            ["questions answered", f"{figures['users_runs']}"],
            ["of each user, fewest and most", f"{runs['fewest']} and {runs['most']}"],
            ["fairness of that (Jain's index; 1 is even)", f"{figures['users_fairness_jain']:.4f}"],
            [
                "wait for the first update, median and longest",
                f"{wait['median']:.1f} s and {wait['longest']:.1f} s",
            ],
            ["a run from then on, median", f"{figures['users_run_seconds']:.1f} s"],
            [
                "errors, broken runs, lost updates",
                ", ".join(
                    f"{figures[name]}" for name in ("users_errors", "users_broken_runs", "users_lost_updates")
                ),
            ],
            ["growth of the server's memory in the measured time", f"{figures['memory_growth_mib']:.1f} MiB"],
        ],
    )
    yield (
        "**What it means.** With one user the page follows the traces live: its longest time without an update "
        f"was {figures['longest_gap_seconds']:.2f} s, and it was never busy for longer than "
        f"{figures['longest_task_seconds']:.2f} s. With {figures['users']} users on two cores nobody is forgotten "
        f"and nothing is lost, but everybody waits: {wait['median']:.0f} s on median, because questions take "
        "turns. More users need more processors, or a GPU."
    )


SECTION = Section(
    "The demo (synthetic)",
    "Is the page fast for one user, and fair and stable for many? `arrol-demo` with the pocket model, its "
    "server and the browser on the same two cores.",
    show,
)
