"""A session of a run, through what fails on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from arrol_tts.errors import ServerError
from arrol_tts.voter import WeightedVoter
from evals.sampling import session
from evals.sampling.folder import RunFolder
from evals.sampling.run_settings import RunSettings


class FailingEngine:
    """Stands where the engine of a dead server stands."""

    model, hidden_size = "served", 8

    def __init__(self) -> None:
        self.asked = 0

    def sample(self, *_: Any, **__: Any) -> Any:
        self.asked += 1
        raise ServerError("no server is left")

    def close(self) -> None:
        pass


def test_servers_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FailingEngine()
    monkeypatch.setattr(session, "SERVER_PAUSES", (0, 0))
    monkeypatch.setattr(RunSettings, "load_voter", lambda *_: WeightedVoter(engine))
    settings = RunSettings(("pocket",), n=2, limit=1, stopping=(), servers=("http://x",))
    benchmarks = settings.load_benchmarks({})
    with pytest.raises(ServerError):
        session.sample_run(settings.complete(benchmarks), benchmarks, RunFolder(tmp_path / "out"), Console())
    assert engine.asked == 3
