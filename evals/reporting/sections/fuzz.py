"""What hostile requests do to a server, and to who asks beside them."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Section
from .parts import Figures, table


def show(figures: Figures) -> Iterator[str]:
    """What was answered, memory, and how long the neighbour waited."""
    yield "What the server answered:"
    yield table(
        ["requests", "number", "answers by HTTP status", "a second"],
        [
            [
                name,
                f"{sum(answers.values()):,}",
                ", ".join(f"{status}: {count:,}" for status, count in answers.items()),
                f"{figures['requests_per_second'][name]:,.0f}",
            ]
            for name, answers in figures["answers"].items()
        ],
    )
    yield "How long a well-behaved client waits for a scored trace of 16 tokens:"
    yield table(
        ["beside it", "traces", "median, ms", "99%, ms", "longest, ms"],
        [
            [
                name,
                f"{row['requests']:,}",
                f"{row['median_ms']:.0f}",
                f"{row['p99_ms']:.0f}",
                f"{row['worst_ms']:.0f}",
            ]
            for name, row in figures["neighbour"].items()
        ],
    )
    memory = figures["memory_mb"]
    answers = figures["answers"]
    failed = {
        status: sum(answer.get(status, 0) for answer in answers.values())
        for status in sorted({status for answer in answers.values() for status in answer})
        if status == "0" or status >= "500"
    }
    words = ", ".join(f"{count} with {status}" for status, count in failed.items()) or "none"
    survived = "outlived" if figures["healthy_afterwards"] else "did not outlive"
    yield (
        f"**What it means.** The engine {survived} all of it. {figures['specs_answered_otherwise']} of "
        f"{figures['specs']:,} specs were answered otherwise than the parser says (200 or 400); requests that the "
        f"server failed on: {words}. Its processes held {memory['before']:,} MB before, "
        f"{memory['after bodies without the key']:,} MB afterwards and {memory['most']:,} MB at most."
    )


SECTION = Section(
    "Hostile requests",
    "What do thousands of hostile requests do to a server of the pocket model (synthetic), and what does a "
    "well-behaved client beside them notice? Client and server share the cores, so latencies are no server's.",
    show,
    once_measured=True,
)
