"""What the plug-in costs the scheduler is measured over vLLM's own, and put beside the figures of other parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals import bench
from evals.bench import add_part

pytest.importorskip("vllm")


def test_the_plugin_is_timed_over_vllms_own_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    from evals.bench import engine_scheduler

    monkeypatch.setattr(engine_scheduler, "REQUESTS", 64)
    figures = engine_scheduler.scheduler()
    for name in ("plugin_scheduler_ms_1024", "plugin_scheduler_ms_1024_floor"):
        assert 0 < figures[name] < 50
        assert figures[f"{name}_of"]["stock"] > 0


def test_a_part_that_is_measured_alone_leaves_the_others_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    (tmp_path / "engine.json").write_text(json.dumps({"commit": "abc", "figures": {"a": 1, "b": 2}}))
    add_part("engine", "scheduler", {"b": 3, "c": 4})
    record = json.loads((tmp_path / "engine.json").read_text())
    assert record["figures"] == {"a": 1, "b": 3, "c": 4}
    assert record["commit"] == "abc"
    assert record["parts"]["scheduler"]["command"] == "python -m evals.bench.engine --part scheduler"
