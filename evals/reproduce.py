"""The paper's experiments at pocket scale (synthetic): ``python -m evals.reproduce`` writes docs/results.md.

What takes minutes is run: the recipe ``pocket``, and ablations that replay its traces. What takes longer is read
from the committed results of the benchmarks, each with its command, commit and machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from arrol_tts.files import write_atomic
from arrol_tts.replay import replay

from .bench import RESULTS, commit, machine
from .reporting.plots import curve_figure, reliability_figure
from .reporting.report import JSON_FILE, markdown_table, stopping_table, votes_table
from .reporting.rows import is_right, keep_rule
from .reporting.summary import interval
from .sampling.folder import RunFolder
from .sampling.seed_samples import SeedSamples

DOCS = Path(__file__).parents[1] / "docs"
RECIPE = "pocket"
KEEPS = (0.125, 0.25, 0.5, 0.75, 1.0)
WEIGHTS: Mapping[str, Mapping[str, Any]] = {
    "p, last score": {"over": "last", "odds_power": None},
    "p, mean of the log-odds": {"over": "mean", "odds_power": None},
    "odds, last score": {"over": "last", "odds_power": 1.0},
    "odds, mean of the log-odds (the head's config)": {"over": "mean", "odds_power": 1.0},
}

TITLES = {
    "pocket": "Voting and pruning over three seeds",
    "rl": "Reinforcement learning with pruned rollouts",
    "head": "Quality heads",
    "engine": "Cost of scoring and stopping inside vLLM",
    "voting": "Speed of voting and of the confidence measures",
    "demo": "The demo",
}
"""``{benchmark: heading}``, in the order of the document; others follow under their own names."""


def main(
    out: Annotated[Path, typer.Option(help="results folder of the quick run; goes on where it was cut")] = Path(
        "runs/reproduce"
    ),
) -> None:
    """Run what is quick, read what is committed, and write docs/results.md with its figures."""
    command = ["run", "--recipe", RECIPE, "--out", str(out)]
    subprocess.run([sys.executable, "-c", "from evals.cli import app; app()", *command], check=True)
    folder = RunFolder(out)
    report = json.loads((out / JSON_FILE).read_text())
    (entry,) = report["benchmarks"]
    curve_figure(entry).savefig(DOCS / "results_accuracy_tokens.png", dpi=130)
    reliability_figure(entry["head"]).savefig(DOCS / "results_reliability.png", dpi=130)
    ((run,),) = folder.samples()
    keeps = keep_ablation(run, folder)
    keep_figure(keeps).savefig(DOCS / "results_keep.png", dpi=130)
    names = dict.fromkeys([*TITLES, *sorted(path.stem for path in RESULTS.glob("*.json"))])
    parts = [
        "# Results",
        "Written by `make reproduce`; do not edit. Every figure names the command that made it. The pocket model "
        "is **synthetic**: its figures say how the machinery behaves, not how your model would do.",
        *quick_section(entry, report, keeps, weight_ablation(run, folder)),
        *(part for name in names for part in benchmark_section(name)),
    ]
    write_atomic(DOCS / "results.md", ("\n\n".join(parts) + "\n").encode())
    typer.echo(f"wrote {DOCS / 'results.md'}")


# --- the quick run --------------------------------------------------------------------------------


def keep_ablation(run: SeedSamples, folder: RunFolder) -> list[dict[str, Any]]:
    """Accuracy and tokens by keep ratio, replayed over the traces that were sampled in full."""
    voter = folder.voter()
    whole = sum(trace.num_tokens for group in run.full.values() for trace in group)
    rows = []
    for keep in KEEPS:
        rule = keep_rule(voter, keep)
        groups = [replay(group, rule) if keep < 1 else group for group in run.full.values()]
        spent = sum(trace.num_tokens for group in groups for trace in group)
        row: dict[str, Any] = {"keep": keep, "tokens_saved": 1 - spent / whole}
        for method in ("majority", "quality"):
            right = np.array([is_right(voter, group, method) for group in groups], float)
            row[method], row[f"{method}_interval"] = float(right.mean()), interval(right)
        rows.append(row)
    return rows


def weight_ablation(run: SeedSamples, folder: RunFolder) -> list[list[str]]:
    """Accuracy by what a trace's score counts in the vote."""
    voter = folder.voter()
    rows = []
    for name, options in WEIGHTS.items():
        right = np.array(
            [bool(voter.vote(group, "quality", **options).correct) for group in run.full.values()], float
        )
        rows.append([name, f"{right.mean():.3f}", _interval(interval(right))])
    return rows


def quick_section(
    entry: Mapping[str, Any],
    report: Mapping[str, Any],
    keeps: Sequence[Mapping[str, Any]],
    weights: Sequence[Sequence[str]],
) -> Iterator[str]:
    """The recipe's tables, and the ablations."""
    here = machine()
    yield f"## The quick run (synthetic): {entry['questions']} questions x {entry['n']} traces"
    yield f"`{report['commands'][0]}` at commit {_short(commit())}, {here['cores']} cores ({here['cpu']})."
    yield f"Votes over {entry['n']} traces (gain and p against majority; 95% intervals over questions):"
    yield markdown_table(votes_table(entry["votes"], entry["n"]))
    yield (
        "Early stopping, sampled again with the same seeds inside vLLM (tokens a question). What it saves in time "
        "is measured below, on a machine that does nothing else:"
    )
    yield markdown_table([row[:6] for row in stopping_table(entry["stopping"])])
    yield "![accuracy against tokens](results_accuracy_tokens.png)"
    yield "![reliability of the head](results_reliability.png)"
    yield "Ablation: keep ratio at the detection position, replayed over the same traces:"
    yield markdown_table(
        [
            ["keep", "tokens saved", "majority", "95%", "quality", "95%"],
            *(
                [
                    f"{row['keep']:g}",
                    f"{row['tokens_saved']:.1%}",
                    f"{row['majority']:.3f}",
                    _interval(row["majority_interval"]),
                    f"{row['quality']:.3f}",
                    _interval(row["quality_interval"]),
                ]
                for row in keeps
            ),
        ]
    )
    yield "![accuracy by keep ratio](results_keep.png)"
    yield "Ablation: what a trace's score counts in the quality vote:"
    yield markdown_table([["weight", "accuracy", "95%"], *weights])


def keep_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against the share of tokens saved, by keep ratio."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method, marker in (("quality", "o"), ("majority", "s")):
        axes.plot(
            [row["tokens_saved"] for row in rows], [row[method] for row in rows], marker=marker, label=method
        )
    for row in rows:
        axes.annotate(
            f"keep {row['keep']:g}", (row["tokens_saved"], row["quality"]), (0, 6), textcoords="offset points"
        )
    axes.set(xlabel="share of tokens saved", ylabel="accuracy", title="pocket (synthetic), replayed")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


# --- committed benchmarks -------------------------------------------------------------------------


def benchmark_section(name: str) -> Iterator[str]:
    """A committed benchmark's figures, the single ones as a table."""
    yield f"## {TITLES.get(name, name)}"
    path = RESULTS / f"{name}.json"
    if not path.exists():
        yield f"Not measured yet: `python -m evals.bench.{name}` writes evals/results/{name}.json."
        return
    result = json.loads(path.read_text())
    seeds = ", ".join(map(str, result["seeds"]))
    yield (
        f"[evals/results/{name}.json](../evals/results/{name}.json): `{result['command']}` at commit "
        f"{_short(result['commit'])}, {result['machine']['cores']} cores, seeds {seeds}."
    )
    if name == "pocket":
        yield pocket_table(result["figures"])
    yield markdown_table([["figure", "value"], *_single_figures(result["figures"])])
    for label, rows in _row_figures(result["figures"]):
        yield f"{label}:"
        yield markdown_table(rows)
    for picture in sorted(DOCS.glob(f"{name}_*.png")):
        yield f"![{picture.stem.replace('_', ' ')}]({picture.name})"


POCKET_ROWS = {
    "majority": "majority",
    "deepconf": "DeepConf (bottom window)",
    "quality": "**quality head**",
    "quality_pruned": "**quality head, half pruned at token 32**",
    "random_pruned": "control: half pruned at random, majority",
}


def pocket_table(figures: Mapping[str, Any]) -> str:
    """The table of README.md."""
    rows = [["vote", "accuracy", "95% interval", "tokens a question", "saved"]]
    full = figures["tokens_per_question"]["majority"]
    for name, label in POCKET_ROWS.items():
        accuracy, tokens = figures[f"accuracy_{name}"], figures["tokens_per_question"][name]
        saved = "" if tokens == full else f"{1 - tokens / full:.0%}"
        best = name.startswith("quality")
        rows.append(
            [
                label,
                f"**{accuracy:.3f}**" if best else f"{accuracy:.3f}",
                "{:.3f} to {:.3f}".format(*figures["accuracy_intervals"][name]),
                f"{tokens:,.0f}",
                f"**{saved}**" if saved and best else saved,
            ]
        )
    return markdown_table(rows)


def _single_figures(figures: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    for name, value in figures.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping) and prefix.count(",") < 2 and not _is_table(value):
            yield from _single_figures(value, f"{label}, ")
        elif isinstance(value, bool | str):
            yield [label, str(value)]
        elif isinstance(value, int | float):
            yield [label, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"]
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
            yield [label, f"{value[0]:.4g} to {value[1]:.4g}"]


def _row_figures(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[list[str]]]]:
    """What has rows with the same fields, by number or by name, each as cells with a heading."""
    for name, value in figures.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping) and _is_table(value):
            first = next(iter(value.values()))
            columns = [key for key, cell in first.items() if isinstance(cell, int | float)]
            cells = [
                [row.replace("_", " "), *(_with_interval(fields, key) for key in columns)]
                for row, fields in value.items()
            ]
            yield label, [["", *(key.replace("_", " ") for key in columns)], *cells]
        elif isinstance(value, Mapping):
            yield from _row_figures(value, f"{label}, ")
        elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            columns = [key for key, cell in value[0].items() if isinstance(cell, int | float | str)]
            cells = [[_cell(row.get(key, "")) for key in columns] for row in value]
            yield label, [[key.replace("_", " ") for key in columns], *cells]


def _is_table(value: Mapping[str, Any]) -> bool:
    """Whether it maps names to figures of the same names."""
    rows = list(value.values())
    return len(rows) > 1 and all(isinstance(row, Mapping) and row and row.keys() == rows[0].keys() for row in rows)


def _with_interval(fields: Mapping[str, Any], key: str) -> str:
    ends = fields.get(f"{key}_interval")
    return _cell(fields[key]) + (f" ({ends[0]:.3g} to {ends[1]:.3g})" if ends else "")


def _cell(value: float | str) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _short(revision: str) -> str:
    return revision[:12] + "-dirty" * revision.endswith("-dirty")


def _interval(ends: Sequence[float]) -> str:
    return f"{ends[0]:.2f}-{ends[1]:.2f}"


if __name__ == "__main__":
    typer.run(main)
