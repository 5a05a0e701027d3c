"""Recorded samples: traces read from files that other programs wrote (JSON lines, JSON, CSV, Parquet).

A *field map* says which column gives which field of a trace, so that no file has to be rewritten. A column inside
another is named by its path, ``response.body.choices.0.message.content``; a star takes all entries of a list.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from arrol_tts.answers import Extractor, extract_answer
from arrol_tts.answers.of_trace import answer_of
from arrol_tts.errors import InputError, MissingFileError, RecordError
from arrol_tts.rows import FORMATS, STDIN, Row, TextRow, numbered_rows
from arrol_tts.thinking import split_thinking
from arrol_tts.trace import FINISH_REASONS, Trace

__all__ = ["MAPPABLE_FIELDS", "TRACE_FIELDS", "numbered_rows", "read_traces"]

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
    "doc_id",
    "id",
    "idx",
    "problem",
    "question",
    "prompt",
    "input",
    "custom_id",
)
_ANSWER_NAMES = (
    *("pred", "preds", "prediction", "predictions", "predicted_answer", "extracted_answer", "model_answer"),
    *("filtered_resps", "solution", "code"),
)
_TEXT_NAMES = (
    *("response", "responses", "generation", "generations", "generated_text", "output", "outputs", "model_output"),
    *("model_response", "completion", "completions", "samples", "candidates", "resps"),
)
_PLACEHOLDERS = frozenset(
    {"", "[invalid]", "N/A", "n/a", "NULL", "null", "None", "NaN", "nan", "<NA>", "[INVALID]"}
)
"""What programs write where they found no answer; ``none`` can be one."""

_WORKED = ("####", r"\boxed")
_ROWS_FOR_HEADER = 100


def read_traces(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    fields: Mapping[str, str] | None = None,
    *,
    finish_reasons: Mapping[str, str] | None = None,
    extract: Extractor = extract_answer,
) -> Iterator[Trace]:
    """Traces of recorded files, or of a trace store, one by one in the files' order.

    A row is one trace, or one question whose columns are lists with an entry per sample; the latter
    is recognised by the answer (or text) being a list. Columns named like a field of :class:`Trace`
    need no mapping; columns that give no field are kept in ``meta``. Without a ``sample_id`` column
    samples are numbered from 0 inside their question, through all files; without ``num_tokens`` the recorded
    token ids or confidences are counted. Empty answers and placeholders for them (``[invalid]``, ``N/A``,
    ``NULL``) become None, numbers their text. Without a column of answers they are extracted from the texts of
    traces that ended by themselves; a text that begins with a thinking is told apart from it (`split_thinking`).

    lm-evaluation-harness repeats every sample for each of a task's filters: its samples are read once.

    Warns (``UserWarning``) of what reads like a mistake: answers that are whole texts, and ids that give every
    sample a question of its own.

    Args:
        path: a folder written by :class:`~arrol_tts.store.TraceStore`; a file of JSON lines, a JSON array, CSV or
            Parquet, also gzipped; ``-`` for the standard input; a folder of such files; or several of all these.
        fields: ``{field: column}`` with the fields of :data:`MAPPABLE_FIELDS`.
        finish_reasons: ``{value in the file: finish reason}`` for files that use other words than
            stop, length, pruned and cancelled.
        extract: takes the answer from a text.

    Raises:
        MissingFileError: when there is no such file.
        InputError: on unknown fields or columns, rows that are damaged or of mixed types, duplicated
            ids; the message names file and row, and says what to change.
    """
    given = [path] if isinstance(path, str | os.PathLike) else list(path)
    fields, reasons = dict(fields or {}), dict(finish_reasons or {})
    for field in fields:
        if field not in MAPPABLE_FIELDS:
            raise InputError(f"there is no trace field {field!r} to map a column to; {_choices(MAPPABLE_FIELDS)}")
    for word, reason in reasons.items():
        if reason not in FINISH_REASONS:
            raise InputError(f"finish_reasons maps {word!r} to {reason!r}; {_choices(FINISH_REASONS)}")
    sources = [source for item in given for source in _sources(Path(item), fields)]
    return _Reading(fields, reasons, extract).traces(sources)


def _sources(path: Path, fields: Mapping[str, str]) -> list[Path]:
    """A store or a file as it is; of a folder of files, those."""
    if path == STDIN:
        return [path]
    if not path.exists():
        raise MissingFileError(f"there is no file or trace store {path}")
    if not path.is_dir():
        return [path]
    if any(path.glob("traces-*.parquet")) or any(path.glob(".journal-*.arrow")):
        if fields:
            raise InputError(f"{path} is a trace store, whose columns need no field map: leave it out")
        return [path]
    if (path / "dataset_info.json").exists():
        raise RecordError(f"{path} is a folder of the package datasets: make traces of it with arrol-eval import")
    files = [file for file in sorted(path.iterdir()) if _ending(file) in FORMATS and file.is_file()]
    # Programs put figures and settings beside their samples as .json.
    found = [file for file in files if _ending(file) != ".json"] or files
    if not found:
        raise RecordError(
            f"{path} is a folder without a trace store: name one of the files in it, or give a folder of "
            f"{', '.join(FORMATS)} files"
        )
    return found


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _store_traces(path: Path, fields: Mapping[str, str], reasons: Mapping[str, str]) -> Iterator[Trace] | None:
    """The traces of a store or of one of its shards, or None for files of other programs."""
    if not path.is_dir() and (_ending(path) != ".parquet" or fields or reasons):
        return None
    from arrol_tts.store import TraceStore, decode, is_shard, read_parquet

    if path.is_dir():
        return iter(TraceStore(path))
    if path.is_file() and path.stat().st_size and is_shard(path):
        return (trace for batch in read_parquet(path) for trace in decode(batch))
    return None


# --- rows -----------------------------------------------------------------------------------------


class _Reading:
    """One reading of one or several files: what is known about the samples so far."""

    def __init__(self, fields: dict[str, str], reasons: dict[str, str], extract: Extractor) -> None:
        self.fields, self.reasons, self.extract = fields, reasons, extract
        self.samples: Counter[str] = Counter()
        self.seen: dict[tuple[str, int], str] = {}
        self.id_type: type | None = None
        self.long_answers = 0
        self.repeating: list[str] = []

    def traces(self, sources: Sequence[Path]) -> Iterator[Trace]:
        for path in sources:
            stored = _store_traces(path, self.fields, self.reasons)
            yield from stored if stored is not None else self._file(path)
        self._warn(sources)

    def _file(self, path: Path) -> Iterator[Trace]:
        rows = numbered_rows(path)
        head = list(islice(rows, _ROWS_FOR_HEADER))  # JSON rows may leave out what is null
        if not head:
            raise RecordError(f"{path} has no rows")
        columns = _resolve(path, self.fields, [row for _, row in head])
        main = columns.get("answer") or columns["text"]
        per_question = any(isinstance(_samples(_at(row, main)), list) for _, row in head)
        self.repeating = self.repeating or [name for name in _names(head) if _repeats(name, head)]
        once = _one_filter(path, columns)
        for number, whole in chain(head, rows):
            where = f"{path}, row {number}"
            if not once(whole, where):
                continue
            row = _flat(whole, columns, main)
            self.id_type = _check_id_type(row.get(columns["question_id"]), self.id_type, where)
            for part in _split(row, columns, main, where) if per_question else [row]:
                yield self._trace(part, columns, where, is_text=isinstance(whole, TextRow))

    def _trace(self, row: Row, columns: dict[str, str], where: str, *, is_text: bool) -> Trace:
        trace = _trace(row, columns, self.reasons, where, is_text=is_text)
        if "sample_id" not in columns:
            trace.sample_id = self.samples[trace.question_id]
            self.samples[trace.question_id] += 1
        key = (trace.question_id, trace.sample_id)
        if key in self.seen:
            raise RecordError(
                f"{where}: question {key[0]!r} already has a sample {key[1]}, in {_place(self.seen[key], where)}: "
                "remove one, or map sample_id to another column"
            )
        self.seen[key] = where
        if "answer" in columns:
            self.long_answers += trace.answer is not None and _is_prose(trace.answer)
        elif (trace.text or trace.tool_calls) and trace.finish_reason == "stop":
            trace.answer = answer_of(trace, self.extract)
        return trace

    def _warn(self, sources: Sequence[Path]) -> None:
        name = ", ".join(map(str, sources[:3]))
        if self.long_answers > len(self.seen) / 2:
            column = self.fields.get("answer", "answer")
            warnings.warn(
                f"the answers of {name} are whole texts: to have answers extracted from them, map "
                f"text={column} in place of answer={column}",
                stacklevel=3,
            )
        questions = {question for question, _ in self.seen}
        if len(questions) == len(self.seen) > 1:
            named = [column for column in self.repeating if column not in self.fields.values()]
            hint = f"; these columns repeat: {', '.join(named[:6])}" if named else ""
            warnings.warn(
                f"each of the {len(questions)} questions of {name} has one sample, so there is nothing to "
                f"vote on: question_id must be the same for all samples of a question{hint}",
                stacklevel=3,
            )


def _place(place: str, where: str) -> str:
    """A row, with its file where that is another one."""
    file, _, row = place.rpartition(", ")
    return row if where.startswith(file + ", row") else place


def _at(row: Row, column: str) -> Any:
    """The value of a column, which may be a path into others; None when the row lacks it."""
    if column in row or "." not in column:
        return row.get(column)
    return _walk(row, column.split("."))


def _walk(value: Any, parts: Sequence[str]) -> Any:
    for i, part in enumerate(parts):
        if part == "*" and isinstance(value, list):
            return [_walk(item, parts[i + 1 :]) for item in value]
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and len(part) < 9:
            value = value[int(part)] if int(part) < len(value) else None
        else:
            return None
    return value


def _flat(row: Row, columns: Mapping[str, str], main: str) -> Row:
    """A row with the mapped columns at its top, in place of the columns that they lie in."""
    inside = {column for column in columns.values() if column not in row}
    gone = {column.split(".")[0] for column in inside}
    flat = {name: value for name, value in row.items() if name not in gone}
    flat |= {column: _at(row, column) for column in inside}
    flat[main] = _samples(flat.get(main))
    return flat


def _samples(value: Any) -> Any:
    """Samples in a list; those of lm-evaluation-harness lie in a list for each of a document's requests."""
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        return [sample for request in value for sample in request]
    return value


def _one_filter(path: Path, columns: Mapping[str, str]) -> Callable[[Row, str], bool]:
    """Whether a row is to be read: of lm-evaluation-harness' rows, those of the first filter.

    It writes the samples once for every filter of a task. Their texts are the same; their answers are not.
    """
    first: list[Any] = []

    def once(row: Row, where: str) -> bool:
        if "filter" not in row or "resps" not in row or "doc_id" not in row:
            return True
        if not first:
            first.append(row["filter"])
        if row["filter"] == first[0]:
            return True
        if columns.get("answer", "").startswith("filtered_resps"):
            raise RecordError(
                f"{where}: filter {row['filter']!r} gives the samples other answers than {first[0]!r} did, and "
                "each votes once: map text=resps in place of answer=filtered_resps, or keep one filter in the file"
            )
        return False

    return once


def _names(rows: Iterable[tuple[int, Row]]) -> list[str]:
    return list(dict.fromkeys(name for _, row in rows for name in row))


def _repeats(name: str, rows: Sequence[tuple[int, Row]]) -> bool:
    """Whether a column could name questions: it has some values, and some of them again."""
    values = [row.get(name) for _, row in rows]
    if not all(isinstance(value, str | int) and not isinstance(value, bool) for value in values):
        return False
    return 1 < len(set(values)) < len(values)


def _resolve(path: Path, fields: dict[str, str], head: Sequence[Row]) -> dict[str, str]:
    """``{field: column}`` for this file, from the map and from columns that are named like a field."""
    header = list(dict.fromkeys(name for row in head for name in row))
    for field, column in fields.items():
        if column not in header and all(_at(row, column) is None for row in head):
            known = [*header, *_paths(head[0])]
            close = difflib.get_close_matches(column, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise RecordError(
                f"{path} has no column {column!r}, which the field map gives for {field}; "
                f"it has: {', '.join(header)}{hint}"
            )
    columns = dict(fields)
    for field in (*TRACE_FIELDS, "reference"):
        if field not in columns and field in header and field not in fields.values():
            columns[field] = field
    others = [name for name in (*_ANSWER_NAMES, *_TEXT_NAMES) if name in header and name not in fields.values()]
    others = [column for column in [fields.get("text")] if column not in (None, "text")] or others
    if columns.get("answer") == "answer" and "answer" not in fields and others:
        raise RecordError(
            f"{path} has a column 'answer' beside {others[0]!r}: if it is the right answer, map reference=answer "
            f"and {_field_for(others[0], head)}={others[0]}; if it is the samples', map answer=answer"
        )
    if "question_id" not in columns:
        numbered = list(enumerate(head))
        names = sorted((n for n in _QUESTION_NAMES if n in header), key=lambda name: not _repeats(name, numbered))
        raise RecordError(_unmapped(path, "which question a row belongs to", "question_id", names, header))
    if "answer" not in columns and "text" not in columns:
        inside = [name for name in _paths(head[0]) if name.endswith((".message.content", ".text"))]
        plain = [name for name in header if not isinstance(head[0].get(name), dict)]
        names = [name for name in (*_ANSWER_NAMES, *_TEXT_NAMES) if name in plain]
        named = (names or inside or ["COLUMN"])[0]
        raise RecordError(
            _unmapped(path, "the answer, nor the text to take it from", _field_for(named, head), [named], header)
        )
    if sum(field in columns for field in ("scores", "score", "logit")) > 1:
        raise InputError("map only one of scores, score and logit")
    return columns


def _paths(value: Any, prefix: str = "", depth: int = 6) -> list[str]:
    """The paths of the values inside a row, the first entry of each list."""
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    if not depth or (prefix and not items):
        return [prefix]
    return [
        path
        for name, item in items
        for path in _paths(item, f"{prefix}.{name}" if prefix else str(name), depth - 1)
    ]


def _field_for(column: str, head: Sequence[Row]) -> str:
    """``text`` for a column of whole texts, else ``answer``."""
    values = [_samples(_at(row, column)) for row in head]
    texts = [item for value in values for item in (value if isinstance(value, list) else [value])]
    texts = [text for text in texts if isinstance(text, str)]
    is_long = sum(_is_prose(text) or "\n" in text.strip() for text in texts) > len(texts) / 2
    return "text" if is_long or (not texts and column in _TEXT_NAMES) else "answer"


def _is_prose(text: str) -> bool:
    """Whether an answer is rather a text: it has more than eight words, apart from formulas."""
    return sum(word.isalpha() for word in text.split()) > 8


def _unmapped(path: Path, what: str, field: str, usual: Sequence[str], header: list[str]) -> str:
    column = next(iter(usual), "COLUMN")
    return (
        f"no column of {path} is known to give {what}; it has: {', '.join(header)}. "
        f"Map one: fields={{{field!r}: {column!r}}}, on the command line --fields {field}={column}"
    )


def _check_id_type(value: Any, before: type | None, where: str) -> type | None:
    if before is not None and type(value) is not before:
        raise RecordError(
            f"{where}: question_id is a {type(value).__name__} and was a {before.__name__} before; "
            "write all of them one way"
        )
    return type(value)


def _split(row: Row, columns: dict[str, str], main: str, where: str) -> Iterator[Row]:
    """The samples of a row that holds a question: lists as long as its answers, one entry each."""
    if not isinstance(row.get(main), list):
        raise RecordError(f"{where}: column {main!r} is no list of samples, and is one in other rows")
    size = len(row[main])
    shared = {columns["question_id"], columns.get("reference")}
    mapped = set(columns.values()) - shared
    split = {name for name, value in row.items() if name not in shared and isinstance(value, list)}
    for name in sorted(split):
        if len(row[name]) != size:
            if name in mapped:
                raise RecordError(
                    f"{where}: column {name!r} has {len(row[name])} entries and {main!r} has {size}; "
                    "lists of samples must be equally long"
                )
            split.discard(name)
    for i in range(size):
        yield {name: value[i] if name in split else value for name, value in row.items()}


def _trace(row: Row, columns: dict[str, str], reasons: dict[str, str], where: str, *, is_text: bool) -> Trace:
    values: dict[str, Any] = {}
    for field, column in columns.items():
        value = row.get(column)
        if is_text and field not in _TEXT_FIELDS:
            value = _cell(value)
        if field == "finish_reason":
            value = reasons.get(value, value) if isinstance(value, str) else value
        try:
            values[field] = _CONVERT[field](value)
        except (TypeError, ValueError, RecursionError) as error:
            hint = _inside(value, column) if field in _TEXT_FIELDS else ""
            raise RecordError(f"{where}: column {column!r} cannot be read as {field}: {error}{hint}") from error

    meta = {name: value for name, value in row.items() if name not in columns.values()}
    meta.update(values.pop("meta", {}))
    reference = values.pop("reference", None)
    if reference is not None:
        meta["reference"] = reference
    if values.get("reasoning") is None:
        split = split_thinking(values.get("text", ""))
        values |= {"reasoning": split.reasoning, "text": split.text}
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


_TEXT_FIELDS = frozenset({"question_id", "text", "answer", "finish_reason", "detail", "reference", "reasoning"})


def _cell(value: Any) -> Any:
    """The value of a CSV cell, where it is JSON or Python's true and false."""
    try:
        return (
            json.loads({"True": "true", "False": "false"}.get(value, value)) if isinstance(value, str) else value
        )
    except (ValueError, RecursionError):
        return value


# --- values: each takes what a file holds and raises where that does not fit ----------------------


def _question_id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"it is {_shown(value)}; give text or a whole number")
    return _unicode(str(value))


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"it is {_shown(value)}; give a whole number")
    return value


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"it is {_shown(value)}; give text")
    return _unicode(value or "")


def _answer(value: Any) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise TypeError(f"it is {_shown(value)}; give text or a number")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    answer = _unicode(str(value)).strip()
    return None if answer in _PLACEHOLDERS else answer


def _reference(value: Any) -> str | None:
    """The right answer, which GSM8K and MATH write at the end of a worked solution."""
    answer = _answer(value)
    return extract_answer(answer) or answer if answer and any(mark in answer for mark in _WORKED) else answer


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
    # Null and NaN, in which JSON and Parquet say that a score was not finite, count as 0.
    return {k: 0.0 if item != item else _score(item) or 0.0 for k, item in _positions(value).items()}


def _features(value: Any) -> dict[int, Any]:
    return {position: _vector(item) for position, item in _positions(value).items()}


def _meta(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = json.loads(value)
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"it is {_shown(value)}; give an object")
    return value or {}


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("function", {}), dict)


def _calls(value: Any) -> list[dict[str, Any]] | None:
    if isinstance(value, str):
        value = json.loads(value)
    if value is not None and not (isinstance(value, list) and all(map(_is_call, value))):
        raise TypeError(f"it is {_shown(value)}; give a list of calls")
    return value or None


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
    "reasoning": lambda value: None if value is None else _text(value),
    "tool_calls": _calls,
    "prompt_tokens": lambda value: None if value is None else _integer(value),
    "cached_tokens": lambda value: None if value is None else _integer(value),
    "reference": _reference,
    "score": _score,
    "logit": _number,
}


def _inside(value: Any, column: str) -> str:
    """How to map what lies inside a value."""
    paths = _paths(value, column) if isinstance(value, dict | list) and value else []
    texts = [path for path in paths if path.endswith((".message.content", ".text"))]
    return f"; name what lies inside, such as {(texts or paths)[0]}" if paths else ""


def _unicode(text: str) -> str:
    """Text that can be printed and stored: JSON may hold halves of surrogate pairs."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:57] + '...' if len(text) > 60 else text} ({type(value).__name__})"


def _choices(names: Iterable[str]) -> str:
    return f"choose from {', '.join(names)}"
