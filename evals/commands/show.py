"""Commands over results folders: `report`, `compare`, `show`, `export` and `import`."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from arrol_tts.metrics import Floats, bootstrap_interval, paired_permutation_test
from arrol_tts.recorded import read_traces
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace

from ..reporting.report import JSON_FILE, VERDICTS_FILE, print_report, write_report
from ..reporting.rows import CURVE_METHODS
from ..sampling.folder import MANIFEST, FolderError, RunFolder
from ..sampling.passes import FOLDERS, FULL
from .shared import fail, finite, pairs

Folder = Annotated[Path, typer.Argument(help="results folder of arrol-eval run")]


def report(folder: Folder) -> None:
    """Make the report of a results folder again, from its traces; no model is loaded."""
    try:
        made = write_report(RunFolder(folder))
    except (ValueError, OSError) as error:
        fail(str(error))
    print_report(made, Console())
    typer.echo(f"report: {folder / 'report.html'}, report.md, report.json")


# --- compare --------------------------------------------------------------------------------------


def compare(
    first: Folder,
    others: Annotated[list[Path], typer.Argument(help="results folders to compare with the first")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Compare runs, question by question, on the questions that all of them have asked."""
    try:
        rows = compare_folders([first, *others])
    except (ValueError, OSError) as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(finite(rows), indent=2))
        return
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        of_benchmark = [row for row in rows if row["benchmark"] == benchmark]
        table = Table(
            title=f"{benchmark}, {of_benchmark[0]['questions']} questions",
            caption=f"differences are to {first.name}; p: paired permutation test",
            box=SIMPLE_HEAD,
        )
        table.add_column("method", no_wrap=True)
        for heading in ("run", "right", "difference", "95%", "p"):
            table.add_column(heading, justify="right")
        for row in of_benchmark:
            cells = ["", "", ""]
            if "difference" in row:
                low, high = row["interval"]
                cells = [f"{row['difference']:+.3f}", f"{low:+.2f} to {high:+.2f}", f"{row['p_value']:.3f}"]
            table.add_row(row["method"], row["run"], f"{row['accuracy']:.3f}", *cells)
        Console().print(table)


def compare_folders(folders: list[Path]) -> list[dict[str, Any]]:
    """Accuracy of each method in each run, with the paired difference to the first run.

    Raises:
        FolderError: when a folder has no report, or the runs share no questions.
    """
    verdicts = [_verdicts(folder) for folder in folders]
    rows: list[dict[str, Any]] = []
    for benchmark in verdicts[0]:
        if not all(benchmark in of_run for of_run in verdicts):
            continue
        asked = [of_run[benchmark]["questions"] for of_run in verdicts]
        common = [question for question in asked[0] if all(question in questions for questions in asked)]
        if not common:
            continue
        methods = [m for m in verdicts[0][benchmark]["right"] if all(m in v[benchmark]["right"] for v in verdicts)]
        for method in methods:
            values = [_values(of_run[benchmark], method, common) for of_run in verdicts]
            for folder, value in zip(folders, values, strict=True):
                row: dict[str, Any] = {
                    "benchmark": benchmark,
                    "questions": len(common),
                    "method": method,
                    "run": folder.resolve().name,
                    "accuracy": float(value.mean()),
                }
                if folder is not folders[0]:
                    difference = value - values[0]
                    row |= {
                        "difference": float(difference.mean()),
                        "interval": list(bootstrap_interval(difference)),
                        "p_value": paired_permutation_test(value, values[0]),
                    }
                rows.append(row)
    if not rows:
        raise FolderError("these runs share no questions: compare runs of the same benchmark")
    return rows


def _verdicts(folder: Path) -> dict[str, Any]:
    path = folder / VERDICTS_FILE
    if not path.exists() or not (folder / JSON_FILE).exists():
        write_report(RunFolder(folder))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _values(verdicts: Mapping[str, Any], method: str, questions: list[str]) -> Floats:
    by_question = dict(zip(verdicts["questions"], verdicts["right"][method], strict=True))
    return np.array([by_question[question] for question in questions], float)


# --- show -----------------------------------------------------------------------------------------


def show(
    folder: Folder,
    question: Annotated[str, typer.Option(help="id of the question")],
    seed: Annotated[int | None, typer.Option(help="of the sampling; the first by default")] = None,
    pass_: Annotated[str, typer.Option("--pass", help=f"one of {', '.join(FOLDERS)}")] = FULL,
    text: Annotated[bool, typer.Option(help="with the solutions themselves")] = False,
) -> None:
    """List a question's traces with their scores, what they count in each vote, and why each ended."""
    console = Console()
    try:
        _show(RunFolder(folder), question, seed, pass_, text, console)
    except (ValueError, OSError) as error:
        fail(str(error))


def _show(
    folder: RunFolder, question: str, seed: int | None, pass_: str, with_text: bool, console: Console
) -> None:
    manifest = folder.manifest()
    if pass_ not in (FULL, *manifest.stopping):
        raise FolderError(f"{folder.path} has no pass {pass_!r}; it has {', '.join((FULL, *manifest.stopping))}")
    benchmark, problem = next(
        ((b, p) for b in folder.benchmarks() for p in b.problems if p.id == question), (None, None)
    )
    if benchmark is None or problem is None:
        known = ", ".join(f"{b.problems[0].id} .. {b.problems[-1].id}" for b in folder.benchmarks())
        raise FolderError(f"{folder.path} does not ask {question!r}; its questions are {known}")
    store = TraceStore(folder.seed(benchmark.name, manifest.seeds[0] if seed is None else seed) / FOLDERS[pass_])
    traces = sorted((t for t in store if t.question_id == question), key=lambda trace: trace.sample_id)
    if not traces:
        raise FolderError(f"{store.path} has no traces of {question!r} yet")
    console.print(Text(problem.question, style="bold"))
    console.print(f"right answer: {problem.answer}", markup=False)
    voter = folder.voter()
    votes = {}
    for method in CURVE_METHODS:
        try:
            votes[method] = voter.vote(traces, method)
        except ValueError:
            continue  # it needs what these traces lack
    for method, result in votes.items():
        console.print(f"{method}: {result.answer} ({result.confidence:.2f})", markup=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))  # fits 80 columns
    for heading in ("#", "ended", "tokens", "answer", "right", "scores", *votes):
        table.add_column(heading, no_wrap=True)
    for i, trace in enumerate(traces):
        weights = [f"{result.weights[i]:.2f}" if trace.answer else "" for result in votes.values()]
        table.add_row(*(Text(cell) for cell in (*_cells(trace), *weights)))
    console.print(table)
    for trace in traces:
        if trace.detail:
            console.print(f"{trace.sample_id} was {trace.finish_reason}: {trace.detail}", markup=False)
    for trace in traces if with_text else ():
        console.rule(f"sample {trace.sample_id}")
        console.print(trace.text, markup=False, highlight=False)


def _cells(trace: Trace) -> Iterator[str]:
    yield str(trace.sample_id)
    yield trace.finish_reason
    yield str(trace.num_tokens)
    yield trace.answer or ""
    yield {True: "yes", False: "no", None: ""}[trace.correct]
    yield ", ".join(f"{score:.2f}" for score in trace.scores.values())


# --- export and import ----------------------------------------------------------------------------


def export(
    source: Annotated[Path, typer.Argument(help="a results folder, or a trace store")],
    out: Annotated[Path, typer.Argument(help="NAME.jsonl, or a folder for a dataset")],
) -> None:
    """Write traces as JSON lines, or as a dataset folder for `datasets.load_from_disk`."""
    try:
        if out.exists():
            raise FileExistsError(f"{out} is there already: name another file, or move it away")
        count = write_jsonl(source, out) if out.suffix == ".jsonl" else write_dataset(source, out)
    except (ValueError, OSError, ImportError) as error:
        fail(str(error))
    typer.echo(f"{count:,} traces written to {out}")


def import_(
    source: Annotated[Path, typer.Argument(help="JSON lines, Parquet, or a dataset folder")],
    out: Annotated[Path, typer.Argument(help="trace store to write")],
    fields: Annotated[list[str] | None, typer.Option(help="FIELD=COLUMN, as in arrol-eval vote")] = None,
) -> None:
    """Read traces into a trace store, which `arrol-eval vote` and head training take."""
    try:
        if out.exists():
            raise FileExistsError(f"{out} is there already: name another folder, or move it away")
        with TraceStore(out) as store:
            store.extend(_read(source, pairs("--fields", fields)))
    except (ValueError, OSError, ImportError) as error:
        fail(str(error))
    typer.echo(f"{len(TraceStore(out)):,} traces written to {out}")


def rows(source: Path) -> Iterator[dict[str, Any]]:
    """Traces as plain rows, the inverse of ``read_traces``; those of a results folder say whence they are.

    Raises:
        ValueError: when the source is neither a results folder nor recorded traces.
    """
    folder = RunFolder(source)
    if not (source / MANIFEST).exists():
        yield from (_row(trace) for trace in read_traces(source))
        return
    manifest = folder.manifest()
    for benchmark in folder.benchmarks():
        reference = {problem.id: problem.answer for problem in benchmark.problems}
        for seed in manifest.seeds:
            for name in (FULL, *manifest.stopping):
                for trace in TraceStore(folder.seed(benchmark.name, seed) / FOLDERS[name]):
                    # Question ids of several seeds and passes must stay apart in one file.
                    where = {"benchmark": benchmark.name, "seed": seed, "pass": name}
                    row = _row(trace)
                    row["question_id"] = f"{trace.question_id}/seed-{seed}/{name}"
                    yield row | {"reference": reference.get(trace.question_id)} | where


def _row(trace: Trace) -> dict[str, Any]:
    row = {field.name: getattr(trace, field.name) for field in dataclasses.fields(trace)}
    for name in ("confidence", "logprobs"):
        row[name] = None if row[name] is None else row[name].tolist()
    row["scores"] = [[position, score] for position, score in trace.scores.items()]
    row["features"] = [[position, vector.tolist()] for position, vector in trace.features.items()]
    return row


def write_jsonl(source: Path, out: Path) -> int:
    """Write traces as JSON lines; returns how many."""
    count = 0
    temporary = out.with_name(out.name + ".tmp")
    with temporary.open("w") as file:
        for row in rows(source):
            file.write(json.dumps(finite(row)) + "\n")
            count += 1
    temporary.rename(out)
    return count


def write_dataset(source: Path, out: Path) -> int:
    """Write traces as a dataset of Hugging Face's ``datasets``; returns how many.

    Maps from positions become lists of ``{"position", "value"}``, and ``meta`` JSON, so that every row has the
    same columns.
    """
    from datasets import Dataset

    def plain() -> Iterator[dict[str, Any]]:
        for row in rows(source):
            scores = [{"position": k, "value": v} for k, v in row["scores"]]
            features = [{"position": k, "value": v} for k, v in row["features"]]
            yield row | {"scores": scores, "features": features, "meta": json.dumps(row["meta"])}

    dataset = Dataset.from_list(list(plain()))
    dataset.save_to_disk(str(out))
    return len(dataset)


def _read(source: Path, fields: Mapping[str, str]) -> Iterator[Trace]:
    """Traces of a file or of a dataset folder."""
    if not (source / "dataset_info.json").exists():
        yield from read_traces(source, fields)
        return
    from datasets import load_from_disk

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{source.name}.parquet"
        load_from_disk(str(source)).to_parquet(str(path))
        yield from read_traces(path, fields)
