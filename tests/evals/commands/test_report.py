"""`arrol-eval report`: figures, and the forms in which they are said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.evals.commands.small_run import STOPPED, invoke, traces


def test_figures_agree_with_the_stored_traces(folder: tuple[Path, str], entry: dict[str, Any]) -> None:
    full = [t for seed in (0, 1) for t in traces(folder[0], seed, "traces")]
    pruned = [t for seed in (0, 1) for t in traces(folder[0], seed, "traces_pruned")]
    assert entry["samples"]["accuracy"] == pytest.approx(sum(bool(t.correct) for t in full) / len(full))
    rows = {row["name"]: row for row in entry["stopping"]}
    assert list(rows) == ["majority", "deepconf", "quality", *STOPPED]
    assert rows["majority"]["tokens_per_question"] == pytest.approx(sum(t.num_tokens for t in full) / 10)
    assert rows["quality_pruned"]["tokens_per_question"] == pytest.approx(sum(t.num_tokens for t in pruned) / 10)
    low, high = rows["quality_pruned"]["tokens_saved_interval"]
    assert 0 < low <= rows["quality_pruned"]["tokens_saved"] <= high < 0.7
    assert rows["quality"]["tokens_saved"] == 0
    assert rows["quality_pruned"]["seconds"] > 0
    assert rows["random_pruned"]["seconds"] is None
    # Pruning was paid for with as many tokens as this many whole traces cost.
    share = rows["quality_pruned"]["tokens_per_question"] / rows["quality"]["tokens_per_question"]
    assert rows["quality_pruned"]["equal_tokens"]["traces"] == pytest.approx(8 * share)


def test_votes_have_intervals_tests_and_curves(entry: dict[str, Any]) -> None:
    votes = {row["name"]: row for row in entry["votes"]}
    assert {
        "majority",
        "deepconf",
        "deepconf-top10",
        "quality",
        "quality-ranks",
        "best-of-n",
        "self-certainty",
    } <= set(votes)
    assert entry["skipped"] == {}
    for row in votes.values():
        low, high = row["interval"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        assert list(row["at"]) == ["1", "2", "4", "8"]
        assert row["at"]["8"] == pytest.approx(row["accuracy"])
        assert 0 < row["p_value"] <= 1
    # One trace has nobody to outvote: every method is right as often as a trace with an answer is.
    assert votes["quality"]["at"]["1"] == pytest.approx(votes["majority"]["at"]["1"])
    passes = list(entry["samples"]["pass_at"].values())
    assert passes == sorted(passes)
    points = [point for point in entry["curve"] if point["method"] == "quality_pruned"]
    assert [point["n"] for point in points] == [1, 2, 4, 8]
    assert sum(entry["head"]["reliability"]["count"]) == 5 * 8 * 2


def test_terminal_markdown_and_page_say_the_same(folder: tuple[Path, str], entry: dict[str, Any]) -> None:
    out, printed = folder
    markdown, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    majority = next(row for row in entry["votes"] if row["name"] == "majority")
    for text in (printed, markdown, page):
        assert "pocket (synthetic): 5 questions x 8 traces, 2 seeds" in text
        assert f"{majority['accuracy']:.3f}" in text
        for name in STOPPED:
            assert name in text
        assert "Early stopping beside as many tokens in whole traces" in text
    for text in (markdown, page):
        assert "numpy" in text
        assert "temperature" in text
    for name in ("pocket_accuracy_tokens.png", "pocket_reliability.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert name in markdown


def test_the_page_needs_nothing_else(folder: tuple[Path, str]) -> None:
    page = (folder[0] / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "<script" not in page
    loaded = re.findall(r"""(?:src|href)=["'](?!#)([^"']*)""", page)
    assert loaded == []
    assert len(page) < 300_000


def test_report_is_made_again_without_a_model(folder: tuple[Path, str], entry: dict[str, Any]) -> None:
    result = invoke("report", str(folder[0]))
    assert result.exit_code == 0, result.output
    again = json.loads((folder[0] / "report.json").read_text())["benchmarks"][0]
    assert again == entry
