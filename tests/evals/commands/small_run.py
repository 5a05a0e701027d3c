"""A small run of the pocket model, which the tests of several commands look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from arrol_tts.store import TraceStore
from evals.cli import app

PASSES = ["full", "pruned", "threshold", "budget", "consensus", "waves"]
STOPPED = ["quality_pruned", "random_pruned", "quality_threshold", "quality_budget", "consensus", "quality_waves"]
OPTIONS = ["--n", "8", "--limit", "5", "--max-tokens", "128", "--engine", "transformers"]
STOPPING = [part for name in PASSES[1:] for part in ("--stopping", name)]
SETTINGS = ["run", "pocket", *OPTIONS, *STOPPING, "--seeds", "2"]


def invoke(*arguments: str, columns: int = 100) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns)})


def traces(out: Path, seed: int, name: str) -> list[Any]:
    return list(TraceStore(out / "pocket" / f"seed-{seed}" / name))
