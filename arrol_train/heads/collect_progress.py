"""`collect` on the terminal: what it will take before it starts, and how far it is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from arrol_train.heads.collect import TRACES_FOLDER, CollectionManifest, collect, predicted_bytes
from arrol_train.questions import TrainingQuestion
from arrol_train.rewards import Reward
from arrol_tts.engine.base import Engine
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace


def collect_with_progress(
    load: Callable[[], Engine],
    manifest: CollectionManifest,
    problems: Sequence[TrainingQuestion],
    reward: Reward,
    out: Path,
    *,
    n: int,
    console: Console | None = None,
) -> None:
    """`arrol_train.heads.collect.collect`, shown; arguments and errors as there.

    Args:
        load: gives the engine, once it is known that something is missing; it is closed at the end.
    """
    console = console or Console()
    manifest.claim(out)
    store = TraceStore(out / TRACES_FOLDER)
    total = len(problems) * n
    asked = {problem.id for problem in problems}
    missing = sum(map(len, store.missing(asked, n).values()))
    console.print(
        f"{len(problems):,} questions x {n} samples: {total - missing:,} are there, {missing:,} to do. Hidden "
        f"vectors at {', '.join(map(str, manifest.positions))} and the finish take at most "
        f"{predicted_bytes(manifest, missing) / 1e9:.2f} GB"
    )
    if missing:
        with console.status("loading the language model"):
            engine = load()
        with closing(engine):
            _sample(engine, manifest, problems, reward, out, n, console, total - missing, total)
    _summarise(store, asked, n, console)


def _sample(
    engine: Engine,
    manifest: CollectionManifest,
    problems: Sequence[TrainingQuestion],
    reward: Reward,
    out: Path,
    n: int,
    console: Console,
    stored: int,
    total: int,
) -> None:
    tokens, right, sampled, began = 0, 0, 0, time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, completed=stored)

        def show(trace: Trace) -> None:
            nonlocal tokens, right, sampled
            tokens += trace.num_tokens
            right += bool(trace.correct)
            sampled += 1
            rate = tokens / max(time.monotonic() - began, 1e-3)
            bar.update(task, advance=1, description=f"{rate:,.0f} tokens/s, {right / sampled:.0%} right, left:")

        collect(engine, manifest, problems, reward, out, n=n, on_trace=show)
    seconds = time.monotonic() - began
    console.print(f"{sampled:,} traces, {tokens:,} tokens in {seconds:,.0f} s: {tokens / seconds:,.0f} tokens/s")


def _summarise(store: TraceStore, asked: set[str], n: int, console: Console) -> None:
    """How many are right, and how many questions can teach an order among their samples."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for trace in store.read(["question_id", "sample_id", "correct"]):
        if trace.question_id in asked and trace.sample_id < n:
            outcomes[trace.question_id].append(bool(trace.correct))
    right = sum(map(sum, outcomes.values())) / max(1, sum(map(len, outcomes.values())))
    mixed = sum(any(group) and not all(group) for group in outcomes.values())
    console.print(
        f"{store.path.parent}: {right:.1%} of the samples are right; {mixed} of {len(outcomes)} questions have "
        "both right and wrong ones"
    )
    if not mixed:
        console.print(
            "[bold]No question has both[/bold]: no head can be trained on these. Take easier or harder questions, "
            "other prompts, or a higher temperature."
        )
