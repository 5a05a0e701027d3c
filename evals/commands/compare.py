"""`arrol-eval compare`: runs, question by question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..reporting.compare_runs import compare_runs
from ..reporting.json_ready import finite
from .shared import ResultsFolder, errors_in_words


def compare(
    first: ResultsFolder,
    others: Annotated[list[Path], typer.Argument(help="results folders to compare with the first")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Compare runs, question by question, on the questions that all of them have asked."""
    with errors_in_words():
        rows = compare_runs([first, *others])
    if as_json:
        typer.echo(json.dumps(finite(rows), indent=2))
        return
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        of_benchmark = [row for row in rows if row["benchmark"] == benchmark]
        table = Table(
            title=f"{benchmark}, {of_benchmark[0]['questions']} questions",
            caption=f"differences are to {first.name}, whatever each run spent (n traces and so many tokens a "
            "question); p: paired permutation test",
            box=SIMPLE_HEAD,
        )
        table.add_column("method", no_wrap=True)
        for heading in ("run", "n", "tokens", "right", "difference", "95%", "p"):
            table.add_column(heading, justify="right")
        for row in of_benchmark:
            cells = ["", "", ""]
            if "difference" in row:
                low, high = row["interval"]
                cells = [f"{row['difference']:+.3f}", f"{low:+.2f} to {high:+.2f}", f"{row['p_value']:.3f}"]
            spent = (f"{row['n']}", f"{row['tokens_per_question']:,.0f}")
            table.add_row(row["method"], row["run"], *spent, f"{row['accuracy']:.3f}", *cells)
        Console(markup=False).print(table)
