"""`arrol-eval run` as a user calls it."""

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

from arrol_tts.engine.request import SAMPLING_PARAMETERS, Sampling
from arrol_tts.store import TraceStore
from evals.commands.run import run
from evals.sampling.passes import FOLDERS
from evals.sampling.run_settings import read_recipe
from tests.evals.commands.small_run import OPTIONS, PASSES, SETTINGS, invoke, traces


def test_every_trace_is_stored_once_in_every_pass(folder: tuple[Path, str]) -> None:
    for seed in (0, 1):
        for name in PASSES:
            assert len(traces(folder[0], seed, FOLDERS[name])) == 5 * 8
        assert sum(t.finish_reason == "pruned" for t in traces(folder[0], seed, "traces_pruned")) == 5 * 4
    texts = [sorted(t.text for t in traces(folder[0], seed, "traces")) for seed in (0, 1)]
    assert texts[0] != texts[1]


def test_waves_are_the_first_traces_of_the_full_pass(folder: tuple[Path, str]) -> None:
    for seed in (0, 1):
        full = {(t.question_id, t.sample_id): t.text for t in traces(folder[0], seed, "traces")}
        found = traces(folder[0], seed, "traces_waves")
        started = [t for t in found if t.num_tokens]
        assert all(t.text == full[t.question_id, t.sample_id] for t in started)
        sizes = Counter(t.question_id for t in started)
        assert set(sizes.values()) <= {4, 6, 8}
        assert all(t.sample_id >= sizes[t.question_id] for t in found if not t.num_tokens)
    assert json.loads((folder[0] / "manifest.json").read_text())["waves"] == {
        "start": 4,
        "step": 2,
        "certainty": 0.95,
    }
    assert "quality_waves started few traces of a question" in (folder[0] / "report.md").read_text()


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
        (["--certainty", "0.9"], "holds traces with waves.certainty 0.95, and this run has 0.9"),
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


def test_samples_of_another_system_prompt_are_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--limit", "1", "--n", "1", "--engine", "transformers", "--stopping", "none", "--max-tokens", "4"]
    command = ["run", "pocket", *options, "--out", str(out)]
    result = invoke(*command, "--system", "Be brief.")
    assert result.exit_code == 0, result.output
    assert json.loads((out / "manifest.json").read_text())["system"] == "Be brief."
    result = invoke(*command, columns=300)
    assert result.exit_code == 2
    assert 'holds traces with system "Be brief.", and this run has none' in result.output
    result = invoke(*command, "--system", " ", columns=300)
    assert "system is ' '; it must be a text, or left out" in result.output


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
        (["run", "pocket", "--stopping", "waves", "--start", "64"], "start is 64 and n is 32"),
        (["run", "pocket", "--stopping", "waves", "--certainty", "2"], "certainty is 2.0; it must be from 0.5"),
        (["run", "pocket", "--start", "2"], "--start, --step and --certainty are of a pass in waves"),
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
