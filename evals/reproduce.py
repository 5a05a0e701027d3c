"""The paper's experiments at pocket scale (synthetic): ``python -m evals.reproduce`` writes docs/results.md.

What takes minutes is run: the recipe ``pocket``, and ablations that replay its traces, into
``evals/results/reproduce.json``. What takes longer is read from the committed results of the benchmarks. The page
is written from those files alone: ``--from-committed`` does only that, in seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from arrol_tts.files import write_atomic
from arrol_tts.replay import equal_tokens, replay
from arrol_tts.voter import WeightedVoter

from .bench import RESULTS, write_result
from .reporting.figures import is_right, keep_rule
from .reporting.plots import curve_figure, keep_figure, pocket_figure, reliability_figure
from .reporting.report import JSON_FILE
from .reporting.sections import write_sections
from .reporting.sections.pocket import readme_part, saved_part
from .reporting.sections.real import readme_part as real_part
from .reporting.sections.rl import readme_part as rl_part
from .reporting.sections.rl_real import readme_part as rl_real_part
from .reporting.sections.serve import costs_part
from .reporting.summary import interval
from .sampling.folder import RunFolder
from .sampling.seed_samples import Traces

DOCS = Path(__file__).parents[1] / "docs"
MARKS = ("<!-- {}.json, written by python -m evals.reproduce -->", "<!-- to here -->")
MARKED = (
    ("README.md", "real", real_part),
    ("README.md", "pocket", readme_part),
    ("README.md", "rl", rl_part),
    ("README.md", "rl_real", rl_real_part),
    ("docs/voting.md", "pocket", saved_part),
    ("docs/apps.md", "serve", costs_part),
)
"""``(file, benchmark, what stands between the benchmark's marks in the file)``."""
NAME = "reproduce"
COMMAND = "python -m evals.reproduce"
RECIPE = "pocket"
KEEPS = (0.125, 0.25, 0.5, 0.75, 1.0)
WEIGHTS: Mapping[str, Mapping[str, Any]] = {
    "p, last score": {"over": "last", "odds_power": None},
    "p, mean of the log-odds": {"over": "mean", "odds_power": None},
    "odds, last score": {"over": "last", "odds_power": 1.0},
    "odds, mean of the log-odds": {"over": "mean", "odds_power": 1.0},
}


def main(
    out: Annotated[Path, typer.Option(help="results folder of the quick run; goes on where it was cut")] = Path(
        "runs/reproduce"
    ),
    from_committed: Annotated[
        bool, typer.Option("--from-committed", help="write the page from evals/results/ alone; nothing is sampled")
    ] = False,
) -> None:
    """Run what is quick, read what is committed, and write docs/results.md with its figures."""
    if not from_committed:
        command = ["run", "--recipe", RECIPE, "--out", str(out)]
        subprocess.run([sys.executable, "-m", f"{__package__}.cli", *command], check=True)
        folder = RunFolder(out)
        write_result(NAME, quick_figures(folder), folder.manifest().seeds, COMMAND)
    draw(DOCS, RESULTS)
    update_marked(DOCS.parent, RESULTS)
    write_atomic(DOCS / "results.md", page(RESULTS).encode())
    typer.echo(f"wrote {DOCS / 'results.md'}")


def page(results: Path) -> str:
    """The results page, from a folder of results."""
    parts = [
        "# Results",
        "Written by `make reproduce` from evals/results/; do not edit. Each section says what was asked, shows "
        "it, and says what it means; its last line names command, commit and machine. The pocket model is "
        "**synthetic**: its figures say how the machinery behaves, not how your model would do.",
        *write_sections(results),
    ]
    return "\n\n".join(parts) + "\n"


def update_marked(root: Path, results: Path) -> None:
    """Write the benchmarks' figures between the marks of `MARKED`, where they have been measured."""
    for name, benchmark, words in MARKED:
        path = results / f"{benchmark}.json"
        if not path.exists():
            continue
        figures = json.loads(path.read_text())["figures"]
        before, _, rest = (root / name).read_text().partition(MARKS[0].format(benchmark))
        after = rest.partition(MARKS[1])[2]
        write_atomic(root / name, f"{before}{marked(words(figures), benchmark)}{after}".encode())


def marked(words: str, benchmark: str) -> str:
    """Words between their marks."""
    return f"{MARKS[0].format(benchmark)}\n{words}\n{MARKS[1]}"


def draw(docs: Path, results: Path) -> None:
    """Draw the pictures of the quick run and of the pocket benchmark, where they have been run."""
    path = results / "pocket.json"
    if path.exists():
        figure = pocket_figure(json.loads(path.read_text())["figures"])
        figure.savefig(docs / "pocket_accuracy_tokens.png", dpi=130)
    path = results / f"{NAME}.json"
    if not path.exists():
        return
    figures = json.loads(path.read_text())["figures"]
    entry = {
        "name": RECIPE,
        "n": figures["traces_per_question"],
        **{name: figures[name] for name in ("synthetic", "questions", "curve", "stopping")},
    }
    pictures = {
        "accuracy_tokens": curve_figure(entry),
        "reliability": reliability_figure(figures["head"]),
        "keep": keep_figure(figures["keep_ratios"]),
    }
    for name, figure in pictures.items():
        figure.savefig(docs / f"results_{name}.png", dpi=130)


# --- the quick run --------------------------------------------------------------------------------


def quick_figures(folder: RunFolder) -> dict[str, Any]:
    """The figures of the recipe's results folder: its report's, and ablations over its traces."""
    (entry,) = json.loads((folder.path / JSON_FILE).read_text())["benchmarks"]
    ((samples,),) = folder.samples()
    voter = folder.voter()
    return {
        "synthetic": entry["synthetic"],
        "questions": entry["questions"],
        "traces_per_question": entry["n"],
        "sample_accuracy": entry["samples"]["accuracy"],
        **{name: entry[name] for name in ("votes", "stopping", "curve", "head")},
        "keep_ratios": keep_ablation(samples.full, voter),
        "weights": weight_ablation(samples.full, voter),
    }


def keep_ablation(traces: Traces, voter: WeightedVoter) -> list[dict[str, Any]]:
    """Accuracy and tokens by keep ratio, replayed over the traces that were sampled in full, and the controls."""
    whole = sum(trace.num_tokens for group in traces.values() for trace in group)
    votes = {
        method: [voter.vote(group, method) for group in traces.values()] for method in ("majority", "quality")
    }
    rows = []
    for keep in KEEPS:
        rule = keep_rule(voter, keep)
        groups = [replay(group, rule) if keep < 1 else group for group in traces.values()]
        spent = sum(trace.num_tokens for group in groups for trace in group)
        row: dict[str, Any] = {"keep": keep, "tokens_saved": 1 - spent / whole}
        for method, of_whole in votes.items():
            right = np.array([is_right(voter, group, method) for group in groups], float)
            row[method], row[f"{method}_interval"] = float(right.mean()), list(interval(right))
            control = equal_tokens(of_whole, spent / len(groups))
            row[f"{method}_equal_tokens"] = float(control.accuracy.mean())
        rows.append(row)
    return rows


def weight_ablation(traces: Traces, voter: WeightedVoter) -> list[dict[str, Any]]:
    """Accuracy by what a trace's score counts in the vote."""
    rows = []
    for name, options in WEIGHTS.items():
        votes = [voter.vote(group, "quality", **options) for group in traces.values()]
        right = np.array([bool(vote.correct) for vote in votes], float)
        rows.append({"weight": name, "accuracy": float(right.mean()), "interval": list(interval(right))})
    return rows


if __name__ == "__main__":
    typer.run(main)
