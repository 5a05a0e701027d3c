"""``arrol-train collect`` without vLLM: the transformers engine collects what vLLM would."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arrol_train.cli import app
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.store import TraceStore

ASKED = list(itertools.islice(questions("train", 5), 2))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": q.text, "answer": q.answer}) + "\n" for q in ASKED))
    return path


def collect(data: Path, *options: str) -> tuple[int, str]:
    arguments = ["collect", "--model", str(POCKET_MODEL), "--data", str(data), "--out", str(data.parent / "out")]
    result = CliRunner().invoke(app, [*arguments, "--max-tokens", "60", "--n", "2", *options])
    return result.exit_code, result.output


def test_the_transformers_engine_collects(data: Path) -> None:
    code, output = collect(data, "--engine", "transformers", "--positions", "12", "--stride", "8")
    assert code == 0, output
    assert "Hidden vectors of every 8th token, at 12 and at the finish take at most 0.00 GB" in " ".join(
        output.split()
    )
    traces = list(TraceStore(data.parent / "out" / "traces"))
    assert len(traces) == 4
    for trace in traces:
        kept = {12, *range(0, 60, 8)}
        assert set(trace.features) == {k for k in kept if k < trace.num_tokens} | {trace.num_tokens - 1}
        assert all(vector.shape == (128,) for vector in trace.features.values())
        assert trace.confidence is not None
        assert trace.correct is not None


def test_an_engine_that_is_not_installed_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name))
    code, output = collect(data, "--engine", "vllm")
    assert code == 2
    assert "a language model needs vllm, which is not installed" in output


def test_an_unknown_engine_is_refused_before_anything_is_written(data: Path) -> None:
    code, output = collect(data, "--engine", "tgi")
    assert code == 2
    assert "--engine tgi: use auto, vllm, transformers" in output
    assert not (data.parent / "out").exists()


def test_a_system_prompt_is_asked_with(data: Path) -> None:
    code, output = collect(data, "--server", "http://nowhere", "--system", "Be brief.", "--show-prompt")
    assert code == 0, output
    assert output == f"[system] Be brief.\n\n[user] {ASKED[0].text}\n"


def test_template_variables_are_asked_with_and_remembered_by_the_head(data: Path) -> None:
    variable = ["--chat-template-kwarg", "enable_thinking=false"]
    code, output = collect(data, "--engine", "transformers", "--positions", "12", *variable)
    assert code == 0, output
    manifest = json.loads((data.parent / "out" / "manifest.json").read_text())
    assert manifest["chat_template_kwargs"] == {"enable_thinking": False}
    code, output = collect(data, "--engine", "transformers", "--positions", "12")
    assert code == 2
    assert "was collected with chat_template_kwargs.enable_thinking False, and this is None" in output
    for wrong, says in (
        ([*variable, "--plain"], "--plain leaves out: give one of them"),
        (["--chat-template-kwarg", "thinking"], "write NAME=VALUE, such as enable_thinking=false"),
        (["--chat-template-kwarg", "tokenize=true"], "'tokenize', which is no variable of a template"),
    ):
        code, output = collect(data, *wrong)
        assert code == 2
        assert says in output
