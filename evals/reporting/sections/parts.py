"""What sections are made of: tables that cannot be empty, figures in words, and every figure in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..layout import Cells, markdown_table

Figures = Mapping[str, Any]

NONE = "-"
"""A cell where no value is expected, such as majority's gain over majority."""

VOTES = {
    "majority": "majority",
    "deepconf": "DeepConf (bottom window)",
    "deepconf-mean": "DeepConf (mean)",
    "deepconf-tail": "DeepConf (tail)",
    "deepconf-lowest": "DeepConf (lowest window)",
    "deepconf-top10": "DeepConf (bottom window, top 10%)",
    "deepconf-tail-top10": "DeepConf (tail, top 10%)",
    "self-certainty": "self-certainty",
    "quality": "quality head",
    "quality-logodds": "quality head (log-odds)",
    "quality-ranks": "quality head (ranks)",
    "best-of-n": "best score alone",
    "quality_pruned": "quality head, pruned",
    "random_pruned": "control: pruned at random, majority",
    "quality_threshold": "quality head, one threshold",
    "quality_budget": "quality head, a budget of tokens",
    "deepconf_online": "DeepConf online",
    "consensus": "majority until clear (consensus)",
}
"""``{name in results: name for readers}``."""


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Raises:
        ValueError: when it would say nothing: no rows, a single column, blank cells, rows of another width.
    """
    cells: Cells = [heading, *rows]
    if len(cells) < 2 or len(heading) < 2:
        raise ValueError(f"a table of {', '.join(heading)} has no rows or a single column")
    for row in cells:
        if len(row) != len(heading) or not all(cell.strip() for cell in row):
            raise ValueError(f"a table of {', '.join(heading)} has a blank cell or another width in the row {row}")
    return markdown_table(cells)


def to(ends: Sequence[float], form: str = ".3f") -> str:
    """An interval."""
    return f"{ends[0]:{form}} to {ends[1]:{form}}"


def difference(value: float, ends: Sequence[float], form: str = "+.3f") -> str:
    """A difference with its interval, and whether it can be told from none."""
    clear = "" if ends[0] > 0 or ends[1] < 0 else ", not to be told from none"
    return f"{value:{form}} ({to(ends, form)}{clear})"


def p_value(value: float) -> str:
    """A p-value to three digits."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def picture(file: str, words: str) -> str:
    """A picture beside the page."""
    return f"![{words}]({file})"


def details(summary: str, *parts: str) -> str:
    """Parts that are folded away."""
    return "\n\n".join([f"<details><summary>{summary}</summary>", *parts, "</details>"])


# --- every figure ---------------------------------------------------------------------------------


def every_figure(figures: Figures) -> Iterator[str]:
    """All single figures as a table, and one for whatever has rows."""
    if single := list(_single(figures)):
        yield table(["figure", "value"], single)
    for label, heading, rows in _tables(figures):
        yield f"{label}:"
        yield table(heading, rows)


def _single(figures: Figures, prefix: str = "") -> Iterator[list[str]]:
    for name, value in figures.items():
        label = f"{prefix}{name}".replace("_", " ")
        if _is_per_seed(name):
            continue
        if isinstance(value, Mapping) and not _has_rows(value):
            yield from _single(value, f"{label}, ")
        elif _is_cell(value) or _is_interval(value):
            yield [label, _cell(value)]


def _tables(figures: Figures, prefix: str = "") -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """What has rows with the same fields, by number or by name: a label, a heading and rows."""
    for name, value in figures.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping) and _has_rows(value):
            rows = [{"name": row.replace("_", " "), **fields} for row, fields in value.items()]
            yield (label, *_laid_out(rows))
        elif isinstance(value, Mapping):
            yield from _tables(value, f"{label}, ")
        elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            yield (label, *_laid_out(value))


def _laid_out(rows: Sequence[Figures]) -> tuple[list[str], list[list[str]]]:
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if _readable(rows, key)]
    cells = [[_with_interval(row, key) for key in columns] for row in rows]
    return [key.replace("_", " ") for key in columns], cells


def _readable(rows: Sequence[Figures], key: str) -> bool:
    """Whether a field makes a column: a value in some row, neither of single seeds nor an interval of another."""
    of_another = key.endswith("_interval") and key.removesuffix("_interval") in rows[0]
    return (
        not of_another
        and not _is_per_seed(key)
        and any(_is_cell(row.get(key)) or _is_interval(row.get(key)) for row in rows)
    )


def _has_rows(value: Figures) -> bool:
    """Whether it maps names to figures of the same names."""
    rows = list(value.values())
    return len(rows) > 1 and all(isinstance(row, Mapping) and row and row.keys() == rows[0].keys() for row in rows)


def _with_interval(row: Figures, key: str) -> str:
    ends = row.get(f"{key}_interval")
    return _cell(row.get(key)) + (f" ({to(ends, '.3g')})" if ends else "")


def _is_per_seed(name: str) -> bool:
    """Whether these are the values of single seeds: two of them are no interval, and the file has them."""
    return name.endswith("_per_seed")


def _is_mean(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("mean"), int | float)


def _is_cell(value: Any) -> bool:
    return isinstance(value, bool | int | float) or _is_mean(value) or (isinstance(value, str) and bool(value))


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value)


def _cell(value: Any) -> str:
    if _is_mean(value):
        value = value["mean"]
    if _is_interval(value):
        return to(value, ".4g")
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value) if _is_cell(value) else NONE
