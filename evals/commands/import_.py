"""`arrol-eval import`: traces of other programs, into a trace store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from arrol_tts.errors import InputError, MissingPackageError
from arrol_tts.recorded import read_traces
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace

from .shared import DATASETS_MISSING, errors_in_words, notes_in_words, pairs


def import_(
    source: Annotated[Path, typer.Argument(help="JSON lines, Parquet, or a dataset folder")],
    out: Annotated[Path, typer.Argument(help="trace store to write")],
    fields: Annotated[list[str] | None, typer.Option(help="FIELD=COLUMN, as in arrol-eval vote")] = None,
) -> None:
    """Read traces into a trace store, which `arrol-eval vote` and head training take."""
    with errors_in_words(), notes_in_words():
        if out.exists():
            raise InputError(f"{out} is there already: name another folder, or move it away")
        with TraceStore(out) as store:
            store.extend(_read(source, pairs("--fields", fields)))
    typer.echo(f"{len(TraceStore(out)):,} traces written to {out}")


def _read(source: Path, fields: Mapping[str, str]) -> Iterator[Trace]:
    """Traces of a file or of a dataset folder."""
    if not (source / "dataset_info.json").exists():
        yield from read_traces(source, fields)
        return
    try:
        from datasets import load_from_disk
    except ImportError:
        raise MissingPackageError(DATASETS_MISSING) from None

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{source.name}.parquet"
        load_from_disk(str(source)).to_parquet(str(path))
        yield from read_traces(path, fields)
