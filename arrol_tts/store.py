"""TraceStore: a folder of Parquet shards that traces are appended to and read back from.

Appended traces first go to a journal, an Arrow stream with one record batch per trace, so that a
crash tears at most the record being written. A full or flushed journal is sealed into a Parquet
shard (written aside, then renamed); a journal left behind by a crash is sealed by the next writer
and read like a shard until then. Journal n becomes shard n: where both exist the journal is stale.

    folder/traces-00000.parquet    sealed shards; datasets.load_dataset("parquet", data_dir="folder")
    folder/.journal-00001.arrow    traces since the last seal
    folder/.lock                   held by the one writer
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from arrol_tts.errors import InputError, NotAFolderError, RecordError, StoreBusyError
from arrol_tts.files import lock_file
from arrol_tts.trace import Trace, finite

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 3
"""Raised whenever a column comes, or changes its name, type or meaning.

In version 1 features were float32. Before 3 a text held the thinking too, and there were no ``reasoning``,
``tool_calls``, ``prompt_tokens`` and ``cached_tokens``.
"""

_VERSION_KEY = b"arrol_trace_schema"
_SEAL_BYTES = 64 << 20
_ROWS_PER_READ = 256


class TraceStore:
    """An append-only folder of traces.

    Reading needs no lock and sees every trace whose ``append`` returned. Writing takes the folder's
    lock at the first append and holds it until :meth:`close`; use the store as a context manager::

        with TraceStore("runs/aime") as store:
            done = store.ids()                     # resume: skip what is already there
            store.extend(traces)
        traces = list(TraceStore("runs/aime"))

    Args:
        path: the folder; created by the first append.
        sync: whether append and extend wait until the disk has the traces (fsync, some milliseconds a
            call). Without it a crash of the process loses nothing either, but one of the machine may
            lose the last seconds since the last seal.

    Raises:
        NotAFolderError: when ``path`` is a file.
    """

    def __init__(self, path: str | os.PathLike[str], *, sync: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise NotAFolderError(
                f"{self.path} is a file, and a trace store is a folder: to read a file, use read_traces"
            )
        self._sync = sync
        self._lock: IO[str] | None = None
        self._journal: IO[bytes] | None = None
        self._known: set[tuple[str, int]] = set()  # maintained while this store holds the lock

    # --- reading ---

    def __iter__(self) -> Iterator[Trace]:
        """Yields every trace in the order of appending, a few hundred in memory at a time."""
        return self.read()

    def read(self, fields: Sequence[str] | None = None) -> Iterator[Trace]:
        """As iterating, with only some fields of :class:`Trace` read from the disk.

        Args:
            fields: ``question_id``, ``sample_id`` and others; those left out keep their defaults. None: all.

        Raises:
            InputError: when there is no such field, or one of the two is left out.
        """
        if fields is not None:
            known = trace_schema().names
            if unknown := [name for name in fields if name not in known]:
                raise InputError(f"a stored trace has no field {unknown[0]!r}; it has {', '.join(known)}")
            if lacking := [name for name in ("question_id", "sample_id") if name not in fields]:
                raise InputError(f"fields lacks {lacking[0]!r}, without which a trace is none: add it")
        batches = self._batches(None if fields is None else list(fields))
        return (trace for batch in batches for trace in decode(batch))

    def __len__(self) -> int:
        """How many traces there are."""
        return sum(batch.num_rows for batch in self._batches(columns=["sample_id"]))

    def ids(self) -> set[tuple[str, int]]:
        """``(question_id, sample_id)`` of every trace, for a run to resume."""
        return {
            pair
            for batch in self._batches(columns=["question_id", "sample_id"])
            for pair in zip(
                batch.column("question_id").to_pylist(), batch.column("sample_id").to_pylist(), strict=True
            )
        }

    def missing(self, question_ids: Iterable[str], n: int) -> dict[str, tuple[int, ...]]:
        """``{question: numbers of the traces, of n, that it lacks}``, complete questions left out."""
        stored = self.ids()
        lacking = {
            question_id: tuple(i for i in range(n) if (question_id, i) not in stored)
            for question_id in question_ids
        }
        return {question_id: numbers for question_id, numbers in lacking.items() if numbers}

    def _batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        # Journals are listed before shards: one that is sealed in between then appears as a shard.
        journals = sorted(self.path.glob(".journal-*.arrow"))
        shards = sorted(self.path.glob("traces-*.parquet"))
        for shard in shards:
            yield from _read_shard(shard, columns)
        for journal in journals:
            if self._shard_of(journal) in shards:
                continue
            try:
                batches = _read_journal(journal, may_be_torn=self._journal is None)
            except FileNotFoundError:  # sealed since the listing
                yield from _read_shard(self._shard_of(journal), columns)
            else:
                yield from (_select(batch, columns) for batch in batches)

    def _shard_of(self, journal: Path) -> Path:
        return self.path / journal.name.replace(".journal-", "traces-").replace(".arrow", ".parquet")

    # --- writing ---

    def append(self, trace: Trace) -> None:
        """Append one trace. Errors as in :meth:`extend`."""
        self.extend([trace])

    def extend(self, traces: Iterable[Trace]) -> None:
        """Append traces one after the other: those before a faulty one are kept.

        Raises:
            RecordError: when a trace's ids are already in the store, or a field has the wrong type.
            StoreBusyError: when another writer holds the store.
        """
        journal = self._open()
        try:
            self._extend(journal, traces)
        finally:
            if self._sync and self._journal is not None:
                os.fsync(self._journal.fileno())

    def _extend(self, journal: IO[bytes], traces: Iterable[Trace]) -> None:
        for trace in traces:
            key = (trace.question_id, trace.sample_id)
            if key in self._known:
                raise RecordError(
                    f"question {key[0]!r} already has a sample {key[1]} in {self.path}: "
                    "skip what ids() names, or number new samples from the next free one"
                )
            _write_all(journal, encode(trace).serialize())
            self._known.add(key)
            if journal.tell() >= _SEAL_BYTES:
                self.flush()
                journal = self._open()

    def flush(self) -> None:
        """Seal what was appended so far into a Parquet shard; does nothing when there is nothing new."""
        if self._journal is not None:
            name = self._journal.name
            self._journal.close()
            self._journal = None
            self._seal(Path(name))

    def close(self) -> None:
        """Flush, and let another writer in. The store can still be read and appended to."""
        try:
            self.flush()
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None
                self._known = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> IO[bytes]:
        """The journal to append to, ready for a record."""
        if self._lock is None:
            self.path.mkdir(parents=True, exist_ok=True)
            busy = (
                f"another writer has {self.path} open, and a trace store has one: "
                "wait for it, or write to a folder of your own and read both"
            )
            self._lock = lock_file(self.path / ".lock", StoreBusyError(busy))
            self._known = self.ids()
        if self._journal is None:
            for unsealed in sorted(self.path.glob(".journal-*.arrow")):
                self._seal(unsealed)
            shards = sorted(self.path.glob("traces-*.parquet"))
            number = int(shards[-1].stem.removeprefix("traces-")) + 1 if shards else 0
            journal = open(self.path / f".journal-{number:05d}.arrow", "xb", buffering=0)  # noqa: SIM115
            try:
                _write_all(journal, trace_schema().serialize())
            except BaseException:
                journal.close()
                os.unlink(journal.name)  # without its schema, records would be unreadable
                raise
            _sync_folder(self.path)
            self._journal = journal
        return self._journal

    def _seal(self, journal: Path) -> None:
        """Turn a journal into its shard: whatever step a crash interrupts, no trace is lost or doubled."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        shard = self._shard_of(journal)
        if not shard.exists() and (batches := _read_journal(journal, may_be_torn=True)):
            table = pa.Table.from_batches(batches).combine_chunks()
            aside = shard.with_name(f".{shard.name}.tmp")
            pq.write_table(table, aside, compression="zstd")
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
            os.replace(aside, shard)
            _sync_folder(self.path)
        journal.unlink()


# --- the schema -----------------------------------------------------------------------------------


@cache
def trace_schema() -> pa.Schema:
    """The Arrow schema of a stored trace: one column per :class:`Trace` field, in their order.

    ``scores`` and ``features`` are lists of (position, value) pairs, which keeps their order;
    ``meta`` and ``tool_calls`` are JSON. Null stands for None, an empty list for empty.
    """
    import pyarrow as pa

    floats = pa.list_(pa.float32())
    columns: list[tuple[str, pa.DataType, bool]] = [
        ("question_id", pa.string(), False),
        ("sample_id", pa.int64(), False),
        ("text", pa.string(), False),
        ("answer", pa.string(), True),
        ("num_tokens", pa.int64(), False),
        ("finish_reason", pa.string(), False),
        ("detail", pa.string(), False),
        ("scores", pa.list_(pa.struct({"position": pa.int64(), "value": pa.float64()})), False),
        ("confidence", floats, True),
        ("features", pa.list_(pa.struct({"position": pa.int64(), "vector": pa.list_(pa.float16())})), False),
        ("logprobs", floats, True),
        ("correct", pa.bool_(), True),
        ("token_ids", pa.list_(pa.int64()), True),
        ("meta", pa.string(), False),
        ("reasoning", pa.string(), True),
        ("tool_calls", pa.string(), True),
        ("prompt_tokens", pa.int64(), True),
        ("cached_tokens", pa.int64(), True),
    ]
    return pa.schema(
        [pa.field(name, type_, nullable=nullable) for name, type_, nullable in columns],
        metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
    )


def encode(trace: Trace) -> pa.RecordBatch:
    """One trace as a record batch of one row.

    Confidence is stored as float32, features as float16.

    Raises:
        RecordError: when a field does not fit its column; the message names trace and field.
    """
    import pyarrow as pa

    def column(field: pa.Field) -> pa.Array:
        value: Any = getattr(trace, field.name)
        if field.name == "scores":
            value = [{"position": position, "value": score} for position, score in value.items()]
        elif field.name in ("confidence", "logprobs") and value is not None:
            value = _vector(value)
        elif field.name == "features":
            return _features(value, field.type)
        elif field.name == "meta" or (field.name == "tool_calls" and value is not None):
            value = json.dumps(value)
        if value is None and not field.nullable:
            raise TypeError("it is None")
        return pa.array([value], field.type)

    arrays = []
    for field in trace_schema():
        try:
            arrays.append(column(field))
        except (pa.ArrowException, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise RecordError(
                f"sample {trace.sample_id!r} of question {trace.question_id!r} cannot be stored: "
                f"its {field.name} does not fit {field.type} ({error})"
            ) from error
    return pa.RecordBatch.from_arrays(arrays, schema=trace_schema())


def _vector(values: Any) -> NDArray[np.float32]:
    vector = np.asarray(values, np.float32)
    if vector.ndim != 1:
        raise RecordError(f"its shape is {vector.shape}, not [n]")
    return vector


def _features(vectors: Mapping[int, Any], type_: pa.ListType) -> pa.Array:
    """A column of one trace's vectors, of which there may be thousands: no number passes through Python."""
    import pyarrow as pa

    rows = [_vector(vector) for vector in vectors.values()]
    with np.errstate(over="raise"):
        values = np.concatenate([np.empty(0, np.float32), *rows]).astype(np.float16)
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    pair = type_.value_type
    columns = [
        pa.array(list(vectors), pair.field("position").type),
        pa.ListArray.from_arrays(ends, values, pair.field("vector").type),
    ]
    pairs = pa.StructArray.from_arrays(columns, fields=list(pair))
    return pa.ListArray.from_arrays(np.array([0, len(rows)], np.int32), pairs, type_)


def decode(batch: pa.RecordBatch) -> Iterator[Trace]:
    """The traces of a record batch of :func:`trace_schema`, or of some of its columns."""
    columns: dict[str, list[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in ("confidence", "logprobs"):
            columns[name] = _float_lists(column)
        elif name in ("scores", "features"):
            columns[name] = _position_maps(column)
        elif name in ("meta", "tool_calls"):
            columns[name] = [text if text is None else json.loads(text) for text in column.to_pylist()]
        else:
            columns[name] = column.to_pylist()
    for values in zip(*columns.values(), strict=True):
        yield Trace(**dict(zip(columns, values, strict=True)))


def _float_lists(column: pa.Array) -> list[NDArray[np.floating[Any]] | None]:
    """Each list of floats of a column as an array of its own; to_pylist would go through Python floats."""
    values, offsets = column.values.to_numpy(zero_copy_only=False), column.offsets.to_pylist()
    return [
        values[start:end].copy() if valid else None
        for (start, end), valid in zip(pairwise(offsets), column.is_valid().to_pylist(), strict=True)
    ]


def _position_maps(column: pa.Array) -> list[dict[int, Any]]:
    pairs, offsets = column.values, column.offsets.to_pylist()
    positions = pairs.field(0).to_pylist()
    if pairs.type.field(1).name != "vector":
        values = finite(pairs.field(1).to_numpy(zero_copy_only=False)).tolist()
        return [dict(zip(positions[a:b], values[a:b], strict=True)) for a, b in pairwise(offsets)]
    numbers = pairs.field(1).values.to_numpy(zero_copy_only=False)
    ends = pairs.field(1).offsets.to_pylist()
    maps = []
    for start, end in pairwise(offsets):
        # One copy a trace, which may have thousands of vectors; each of these is a part of it.
        first = ends[start]
        own = numbers[first : ends[end]].copy()
        vectors = [own[a - first : b - first] for a, b in pairwise(ends[start : end + 1])]
        maps.append(dict(zip(positions[start:end], vectors, strict=True)))
    return maps


# --- files ----------------------------------------------------------------------------------------


def read_parquet(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Record batches of any Parquet file, a few hundred rows at a time.

    Raises:
        RecordError: when the file is not Parquet, or cut off.
    """
    with _parquet_file(path) as file:
        yield from file.iter_batches(_ROWS_PER_READ, columns=columns)


def is_shard(path: Path) -> bool:
    """Whether a Parquet file was written by a trace store.

    Raises:
        RecordError: as :func:`read_parquet`, or when a newer version of the schema wrote it.
    """
    with _parquet_file(path) as file:
        version = (file.schema_arrow.metadata or {}).get(_VERSION_KEY)
    if version is not None and int(version) > SCHEMA_VERSION:
        raise RecordError(
            f"{path} has version {int(version)} of the trace schema, and this arrol_tts knows up to "
            f"{SCHEMA_VERSION}: upgrade arrol_tts"
        )
    return version is not None


def _select(batch: pa.RecordBatch, columns: list[str] | None) -> pa.RecordBatch:
    """Some columns of a batch, of those that it has: older versions wrote fewer."""
    return batch.select([name for name in columns if name in batch.schema.names]) if columns else batch


def _read_shard(path: Path, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    if not is_shard(path):
        raise RecordError(f"{path} was not written by a trace store: read it by itself, with read_traces")
    yield from read_parquet(path, columns)


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise RecordError(
            f"{path} cannot be read as Parquet; it is cut off or damaged ({error}): "
            "restore it, or move it away to read what else there is"
        ) from error


def _read_journal(path: Path, *, may_be_torn: bool) -> list[pa.RecordBatch]:
    """The whole records of a journal; a torn last one is left out, with a warning."""
    import pyarrow as pa

    batches: list[pa.RecordBatch] = []
    with open(path, "rb") as file:
        data = file.read()
    if not data:
        return batches
    try:
        for batch in pa.ipc.open_stream(data):
            batch.validate(full=True)
            batches.append(batch)
    except (pa.ArrowInvalid, OSError):
        if may_be_torn:
            warnings.warn(
                f"{path} ends in a torn record, from an interrupted or unfinished write: "
                f"it is left out, and the {len(batches)} traces before it are kept",
                stacklevel=2,
            )
    return batches


def _write_all(file: IO[bytes], data: Any) -> None:
    """Write one record, or leave the file as it was (a full disk must not tear what follows)."""
    start, view = file.tell(), memoryview(data)
    try:
        while view:
            view = view[file.write(view) :]
    except BaseException:
        file.truncate(start)
        file.seek(start)
        raise


def _sync_folder(path: Path) -> None:
    """Make renames and new files of a folder survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
