"""Reading recorded samples: layouts, field maps, and what a user sees when a file does not fit."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrol_tts.recorded import read_traces
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "samples.jsonl"


# --- layouts --------------------------------------------------------------------------------------


def test_columns_named_like_fields_need_no_map(file: Path) -> None:
    jsonl(file, {"question_id": "a", "sample_id": 4, "answer": "2", "correct": True, "finish_reason": "length"})
    assert list(read_traces(file)) == [Trace("a", 4, answer="2", correct=True, finish_reason="length")]


def test_one_row_per_trace_with_a_map(file: Path) -> None:
    jsonl(
        file,
        {"qid": 7, "pred": "2", "conf": [1.5, 2.5], "gold": 2, "temperature": 0.6},
        {"qid": 7, "pred": "3", "conf": [0.5], "gold": 2, "temperature": 0.6},
    )
    fields = {"question_id": "qid", "answer": "pred", "confidence": "conf", "reference": "gold"}
    first, second = read_traces(file, fields)
    assert (first.question_id, first.sample_id, first.answer, first.num_tokens) == ("7", 0, "2", 2)
    assert (second.sample_id, second.num_tokens) == (1, 1)
    assert first.confidence is not None
    assert first.confidence.dtype == np.float32
    assert first.confidence.tolist() == [1.5, 2.5]
    assert first.meta == {"reference": "2", "temperature": 0.6}


def test_one_row_per_question_with_lists(file: Path) -> None:
    row = {
        "idx": 3,
        "gt": "2",
        "pred": ["2", "", None],
        "right": [True, False, False],
        "reward": [[0.0], [math.log(3)], [-1000.0]],
        "level": 5,
        "tags": ["a", "b"],
    }
    fields = {
        "question_id": "idx",
        "answer": "pred",
        "correct": "right",
        "logit": "reward",
        "reference": "gt",
    }
    traces = list(read_traces(jsonl(file, row), fields))
    assert [trace.sample_id for trace in traces] == [0, 1, 2]
    assert [trace.answer for trace in traces] == ["2", None, None]
    assert [trace.correct for trace in traces] == [True, False, False]
    assert [trace.score for trace in traces] == pytest.approx([0.5, 0.75, 0.0])
    assert traces[2].meta == {"reference": "2", "level": 5, "tags": ["a", "b"]}


def test_a_column_taken_by_the_map_is_not_taken_by_its_name(file: Path) -> None:
    (trace,) = read_traces(
        jsonl(file, {"question_id": "a", "answer": "gold", "pred": "2"}),
        {
            "answer": "pred",
            "reference": "answer",
        },
    )
    assert (trace.answer, trace.meta) == ("2", {"reference": "gold"})


def test_samples_are_numbered_inside_their_question(file: Path) -> None:
    jsonl(file, *({"question_id": q, "answer": "1"} for q in "abba"))
    assert [(t.question_id, t.sample_id) for t in read_traces(file)] == [
        ("a", 0),
        ("b", 0),
        ("b", 1),
        ("a", 1),
    ]


def test_columns_may_be_missing_from_some_rows(file: Path) -> None:
    jsonl(file, {"question_id": "a"}, {"question_id": "a", "answer": "2"})
    assert [trace.answer for trace in read_traces(file)] == [None, "2"]


def test_finish_reasons_are_translated(file: Path) -> None:
    jsonl(
        file,
        {"question_id": "a", "answer": "1", "state": "cut"},
        {"question_id": "a", "answer": "1", "state": "stop"},
    )
    traces = read_traces(file, {"finish_reason": "state"}, finish_reasons={"cut": "length"})
    assert [trace.finish_reason for trace in traces] == ["length", "stop"]


@pytest.mark.parametrize(
    ("written", "read"),
    [(204, "204"), (27.0, "27.0"), (" x ", "x"), ("", None), ("  ", None), (None, None), (math.nan, None)],
)
def test_answers_become_text_or_none(file: Path, written: object, read: str | None) -> None:
    (trace,) = read_traces(jsonl(file, {"question_id": "a", "answer": written}))
    assert trace.answer == read


@pytest.mark.parametrize(
    "written",
    [
        {"3": 0.25, "9": 0.5},
        [[3, 0.25], [9, 0.5]],
        [{"position": 3, "value": 0.25}, {"position": 9, "value": 0.5}],
    ],
)
def test_scores_at_positions_have_three_spellings(file: Path, written: object) -> None:
    (trace,) = read_traces(jsonl(file, {"question_id": "a", "answer": "1", "scores": written}))
    assert trace.scores == {3: 0.25, 9: 0.5}


def test_a_probability_becomes_the_score_at_the_last_token(file: Path) -> None:
    row = {"question_id": "a", "answer": "1", "token_ids": [5, 6, 7], "p": 0.75}
    (trace,) = read_traces(jsonl(file, row), {"score": "p"})
    assert trace.scores == {2: 0.75}


def test_features_are_float32_vectors(file: Path) -> None:
    (trace,) = read_traces(jsonl(file, {"question_id": "a", "answer": "1", "features": {"3": [1, 2.5]}}))
    assert trace.features[3].dtype == np.float32
    assert trace.features[3].tolist() == [1.0, 2.5]


# --- formats --------------------------------------------------------------------------------------

ROWS = [{"question_id": "a", "answer": "1"}, {"question_id": "a", "answer": "2"}]


def test_gzipped_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    assert [trace.answer for trace in read_traces(file)] == ["1", "2"]


def test_a_json_array(tmp_path: Path) -> None:
    file = tmp_path / "samples.json"
    file.write_text(json.dumps(ROWS, indent=1))
    assert [trace.answer for trace in read_traces(file)] == ["1", "2"]


def test_blank_lines_are_skipped(file: Path) -> None:
    file.write_text("\n\n".join(map(json.dumps, ROWS)) + "\n\n")
    assert [trace.answer for trace in read_traces(file)] == ["1", "2"]


@pytest.mark.parametrize("layout", ["trace", "question"])
def test_parquet_of_another_program(tmp_path: Path, layout: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"id": ["a", "a"], "pred": ["1", "2"]} if layout == "trace" else {"id": ["a"], "pred": [["1", "2"]]}
    pq.write_table(pa.table(columns), tmp_path / "samples.parquet")
    traces = read_traces(tmp_path / "samples.parquet", {"question_id": "id", "answer": "pred"})
    assert [(trace.sample_id, trace.answer) for trace in traces] == [(0, "1"), (1, "2")]


def test_a_store_and_one_shard_of_it(tmp_path: Path) -> None:
    with TraceStore(tmp_path) as store:
        store.append(Trace("a", 0, answer="1", scores={4: 0.5}))
    assert list(read_traces(tmp_path)) == [Trace("a", 0, answer="1", scores={4: 0.5})]
    assert list(read_traces(tmp_path / "traces-00000.parquet")) == list(read_traces(tmp_path))


# --- bad input ------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file or trace store .*nothing"):
        read_traces(tmp_path / "nothing")


def test_a_folder_without_a_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder without a trace store: name one of the files in it"):
        read_traces(tmp_path)


def test_a_map_for_a_store_is_refused(tmp_path: Path) -> None:
    with TraceStore(tmp_path) as store:
        store.append(Trace("a", 0))
    with pytest.raises(ValueError, match="is a trace store, whose columns need no field map"):
        read_traces(tmp_path, {"answer": "pred"})


def test_an_empty_file_is_named(file: Path) -> None:
    file.touch()
    with pytest.raises(ValueError, match=r"samples.jsonl has no rows"):
        list(read_traces(file))


def test_an_unknown_field_is_refused_at_once(file: Path) -> None:
    jsonl(file, *ROWS)
    with pytest.raises(ValueError, match="no trace field 'anwser' to map a column to; choose from question_id, "):
        read_traces(file, {"anwser": "pred"})


def test_an_unknown_column_is_named_with_those_there_are(file: Path) -> None:
    jsonl(file, {"qid": 1, "answer": "1", "conf": [1.0]})
    message = r"no column 'confs', which .* gives for confidence; it has: qid, answer, conf; did you mean 'conf'\?"
    with pytest.raises(ValueError, match=message):
        list(read_traces(file, {"question_id": "qid", "confidence": "confs"}))


def test_a_file_without_a_question_column_suggests_one(file: Path) -> None:
    jsonl(file, {"qid": 1, "answer": "1"})
    message = r"it has: qid, answer\. Map one: fields=\{'question_id': 'qid'\}, .* --fields question_id=qid"
    with pytest.raises(ValueError, match=message):
        list(read_traces(file))


def test_a_file_without_an_answer_column_suggests_one(file: Path) -> None:
    jsonl(file, {"question_id": 1, "pred": "1"})
    with pytest.raises(ValueError, match=r"the answer, nor the text.* --fields answer=pred"):
        list(read_traces(file))


def test_an_unknown_finish_reason_says_how_to_translate_it(file: Path) -> None:
    jsonl(file, {"question_id": "a", "answer": "1", "finish_reason": "eos"})
    with pytest.raises(ValueError, match=r"row 1: .*choose from stop, length, .*--finish-reasons eos=\.\.\."):
        list(read_traces(file))


def test_a_translation_to_no_finish_reason_is_refused(file: Path) -> None:
    jsonl(file, *ROWS)
    with pytest.raises(ValueError, match="maps 'eos' to 'done'; choose from stop, length, pruned, cancelled"):
        read_traces(file, finish_reasons={"eos": "done"})


def test_duplicated_ids_are_named_with_their_rows(file: Path) -> None:
    row = {"question_id": "a", "sample_id": 3, "answer": "1"}
    jsonl(file, row, {**row, "sample_id": 4}, row)
    with pytest.raises(ValueError, match="row 3: question 'a' already has a sample 3, in row 1: remove one"):
        list(read_traces(file))


def test_question_ids_of_mixed_types_are_refused(file: Path) -> None:
    jsonl(file, {"question_id": 1, "answer": "1"}, {"question_id": "1", "answer": "1"})
    with pytest.raises(
        ValueError, match="row 2: question_id is a str and was a int before; write all of them one way"
    ):
        list(read_traces(file))


def test_rows_of_mixed_layouts_are_refused(file: Path) -> None:
    jsonl(file, {"question_id": "a", "answer": ["1", "2"]}, {"question_id": "b", "answer": "1"})
    with pytest.raises(ValueError, match="row 2: column 'answer' is no list of samples, and is one in other rows"):
        list(read_traces(file))


def test_lists_of_different_lengths_are_refused(file: Path) -> None:
    jsonl(file, {"question_id": "a", "answer": ["1", "2"], "correct": [True]})
    with pytest.raises(ValueError, match="column 'correct' has 1 entries and 'answer' has 2"):
        list(read_traces(file))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("question_id", None, r"it is None \(NoneType\); give text or a whole number"),
        ("question_id", 1.5, "give text or a whole number"),
        ("sample_id", "3", r"it is '3' \(str\); give a whole number"),
        ("num_tokens", True, "give a whole number"),
        ("answer", {"value": 1}, "give text or a number"),
        ("text", 5, "give text"),
        ("correct", "yes", "give true or false"),
        ("correct", 0.5, "give true or false"),
        ("confidence", 1.5, "give a list of numbers"),
        ("confidence", [[1.0], [2.0]], "give a flat list of numbers"),
        ("confidence", ["high"], "could not convert"),
        ("scores", 0.5, "give a map from positions to values"),
        ("scores", {"3": math.nan}, "give a finite number"),
        ("scores", {"3": 1.5}, "it is 1.5, no probability; .* map the column to logit"),
        ("token_ids", "5 6", "give a list of whole numbers"),
        ("meta", [1], "give an object"),
    ],
)
def test_a_value_that_does_not_fit_is_named(file: Path, field: str, value: object, message: str) -> None:
    jsonl(file, {"question_id": "a", "answer": "1", **{field: value}})
    with pytest.raises(ValueError, match=f"row 1: column '{field}' cannot be read as {field}: .*{message}"):
        list(read_traces(file))


def test_two_sources_of_scores_are_refused(file: Path) -> None:
    jsonl(file, {"question_id": "a", "answer": "1", "p": 0.5, "r": 1.0})
    with pytest.raises(ValueError, match="map only one of scores, score and logit"):
        list(read_traces(file, {"score": "p", "logit": "r"}))


def test_a_cut_off_last_line_is_named(file: Path) -> None:
    file.write_text('{"question_id": "a", "answer": "1"}\n{"question_id": "a", "ans')
    with pytest.raises(ValueError, match=r"row 2 is not valid JSON .*; is the file cut off\?"):
        list(read_traces(file))


def test_a_row_that_is_no_object_is_named(file: Path) -> None:
    file.write_text("[1, 2]\n")
    with pytest.raises(ValueError, match="row 1 is a int; a row must be an object"):
        list(read_traces(file))


def test_a_file_that_is_no_text_is_named(file: Path) -> None:
    file.write_bytes(b"\x80\x81\x82")
    with pytest.raises(ValueError, match="cannot be read as JSON lines"):
        list(read_traces(file))


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())[:-12])
    with pytest.raises(ValueError, match="cannot be read as JSON lines"):
        list(read_traces(file))


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "samples.parquet"
    pq.write_table(pa.table({"question_id": ["a"], "answer": ["1"]}), file)
    os.truncate(file, file.stat().st_size - 10)
    with pytest.raises(ValueError, match=r"samples.parquet cannot be read as Parquet; it is cut off or damaged"):
        list(read_traces(file))


def test_an_answer_of_a_megabyte_is_read_whole(file: Path) -> None:
    (trace,) = read_traces(jsonl(file, {"question_id": "a", "answer": "9" * 1_000_000}))
    assert trace.answer == "9" * 1_000_000
