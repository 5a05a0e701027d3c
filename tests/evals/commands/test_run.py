"""``arrol-eval run`` as a user calls it, its report, and what can be done with a results folder."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from arrol_tts.engine.request import SAMPLING_PARAMETERS, Sampling
from arrol_tts.recorded import read_traces
from arrol_tts.store import TraceStore
from evals.cli import app
from evals.commands.run import run
from evals.sampling.passes import FOLDERS
from evals.sampling.run_settings import read_recipe

PASSES = ["full", "pruned", "threshold", "budget", "consensus"]
STOPPED = ["quality_pruned", "random_pruned", "quality_threshold", "quality_budget", "consensus"]
OPTIONS = ["--n", "8", "--limit", "5", "--max-tokens", "128", "--engine", "transformers"]
STOPPING = [part for name in PASSES[1:] for part in ("--stopping", name)]
SETTINGS = ["run", "pocket", *OPTIONS, *STOPPING, "--seeds", "2"]


def invoke(*arguments: str, columns: int = 100) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small run of two seeds, and what it printed."""
    out = tmp_path_factory.mktemp("run") / "pocket"
    result = invoke(*SETTINGS, "--out", str(out))
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.fixture(scope="module")
def entry(folder: tuple[Path, str]) -> dict[str, Any]:
    report = json.loads((folder[0] / "report.json").read_text())
    (found,) = report["benchmarks"]
    assert report["average"] is None
    assert report["head"] == "pocket"
    assert found["synthetic"]
    return dict(found)


def traces(out: Path, seed: int, name: str) -> list[Any]:
    return list(TraceStore(out / "pocket" / f"seed-{seed}" / name))


def test_every_trace_is_stored_once_in_every_pass(folder: tuple[Path, str]) -> None:
    for seed in (0, 1):
        for name in PASSES:
            assert len(traces(folder[0], seed, FOLDERS[name])) == 5 * 8
        assert sum(t.finish_reason == "pruned" for t in traces(folder[0], seed, "traces_pruned")) == 5 * 4
    texts = [sorted(t.text for t in traces(folder[0], seed, "traces")) for seed in (0, 1)]
    assert texts[0] != texts[1]


def test_threshold_and_budget_spend_what_the_full_pass_says(folder: tuple[Path, str]) -> None:
    at = 32
    for seed in (0, 1):
        full = traces(folder[0], seed, "traces")
        bound = np.quantile([t.scores[min(at, t.num_tokens - 1)] for t in full], 0.5)
        kept = {(t.question_id, t.sample_id) for t in full if t.num_tokens <= at + 1 or t.scores[at] >= bound}
        stopped = [t for t in traces(folder[0], seed, "traces_threshold") if t.finish_reason != "pruned"]
        assert {(t.question_id, t.sample_id) for t in stopped} == kept
        spent: Counter[str] = Counter()
        for trace in traces(folder[0], seed, "traces_budget"):
            spent[trace.question_id] += trace.num_tokens
        budget = 0.5 * 8 * np.mean([t.num_tokens for t in full])
        # A step computes a token of every trace that runs, so the last one may overshoot by as many.
        assert max(spent.values()) <= budget + 8


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


def test_votes_have_intervals_tests_and_curves(entry: dict[str, Any]) -> None:
    votes = {row["name"]: row for row in entry["votes"]}
    assert {"majority", "deepconf", "deepconf-top10", "quality", "quality-ranks", "best-of-n"} <= set(votes)
    assert set(entry["skipped"]) == {"self-certainty"}
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


def test_the_same_command_has_nothing_left_to_sample(folder: tuple[Path, str], tmp_path: Path) -> None:
    before = (folder[0] / "pocket" / "seed-0" / "seconds.json").read_text()
    result = invoke(*SETTINGS, "--out", str(folder[0]))
    assert result.exit_code == 0, result.output
    assert (folder[0] / "pocket" / "seed-0" / "seconds.json").read_text() == before
    assert len(traces(folder[0], 0, "traces")) == 40
    assert len(json.loads((folder[0] / "manifest.json").read_text())["commands"]) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--max-tokens", "100"], "holds traces with sampling.max_tokens 128, and this run has 100"),
        (["--keep", "0.25"], "holds traces with keep 0.5, and this run has 0.25"),
        (["--limit", "4"], "holds other problems than this run asks"),
    ],
)
def test_other_settings_do_not_mix(folder: tuple[Path, str], changed: list[str], message: str) -> None:
    result = invoke(*SETTINGS, *changed, "--out", str(folder[0]), columns=300)
    assert result.exit_code == 2
    assert message in result.output


def test_another_model_does_not_mix(folder: tuple[Path, str], tmp_path: Path) -> None:
    import shutil

    from arrol_tts.pocket import POCKET_MODEL

    shutil.copytree(POCKET_MODEL, tmp_path / "other")
    result = invoke(*SETTINGS, "--model", str(tmp_path / "other"), "--head", "pocket", "--out", str(folder[0]))
    assert result.exit_code == 2
    assert "holds traces with model" in result.output


def test_report_is_made_again_without_a_model(folder: tuple[Path, str], entry: dict[str, Any]) -> None:
    result = invoke("report", str(folder[0]))
    assert result.exit_code == 0, result.output
    again = json.loads((folder[0] / "report.json").read_text())["benchmarks"][0]
    assert again == entry


def test_show_lists_a_questions_traces(folder: tuple[Path, str]) -> None:
    result = invoke("show", str(folder[0]), "--question", "pocket-2", "--pass", "pruned")
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"^ +\d+ +(stop|pruned|length) ", result.output, re.MULTILINE)) == 8
    assert len(re.findall(r"^\d was pruned: score .* at token 32", result.output, re.MULTILINE)) == 4
    assert "right answer: " in result.output
    result = invoke("show", str(folder[0]), "--question", "pocket-99", columns=200)
    assert result.exit_code == 2
    assert "its questions are pocket-0 .. pocket-4" in result.output


def test_compare_pairs_the_questions(folder: tuple[Path, str], entry: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "one-seed"
    assert (
        invoke("run", "pocket", *OPTIONS, "--stopping", "none", "--limit", "3", "--out", str(other)).exit_code == 0
    )
    result = invoke("compare", str(folder[0]), str(other), "--json")
    assert result.exit_code == 0, result.output
    rows = [row for row in json.loads(result.stdout) if row["method"] == "majority"]
    assert [row["run"] for row in rows] == ["pocket", "one-seed"]
    assert {row["questions"] for row in rows} == {3}
    assert rows[1]["difference"] == pytest.approx(rows[1]["accuracy"] - rows[0]["accuracy"])
    assert 0 < rows[1]["p_value"] <= 1
    assert "quality_pruned" not in {row["method"] for row in json.loads(result.stdout)}


@pytest.mark.parametrize("name", ["traces.jsonl", "dataset"])
def test_traces_leave_and_come_back(folder: tuple[Path, str], tmp_path: Path, name: str) -> None:
    assert invoke("export", str(folder[0] / "pocket" / "seed-0" / "traces"), str(tmp_path / name)).exit_code == 0
    assert invoke("import", str(tmp_path / name), str(tmp_path / "store")).exit_code == 0
    before, after = traces(folder[0], 0, "traces"), list(TraceStore(tmp_path / "store"))
    assert len(before) == len(after) == 40
    for old, new in zip(before, after, strict=True):
        for field in ("question_id", "sample_id", "text", "answer", "num_tokens", "finish_reason", "correct"):
            assert getattr(old, field) == getattr(new, field)
        assert old.scores == pytest.approx(new.scores)
        assert old.token_ids == new.token_ids
        assert old.confidence.tolist() == pytest.approx(new.confidence.tolist())
    result = invoke("export", str(folder[0]), str(tmp_path / name))
    assert result.exit_code == 2
    assert "is there already" in result.output


def test_a_whole_folder_is_exported_with_references(folder: tuple[Path, str], tmp_path: Path) -> None:
    assert invoke("export", str(folder[0]), str(tmp_path / "all.jsonl")).exit_code == 0
    found = list(read_traces(tmp_path / "all.jsonl"))
    assert len(found) == 5 * 8 * 2 * len(PASSES)
    assert {trace.meta["pass"] for trace in found} == set(PASSES)
    assert all(trace.meta["reference"] for trace in found)


def test_a_full_disk_says_so_and_keeps_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["run", "pocket", *OPTIONS, "--stopping", "none", "--limit", "2", "--out", str(tmp_path / "out")]
    append = TraceStore.append

    def full_after_three(store: TraceStore, trace: Any) -> None:
        if len(store) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(store.path))
        append(store, trace)

    with monkeypatch.context() as patched:
        patched.setattr(TraceStore, "append", full_after_three)
        result = invoke(*command, columns=300)
    assert result.exit_code == 2
    assert "the disk is full" in result.output
    assert len(traces(tmp_path / "out", 0, "traces")) == 3
    assert invoke(*command).exit_code == 0
    assert len(traces(tmp_path / "out", 0, "traces")) == 16


def test_show_prompt_is_what_the_model_gets() -> None:
    result = invoke("run", "pocket", "--show-prompt")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"\S*[-0-9+*]+\n+", result.output.replace(" ", "")), result.output


def test_a_recipe_gives_settings_and_options_come_first(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "benchmarks: [pocket]\nn: 3\nlimit: 2\nstopping: []\nmax_tokens: 64\nengine: transformers\n"
        "top_k: 5\nmin_p: 0.1\nstop: ['answer']\n"
    )
    out = tmp_path / "out"
    chosen = ["--n", "2", "--top-k", "3", "--stop-token-id", "2", "--min-tokens", "1", "--presence-penalty", "0.5"]
    result = invoke("run", "--recipe", str(recipe), *chosen, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert len(traces(out, 0, "traces")) == 4
    assert not any("answer" in trace.text for trace in traces(out, 0, "traces"))
    assert json.loads((out / "manifest.json").read_text())["sampling"] == {
        "n": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 3,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "max_tokens": 64,
        "min_tokens": 1,
        "stop": ["answer"],
        "stop_token_ids": [2],
    }


def test_every_parameter_of_the_sampling_is_an_option_and_a_field_of_recipes(tmp_path: Path) -> None:
    parameters = inspect.signature(run).parameters
    assert [name for name in parameters if name in SAMPLING_PARAMETERS] == list(SAMPLING_PARAMETERS)
    recipe = tmp_path / "all.yaml"
    values = dataclasses.asdict(Sampling(stop=("x",), stop_token_ids=(1,)))
    recipe.write_text(json.dumps({name: values[name] for name in SAMPLING_PARAMETERS}))
    assert read_recipe(str(recipe)).drawn_from() == Sampling(stop=("x",), stop_token_ids=(1,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "name a benchmark; known: pocket, amc23"),
        (["run", "aime"], "there is no benchmark 'aime'; known: pocket"),
        (["run", "pocket", "--head", "/nowhere"], "there is no quality head at '/nowhere'"),
        (["run", "pocket", "--engine", "tpu"], "engine is 'tpu'"),
        (["run", "pocket", "--n", "0"], "--n"),
        (["run", "pocket", "--keep", "0"], "keep is 0"),
        (["run", "pocket", "--top-p", "0"], "top_p is 0.0; it must be in (0, 1]"),
        (["run", "pocket", "--max-tokens", "0"], "max_tokens is 0"),
        (["run", "pocket", "--stopping", "never"], "no stopping pass 'never'"),
        (["run", "pocket", "--data", "x.jsonl"], "--data is for published benchmarks"),
        (["run", "pocket", "amc23", "--data", "x.jsonl"], "--data BENCHMARK=FILE"),
        (["run", "pocket", "--prompt", "poem"], "--prompt is 'poem'"),
        (["run", "pocket", "--recipe", "none"], "there is no recipe 'none'; known: llama-3.2-1b"),
        (["run", "pocket", "--server", "http://127.0.0.1:9"], "no server is left"),
        (["run", "reasoning_gym:basic_arithmetic"], "name a model with --model"),
    ],
)
def test_bad_calls_end_early_with_words(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = ["--out", str(tmp_path / "out")]
    result = invoke(*arguments, *out, columns=300)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_results_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for command in (["report", str(tmp_path)], ["show", str(tmp_path), "--question", "x"]):
        result = invoke(*command, columns=300)
        assert result.exit_code == 2
        assert "holds no results" in result.output
    result = invoke(*SETTINGS, "--out", str(tmp_path), columns=300)
    assert result.exit_code == 2
    assert "is not empty and holds no manifest.json" in result.output
