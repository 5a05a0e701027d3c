"""Markdown, read back."""

from __future__ import annotations


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text as cells, without the rule under the heading."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    cells = [[[cell.strip() for cell in row.strip("|").split("|")] for row in block] for block in blocks]
    return [[table[0], *table[2:]] for table in cells]
