"""`arrol-eval report`: the report of a results folder, made again."""

from __future__ import annotations

import typer
from rich.console import Console

from ..reporting.report import print_report, write_report
from ..sampling.folder import RunFolder
from .shared import ResultsFolder, errors_in_words


def report(folder: ResultsFolder) -> None:
    """Make the report of a results folder again, from its traces; no model is loaded."""
    with errors_in_words():
        made = write_report(RunFolder(folder))
    print_report(made, Console(markup=False))
    typer.echo(f"report: {folder / 'report.html'}, report.md, report.json")
