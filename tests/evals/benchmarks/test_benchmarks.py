"""Benchmarks: real files load whole, every gold answer can be read off a solution, and bad files are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from arrol_tts.answers import answers_equal, extract_answer
from arrol_tts.errors import MissingPackageError
from evals.benchmarks import NAMES, TABLES, BenchmarkError, load
from tests.paths import SHARED_DATA

FILES = {
    "amc23": ("amc23.jsonl", 40),
    "aime24": ("aime24.jsonl", 30),
    "aime25": ("aime25.jsonl", 30),
    "math500": ("math500.jsonl", 500),
    "minerva_math": ("minerva_math.jsonl", 272),
    "olympiadbench": ("olympiadbench.jsonl", 675),
    "gsm8k": ("gsm8k_test_original.jsonl", 1319),
    "brumo25": ("brumo25.jsonl", 30),
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_real_file_loads_whole_and_its_answers_verify(name: str) -> None:
    """Read off a boxed solution each gold answer is right, and its neighbour's, where it differs, is wrong."""
    file, count = FILES[name]
    if not (SHARED_DATA / file).exists():
        pytest.skip(f"{file} is not here")
    benchmark = load(name, data=SHARED_DATA / file)
    problems = benchmark.problems
    assert len(problems) == len({problem.id for problem in problems}) == count
    refused = 0
    for problem, neighbour in zip(problems, (*problems[1:], problems[0]), strict=True):
        read = extract_answer(f"Some steps, and so the answer is $\\boxed{{{problem.answer}}}$.")
        assert read is not None
        assert benchmark.is_right(problem, read), problem
        if not answers_equal(problem.answer, neighbour.answer):
            refused += 1
            assert not benchmark.is_right(problem, neighbour.answer), (problem, neighbour)
    assert refused > 0.9 * count


@pytest.mark.parametrize(
    ("name", "row", "answer"),
    [
        ("amc23", {"id": 0, "problem": "How far?", "answer": 27.0}, "27"),
        ("amc23", {"id": 0, "question": "How far?", "answer": "27.0"}, "27.0"),
        ("aime24", {"id": 60, "problem": "How long?", "answer": "204"}, "204"),
        ("aime25", {"id": "0", "problem": "Which?", "answer": 70}, "70"),
        ("math500", {"problem": "?", "answer": "\\frac{1}{2}", "unique_id": "test/a/1.json"}, "\\frac{1}{2}"),
        ("minerva_math", {"problem": "?", "solution": "first \\boxed{2}, so \\boxed{1.6} cm"}, "1.6"),
        ("minerva_math", {"question": "?", "answer": "1.6"}, "1.6"),
        ("olympiadbench", {"id": 1, "question": "?", "final_answer": ["$69$,$84$"]}, "69,84"),
        ("olympiadbench", {"id": 1, "question": "?", "context": None, "final_answer": ["2", "3"]}, "2, 3"),
        ("gsm8k", {"question": "?", "answer": "16 - 3 = <<16-3=13>>13\n#### 1,018"}, "1018"),
        ("brumo25", {"question": "?", "answer": "2^{99}"}, "2^{99}"),
        ("hmmt25", {"problem_idx": 1, "problem": "?", "answer": "\\frac{1}{576}"}, "\\frac{1}{576}"),
    ],
)
def test_each_format_is_read(tmp_path: Path, name: str, row: dict[str, Any], answer: str) -> None:
    benchmark = load(name, data=write(tmp_path / "some.jsonl", [row]), partial=True)
    assert [problem.answer for problem in benchmark.problems] == [answer]
    assert "boxed" in benchmark.instruction
    assert benchmark.source.startswith("some.jsonl, sha256 ")


def test_answers_are_graded_by_mathematical_equality(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [{"problem": "?", "answer": 27.0}])
    amc = load("amc23", data=data, partial=True)
    assert amc.is_right(amc.problems[0], "27.0")
    assert amc.is_right(amc.problems[0], "\\frac{54}{2}")
    assert not amc.is_right(amc.problems[0], "28")


def test_a_json_array_and_parquet_are_read_like_lines(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": i, "problem": f"problem {i}", "answer": i} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = load("aime25", data=write(tmp_path / "a.jsonl", rows), partial=True).problems
    assert load("aime25", data=tmp_path / "a.json", partial=True).problems == lines
    assert load("aime25", data=tmp_path / "a.parquet", partial=True).problems == lines


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "problem": "?"}], "row 1 has no answer that aime24 can read .columns: id, problem"),
        ([{"id": 1, "problem": "?", "answer": None}], "has no answer"),
        (
            [{"id": 1, "text": "?", "answer": 3}],
            "has no question: aime24 has it in the column problem or question",
        ),
        ([{"id": 1, "problem": "?", "answer": 3}] * 2, "row 2: the id 'aime24-1' is there already"),
        ([{"id": 1, "problem": "?", "answer": 3}], "has 1 problems and aime24 has 30: use a complete copy"),
        ([], "has 0 problems"),
    ],
)
def test_bad_files_are_refused_with_words(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        load("aime24", data=write(tmp_path / "bad.jsonl", rows))


def test_a_cut_off_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl").write_text('{"problem": "?", "ans')
    with pytest.raises(BenchmarkError, match="row 1 is not valid JSON"):
        load("aime24", data=tmp_path / "cut.jsonl")
    with pytest.raises(BenchmarkError, match="there is no such file"):
        load("aime24", data=tmp_path / "none.jsonl")


def test_gsm8k_without_its_mark_has_no_answer(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no answer that gsm8k can read"):
        load("gsm8k", data=write(tmp_path / "a.jsonl", [{"question": "?", "answer": "18"}]), partial=True)


def test_olympiadbench_refuses_problems_with_pictures(tmp_path: Path) -> None:
    row = {"id": 9, "question": "See the picture.", "final_answer": ["1"], "modality": "Multimodal"}
    with pytest.raises(BenchmarkError, match="problem 9 needs a picture"):
        load("olympiadbench", data=write(tmp_path / "a.jsonl", [row]), partial=True)


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(BenchmarkError, match=r"cannot be loaded from the hub .* --data amc23=FILE"):
        load("amc23")


@pytest.mark.parametrize(
    ("package", "name"), [("datasets", "amc23"), ("reasoning_gym", "reasoning_gym:basic_arithmetic")]
)
def test_without_its_package_a_benchmark_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'arrol\[benchmarks\]'"):
        load(name)


def test_the_hub_is_asked_for_a_fixed_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = {}

    def load_dataset(name: str, config: str | None, **options: Any) -> list[dict[str, Any]]:
        asked[name] = (config, options)
        return [{"problem": f"problem {i}", "answer": str(i)} for i in range(30)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("hmmt25", 5).problems) == 5
    for table in TABLES.values():
        assert len(table.hub.revision) == 40
        assert set(table.hub.revision) <= set("0123456789abcdef")
    assert asked == {
        "MathArena/hmmt_feb_2025": (None, {"split": "train", "revision": TABLES["hmmt25"].hub.revision})
    }


def test_every_name_is_explained_when_one_is_unknown() -> None:
    with pytest.raises(BenchmarkError) as error:
        load("aime")
    assert all(name in str(error.value) for name in NAMES)


def test_reasoning_gym_gives_no_partial_credit() -> None:
    benchmark = load("reasoning_gym:basic_arithmetic", 4)
    problem = benchmark.problems[0]
    assert benchmark.synthetic
    assert benchmark.is_right(problem, problem.answer)
    assert not benchmark.is_right(problem, problem.answer + "1")
    assert load("reasoning_gym:basic_arithmetic", 4).problems == benchmark.problems
    with pytest.raises(BenchmarkError, match="no task 'nothing'"):
        load("reasoning_gym:nothing")
