"""What is written about results is what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.bench import RESULTS
from evals.reproduce import benchmark_section, pocket_table
from tests.paths import ROOT


def test_the_table_of_the_readme_is_that_of_the_committed_result() -> None:
    figures = json.loads((RESULTS / "pocket.json").read_text())["figures"]
    rows = pocket_table(figures).splitlines()[2:]
    readme = (ROOT / "README.md").read_text()
    assert len(rows) == 5
    for row in rows:
        assert row.replace("|  |", "| |") in readme.replace("|  |", "| |"), row


def test_every_committed_benchmark_is_in_the_results_page() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert f"`{result['command']}`" in page


def test_what_is_not_measured_is_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.reproduce.RESULTS", tmp_path)
    assert [part for part in benchmark_section("rl") if "Not measured yet" in part]
