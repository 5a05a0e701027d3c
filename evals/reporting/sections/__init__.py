"""The sections of docs/results.md: one module for each benchmark, with its ``SECTION``.

A section says what was asked, shows it, and says what it means. A benchmark without a module gets all its figures
as tables; to give it a section, write a module and name it in ``SECTIONS``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import (
    candidates,
    demo,
    engine,
    equality,
    fuzz,
    head,
    pocket,
    real,
    reproduce,
    rl,
    rl_pruning,
    rl_real,
    serve,
    voting,
)
from .base import Section
from .parts import details, every_figure

SECTIONS: dict[str, Section] = {
    "real": real.SECTION,
    "reproduce": reproduce.SECTION,
    "pocket": pocket.SECTION,
    "rl": rl.SECTION,
    "rl_real": rl_real.SECTION,
    "rl_pruning": rl_pruning.SECTION,
    "head": head.SECTION,
    "candidates": candidates.SECTION,
    "engine": engine.SECTION,
    "fuzz": fuzz.SECTION,
    "voting": voting.SECTION,
    "equality": equality.SECTION,
    "serve": serve.SECTION,
    "demo": demo.SECTION,
}
"""``{benchmark: its section}``, in the order of the page."""


def write_sections(results: Path) -> Iterator[str]:
    """The parts of the page, from a folder of results: the sections in their order, then what has none.

    Args:
        results: with a file NAME.json for each benchmark, as ``evals.bench.write_result`` writes them.
    """
    for name in dict.fromkeys([*SECTIONS, *sorted(path.stem for path in results.glob("*.json"))]):
        path = results / f"{name}.json"
        if name in SECTIONS and SECTIONS[name].once_measured and not path.exists():
            continue
        yield from _section(name, json.loads(path.read_text()) if path.exists() else None)


def _section(name: str, result: Mapping[str, Any] | None) -> Iterator[str]:
    section = SECTIONS.get(name)
    yield f"## {section.title if section else name}"
    if section is not None:
        yield section.asked
    if result is None:
        module = "evals.reproduce" if name == "reproduce" else f"evals.bench.{name}"
        yield f"Not measured yet: `python -m {module}` writes evals/results/{name}.json."
        return
    everything = tuple(every_figure(result["figures"]))
    if section is None:
        yield from everything
    else:
        yield from section.show(result["figures"])
        yield details("Every figure", *everything)
    yield _origin(name, result)


def _origin(name: str, result: Mapping[str, Any]) -> str:
    commit, machine = result["commit"], result["machine"]
    short = commit[:12] + "-dirty" * commit.endswith("-dirty")
    seeds = ", ".join(map(str, result["seeds"]))
    return (
        f"Made by `{result['command']}` at commit {short} on {machine['cores']} cores ({machine['cpu']}), seeds "
        f"{seeds}: [evals/results/{name}.json](../evals/results/{name}.json)."
    )
