"""The endpoint: what it adds to a vote, what a vote costs an app, and a crowd that comes and goes."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ...bench import RESULTS
from .base import Section
from .parts import NONE, Figures, table

WAYS = {
    "one": "one sample, vLLM's server",
    "by_hand": "majority of 32, counted by hand, vLLM's server",
    "endpoint_majority": "majority of 32, `arrol-serve`",
    "solve": "quality head, half pruned, `solve` in Python",
    "endpoint": "quality head, half pruned, `arrol-serve`",
    "waves": "quality head in waves, `arrol-serve`",
}


def show(figures: Figures) -> Iterator[str]:
    """Times alone and at once, and the crowd."""
    yield f"One client, {figures['questions']} questions one after the other:"
    yield table(
        ["way of asking", "p50, s", "p99, s", "tokens a question", "right"],
        [
            [
                words,
                f"{figures['alone'][name]['p50_seconds']:.3f}",
                f"{figures['alone'][name]['p99_seconds']:.3f}",
                f"{figures['alone'][name]['tokens_per_question']:,.0f}",
                f"{figures['alone'][name]['accuracy']:.3f}",
            ]
            for name, words in WAYS.items()
        ],
    )
    yield f"{figures['clients']} clients at once, each with a question, {figures['rounds']} rounds:"
    yield table(
        ["way of asking", "requests a second", "p50, s", "p99, s"],
        [
            [
                words,
                f"{figures['at_once'][name]['requests_per_second']:.2f}",
                f"{figures['at_once'][name]['p50_seconds']:.1f}",
                f"{figures['at_once'][name]['p99_seconds']:.1f}",
            ]
            for name, words in WAYS.items()
            if name in figures["at_once"]
        ],
    )
    crowd = figures["crowd"]
    yield (
        f"{crowd['clients']} clients that connect, ask and vanish at random for {crowd['seconds']:.0f} s; a tenth "
        "of the requests wait for their answer:"
    )
    yield table(
        ["what", "figure"],
        [
            ["requests", f"{crowd['asked_requests']:,}"],
            ["whose client vanished", f"{crowd['vanished_requests']:,}"],
            ["that were answered", f"{crowd['answered_requests']:,}"],
            ["that failed", f"{crowd['failed_requests']}"],
            ["memory of the server", f"{crowd['memory_mib']:,} MiB"],
            ["which grew in the measured time by", f"{crowd['memory_growth_mib']:.1f} MiB"],
            ["requests left running, and waiting", f"{crowd['left_running']:.0f} and {crowd['left_waiting']:.0f}"],
            ["a core's time that the server took afterwards", f"{crowd['busy_share_afterwards']:.1%}"],
        ],
    )
    yield (
        "**What it means.** Over HTTP a vote takes "
        f"{_percent(figures['gateway_overhead_ratio'])} the time of the same vote in Python when one client asks, "
        f"and {_percent(figures['gateway_overhead_ratio_at_once'])} of it when {figures['clients']} do at once. "
        "Majority over samples that are all written out takes "
        f"{_percent(figures['by_hand_ratio'])} and {_percent(figures['by_hand_ratio_at_once'])} of what an app "
        "needs that asks vLLM's server for the choices and counts them itself." + _note(figures)
    )


def _note(figures: Figures) -> str:
    note = figures.get("note", "")
    return f" When this was measured, {note}." if note else ""


def _percent(ratio: float) -> str:
    return f"{ratio:.1%}"


# --- docs/apps.md ---------------------------------------------------------------------------------


def costs_part(figures: Figures) -> str:
    """What a vote costs in tokens, time and money: tokens and accuracy are those of the pocket benchmark."""
    pocket = json.loads((RESULTS / "pocket.json").read_text())["figures"]
    single = next(row for row in pocket["whole_traces"] if row["traces"] == 1)
    tokens = {name: pocket["tokens_per_question"][name] for name in ("majority", "quality_pruned", "waves")}
    rows = [
        ("one sample", "one", single["tokens_per_question"], single["accuracy_majority"]),
        ("majority of 32", "by_hand", tokens["majority"], pocket["accuracy_majority"]),
        ("quality head, half pruned", "endpoint", tokens["quality_pruned"], pocket["accuracy_quality_pruned"]),
        ("quality head in waves", "waves", tokens["waves"], pocket["accuracy_waves"]),
    ]
    first = rows[0][2]
    return "\n\n".join(
        [
            f"The pocket model (**synthetic**): tokens and accuracy over {pocket['questions']} held-out questions "
            "and 3 seeds ([pocket.json](../evals/results/pocket.json)); seconds of one client "
            "([serve.json](../evals/results/serve.json)); money at 1 USD for a million generated tokens, so that "
            "you can put in your own price:",
            table(
                ["vote", "right", "tokens a question", "beside one sample", "seconds, p50", "1,000 questions"],
                [
                    [
                        words,
                        f"{right:.3f}",
                        f"{spent:,.0f}",
                        NONE if name == "one" else f"{spent / first:.1f} times",
                        f"{figures['alone'][name]['p50_seconds']:.2f}",
                        f"{spent / 1000:.2f} USD",
                    ]
                    for words, name, spent, right in rows
                ],
            ),
            f"The endpoint takes {figures['gateway_overhead_ratio']:.2f} times as long as `solve` when one client "
            f"asks, and {figures['gateway_overhead_ratio_at_once']:.2f} times when {figures['clients']} ask at "
            "once." + _note(figures),
        ]
    )


SECTION = Section(
    "Votes behind OpenAI's API (synthetic)",
    "What does `arrol-serve` add to the time of a vote, for one client and for many, beside the same work sent "
    "by hand to vLLM's own server? Does it hold when clients come and go? The pocket model, 32 samples each; "
    "servers and clients share the cores.",
    show,
)
