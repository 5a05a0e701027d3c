"""What is written about results is what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from evals.bench import RESULTS
from evals.reporting.sections import SECTIONS
from evals.reproduce import MARKED, MARKS, keep_ablation, marked, page, update_marked, weight_ablation
from tests.evals.markdown import tables
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "results.md").read_text()


def test_the_page_is_what_the_generator_writes() -> None:
    assert page(RESULTS) == PAGE, "run python -m evals.reproduce --from-committed"


def test_what_is_between_the_marks_is_what_the_committed_results_say() -> None:
    for name, benchmark, words in MARKED:
        figures = json.loads((RESULTS / f"{benchmark}.json").read_text())["figures"]
        written = marked(words(figures), benchmark)
        assert written in (ROOT / name).read_text(), "run python -m evals.reproduce --from-committed"


def test_the_first_table_of_the_readme_is_that_of_the_real_benchmark() -> None:
    figures = json.loads((RESULTS / "real.json").read_text())["figures"]
    first = tables((ROOT / "README.md").read_text())[0]
    assert [row[1] for row in first if row[0] == "**quality head**"] == [f"{figures['accuracy_head']:.3f}"]


def test_nothing_but_what_is_between_the_marks_is_written(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name, _, _ in MARKED:
        of_file = [benchmark for other, benchmark, _ in MARKED if other == name]
        stale = "\nbetween\n".join(marked("stale figures", benchmark) for benchmark in of_file)
        (tmp_path / name).write_text(f"before\n{stale}\nafter\n")
    update_marked(tmp_path, tmp_path)
    assert "stale figures" in (tmp_path / "README.md").read_text()  # nothing has been measured there
    update_marked(tmp_path, RESULTS)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"before\n{MARKS[0].format('real')}\n**A real model on a real benchmark**")
    assert f"{MARKS[1]}\nbetween\n{MARKS[0].format('pocket')}\nOn the built-in pocket model" in text
    assert text.endswith(f"{MARKS[1]}\nafter\n")
    assert "stale figures" not in text


def test_every_committed_benchmark_has_a_section_of_its_own() -> None:
    assert {path.stem for path in RESULTS.glob("*.json")} <= set(SECTIONS)
    for path in RESULTS.glob("*.json"):
        assert f"`{json.loads(path.read_text())['command']}`" in PAGE
    assert "Not measured yet" not in PAGE


def test_no_table_of_the_page_is_empty() -> None:
    found = tables(PAGE)
    assert len(found) > 30
    for table in found:
        assert len(table) >= 2, table
        assert len(table[0]) >= 2, table
        for row in table:
            assert len(row) == len(table[0]), row
            assert all(row), row


def test_auroc_by_position_prints_its_values() -> None:
    (table,) = (table for table in tables(PAGE) if table[0] == ["tokens", *table[0][1:]])
    assert table[1] == ["4", "0.827 (0.607)", "0.782 (0.580)", "0.604 (0.533)"]
    assert [row[0] for row in table[1:]] == ["4", "8", "12", "16", "24", "finish"]


def test_every_section_asks_shows_means_and_names_its_origin() -> None:
    parts = PAGE.split("\n## ")[1:]
    sections = [
        section
        for name, section in SECTIONS.items()
        if not section.once_measured or (RESULTS / f"{name}.json").exists()
    ]
    assert [part.partition("\n")[0] for part in parts] == [section.title for section in sections]
    for part, section in zip(parts, sections, strict=True):
        assert section.asked in part
        assert part.count("**What it means.**") == 1
        assert part.rindex("Made by `") > part.rindex("</details>")


def test_every_picture_of_the_page_is_there() -> None:
    names = [part.partition(")")[0] for part in PAGE.split("](")[1:] if part.partition(")")[0].endswith(".png")]
    assert len(names) == 8
    assert all((ROOT / "docs" / name).is_file() for name in names)


def test_the_rl_section_compares_with_what_costs_as_little() -> None:
    (part,) = (part for part in PAGE.split("\n## ") if part.startswith(SECTIONS["rl"].title))
    assert "pruned against 8, none pruned" in part
    assert "area, equal time" in part


def test_ablations_replay_the_same_traces() -> None:
    def trace(i: int, answer: str, score: float) -> Trace:
        scores = {2: score, 9: score}
        return Trace("q", i, answer=answer, num_tokens=10, scores=scores, correct=answer == "1")

    fooled = [trace(0, "1", 0.9), trace(1, "2", 0.2), trace(2, "2", 0.1), trace(3, "2", 0.1)]
    voter = WeightedVoter(config=QualityHeadConfig(base_model="m", hidden_size=4, positions=[2]))
    rows = {row["keep"]: row for row in keep_ablation({"q": fooled}, voter)}
    assert (rows[1.0]["tokens_saved"], rows[1.0]["majority"], rows[1.0]["quality"]) == (0.0, 0.0, 1.0)
    # One of four is kept, and the others stop at the third token.
    assert (rows[0.25]["tokens_saved"], rows[0.25]["majority"]) == (pytest.approx(3 * 7 / 40), 1.0)
    # 19 tokens are 1.9 whole traces: one is right 1/4 of the time, two by the head 1/2, by majority (a tie) 1/4.
    assert rows[0.25]["quality_equal_tokens"] == pytest.approx(0.1 / 4 + 0.9 / 2, abs=0.05)
    assert rows[0.25]["majority_equal_tokens"] == pytest.approx(1 / 4, abs=0.05)
    weights = {row["weight"]: row["accuracy"] for row in weight_ablation({"q": fooled}, voter)}
    assert list(weights.values()) == [1.0, 1.0, 1.0, 1.0]
