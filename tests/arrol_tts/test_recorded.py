"""Reading recorded samples: layouts, field maps, and what a user sees when a file does not fit."""

from __future__ import annotations

import gzip
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrol_tts.errors import RecordError
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


def test_recorded_texts_are_told_apart_from_the_thinking_before_them(file: Path) -> None:
    jsonl(
        file,
        {"question_id": "a", "text": "<think>2+3 is 6</think>The answer is 5."},
        {"question_id": "a", "text": "<think>2+3, so the answer is 5"},
        {"question_id": "a", "text": "The answer is 5.", "reasoning": "2+3"},
        {"question_id": "a", "text": "", "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]},
    )
    assert [(trace.reasoning, trace.text, trace.answer) for trace in read_traces(file)] == [
        ("2+3 is 6", "The answer is 5.", "5"),
        ("2+3, so the answer is 5", "", None),
        ("2+3", "The answer is 5.", "5"),
        (None, "", '[{"name": "add", "arguments": {}}]'),
    ]


@pytest.mark.parametrize(
    ("field", "value"), [("tool_calls", 7), ("tool_calls", ["f"]), ("prompt_tokens", "many"), ("reasoning", 7)]
)
def test_what_cannot_be_read_as_a_field_is_named(file: Path, field: str, value: Any) -> None:
    jsonl(file, {"question_id": "a", "answer": "5", field: value})
    with pytest.raises(RecordError, match=f"column '{field}' cannot be read as {field}"):
        list(read_traces(file))


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
        ("scores", {"3": math.inf}, "give a finite number"),
        ("scores", {"3": 1.5}, "it is 1.5, no probability; .* map the column to logit"),
        ("token_ids", "5 6", "give a list of whole numbers"),
        ("meta", [1], "give an object"),
        ("meta", "[" * 100_000, "recursion"),
        ("tool_calls", [{"function": "add"}], "give a list of calls"),
    ],
)
def test_a_value_that_does_not_fit_is_named(file: Path, field: str, value: object, message: str) -> None:
    jsonl(file, {"question_id": "a", "answer": "1", **{field: value}})
    with pytest.raises(ValueError, match=f"row 1: column '{field}' cannot be read as {field}: .*{message}"):
        list(read_traces(file))


def test_a_score_that_is_not_a_number_counts_as_0(file: Path) -> None:
    jsonl(file, {"question_id": "a", "answer": "1", "scores": {"3": 0.5, "4": math.nan, "5": None}})
    assert [trace.scores for trace in read_traces(file)] == [{3: 0.5, 4: 0.0, 5: 0.0}]


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


# --- files as other programs write them -----------------------------------------------------------


def batch_row(custom_id: str, *texts: str) -> dict[str, Any]:
    """A line of what OpenAI's batches and `vllm run-batch` return, with a choice for each text."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for i, text in enumerate(texts)
    ]
    body = {"object": "chat.completion", "model": "m", "choices": choices, "usage": {"completion_tokens": 9}}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": f"batch-{custom_id}", "custom_id": custom_id, "response": response, "error": None}


def test_a_batch_is_read_by_the_path_of_its_texts(file: Path) -> None:
    jsonl(file, batch_row("q1", "The answer is 4."), batch_row("q1", "The answer is 5."))
    fields = {"question_id": "custom_id", "text": "response.body.choices.0.message.content"}
    traces = list(read_traces(file, fields))
    assert [(trace.sample_id, trace.answer) for trace in traces] == [(0, "4"), (1, "5")]
    assert traces[0].meta == {"id": "batch-q1", "error": None}


def test_a_star_takes_all_choices_of_a_request(file: Path) -> None:
    jsonl(file, batch_row("q1", "The answer is 4.", "The answer is 5."), batch_row("q2", "It is 6.", "It is 7."))
    fields = {
        "question_id": "custom_id",
        "text": "response.body.choices.*.message.content",
        "finish_reason": "response.body.choices.*.finish_reason",
    }
    traces = list(read_traces(file, fields))
    assert [(trace.question_id, trace.sample_id, trace.answer) for trace in traces] == [
        ("q1", 0, "4"),
        ("q1", 1, "5"),
        ("q2", 0, "6"),
        ("q2", 1, "7"),
    ]


def test_a_request_that_failed_has_no_answer(file: Path) -> None:
    failed = {"id": "b", "custom_id": "q1", "response": None, "error": {"code": "x"}}
    jsonl(file, batch_row("q1", "The answer is 4."), failed)
    fields = {"question_id": "custom_id", "text": "response.body.choices.0.message.content"}
    assert [trace.answer for trace in read_traces(file, fields)] == ["4", None]


def test_a_batch_without_a_map_is_told_the_path(file: Path) -> None:
    jsonl(file, {"question_id": "q"} | batch_row("q1", "The answer is 4, and so on and so forth it goes."))
    with pytest.raises(RecordError, match="--fields text=response.body.choices.0.message.content"):
        list(read_traces(file))


def harness_rows(*samples: tuple[int, str, str]) -> list[dict[str, Any]]:
    """What lm-evaluation-harness logs of samples with two filters: (document, text, strict answer)."""
    return [
        {
            "doc_id": doc,
            "doc": {"question": f"q{doc}", "answer": "#### 18"},
            "target": "#### 18",
            "resps": [[text]],
            "filtered_resps": [strict if name == "strict-match" else "18"],
            "filter": name,
            "exact_match": 1.0,
        }
        for name in ("strict-match", "flexible-extract")
        for doc, text, strict in samples
    ]


def test_a_sample_that_two_filters_read_is_one_trace(file: Path) -> None:
    jsonl(file, *harness_rows((0, "#### 18", "18"), (1, "The answer is 18.", "[invalid]")))
    fields = {"question_id": "doc_id", "text": "resps", "reference": "target"}
    with pytest.warns(UserWarning, match="each of the 2 questions .* has one sample"):
        traces = list(read_traces(file, fields))
    assert [(trace.question_id, trace.answer) for trace in traces] == [("0", "18"), ("1", "18")]


def test_answers_of_two_filters_are_refused(file: Path) -> None:
    jsonl(file, *harness_rows((0, "#### 18", "18")))
    with pytest.raises(
        RecordError, match="row 2: filter 'flexible-extract' gives the samples other .* map text=resps in place of"
    ):
        list(read_traces(file, {"question_id": "doc_id", "answer": "filtered_resps"}))


def test_repeats_of_the_harness_are_samples_of_one_question(file: Path) -> None:
    row = harness_rows((0, "", "18"))[0] | {"resps": [["The answer is 17.", "The answer is 18."]]}
    fields = {"question_id": "doc_id", "text": "resps", "reference": "doc.answer"}
    traces = list(read_traces(jsonl(file, row), fields))
    assert [trace.answer for trace in traces] == ["17", "18"]
    assert traces[0].meta["reference"] == "18"


def test_dumps_of_verl_are_read_by_their_columns(file: Path) -> None:
    rows = [
        {"input": "user\n1+1?\nassistant\n", "output": f"So {n}.", "gts": {"target": 2}, "score": -1.0, "step": 5}
        for n in (2, 3)
    ]
    fields = {"question_id": "input", "text": "output", "reference": "gts.target"}
    traces = list(read_traces(jsonl(file, *rows), fields))
    assert [(trace.answer, trace.meta["reference"]) for trace in traces] == [("2", "2"), ("3", "2")]


def test_a_value_with_others_inside_says_how_to_name_one(file: Path) -> None:
    jsonl(file, {"input": "1+1?", "output": "2", "gts": {"target": 2}})
    with pytest.raises(RecordError, match=r"row 1: column 'gts' .*name what lies inside, such as gts\.target"):
        list(read_traces(file, {"question_id": "input", "text": "output", "reference": "gts"}))


def test_lists_of_openr1_are_samples_of_one_question(file: Path) -> None:
    row = {
        "problem": "1+1?",
        "solution": "It is 2.",
        "answer": "2",
        "generations": ["<think>3?</think> \\boxed{2}", "\\boxed{3}"],
        "correctness_math_verify": [True, False],
        "messages": [{"role": "user", "content": "1+1?"}],
    }
    fields = {"question_id": "problem", "text": "generations", "reference": "answer"}
    traces = list(read_traces(jsonl(file, row), fields))
    assert [trace.answer for trace in traces] == ["2", "3"]
    assert [trace.meta["correctness_math_verify"] for trace in traces] == [True, False]


def test_answers_are_extracted_where_there_is_no_column_of_them(file: Path) -> None:
    rows = [{"question_id": "a", "text": "The answer is 5", "finish_reason": r} for r in ("stop", "length")]
    assert [trace.answer for trace in read_traces(jsonl(file, *rows))] == ["5", None]


def test_another_extractor_reads_the_texts(file: Path) -> None:
    (trace,) = read_traces(jsonl(file, {"question_id": "a", "text": "x y"}), extract=lambda text: text[-1])
    assert trace.answer == "y"


@pytest.mark.parametrize("written", ["[invalid]", "N/A", "NULL", "null", " nan "])
def test_placeholders_are_no_answers(file: Path, written: str) -> None:
    (trace,) = read_traces(jsonl(file, {"question_id": "a", "answer": written}))
    assert trace.answer is None


def test_the_answer_none_is_one(file: Path) -> None:
    (trace,) = read_traces(jsonl(file, {"question_id": "a", "answer": "none"}))
    assert trace.answer == "none"


# --- what reads like a mistake --------------------------------------------------------------------


def test_a_column_answer_beside_samples_is_not_taken_for_theirs(file: Path) -> None:
    jsonl(file, {"idx": 0, "answer": "2", "pred": ["2", "3"]})
    with pytest.raises(RecordError, match=r"if it is the right answer, map reference=answer and answer=pred"):
        list(read_traces(file, {"question_id": "idx"}))
    jsonl(file, {"idx": 0, "answer": "2", "generations": ["It is 2.", "It is 3."]})
    with pytest.raises(RecordError, match="column 'answer' beside 'generations'"):
        list(read_traces(file, {"question_id": "idx", "text": "generations"}))


def test_a_column_of_whole_texts_is_proposed_as_text(file: Path) -> None:
    jsonl(file, {"question_id": 1, "response": "We add one and one, which makes two. The answer is 2."})
    with pytest.raises(RecordError, match="--fields text=response"):
        list(read_traces(file))


def test_whole_texts_in_place_of_answers_are_noticed(file: Path) -> None:
    rows = [{"q": "a", "response": "word " * 50 + f"The answer is {n}"} for n in (1, 2)]
    with pytest.warns(UserWarning, match="are whole texts: .* map text=response in place of answer=response"):
        list(read_traces(jsonl(file, *rows), {"question_id": "q", "answer": "response"}))


def test_ids_that_name_samples_are_noticed_and_columns_that_repeat_are_named(file: Path) -> None:
    rows = [{"id": n, "problem": "ab"[n % 2], "answer": "1"} for n in range(4)]
    with pytest.warns(
        UserWarning, match="each of the 4 questions .* has one sample.* these columns repeat: problem"
    ):
        list(read_traces(jsonl(file, *rows), {"question_id": "id"}))


def test_a_column_that_repeats_is_proposed_before_one_that_does_not(file: Path) -> None:
    jsonl(file, *({"id": n, "problem": "ab"[n % 2], "answer": "1"} for n in range(4)))
    with pytest.raises(RecordError, match="--fields question_id=problem"):
        list(read_traces(file))


def test_a_misspelt_path_is_named(file: Path) -> None:
    jsonl(file, batch_row("q1", "4"))
    fields = {"question_id": "custom_id", "text": "response.body.choice.0.message.content"}
    with pytest.raises(RecordError, match=r"did you mean 'response.body.choices.0.message.content'\?"):
        list(read_traces(file, fields))


# --- several files, and formats by content --------------------------------------------------------


def test_samples_are_numbered_through_several_files(tmp_path: Path) -> None:
    one, two = jsonl(tmp_path / "1.jsonl", *ROWS), jsonl(tmp_path / "2.jsonl", *ROWS)
    assert [trace.sample_id for trace in read_traces([one, two])] == [0, 1, 2, 3]


def test_duplicates_in_several_files_are_named_with_the_file(tmp_path: Path) -> None:
    row = {"question_id": "a", "sample_id": 0, "answer": "1"}
    one, two = jsonl(tmp_path / "1.jsonl", row), jsonl(tmp_path / "2.jsonl", row)
    with pytest.raises(RecordError, match=r"2\.jsonl, row 1: .* in .*1\.jsonl, row 1: remove one"):
        list(read_traces([one, two]))


def test_a_folder_is_read_file_by_file_without_the_figures_beside_them(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.JSONL", ROWS[1])
    (tmp_path / "a.csv").write_text("question_id,answer\na,1\n")
    (tmp_path / "results.json").write_text('{"accuracy": 1}')
    assert [trace.answer for trace in read_traces(tmp_path)] == ["1", "2"]


def test_a_folder_of_datasets_points_to_import(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(RecordError, match="is a folder of the package datasets: .* arrol-eval import"):
        read_traces(tmp_path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_cells_may_be_separated_by_other_signs(tmp_path: Path, delimiter: str) -> None:
    file = tmp_path / "samples.csv"
    file.write_text(delimiter.join(("question_id", "answer")) + "\n" + delimiter.join(("a", "1")) + "\n")
    assert [trace.answer for trace in read_traces(file)] == ["1"]


def test_csv_with_numbers_and_line_breaks(tmp_path: Path) -> None:
    file = tmp_path / "samples.csv"
    file.write_text('question_id,sample_id,answer,correct,text\na,3,007,True,"two\nlines, yes"\na,4,,0,\n')
    first, second = read_traces(file)
    assert (first.sample_id, first.answer, first.correct, first.text) == (3, "007", True, "two\nlines, yes")
    assert (second.answer, second.correct) == (None, False)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("layout", ["lines", "array"])
def test_byte_order_marks_are_dropped(tmp_path: Path, encoding: str, layout: str) -> None:
    file = tmp_path / "samples.json"
    file.write_text("\n".join(map(json.dumps, ROWS)) if layout == "lines" else json.dumps(ROWS), encoding)
    assert [trace.answer for trace in read_traces(file)] == ["1", "2"]


def test_an_array_after_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text("\n \n" + json.dumps(ROWS))
    assert [trace.answer for trace in read_traces(tmp_path / "samples.json")] == ["1", "2"]


@pytest.mark.parametrize("name", ["samples.jsonl", "SAMPLES.JSONL.GZ", "samples"])
def test_gzip_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    assert [trace.answer for trace in read_traces(tmp_path / name)] == ["1", "2"]


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"question_id": ["a"], "answer": ["1"]}), tmp_path / "SAMPLES.PARQUET")
    pq.write_table(pa.table({"question_id": ["a"], "answer": ["2"]}), tmp_path / "samples")
    traces = read_traces([tmp_path / "SAMPLES.PARQUET", tmp_path / "samples"])
    assert [trace.answer for trace in traces] == ["1", "2"]


def test_a_pipe_is_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    os.close(writer)
    assert [trace.answer for trace in read_traces(f"/dev/fd/{reader}")] == ["1", "2"]
    os.close(reader)


# --- files that cannot be read --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"answer": 1}), "is a pickle, which could run any program .* write JSON lines"),
        (b"PK\x03\x04rest", "is a zip archive"),
        (b"\x28\xb5\x2f\xfdrest", "is compressed with zstd: unpack it first"),
        (b"[" * 100_000, "is nested too deeply to be read"),
        (b'{"question_id": "a", "answer": ' + b"9" * 5000 + b"}", "row 1 cannot be read .* as text, in quotes"),
        (b'{"a": ' + b"[" * 100_000, "row 1 is nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_named_with_what_to_do(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(RecordError, match=rf"samples\.jsonl.*{message}"):
        list(read_traces(file))


@pytest.mark.parametrize(
    ("rows", "message"), [("a,1,2\n", "row 1 has more cells"), ('a,"1', "row 1 is not valid CSV")]
)
def test_damaged_csv_is_named(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "samples.csv").write_text("question_id,answer\n" + rows)
    with pytest.raises(RecordError, match=message):
        list(read_traces(tmp_path / "samples.csv"))


@pytest.mark.parametrize("content", [json.dumps(ROWS[0], indent=1), json.dumps(ROWS[0]) + json.dumps(ROWS[1])])
def test_rows_that_do_not_stand_in_a_line_each_are_refused(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(RecordError, match="row 1 is not valid JSON .* each row must stand in a line of its own"):
        list(read_traces(file))


def test_a_response_with_choices_inside_is_told_the_path_of_its_text(file: Path) -> None:
    jsonl(file, batch_row("q1", "4"))
    with pytest.raises(RecordError, match=r"such as response\.body\.choices\.0\.message\.content"):
        list(read_traces(file, {"question_id": "custom_id", "text": "response"}))


def test_half_a_surrogate_pair_is_replaced(file: Path) -> None:
    file.write_text('{"question_id": "a\\ud800", "answer": "5\\ud800"}\n')
    (trace,) = read_traces(file)
    assert (trace.question_id, trace.answer) == ("a?", "5?")
