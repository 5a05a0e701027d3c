"""TraceStore: exact round trips, crashes anywhere, one writer, errors a user can act on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from arrol_tts import store as store_module
from arrol_tts.errors import InputError
from arrol_tts.store import TraceStore, decode, encode, trace_schema
from arrol_tts.trace import Trace
from tests.paths import ROOT


def same(first: Trace, second: Trace) -> bool:
    """Equality to the bit, which == of dataclasses with arrays cannot give."""

    def key(trace: Trace) -> list[object]:
        values: list[object] = []
        for name in Trace.__slots__:
            value = getattr(trace, name)
            if isinstance(value, np.ndarray):
                value = (value.dtype.str, value.tobytes())
            elif name == "features":
                value = [(position, vector.dtype.str, vector.tobytes()) for position, vector in value.items()]
            elif isinstance(value, dict):
                value = list(value.items())
            values.append((type(value), value))
        return values

    return key(first) == key(second)


def a_trace(sample_id: int = 0, question_id: str = "q") -> Trace:
    return Trace(question_id, sample_id, text="1 + 1 = 2", answer="2", num_tokens=9)


FULL = Trace(
    question_id="aime/1 é",
    sample_id=2**40,
    text="line\none\x00 \U0001f600",
    answer="\\frac{1}{2}",
    num_tokens=3,
    finish_reason="pruned",
    detail="confidence 1.2 below 1.5 at token 3",
    scores={20: 0.1, 5: 1 / 3, 7: 0.0},
    confidence=np.array([0.1, np.inf, -0.0], np.float32),
    features={5: np.array([6e-8, -2.5], np.float16), 0: np.array([], np.float16)},
    correct=False,
    token_ids=[151643, 0, 7],
    meta={"truth": "1/2", "nested": {"a": [1, None, 0.1]}},
    reasoning="half\nof it",
    tool_calls=[{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    prompt_tokens=12,
    cached_tokens=0,
)
EMPTY = Trace("", 0)
EMPTY_LISTS = Trace("q", -1, answer="", confidence=np.array([], np.float32), token_ids=[])


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [FULL, EMPTY, EMPTY_LISTS], ids=["full", "empty", "empty lists"])
@pytest.mark.parametrize("sealed", [False, True], ids=["journal", "parquet"])
def test_a_trace_comes_back_exactly(tmp_path: Path, trace: Trace, sealed: bool) -> None:
    store = TraceStore(tmp_path)
    store.append(trace)
    if sealed:
        store.close()
    (read,) = TraceStore(tmp_path)
    assert same(read, trace)


def test_float32_bits_survive() -> None:
    bits = np.array([0x7FC00001, 0xFF800000, 0x00000001, 0x80000000, 0x3DCCCCCD], np.uint32)
    trace = Trace("q", 0, confidence=bits.view(np.float32))
    (read,) = decode(encode(trace))
    assert read.confidence is not None
    assert read.confidence.view(np.uint32).tolist() == bits.tolist()


def test_what_is_read_can_be_changed(tmp_path: Path) -> None:
    with TraceStore(tmp_path) as store:
        store.append(FULL)
    (read,) = TraceStore(tmp_path)
    assert read.confidence is not None
    read.confidence[0] = 5
    assert read.confidence[0] == 5


@pytest.mark.parametrize("sealed", [False, True], ids=["journal", "parquet"])
def test_scores_that_older_versions_recorded_as_not_finite_are_read_as_0(tmp_path: Path, sealed: bool) -> None:
    store = TraceStore(tmp_path)
    store.append(Trace("q", 0, scores={1: 0.5, 2: float("nan")}))
    if sealed:
        store.close()
    (trace,) = TraceStore(tmp_path)
    assert trace.scores == {1: 0.5, 2: 0.0}


def test_wider_floats_are_stored_as_float32() -> None:
    (read,) = decode(encode(Trace("q", 0, confidence=np.array([0.1]))))  # float64
    assert read.confidence is not None
    assert read.confidence.dtype == np.float32
    assert read.confidence[0] == np.float32(0.1)


def test_features_are_stored_as_float16() -> None:
    (read,) = decode(encode(Trace("q", 0, features={4: np.array([0.1, 2.0], np.float32), 8: np.zeros(2)})))
    assert {k: vector.tolist() for k, vector in read.features.items()} == {4: [np.float16(0.1), 2], 8: [0, 0]}
    assert read.features[4].dtype == np.float16


@pytest.mark.parametrize("sealed", [False, True], ids=["journal", "parquet"])
def test_features_of_the_first_schema_are_read_beside_new_ones(tmp_path: Path, sealed: bool) -> None:
    old = _leave_journal_of_the_first_schema(tmp_path, {4: [0.1, 7e4]})
    if sealed:
        TraceStore(tmp_path).append(a_trace(1))  # the next writer seals what was left
        assert not old.exists()
    with TraceStore(tmp_path) as store:
        store.append(Trace("q", 2, features={4: np.ones(2, np.float16)}))
    first, *_, last = TraceStore(tmp_path)
    assert first.features[4].tolist() == [np.float32(0.1), 7e4]
    assert last.features[4].tolist() == [1, 1]


def _leave_journal_of_the_first_schema(folder: Path, features: dict[int, list[float]]) -> Path:
    floats = pa.list_(pa.float32())
    pairs = [{"position": position, "vector": vector} for position, vector in features.items()]
    schema, batch = trace_schema(), encode(a_trace(0))
    i = schema.get_field_index("features")
    field = pa.field("features", pa.list_(pa.struct({"position": pa.int64(), "vector": floats})), False)
    schema = schema.set(i, field).with_metadata({b"arrol_trace_schema": b"1"})
    columns = [*batch.columns[:i], pa.array([pairs], field.type), *batch.columns[i + 1 :]]
    journal = folder / ".journal-00000.arrow"
    records = [schema.serialize(), pa.RecordBatch.from_arrays(columns, schema=schema).serialize()]
    journal.write_bytes(b"".join(record.to_pybytes() for record in records))
    return journal


@pytest.mark.parametrize("sealed", [False, True], ids=["journal", "parquet"])
def test_stores_from_before_thinking_was_told_apart_are_read_and_written_on(tmp_path: Path, sealed: bool) -> None:
    later = ["reasoning", "tool_calls", "prompt_tokens", "cached_tokens"]
    names = [name for name in trace_schema().names if name not in later]
    fields = [trace_schema().field(name) for name in names]
    schema = pa.schema(fields, metadata={b"arrol_trace_schema": b"2"})
    old = Trace("q", 0, text="<think>2+3</think>5", answer="5", num_tokens=9)
    batch = pa.RecordBatch.from_arrays([encode(old).column(name) for name in names], schema=schema)
    records = [schema.serialize().to_pybytes(), batch.serialize().to_pybytes()]
    (tmp_path / ".journal-00000.arrow").write_bytes(b"".join(records))
    new = Trace("q", 1, text="5", reasoning="2+3", tool_calls=[{"id": "c"}], prompt_tokens=4, cached_tokens=0)
    if sealed:
        with TraceStore(tmp_path) as store:
            store.append(new)
        assert [trace.sample_id for trace in TraceStore(tmp_path)] == [0, 1]
        _, last = TraceStore(tmp_path)
        assert (last.reasoning, last.tool_calls, last.prompt_tokens, last.cached_tokens) == (
            "2+3",
            [{"id": "c"}],
            4,
            0,
        )
    first = next(iter(TraceStore(tmp_path)))
    assert first == old
    (some, *_) = TraceStore(tmp_path).read(["question_id", "sample_id", "reasoning", "prompt_tokens"])
    assert (some.sample_id, some.reasoning, some.prompt_tokens) == (0, None, None)


def test_the_schema_has_one_column_per_field_of_a_trace() -> None:
    assert trace_schema().names == list(Trace.__slots__)


def test_order_is_the_order_of_appending_across_shards(tmp_path: Path) -> None:
    store = TraceStore(tmp_path)
    for sample_id in (5, 3, 9, 1):
        store.append(a_trace(sample_id))
        if sample_id in (3, 9):
            store.flush()
    assert [trace.sample_id for trace in TraceStore(tmp_path)] == [5, 3, 9, 1]
    assert len(list(tmp_path.glob("*.parquet"))) == 2


def test_length_and_ids_count_sealed_and_unsealed(tmp_path: Path) -> None:
    with TraceStore(tmp_path) as store:
        store.extend([a_trace(0), a_trace(1)])
        store.flush()
        store.append(a_trace(0, "other"))
        assert len(store) == 3
        assert TraceStore(tmp_path).ids() == {("q", 0), ("q", 1), ("other", 0)}


def test_a_store_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "new")
    assert (len(store), list(store), store.ids()) == (0, [], set())
    assert not (tmp_path / "new").exists()


def test_a_full_journal_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_SEAL_BYTES", 5_000)
    with TraceStore(tmp_path) as store:
        store.extend(a_trace(i) for i in range(10))
        assert list(tmp_path.glob("*.parquet"))
    assert [trace.sample_id for trace in TraceStore(tmp_path)] == list(range(10))


def test_datasets_reads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "store"
    with TraceStore(folder) as store:
        store.append(FULL)
        store.flush()
        store.append(a_trace())  # in the journal, which must not confuse it
        rows = datasets.load_dataset(
            "parquet", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
        )
    (row,) = rows
    assert row["question_id"] == "aime/1 é"
    assert row["answer"] == "\\frac{1}{2}"
    assert row["scores"][0] == {"position": 20, "value": 0.1}
    assert row["token_ids"] == [151643, 0, 7]


# --- crashes --------------------------------------------------------------------------------------


def test_a_journal_cut_anywhere_keeps_every_whole_trace(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "whole")
    ends = []
    (tmp_path / "cut").mkdir()
    for sample_id in range(2):
        store.append(Trace("q", sample_id, scores={1: 0.5}, confidence=np.array([1, 2], np.float32)))
        (journal,) = (tmp_path / "whole").glob(".journal-*")
        ends.append(journal.stat().st_size)
    data = journal.read_bytes()
    cut = tmp_path / "cut" / journal.name
    sizes = {*range(0, len(data), 13), *(end + near for end in ends for near in (-8, -4, -1, 0))}
    for size in sorted(sizes):
        cut.write_bytes(data[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(TraceStore(tmp_path / "cut")) == sum(end <= size for end in ends)


def test_a_torn_record_is_left_out_with_a_warning(tmp_path: Path) -> None:
    journal = _leave_journal(tmp_path, [a_trace(0), a_trace(1)])
    os.truncate(journal, journal.stat().st_size - 20)
    with pytest.warns(UserWarning, match="ends in a torn record.* the 1 traces before it are kept"):
        assert [trace.sample_id for trace in TraceStore(tmp_path)] == [0]


def test_the_next_writer_seals_what_a_crash_left(tmp_path: Path) -> None:
    journal = _leave_journal(tmp_path, [a_trace(0), a_trace(1)])
    os.truncate(journal, journal.stat().st_size - 20)
    with pytest.warns(UserWarning, match="torn record"), TraceStore(tmp_path) as store:
        store.append(a_trace(1))
    assert not journal.exists()
    assert [trace.sample_id for trace in TraceStore(tmp_path)] == [0, 1]


def test_a_crash_between_shard_and_journal_doubles_nothing(tmp_path: Path) -> None:
    journal = _leave_journal(tmp_path, [a_trace(0)])
    data = journal.read_bytes()
    with TraceStore(tmp_path) as store:
        store.append(a_trace(1))
    journal.write_bytes(data)  # as if its removal after the rename had not happened
    assert [trace.sample_id for trace in TraceStore(tmp_path)] == [0, 1]
    with TraceStore(tmp_path) as store:
        store.append(a_trace(2))
    assert [trace.sample_id for trace in TraceStore(tmp_path)] == [0, 1, 2]


def test_a_sealed_shard_is_never_overwritten_by_what_is_left_of_its_journal(tmp_path: Path) -> None:
    journal = _leave_journal(tmp_path, [a_trace(0), a_trace(1)])
    data = journal.read_bytes()
    with TraceStore(tmp_path) as store:
        store.append(a_trace(2))
    journal.write_bytes(data[:-20])
    with TraceStore(tmp_path) as store:
        store.append(a_trace(3))
    assert [trace.sample_id for trace in TraceStore(tmp_path)] == [0, 1, 2, 3]


def test_a_record_of_garbage_is_left_out(tmp_path: Path) -> None:
    # What a crash of the machine may leave: the file has its length, but not its contents.
    journal = _leave_journal(tmp_path, [a_trace(0), a_trace(1)])
    data = journal.read_bytes()
    body = data.rindex(b"1 + 1 = 2")
    journal.write_bytes(data[:body] + b"\xff" * (len(data) - body))
    with pytest.warns(UserWarning, match="torn record"):
        assert [trace.sample_id for trace in TraceStore(tmp_path)] == [0]


def test_a_killed_writer_loses_nothing_it_appended(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from arrol_tts.store import TraceStore
        from arrol_tts.trace import Trace
        store = TraceStore(sys.argv[1])
        for i in range(3):
            store.append(Trace("q", i))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    root = str(ROOT)
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, check=False)
    assert run.returncode == -signal.SIGKILL
    with TraceStore(tmp_path) as store:  # the lock of the dead is free
        assert store.ids() == {("q", 0), ("q", 1), ("q", 2)}
        store.append(Trace("q", 3))
    assert len(TraceStore(tmp_path)) == 4


@pytest.mark.parametrize(("sync", "times"), [(False, 0), (True, 2)])
def test_sync_waits_for_the_disk_once_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool, times: int
) -> None:
    store = TraceStore(tmp_path, sync=sync)
    store.append(a_trace(0))
    synced: list[int] = []
    monkeypatch.setattr(store_module.os, "fsync", synced.append)
    store.append(a_trace(1))
    store.extend([a_trace(2), a_trace(3)])
    assert len(synced) == times


def test_a_failed_write_tears_nothing_that_follows(tmp_path: Path) -> None:
    store = TraceStore(tmp_path)
    store.append(a_trace(0))
    journal = store._journal

    class FullDisk:
        """Writes half of what it gets, then fails, as a disk that fills up does."""

        def __getattr__(self, name: str) -> object:
            return getattr(journal, name)

        def write(self, data: memoryview) -> int:
            if len(data) > 500:
                return journal.write(data[:500])
            raise OSError(28, "No space left on device")

    store._journal = FullDisk()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"):
        store.append(a_trace(1))
    store._journal = journal
    store.append(a_trace(2))
    store.close()
    assert [trace.sample_id for trace in TraceStore(tmp_path)] == [0, 2]


def test_a_trace_that_failed_to_write_can_be_appended_again(tmp_path: Path) -> None:
    with TraceStore(tmp_path) as store:
        with pytest.raises(ValueError, match="cannot be stored"):
            store.append(Trace("q", 0, meta={"x": object()}))
        store.append(a_trace(0))
    assert len(TraceStore(tmp_path)) == 1


def test_traces_before_a_faulty_one_are_kept(tmp_path: Path) -> None:
    faulty = Trace("q", 1)
    faulty.text = None  # type: ignore[assignment]
    with TraceStore(tmp_path) as store, pytest.raises(ValueError, match="cannot be stored"):
        store.extend([a_trace(0), faulty])
    assert [trace.sample_id for trace in TraceStore(tmp_path)] == [0]


def _leave_journal(folder: Path, traces: list[Trace]) -> Path:
    """What a writer leaves that dies without closing."""
    folder.mkdir(exist_ok=True)
    journal = folder / ".journal-00000.arrow"
    records = [trace_schema().serialize(), *(encode(trace).serialize() for trace in traces)]
    journal.write_bytes(b"".join(record.to_pybytes() for record in records))
    return journal


# --- one writer -----------------------------------------------------------------------------------


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with TraceStore(tmp_path) as store:
        store.append(a_trace(0))
        with pytest.raises(RuntimeError, match=r"another writer has .* open, and a trace store has one"):
            TraceStore(tmp_path).append(a_trace(1))


def test_a_reader_sees_what_a_writer_appended(tmp_path: Path) -> None:
    with TraceStore(tmp_path) as store:
        store.append(a_trace(0))
        assert len(TraceStore(tmp_path)) == 1


def test_closing_lets_the_next_writer_in(tmp_path: Path) -> None:
    first = TraceStore(tmp_path)
    first.append(a_trace(0))
    first.close()
    with TraceStore(tmp_path) as second:
        second.append(a_trace(1))
    first.append(a_trace(2))
    first.close()
    assert len(TraceStore(tmp_path)) == 3


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
def test_duplicated_ids_are_refused(tmp_path: Path, sealed: bool) -> None:
    with TraceStore(tmp_path) as store:
        store.append(a_trace(3))
        if sealed:
            store.close()
        with pytest.raises(ValueError, match=r"question 'q' already has a sample 3 in .*ids\(\)"):
            store.append(a_trace(3))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sample_id", "3", "its sample_id does not fit int64"),
        ("question_id", 3, "its question_id does not fit string"),
        ("text", None, r"its text does not fit string \(it is None\)"),
        ("answer", 42, "its answer does not fit string"),
        ("text", "\ud800", "its text does not fit string"),
        ("scores", {1: "high"}, "its scores does not fit list"),
        ("confidence", ["high"], "its confidence does not fit list"),
        ("confidence", np.zeros((2, 2)), r"its confidence does not fit .*shape is \(2, 2\), not \[n\]"),
        ("features", {1: 0.5}, r"its features does not fit .*shape is \(\), not \[n\]"),
        ("features", {1: [7e4]}, "its features does not fit .*overflow"),
        ("token_ids", [2**63], "its token_ids does not fit list"),
        ("meta", {"x": {1, 2}}, "its meta does not fit string"),
    ],
)
def test_a_field_that_does_not_fit_is_named(tmp_path: Path, field: str, value: object, message: str) -> None:
    trace = a_trace()
    setattr(trace, field, value)
    with TraceStore(tmp_path) as store, pytest.raises(ValueError, match=message):
        store.append(trace)
    assert len(TraceStore(tmp_path)) == 0


def test_a_file_is_no_store(tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    file.touch()
    with pytest.raises(NotADirectoryError, match="to read a file, use read_traces"):
        TraceStore(file)


@pytest.mark.parametrize("size", [0, 4, 400, -1])
def test_a_truncated_shard_is_named(tmp_path: Path, size: int) -> None:
    with TraceStore(tmp_path) as store:
        store.extend(a_trace(i) for i in range(5))
    (shard,) = tmp_path.glob("*.parquet")
    os.truncate(shard, size if size >= 0 else shard.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"traces-00000.parquet cannot be read as Parquet; it is cut off"):
        list(TraceStore(tmp_path))


def test_a_shard_of_another_program_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1]}), tmp_path / "traces-00000.parquet")
    with pytest.raises(ValueError, match="was not written by a trace store"):
        list(TraceStore(tmp_path))


def test_a_newer_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TraceStore(tmp_path) as store:
        store.append(a_trace())
    monkeypatch.setattr(store_module, "SCHEMA_VERSION", 0)
    with pytest.raises(ValueError, match=r"has version 3 of the trace schema.*upgrade arrol_tts"):
        list(TraceStore(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["question_id", "sample_id", "scroes"], "no field 'scroes'; it has question_id, sample_id, text"),
        (["question_id", "scores"], "fields lacks 'sample_id'"),
        ([], "fields lacks 'question_id'"),
    ],
)
def test_fields_that_there_are_not_and_traces_without_a_name_are_refused(
    tmp_path: Path, fields: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        TraceStore(tmp_path).read(fields)


def test_some_fields_are_read_alone(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "s") as store:
        store.append(Trace("q", 3, "a long text", answer="7", num_tokens=5, token_ids=[1, 2]))
        (sealed_and_not,) = store.read(["question_id", "sample_id", "answer"])
    (trace,) = TraceStore(tmp_path / "s").read(["question_id", "sample_id", "answer"])
    for found in (trace, sealed_and_not):
        assert (found.question_id, found.sample_id, found.answer) == ("q", 3, "7")
        assert (found.text, found.token_ids, found.num_tokens) == ("", None, 0)
