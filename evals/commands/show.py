"""`arrol-eval show`: one question's traces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace

from ..reporting.figures import CURVE_METHODS
from ..sampling.folder import FolderError, RunFolder
from ..sampling.passes import FOLDERS, FULL
from .shared import ResultsFolder, errors_in_words


def show(
    folder: ResultsFolder,
    question: Annotated[str, typer.Option(help="id of the question")],
    seed: Annotated[int | None, typer.Option(help="of the sampling; the first by default")] = None,
    pass_: Annotated[str, typer.Option("--pass", help=f"one of {', '.join(FOLDERS)}")] = FULL,
    text: Annotated[bool, typer.Option(help="with the solutions themselves")] = False,
) -> None:
    """List a question's traces with their scores, what they count in each vote, and why each ended."""
    with errors_in_words():
        _show(RunFolder(folder), question, seed, pass_, text, Console(markup=False))


def _show(
    folder: RunFolder, question: str, seed: int | None, pass_: str, with_text: bool, console: Console
) -> None:
    manifest = folder.manifest()
    if pass_ not in (FULL, *manifest.stopping):
        raise FolderError(f"{folder.path} has no pass {pass_!r}; it has {', '.join((FULL, *manifest.stopping))}")
    benchmark, problem = next(
        ((b, p) for b in folder.benchmarks() for p in b.problems if p.id == question), (None, None)
    )
    if benchmark is None or problem is None:
        known = ", ".join(f"{b.problems[0].id} .. {b.problems[-1].id}" for b in folder.benchmarks())
        raise FolderError(f"{folder.path} does not ask {question!r}; its questions are {known}")
    store = TraceStore(folder.seed(benchmark.name, manifest.seeds[0] if seed is None else seed) / FOLDERS[pass_])
    traces = sorted((t for t in store if t.question_id == question), key=lambda trace: trace.sample_id)
    if not traces:
        raise FolderError(f"{store.path} has no traces of {question!r} yet")
    console.print(Text(problem.question, style="bold"))
    console.print(f"right answer: {problem.answer}", markup=False)
    voter = folder.voter(benchmark)
    votes = {}
    for method in CURVE_METHODS:
        try:
            votes[method] = voter.vote(traces, method)
        except ValueError:
            continue  # it needs what these traces lack
    for method, result in votes.items():
        console.print(f"{method}: {result.answer} ({result.confidence:.2f})", markup=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))  # fits 80 columns
    for heading in ("#", "ended", "tokens", "answer", "right", "scores", *votes):
        table.add_column(heading, no_wrap=True)
    for i, trace in enumerate(traces):
        weights = [f"{result.weights[i]:.2f}" if trace.answer else "" for result in votes.values()]
        table.add_row(*(Text(cell) for cell in (*_cells(trace), *weights)))
    console.print(table)
    for trace in traces:
        if trace.detail:
            console.print(f"{trace.sample_id} was {trace.finish_reason}: {trace.detail}", markup=False)
    for trace in traces if with_text else ():
        console.rule(f"sample {trace.sample_id}")
        console.print(trace.written, markup=False, highlight=False)


def _cells(trace: Trace) -> Iterator[str]:
    yield str(trace.sample_id)
    yield trace.finish_reason
    yield str(trace.num_tokens)
    yield trace.answer or ""
    yield {True: "yes", False: "no", None: ""}[trace.correct]
    yield ", ".join(f"{score:.2f}" for score in trace.scores.values())
