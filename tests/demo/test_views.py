"""Charts, reliability and the last evaluation."""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from arrol_tts.head_config import head_sha256
from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL
from arrol_tts.trace import Trace
from demo.charts import accuracy_chart, reliability_chart, score_chart
from demo.views import LiveReliability, last_evaluation


def report(accuracy: float, sha256: str, model: str) -> str:
    curve = [{"method": "quality", "n": 1, "accuracy": accuracy, "tokens_per_question": 100.0}]
    entry = {"name": "pocket", "synthetic": True, "questions": 3, "n": 1, "curve": curve}
    return json.dumps({"head": "pocket", "head_sha256": sha256, "model": model, "benchmarks": [entry]})


def test_charts_are_well_formed() -> None:
    traces = [({8: 0.5, 16: 0.9}, "stop", True), ({8: 0.1}, "pruned", None), ({}, "running", None)]
    for svg in (
        score_chart(traces, at=16),
        score_chart([], at=None),
        reliability_chart([0] * 9 + [5], [0] * 9 + [4]),
        accuracy_chart({"a<b": [(10.0, 0.5), (20.0, 0.7)]}),
    ):
        ElementTree.fromstring(svg)


def test_right_wrong_and_pruned_differ_in_more_than_colour() -> None:
    def drawn(status: str, right: bool | None) -> str:
        return score_chart([({8: 0.5, 16: 0.9}, status, right)], at=None).split("<g")[1].partition(">")[2]

    assert len({drawn("stop", True), drawn("stop", False), drawn("pruned", None), drawn("stop", None)}) == 4


def test_reliability_counts_graded_traces() -> None:
    seen = LiveReliability()
    seen.add(
        [
            Trace("q", i, scores={5: score}, correct=right)
            for i, (score, right) in enumerate(
                [(0.95, True), (0.91, False), (1.0, True), (0.05, False), (0.5, None)]
            )
        ]
    )
    assert (seen.counts[9], seen.right[9], seen.counts[0], sum(seen.counts)) == (3, 2, 1, 4)
    assert "4 finished traces" in seen.view()[1]


def test_without_graded_traces_it_says_what_to_do() -> None:
    assert "ask a question" in LiveReliability().view()[1]


def test_the_newest_evaluation_of_this_head_and_model_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, model = head_sha256(POCKET_HEAD), str(POCKET_MODEL)
    reports = [
        "{",
        report(0.5, "of another head", model),
        report(0.6, ours, "another model"),
        report(0.9, ours, model),
        report(0.1, ours, model),
    ]
    for age, text in enumerate(reports):
        path = tmp_path / f"run-{age}" / "report.json"
        path.parent.mkdir()
        path.write_text(text)
        os.utime(path, (1000 - age, 1000 - age))
    found = last_evaluation(POCKET_HEAD, tmp_path)
    assert found is not None
    assert found.series == {"quality": [(100.0, 0.9)]}
    assert "synthetic" in found.caption
    found = last_evaluation(POCKET_HEAD, tmp_path, "another model")
    assert found is not None
    assert found.series == {"quality": [(100.0, 0.6)]}
    assert last_evaluation(POCKET_HEAD, tmp_path, "a third") is None
    assert f"{tmp_path / 'run-0' / 'report.json'} is not a readable report" in caplog.text


def test_without_a_run_of_its_own_the_pocket_heads_benchmark_is_shown(tmp_path: Path) -> None:
    found = last_evaluation(POCKET_HEAD, tmp_path)
    assert found is not None
    assert {name: len(points) for name, points in found.series.items()} == {
        "quality": 5,
        "majority": 5,
        "quality, fewer whole traces": 9,
    }
    assert found.caption == (
        "pocket (synthetic), 200 questions, 32 traces each. "
        "From left to right the head kept 12.5%, 25%, 50%, 75%, 100% of them; fewer whole traces is the vote over "
        "1, 2, 4 .. of them without pruning, which pruning has to beat."
    )


def test_a_head_that_was_never_evaluated_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "head"
    shutil.copytree(POCKET_HEAD, folder, ignore=shutil.ignore_patterns("accuracy_tokens.json"))
    assert last_evaluation(folder, tmp_path) is None
