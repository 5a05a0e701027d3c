"""One small run serves the tests of all commands; who adds to it adds what does not change its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evals.commands.small_run import SETTINGS, invoke


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small run of two seeds, and what it printed."""
    out = tmp_path_factory.mktemp("run") / "pocket"
    result = invoke(*SETTINGS, "--out", str(out))
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.fixture(scope="session")
def entry(folder: tuple[Path, str]) -> dict[str, Any]:
    report = json.loads((folder[0] / "report.json").read_text())
    (found,) = report["benchmarks"]
    assert report["average"] is None
    assert report["head"] == "pocket"
    assert found["synthetic"]
    return dict(found)
