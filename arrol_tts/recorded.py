"""Recorded samples: traces read from files that other programs wrote (JSONL, JSON, Parquet).

A *field map* says which column gives which field of a trace, so that no file has to be rewritten.
"""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from arrol_tts.trace import FINISH_REASONS, Trace

TRACE_FIELDS = tuple(field.name for field in dataclasses.fields(Trace))
MAPPABLE_FIELDS = (*TRACE_FIELDS, "reference", "score", "logit")
"""What a column can be mapped to: a field of :class:`Trace`, or

``reference``: the right answer, kept as ``meta["reference"]``;
``score``: one probability per trace, kept as its score at the last token;
``logit``: the same as log-odds, such as a reward model's raw output: its sigmoid is kept.
"""

_QUESTION_NAMES = (
    "qid",
    "problem_id",
    "question_idx",
    "unique_id",
    "id",
    "idx",
    "problem",
    "question",
    "prompt",
)
_ANSWER_NAMES = ("pred", "prediction", "extracted_answer", "response", "solution", "output", "completion")
_ROWS_FOR_HEADER = 100


def read_traces(
    path: str | os.PathLike[str],
    fields: Mapping[str, str] | None = None,
    *,
    finish_reasons: Mapping[str, str] | None = None,
) -> Iterator[Trace]:
    """Traces of a recorded file, or of a trace store, one by one in the file's order.

    A row is one trace, or one question whose columns are lists with an entry per sample; the latter
    is recognised by the answer (or text) being a list. Columns named like a field of :class:`Trace`
    need no mapping; columns that give no field are kept in ``meta``. Without a ``sample_id`` column
    samples are numbered from 0 inside their question; without ``num_tokens`` the recorded token ids
    or confidences are counted. Empty answers become None, numbers their text.

    Args:
        path: a folder written by :class:`~arrol_tts.store.TraceStore`; ``.parquet``; or JSON lines or
            a JSON array, also gzipped.
        fields: ``{field: column}`` with the fields of :data:`MAPPABLE_FIELDS`.
        finish_reasons: ``{value in the file: finish reason}`` for files that use other words than
            stop, length, pruned and cancelled.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: on unknown fields or columns, rows that are damaged or of mixed types, duplicated
            ids; the message names file and row, and says what to change.
    """
    path, fields, reasons = Path(path), dict(fields or {}), dict(finish_reasons or {})
    for field in fields:
        if field not in MAPPABLE_FIELDS:
            raise ValueError(f"there is no trace field {field!r} to map a column to; {_choices(MAPPABLE_FIELDS)}")
    for word, reason in reasons.items():
        if reason not in FINISH_REASONS:
            raise ValueError(f"finish_reasons maps {word!r} to {reason!r}; {_choices(FINISH_REASONS)}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file or trace store {path}")
    if path.is_dir():
        return _read_store(path, fields)
    if path.suffix == ".parquet" and not fields and not reasons:
        return _read_parquet_file(path)
    return _read_rows(path, fields, reasons)


def _read_store(path: Path, fields: Mapping[str, str]) -> Iterator[Trace]:
    from arrol_tts.store import TraceStore

    if not any(path.glob("traces-*.parquet")) and not any(path.glob(".journal-*.arrow")):
        raise ValueError(f"{path} is a folder without a trace store: name one of the files in it")
    if fields:
        raise ValueError(f"{path} is a trace store, whose columns need no field map: leave it out")
    return iter(TraceStore(path))


def _read_parquet_file(path: Path) -> Iterator[Trace]:
    from arrol_tts.store import decode, is_shard, read_parquet

    if is_shard(path):
        for batch in read_parquet(path):
            yield from decode(batch)
    else:
        yield from _read_rows(path, {}, {})


# --- rows -----------------------------------------------------------------------------------------

Row = dict[str, Any]


def numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """``(number, row)`` of a Parquet file, JSON lines or a JSON array (also gzipped), counted from 1.

    Raises:
        ValueError: for rows that are damaged or no objects.
    """
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def _read_rows(path: Path, fields: dict[str, str], reasons: dict[str, str]) -> Iterator[Trace]:
    rows = iter(numbered_rows(path))
    head = list(islice(rows, _ROWS_FOR_HEADER))  # JSON rows may leave out what is null
    if not head:
        raise ValueError(f"{path} has no rows")
    header = list(dict.fromkeys(name for _, row in head for name in row))
    columns = _resolve(path, fields, header)
    main = columns.get("answer") or columns["text"]
    per_question = any(isinstance(row.get(main), list) for _, row in head)

    samples: dict[str, int] = {}
    seen: dict[tuple[str, int], int] = {}
    id_type: type | None = None
    for number, row in chain(head, rows):
        where = f"{path}, row {number}"
        id_type = _check_id_type(row.get(columns["question_id"]), id_type, where)
        for part in _split(row, columns, main, where) if per_question else [row]:
            trace = _trace(part, columns, reasons, where)
            if "sample_id" not in columns:
                trace.sample_id = samples.get(trace.question_id, 0)
                samples[trace.question_id] = trace.sample_id + 1
            key = (trace.question_id, trace.sample_id)
            if key in seen:
                raise ValueError(
                    f"{where}: question {key[0]!r} already has a sample {key[1]}, in row {seen[key]}: "
                    "remove one, or map sample_id to another column"
                )
            seen[key] = number
            yield trace


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Numbered rows of JSON lines, or of a file that is one JSON array."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        try:
            is_array = file.read(1) == "["
            file.seek(0)
            lines: Iterable[Any] = json.load(file) if is_array else file
            for number, line in enumerate(lines, start=1):
                row = line if is_array else json.loads(line) if line.strip() else None
                if row is None:
                    continue
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, row {number} is a {type(row).__name__}; a row must be an object")
                yield number, row
        except json.JSONDecodeError as error:
            at = "" if is_array else f", row {number}"
            raise ValueError(f"{path}{at} is not valid JSON ({error}); is the file cut off?") from error
        except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as JSON lines ({error})") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    from arrol_tts.store import read_parquet

    number = 0
    for batch in read_parquet(path):
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _resolve(path: Path, fields: dict[str, str], header: list[str]) -> dict[str, str]:
    """``{field: column}`` for this file, from the map and from columns that are named like a field."""
    for field, column in fields.items():
        if column not in header:
            close = difflib.get_close_matches(column, header, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{path} has no column {column!r}, which the field map gives for {field}; "
                f"it has: {', '.join(header)}{hint}"
            )
    columns = dict(fields)
    for field in (*TRACE_FIELDS, "reference"):
        if field not in columns and field in header and field not in fields.values():
            columns[field] = field
    if "question_id" not in columns:
        raise ValueError(
            _unmapped(path, "which question a row belongs to", "question_id", _QUESTION_NAMES, header)
        )
    if "answer" not in columns and "text" not in columns:
        raise ValueError(
            _unmapped(path, "the answer, nor the text to take it from", "answer", _ANSWER_NAMES, header)
        )
    if sum(field in columns for field in ("scores", "score", "logit")) > 1:
        raise ValueError("map only one of scores, score and logit")
    return columns


def _unmapped(path: Path, what: str, field: str, usual: tuple[str, ...], header: list[str]) -> str:
    column = next((name for name in usual if name in header), "COLUMN")
    return (
        f"no column of {path} is known to give {what}; it has: {', '.join(header)}. "
        f"Map one: fields={{{field!r}: {column!r}}}, on the command line --fields {field}={column}"
    )


def _check_id_type(value: Any, before: type | None, where: str) -> type | None:
    if before is not None and type(value) is not before:
        raise ValueError(
            f"{where}: question_id is a {type(value).__name__} and was a {before.__name__} before; "
            "write all of them one way"
        )
    return type(value)


def _split(row: Row, columns: dict[str, str], main: str, where: str) -> Iterator[Row]:
    """The samples of a row that holds a question: lists as long as its answers, one entry each."""
    if not isinstance(row.get(main), list):
        raise ValueError(f"{where}: column {main!r} is no list of samples, and is one in other rows")
    size = len(row[main])
    shared = {columns["question_id"], columns.get("reference")}
    mapped = set(columns.values()) - shared
    split = {name for name, value in row.items() if name not in shared and isinstance(value, list)}
    for name in sorted(split):
        if len(row[name]) != size:
            if name in mapped:
                raise ValueError(
                    f"{where}: column {name!r} has {len(row[name])} entries and {main!r} has {size}; "
                    "lists of samples must be equally long"
                )
            split.discard(name)
    for i in range(size):
        yield {name: value[i] if name in split else value for name, value in row.items()}


def _trace(row: Row, columns: dict[str, str], reasons: dict[str, str], where: str) -> Trace:
    values: dict[str, Any] = {}
    for field, column in columns.items():
        value = row.get(column)
        if field == "finish_reason":
            value = reasons.get(value, value) if isinstance(value, str) else value
        try:
            values[field] = _CONVERT[field](value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: column {column!r} cannot be read as {field}: {error}") from error

    meta = {name: value for name, value in row.items() if name not in columns.values()}
    meta.update(values.pop("meta", {}))
    reference = values.pop("reference", None)
    if reference is not None:
        meta["reference"] = reference
    score = values.pop("score", None)
    logit = values.pop("logit", None)
    trace = Trace(sample_id=values.pop("sample_id", 0), meta=meta, **values)
    if "num_tokens" not in values:
        recorded = trace.token_ids if trace.token_ids is not None else trace.confidence
        trace.num_tokens = 0 if recorded is None else len(recorded)
    if logit is not None:
        score = 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
    if score is not None:
        trace.scores = {max(trace.num_tokens - 1, 0): score}
    return trace


# --- values: each takes what a file holds and raises where that does not fit ----------------------


def _question_id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"it is {_shown(value)}; give text or a whole number")
    return str(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"it is {_shown(value)}; give a whole number")
    return value


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"it is {_shown(value)}; give text")
    return value or ""


def _answer(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise TypeError(f"it is {_shown(value)}; give text or a number")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value).strip() or None


def _finish_reason(value: Any) -> str:
    if value is None:
        return "stop"
    if value not in FINISH_REASONS:
        raise ValueError(
            f"it is {_shown(value)}; {_choices(FINISH_REASONS)}, or translate it with "
            f"finish_reasons={{{value!r}: ...}}, on the command line --finish-reasons {value}=..."
        )
    return str(value)


def _correct(value: Any) -> bool | None:
    if value is None:
        return None
    if value not in (0, 1):
        raise ValueError(f"it is {_shown(value)}; give true or false")
    return bool(value)


def _number(value: Any) -> float | None:
    if isinstance(value, list) and len(value) == 1:  # reward models return one value in a list
        value = value[0]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"it is {_shown(value)}; give a finite number")
    return float(value)


def _score(value: Any) -> float | None:
    number = _number(value)
    if number is not None and not 0 <= number <= 1:
        raise ValueError(
            f"it is {number}, no probability; if it is on the log-odds scale, map the column to logit"
        )
    return number


def _vector(value: Any) -> Any:
    import numpy as np

    if not isinstance(value, list):
        raise TypeError(f"it is {_shown(value)}; give a list of numbers")
    vector = np.asarray(value, np.float32)
    if vector.ndim != 1:
        raise ValueError(f"its shape is {list(vector.shape)}; give a flat list of numbers")
    return vector


def _confidence(value: Any) -> Any:
    return None if value is None else _vector(value)


def _token_ids(value: Any) -> list[int] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise TypeError(f"it is {_shown(value)}; give a list of whole numbers")
    return [_integer(token) for token in value]


def _positions(value: Any) -> dict[int, Any]:
    """``{"20": x}``, ``[[20, x]]`` or ``[{"position": 20, "value": x}]`` as ``{20: x}``."""
    if value is None:
        return {}
    if isinstance(value, dict):
        return {int(position): item for position, item in value.items()}
    if not isinstance(value, list):
        raise TypeError(f"it is {_shown(value)}; give a map from positions to values")
    pairs = [tuple(item.values()) if isinstance(item, dict) else tuple(item) for item in value]
    return {_integer(position): item for position, item in pairs}


def _scores(value: Any) -> dict[int, float]:
    return {position: _score(item) or 0.0 for position, item in _positions(value).items()}


def _features(value: Any) -> dict[int, Any]:
    return {position: _vector(item) for position, item in _positions(value).items()}


def _meta(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = json.loads(value)
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"it is {_shown(value)}; give an object")
    return value or {}


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "question_id": _question_id,
    "sample_id": _integer,
    "text": _text,
    "answer": _answer,
    "num_tokens": _integer,
    "finish_reason": _finish_reason,
    "detail": _text,
    "scores": _scores,
    "confidence": _confidence,
    "features": _features,
    "logprobs": _confidence,
    "correct": _correct,
    "token_ids": _token_ids,
    "meta": _meta,
    "reference": _answer,
    "score": _score,
    "logit": _number,
}


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:57] + '...' if len(text) > 60 else text} ({type(value).__name__})"


def _choices(names: Iterable[str]) -> str:
    return f"choose from {', '.join(names)}"
