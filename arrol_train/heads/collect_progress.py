"""`collect` on the terminal: what it will take before it starts, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from arrol_train.heads.collect import Collection, CollectionManifest, predicted_bytes
from arrol_train.questions import TrainingQuestion
from arrol_train.rewards import Reward
from arrol_tts.engine.base import Engine


def collect_with_progress(
    load: Callable[[], Engine],
    manifest: CollectionManifest,
    questions: Sequence[TrainingQuestion],
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
    console = console or Console(markup=False)
    collection = Collection(manifest, questions, out, n=n)
    console.print(
        f"{len(questions):,} questions x {n} samples: {collection.total - collection.lacking:,} are there, "
        f"{collection.lacking:,} to do. Hidden vectors {_kept(manifest)} take at most "
        f"{predicted_bytes(manifest, collection.lacking) / 1e9:.2f} GB"
    )
    if collection.missing:
        with console.status("loading the language model"):
            engine = load()
        with closing(engine):
            _sample(collection, engine, reward, console)
    _summarise(collection, console)


def _kept(manifest: CollectionManifest) -> str:
    if manifest.stride == 1:
        return "of every token"
    every = f"of every {manifest.stride}th token, " if manifest.stride else ""
    return f"{every}at {', '.join(map(str, manifest.positions))} and at the finish"


def _sample(collection: Collection, engine: Engine, reward: Reward, console: Console) -> None:
    tokens, right, sampled, began = 0, 0, 0, time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar, closing(collection.sample(engine, reward)) as traces:
        task = bar.add_task("", total=collection.total, completed=collection.total - collection.lacking)
        for trace in traces:
            tokens += trace.num_tokens
            right += bool(trace.correct)
            sampled += 1
            rate = tokens / max(time.monotonic() - began, 1e-3)
            bar.update(task, advance=1, description=f"{rate:,.0f} tokens/s, {right / sampled:.0%} right, left:")
    seconds = time.monotonic() - began
    console.print(f"{sampled:,} traces, {tokens:,} tokens in {seconds:,.0f} s: {tokens / seconds:,.0f} tokens/s")


def _summarise(collection: Collection, console: Console) -> None:
    """How many are right, and how many questions can teach an order among their samples."""
    outcomes = collection.outcomes()
    right = sum(map(sum, outcomes.values())) / max(1, sum(map(len, outcomes.values())))
    mixed = sum(any(group) and not all(group) for group in outcomes.values())
    console.print(
        f"{collection.out}: {right:.1%} of the samples are right; {mixed} of {len(outcomes)} questions have both "
        "right and wrong ones"
    )
    if not mixed:
        console.print(
            "[bold]No question has both[/bold]: no head can be trained on these. Take easier or harder questions, "
            "other prompts, or a higher temperature."
        )
