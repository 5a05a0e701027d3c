"""`arrol-eval export` and `arrol-eval import`."""

from __future__ import annotations

from pathlib import Path

import pytest

from arrol_tts.recorded import read_traces
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from tests.evals.commands.small_run import PASSES, invoke, traces


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


@pytest.mark.parametrize("name", ["traces.jsonl", "dataset"])
def test_thinking_calls_and_prompt_tokens_leave_and_come_back(tmp_path: Path, name: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    kept = [
        Trace("q", 0, text="5", answer="5", reasoning="2+3", prompt_tokens=4, cached_tokens=0),
        Trace("q", 1, answer='[{"name": "add"}]', tool_calls=[call]),
    ]
    with TraceStore(tmp_path / "before") as store:
        store.extend(kept)
    assert invoke("export", str(tmp_path / "before"), str(tmp_path / name)).exit_code == 0
    assert invoke("import", str(tmp_path / name), str(tmp_path / "after")).exit_code == 0
    fields = ("text", "reasoning", "tool_calls", "prompt_tokens", "cached_tokens", "answer")
    for old, new in zip(kept, TraceStore(tmp_path / "after"), strict=True):
        assert [getattr(old, field) for field in fields] == [getattr(new, field) for field in fields]


def test_a_whole_folder_is_exported_with_references(folder: tuple[Path, str], tmp_path: Path) -> None:
    assert invoke("export", str(folder[0]), str(tmp_path / "all.jsonl")).exit_code == 0
    found = list(read_traces(tmp_path / "all.jsonl"))
    assert len(found) == 5 * 8 * 2 * len(PASSES)
    assert {trace.meta["pass"] for trace in found} == set(PASSES)
    assert all(trace.meta["reference"] for trace in found)
