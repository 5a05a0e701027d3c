"""How tables and pictures are laid out: in the terminal, in Markdown, and in one HTML page."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

Cells = Sequence[Sequence[str]]
"""Rows of a table, the heading first."""


def terminal_table(caption: str, cells: Cells) -> Table:
    """Cells for the terminal."""
    table = Table(title=caption, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))  # fits 80 columns
    for i, heading in enumerate(cells[0]):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for row in cells[1:]:
        table.add_row(*row)
    return table


def markdown_table(cells: Cells) -> str:
    """Cells as a Markdown table, numbers to the right."""
    rule = ["---", *["---:"] * (len(cells[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:]))


def html_table(caption: str, cells: Cells) -> str:
    """Cells as an HTML table."""

    def row(tag: str, values: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    body = "".join(row("td", values) for values in cells[1:])
    return f"<table><caption>{html.escape(caption)}</caption>{row('th', cells[0])}{body}</table>"


def svg(figure: Figure) -> str:
    """A picture for inside of a page."""
    buffer = io.StringIO()
    # Text as text: smaller, and it can be selected and searched.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "arrol"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return "<figure>" + text[text.index("<svg") :] + "</figure>"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>TITLE</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
figure { margin: 1rem 0; display: inline-block } svg { max-width: 100%; height: auto }
dt { font-weight: 600 } dd { margin: 0 0 .4rem; overflow-wrap: anywhere }
</style></head><body>
BODY
</body></html>
"""
