"""``arrol-eval``: run benchmarks, and compare voting methods on recorded traces."""

from __future__ import annotations

import typer

from .commands.compare import compare
from .commands.export import export
from .commands.import_ import import_
from .commands.plan import plan
from .commands.report import report
from .commands.run import run
from .commands.show import show
from .commands.vote import vote

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
for command in (run, plan, report, compare, show, vote, export):
    app.command()(command)
app.command("import")(import_)


@app.callback()
def main() -> None:
    """More right answers for fewer generated tokens: run benchmarks, compare voting methods."""


if __name__ == "__main__":
    app()
