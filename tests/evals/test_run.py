"""``arrol-eval run``, as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arrol_tts.store import TraceStore
from evals.cli import app

METHODS = ["majority", "deepconf", "quality", "quality_pruned", "random_pruned"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small run in a process of its own: real vLLM where it is installed."""
    out = tmp_path_factory.mktemp("run") / "pocket"
    command = ["run", "pocket", "--n", "8", "--limit", "6", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", "from evals.cli import app; app()", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


def test_report_json_holds_every_method_with_interval_and_tokens(run: tuple[Path, str]) -> None:
    report = json.loads((run[0] / "report.json").read_text())
    assert list(report["methods"]) == METHODS
    for row in report["methods"].values():
        low, high = row["interval"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        assert row["tokens"] > 0
    full = report["methods"]["majority"]["tokens"]
    pruned = report["methods"]["quality_pruned"]
    assert pruned["tokens_saved"] == pytest.approx(1 - pruned["tokens"] / full)
    assert 0.2 < pruned["tokens_saved"] < 0.6
    assert report["methods"]["quality"]["tokens_saved"] == 0
    assert (report["questions"], report["n"], report["synthetic"]) == (6, 8, True)
    assert report["command"].startswith("arrol-eval run pocket --n 8")


def test_report_agrees_with_the_stored_traces(run: tuple[Path, str]) -> None:
    report = json.loads((run[0] / "report.json").read_text())
    full = list(TraceStore(run[0] / "traces"))
    pruned = list(TraceStore(run[0] / "traces_pruned"))
    assert len(full) == len(pruned) == 48
    assert sum(t.num_tokens for t in full) == report["methods"]["majority"]["tokens"]
    assert sum(t.num_tokens for t in pruned) == report["methods"]["quality_pruned"]["tokens"]
    assert sum(t.finish_reason == "pruned" for t in pruned) == 24
    right = sum(bool(t.correct) for t in full)
    assert report["samples"]["mean_accuracy"] == pytest.approx(right / 48)
    assert all(t.confidence is not None and len(t.confidence) == t.num_tokens for t in full)


def test_markdown_plot_and_terminal_show_the_same_and_say_synthetic(run: tuple[Path, str]) -> None:
    out, printed = run
    text = (out / "report.md").read_text()
    assert "# pocket (synthetic): 6 questions x 8 traces" in text
    for name in METHODS:
        assert f"| {name} |" in text
        assert name in printed
    assert "pocket (synthetic)" in printed
    assert (out / "accuracy_tokens.png").read_bytes().startswith(b"\x89PNG")


def test_the_curve_starts_at_one_trace_and_ends_at_all(run: tuple[Path, str]) -> None:
    report = json.loads((run[0] / "report.json").read_text())
    majority = [p for p in report["curve"] if p["method"] == "majority"]
    assert [p["n"] for p in majority] == [1, 2, 4, 8]
    assert majority[-1]["accuracy"] == pytest.approx(report["methods"]["majority"]["accuracy"])
    tokens = [p["tokens_per_question"] for p in majority]
    assert tokens == sorted(tokens)


def test_a_folder_with_traces_is_not_overwritten(run: tuple[Path, str]) -> None:
    result = CliRunner().invoke(app, ["run", "pocket", "--out", str(run[0])])
    assert result.exit_code == 2
    assert "already holds traces" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "aime"], "there is no benchmark 'aime'; known: pocket"),
        (["run", "pocket", "--head", "/nowhere"], "there is no quality head at '/nowhere'"),
        (["run", "pocket", "--engine", "tpu"], "engine is 'tpu'"),
        (["run", "pocket", "--n", "0"], "--n"),
        (["run", "pocket", "--keep", "0"], "keep is 0"),
    ],
)
def test_bad_calls_end_early_with_words(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()
