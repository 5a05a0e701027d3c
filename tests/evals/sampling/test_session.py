"""A session of a run, through what fails on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from arrol_tts.errors import ServerError
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from evals.sampling import session
from evals.sampling.folder import RunFolder
from evals.sampling.run_settings import RunSettings


class FailingEngine:
    """Stands where the engine of a dead server stands."""

    model, hidden_size = "served", 8

    def __init__(self, heals: int = 0) -> None:
        self.asked, self.heals = 0, heals

    def sample(self, questions: Any, sampling: Any, *_: Any, **__: Any) -> Any:
        """Fails, and is back in between for one trace so many times."""
        self.asked += 1
        (question,) = questions
        if self.asked <= self.heals:
            yield Trace(question.id, min(question.wanted(sampling.n)), text="1", num_tokens=1)
        raise ServerError("no server is left")

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("heals", "asked"), [pytest.param(0, 3, id="in-vain"), pytest.param(4, 6, id="anew-after-each-outage")]
)
def test_servers_are_waited_for(heals: int, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FailingEngine(heals)
    monkeypatch.setattr(session, "SERVER_PAUSES", (0, 0))
    monkeypatch.setattr(RunSettings, "load_voter", lambda *_: WeightedVoter(engine))
    settings = RunSettings(("pocket",), n=8, limit=1, stopping=(), servers=("http://x",))
    benchmarks = settings.load_benchmarks({})
    with pytest.raises(ServerError):
        session.sample_run(settings.complete(benchmarks), benchmarks, RunFolder(tmp_path / "out"), Console())
    assert engine.asked == asked
