"""Rows of files that other programs write: JSON lines, a JSON array, CSV, Parquet; also gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from arrol_tts.errors import RecordError

Row = dict[str, Any]

STDIN = Path("-")
FORMATS = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
"""Endings of the files that a folder is read by; also with .gz behind them, in any case."""

_FOREIGN = {
    b"PK\x03\x04": "a zip archive, as .npz, .xlsx and PyTorch files are: unpack it, or write JSON lines",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"ARROW1": "an Arrow file: write Parquet or JSON lines, or give the folder of a dataset to arrol-eval import",
}


class TextRow(Row):
    """A row of a CSV file, whose numbers are text."""


def numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """``(number, row)`` of a file, counted from 1; ``-`` is the standard input.

    What a file is, is read from its content: Parquet and gzip by their first bytes, a JSON array and JSON lines by
    their first character, and CSV or TSV where the ending says so. Byte-order marks are dropped; pipes are read.

    Raises:
        RecordError: for what is neither, or rows that are damaged or no objects; the message names file and row.
    """
    with _opened(path) as file:
        start = file.peek(16)[:16]
        if start.startswith(b"\x1f\x8b"):
            file = io.BufferedReader(gzip.GzipFile(fileobj=file))
            try:
                start = file.peek(16)[:16]
            except (EOFError, OSError) as error:
                raise RecordError(f"{path} cannot be read as JSON lines ({error}); is it cut off?") from error
        if start.startswith(b"PAR1"):
            yield from _parquet_rows(path, file)
            return
        _refuse_foreign(path, start)
        encoding = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        try:
            with io.TextIOWrapper(file, encoding=encoding, newline=None) as text:
                yield from _text_rows(path, text)
        except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
            raise RecordError(
                f"{path} cannot be read as JSON lines ({error}): give JSON lines, a JSON array, CSV or Parquet"
            ) from error


def _opened(path: Path) -> io.BufferedReader:
    if path == STDIN:
        return io.BufferedReader(sys.stdin.buffer)  # type: ignore[arg-type]
    return open(path, "rb")


def _refuse_foreign(path: Path, start: bytes) -> None:
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise RecordError(f"{path} is {what}")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise RecordError(
            f"{path} is a pickle, which could run any program when it is read: load it where you trust it, and "
            "write JSON lines, one json.dumps(row) a trace"
        )


def _text_rows(path: Path, file: IO[str]) -> Iterator[tuple[int, Row]]:
    blank = 0
    first = ""
    for first in file:
        if first.strip():
            break
        blank += 1
    begin = first.lstrip()[:1]
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if begin == "[":
        yield from _array_rows(path, first + file.read())
    elif begin not in ("", "{") and (suffix in (".csv", ".tsv") or (not suffix and _is_header(first))):
        yield from _csv_rows(path, chain([first], file), max(",\t;", key=first.count))
    elif begin:
        yield from _line_rows(path, chain([first], file), blank + 1)


def _is_header(line: str) -> bool:
    return "," in line or "\t" in line


def _array_rows(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    for number, row in enumerate(_json(text, str(path)), start=1):
        yield number, _object(row, f"{path}, row {number}")


def _line_rows(path: Path, lines: Iterator[str], start: int) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, start=start):
        if line.strip():
            where = f"{path}, row {number}"
            yield number, _object(_json(line, where), where)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        over_lines = error.msg == "Extra data" or text.strip() == "{"
        hint = "each row must stand in a line of its own" if over_lines else "is the file cut off?"
        raise RecordError(f"{where} is not valid JSON ({error}); {hint}") from error
    except RecursionError:
        raise RecordError(f"{where} is nested too deeply to be read; remove what no trace needs") from None
    except ValueError as error:  # Python reads no whole number of more than 4,300 digits
        raise RecordError(
            f"{where} cannot be read ({error}); write so long a number as text, in quotes"
        ) from error


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise RecordError(f"{where} is a {type(row).__name__}; a row must be an object")
    return row


def _csv_rows(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(2**31 - 1)  # whole texts are longer than the 128 KiB it starts with
    number = 0
    try:
        for number, row in enumerate(csv.DictReader(lines, delimiter=delimiter, strict=True), start=1):
            if None in row:
                raise RecordError(
                    f"{path}, row {number} has more cells than the header; quote cells with {delimiter!r}"
                )
            yield number, TextRow((name, value or None) for name, value in row.items())
    except csv.Error as error:
        raise RecordError(f"{path}, row {number + 1} is not valid CSV ({error}); is the file cut off?") from error


def _parquet_rows(path: Path, file: io.BufferedReader) -> Iterator[tuple[int, Row]]:
    from arrol_tts.store import read_parquet

    if not path.is_file():
        import pyarrow.parquet as pq

        batches = pq.ParquetFile(io.BytesIO(file.read())).iter_batches(256)
    else:
        batches = read_parquet(path)
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, row
