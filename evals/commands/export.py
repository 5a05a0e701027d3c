"""`arrol-eval export`: traces for other programs, as JSON lines or as a dataset."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from arrol_tts.errors import InputError, MissingPackageError
from arrol_tts.recorded import read_traces
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace

from ..reporting.json_ready import finite
from ..sampling.folder import MANIFEST, RunFolder
from ..sampling.passes import FOLDERS, FULL
from .shared import DATASETS_MISSING, errors_in_words


def export(
    source: Annotated[Path, typer.Argument(help="a results folder, or a trace store")],
    out: Annotated[Path, typer.Argument(help="NAME.jsonl, or a folder for a dataset")],
) -> None:
    """Write traces as JSON lines, or as a dataset folder for `datasets.load_from_disk`."""
    with errors_in_words():
        if out.exists():
            raise InputError(f"{out} is there already: name another file, or move it away")
        count = write_jsonl(source, out) if out.suffix == ".jsonl" else write_dataset(source, out)
    typer.echo(f"{count:,} traces written to {out}")


def rows(source: Path) -> Iterator[dict[str, Any]]:
    """Traces as plain rows, the inverse of ``read_traces``; those of a results folder say whence they are.

    Raises:
        InputError: when the source is neither a results folder nor recorded traces.
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

    Maps from positions become lists of ``{"position", "value"}``, and ``meta`` and ``tool_calls`` JSON, so that
    every row has the same columns.

    Raises:
        MissingPackageError: without ``datasets``.
    """
    try:
        from datasets import Dataset
    except ImportError:
        raise MissingPackageError(DATASETS_MISSING) from None

    def plain() -> Iterator[dict[str, Any]]:
        for row in rows(source):
            scores = [{"position": k, "value": v} for k, v in row["scores"]]
            features = [{"position": k, "value": v} for k, v in row["features"]]
            calls = row["tool_calls"] and json.dumps(row["tool_calls"])
            texts = {"meta": json.dumps(row["meta"]), "tool_calls": calls}
            yield row | {"scores": scores, "features": features} | texts

    dataset = Dataset.from_list(list(plain()))
    dataset.save_to_disk(str(out))
    return len(dataset)
