"""A run's report, written: JSON, Markdown and one HTML page, and a table for the terminal."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from arrol_tts.files import write_atomic, write_json

from ..sampling.folder import RunFolder, folder_name
from .json_ready import finite
from .layout import PAGE, Cells, html_table, markdown_table, svg, terminal_table
from .plots import curve_figure, reliability_figure
from .summary import summarise

JSON_FILE, MARKDOWN_FILE, HTML_FILE = "report.json", "report.md", "report.html"
EQUAL_TOKENS = "Early stopping beside as many tokens in whole traces"
VERDICTS_FILE = "verdicts.json"
"""Right or wrong by question, for ``arrol-eval compare``."""


def write_report(folder: RunFolder) -> dict[str, Any]:
    """Make the report of a results folder from its traces, and write it there.

    Returns:
        What ``report.json`` holds.

    Raises:
        FolderError: when it is no results folder, or nothing in it is complete.
    """
    report = summarise(folder.samples(), folder.voter, folder.manifest())
    verdicts = {entry["name"]: entry.pop("verdicts") for entry in report["benchmarks"]}
    write_json(folder.path / VERDICTS_FILE, finite(verdicts))
    write_json(folder.path / JSON_FILE, finite(report))
    pictures = {entry["name"]: _pictures(entry) for entry in report["benchmarks"]}
    for name, figures in pictures.items():
        for what, figure in figures.items():
            figure.savefig(folder.path / f"{folder_name(name)}_{what}.png", dpi=130)
    write_atomic(folder.path / MARKDOWN_FILE, markdown(report, pictures).encode())
    write_atomic(folder.path / HTML_FILE, page(report, pictures).encode())
    return report


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The report for the terminal."""
    for section in _sections(report):
        console.print()
        console.print(section.title, style="bold")
        for caption, cells in section.tables:
            console.print(terminal_table(caption, cells))
        for line in section.lines:
            console.print(line)


def markdown(report: Mapping[str, Any], pictures: Mapping[str, Mapping[str, Figure]]) -> str:
    """The report as Markdown; its pictures lie beside it."""
    parts = [f"# {title(report)}"]
    for section in _sections(report):
        parts.append(f"## {section.title}")
        for caption, cells in section.tables:
            parts += [f"{caption}:", markdown_table(cells)]
        parts += section.lines
        parts += [
            f"![{what.replace('_', ' ')}]({folder_name(section.benchmark)}_{what}.png)"
            for what in pictures.get(section.benchmark, {})
        ]
    parts += ["## How it was made", "\n".join(f"- {name}: {value}" for name, value in _provenance(report))]
    return "\n\n".join(parts) + "\n"


def page(report: Mapping[str, Any], pictures: Mapping[str, Mapping[str, Figure]]) -> str:
    """The report as one HTML page that needs nothing else: no network, no script, pictures inside."""
    body = [f"<h1>{html.escape(title(report))}</h1>"]
    for section in _sections(report):
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        for caption, cells in section.tables:
            body.append(html_table(caption, cells))
        body += [f"<p>{html.escape(line)}</p>" for line in section.lines]
        body += [svg(figure) for figure in pictures.get(section.benchmark, {}).values()]
    items = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in _provenance(report)
    )
    body.append(f"<h2>How it was made</h2><dl>{items}</dl>")
    return PAGE.replace("TITLE", html.escape(title(report))).replace("BODY", "\n".join(body))


def title(report: Mapping[str, Any]) -> str:
    """The report in a line."""
    names = ", ".join(entry["name"] + " (synthetic)" * entry["synthetic"] for entry in report["benchmarks"])
    return f"{names}: {Path(str(report['model'])).name}, {report['n']} traces a question"


# --- what a report says ---------------------------------------------------------------------------


class _Section:
    def __init__(self, title: str, benchmark: str = "") -> None:
        self.title, self.benchmark = title, benchmark
        self.tables: list[tuple[str, Cells]] = []
        self.lines: list[str] = []


def _sections(report: Mapping[str, Any]) -> Iterator[_Section]:
    if report["average"] is not None:
        yield _average(report["average"], report["n"])
    for entry in report["benchmarks"]:
        yield _benchmark(entry)


def _average(average: Mapping[str, Any], n: int) -> _Section:
    section = _Section(f"Average of {average['benchmarks']} benchmarks")
    section.tables.append(("Votes and early stopping", votes_table(average["methods"], n)))
    if any(row["equal_tokens"] for row in average["methods"]):
        section.tables.append((EQUAL_TOKENS, equal_tokens_table(average["methods"])))
    section.lines.append(
        f"One trace alone is right with probability {average['sample_accuracy']:.3f}; "
        f"{_series('pass', average['pass_at'])}. Each benchmark counts once."
    )
    return section


def _benchmark(entry: Mapping[str, Any]) -> _Section:
    kind = " (synthetic)" if entry["synthetic"] else ""
    seeds = f", {len(entry['seeds'])} seeds" if len(entry["seeds"]) > 1 else ""
    section = _Section(
        f"{entry['name']}{kind}: {entry['questions']} questions x {entry['n']} traces{seeds}", entry["name"]
    )
    samples, head = entry["samples"], entry["head"]
    section.tables.append((f"Votes over {entry['n']} traces", votes_table(entry["votes"], entry["n"])))
    section.tables.append(("Votes over k traces", _at_table(entry["votes"])))
    section.tables.append(
        ("Early stopping (tokens a question, seconds of sampling)", stopping_table(entry["stopping"]))
    )
    stopped = any(row["equal_tokens"] for row in entry["stopping"])
    if stopped:
        section.tables.append((EQUAL_TOKENS, equal_tokens_table(entry["stopping"])))
    low, high = samples["interval"]
    majority = next(row for row in entry["votes"] if row["name"] == "majority")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in samples["finish_reasons"].items())
    section.lines.append(
        f"One trace alone is right with probability {samples['accuracy']:.3f} ({low:.3f} to {high:.3f}). "
        f"{_series('pass', samples['pass_at'])}; {_series('maj', majority['at'])}. "
        f"Traces average {samples['mean_tokens']:,.0f} tokens and ended by: {reasons}."
    )
    names = [row["name"] for row in entry["stopping"]]
    if "quality_pruned" in names:
        section.lines.append(
            f"quality_pruned was sampled again with the same seeds, keeping {entry['keep']:g} of the traces at "
            f"token {head['detection_position']} inside the engine. random_pruned is the control: as many traces "
            "kept at random, and a majority vote."
        )
    if {"quality_threshold", "quality_budget"} & {*names}:
        section.lines.append(
            "quality_threshold stopped the traces below one score for all questions, which "
            f"{entry['keep']:g} of the full pass's traces reach; quality_budget gave every question "
            f"{entry['keep']:g} of its mean tokens, to be spent on the best traces first."
        )
    if entry["waves_traces"] is not None:
        name = next(name for name in names if name.endswith("_waves"))
        section.lines.append(
            f"{name} started few traces of a question and more only while its vote was open: "
            f"{entry['waves_traces']:.1f} of {entry['n']} on average, the first ones of the full pass."
        )
    if stopped:
        section.lines.append(
            "Stopping early is worth it where it beats as many tokens spent on fewer whole traces: traces is how "
            "many of them its tokens pay for, whole how often the same vote over so many is right (the mean over "
            "random choices of them), and that table's gain and p are against it."
        )
    section.lines.append(
        "Intervals are 95%, over questions, each with its mean over the seeds; gain and p (a paired permutation "
        "test) are against majority. Seconds are by the clock, whatever else the machine did."
    )
    if head is not None:
        section.lines.append(
            f"The head's AUROC is {head['auroc_detection']:.3f} at token {head['detection_position']} "
            f"({head['auroc_within_detection']:.3f} within a question) and {head['auroc_finish']:.3f} at the "
            f"finish ({head['auroc_within_finish']:.3f} within a question); its expected calibration error there "
            f"is {head['ece']:.3f}."
        )
    section.lines += [
        f"{', '.join(names)} did not vote: {why}." for why, names in _reasons(entry["skipped"]).items()
    ]
    return section


def _reasons(skipped: Mapping[str, str]) -> dict[str, list[str]]:
    """Methods by why they did not vote, in short: which signal the traces lack."""
    reasons: dict[str, list[str]] = {}
    for name, why in skipped.items():
        lacked = why.partition(" on every voting trace")[0].removeprefix(f"voting method {name!r} ")
        reasons.setdefault(lacked, []).append(name)
    return reasons


def votes_table(rows: Sequence[Mapping[str, Any]], n: int) -> Cells:
    """Votes as cells, a heading first."""
    header = ["method", f"right @{n}", "95%", "gain", "95%", "p"]
    return [header, *([row["name"], *_accuracy(row)] for row in rows)]


def _accuracy(row: Mapping[str, Any]) -> list[str]:
    low, high = row["interval"]
    cells = [f"{row['accuracy']:.3f}", f"{low:.2f}-{high:.2f}"]
    if row["name"] == "majority":
        return [*cells, "", "", ""]
    low, high = row["above_majority_interval"]
    return [*cells, f"{row['above_majority']:+.3f}", f"{low:+.2f} to {high:+.2f}", _p(row["p_value"])]


def _at_table(rows: Sequence[Mapping[str, Any]]) -> Cells:
    sizes = list(rows[0]["at"])
    return [
        ["method", *(f"@{k}" for k in sizes)],
        *([row["name"], *(f"{row['at'][k]:.3f}" for k in sizes)] for row in rows),
    ]


def stopping_table(rows: Sequence[Mapping[str, Any]]) -> Cells:
    """Ways of stopping early as cells, a heading first; ``whole`` is the equal-token control."""
    stopped = any(row["equal_tokens"] for row in rows)
    table = [["way", "right", "95%", "p", "tokens", "saved", *["whole"] * stopped, "seconds", "speed"]]
    for row in rows:
        accuracy, interval, _, _, p = _accuracy(row)
        saved = f"{row['tokens_saved']:.1%}" if row["tokens_saved"] else ""
        seconds = "" if row["seconds"] is None else f"{row['seconds']:,.1f}"
        speed = f"{row['speedup']:.2f}x" if row["speedup"] and row["tokens_saved"] else ""
        tokens = f"{row['tokens_per_question']:,.0f}"
        whole = f"{row['equal_tokens']['accuracy']:.3f}" if row["equal_tokens"] else ""
        table.append([row["name"], accuracy, interval, p, tokens, saved, *[whole] * stopped, seconds, speed])
    return table


def equal_tokens_table(rows: Sequence[Mapping[str, Any]]) -> Cells:
    """Ways of stopping early beside their equal-token controls, as cells, a heading first.

    ``traces`` is how many whole traces the tokens pay for, where the rows say.
    """
    stopped = [row for row in rows if row["equal_tokens"]]
    counted = all("traces" in row["equal_tokens"] for row in stopped)
    table = [["way", "right", *(["traces"] if counted else []), "whole", "gain", "95%", "p"]]
    for row in stopped:
        control = row["equal_tokens"]
        low, high = control["above_interval"]
        table.append(
            [
                row["name"],
                f"{row['accuracy']:.3f}",
                *([f"{control['traces']:.1f}"] if counted else []),
                f"{control['accuracy']:.3f}",
                f"{control['above']:+.3f}",
                f"{low:+.2f} to {high:+.2f}",
                _p(control["p_value"]),
            ]
        )
    return table


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _series(name: str, values: Mapping[Any, float]) -> str:
    return ", ".join(f"{name}@{k} {value:.3f}" for k, value in values.items())


def _provenance(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "model", report["model"]
    yield "head", f"{report['head']} (sha256 {report['head_sha256'][:12]})" if report["head"] else "none"
    yield "engine", report["engine"]
    yield "sampling", ", ".join(f"{name} {value}" for name, value in report["sampling"].items())
    yield "prompt", report["prompt"]
    if report["waves"] is not None:
        yield "waves", ", ".join(f"{name} {value}" for name, value in report["waves"].items())
    yield "seeds", ", ".join(map(str, report["seeds"]))
    yield "problems", "; ".join(f"{entry['name']}: {entry['source']}" for entry in report["benchmarks"])
    yield "versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    for command in dict.fromkeys(report["commands"]):
        yield "command", command


def _pictures(entry: Mapping[str, Any]) -> dict[str, Figure]:
    pictures = {"accuracy_tokens": curve_figure(entry)}
    if entry["head"] is not None:
        pictures["reliability"] = reliability_figure(entry["head"])
    return pictures
