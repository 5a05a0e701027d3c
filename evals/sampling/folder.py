"""A results folder: which settings it is for, which problems it asks, and where each seed's traces lie.

RUN/manifest.json                what may not change between sessions, and the commands that were run
RUN/BENCHMARK/problems.jsonl     the problems
RUN/BENCHMARK/seed-0/traces/     a trace store for each pass (see passes.py)
RUN/report.json, .md, .html      made from the above, at any time
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arrol_tts.errors import InputError
from arrol_tts.files import differences, write_atomic, write_json
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.voter import WeightedVoter

from ..benchmarks import Benchmark, Problem
from ..benchmarks.table import by_equality
from .passes import FULL
from .seed_samples import SeedSamples, read_seed

MANIFEST = "manifest.json"
PROBLEMS = "problems.jsonl"
FORMAT_VERSION = 1


class FolderError(InputError):
    """A results folder that does not fit, or is none; the message says what to do."""


@dataclass(slots=True)
class RunManifest:
    """What a results folder is for.

    Attributes:
        model: path, hub id or served name of the language model.
        engine: class of the engine.
        head: how the head was named; None without one.
        head_sha256: of its weights.
        head_config: its config, whose positions and voting options the votes use.
        sampling: n, the traces of a question, and what ``Sampling.record`` says.
        keep: keep ratio of the pruned pass.
        stopping: passes besides the full one.
        prompt: style of the prompts.
        system: their system prompt, in place of the head's own; None: the head's, if any.
        waves: start, step and certainty of the pass in waves, where there is one.
        seeds: seeds that were asked for so far.
        commands: the command of every session.
        versions: of what computes, at the last session.
        format_version: of this file.
    """

    model: str
    engine: str
    head: str | None
    head_sha256: str | None
    head_config: dict[str, Any] | None
    sampling: dict[str, Any]
    keep: float
    stopping: list[str]
    prompt: str
    waves: dict[str, Any] | None = None
    system: str | None = None
    seeds: list[int] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def fixed(self) -> dict[str, Any]:
        """What traces of one folder have in common; of the head's config all but its model's path and metrics."""
        names = ("model", "engine", "head_sha256", "sampling", "keep", "stopping", "prompt", "system", "waves")
        config = None
        if self.head_config is not None:  # one that an earlier version wrote lacks what is at its default
            config = asdict(QualityHeadConfig.from_dict(self.head_config))
            for name in ("base_model", "metrics"):
                del config[name]
        return {**{name: getattr(self, name) for name in names}, "head_config": config}


class RunFolder:
    """A results folder, new or old.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    def open(self, manifest: RunManifest) -> None:
        """Begin or go on: write the manifest, once it is known to fit what is there.

        Raises:
            FolderError: when the folder holds traces of another model, head or settings, or something else.
            HeadError: when the head's config that is there cannot be read.
        """
        if (self.path / MANIFEST).exists():
            before = self.manifest()
            for name, there, wanted in differences(before.fixed(), manifest.fixed()):
                raise FolderError(
                    f"{self.path} holds traces with {name} {_shown(there)}, and this run has {_shown(wanted)}"
                    ": traces of different settings are not mixed; choose another --out, or the same settings"
                )
            manifest.seeds = sorted({*before.seeds, *manifest.seeds})
            manifest.commands = [*before.commands, *manifest.commands]
        elif self.path.exists() and any(self.path.iterdir()):
            raise FolderError(f"{self.path} is not empty and holds no {MANIFEST}: choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / MANIFEST, asdict(manifest))

    def manifest(self) -> RunManifest:
        """What the folder says of itself.

        Raises:
            FolderError: when it is no results folder, or of a newer version.
        """
        path = self.path / MANIFEST
        try:
            data = json.loads(path.read_text())
            if data["format_version"] > FORMAT_VERSION:
                raise FolderError(f"{path} was written by a newer version: upgrade arrol")
            return RunManifest(**data)
        except FileNotFoundError:
            raise FolderError(
                f"{self.path} holds no results ({MANIFEST} is missing): name a folder that arrol-eval run wrote"
            ) from None
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise FolderError(f"{path} is damaged ({error}): restore it, or run into another folder") from None

    def add(self, benchmark: Benchmark) -> None:
        """Write a benchmark's problems, once they are known to be those that are there.

        Raises:
            FolderError: when the folder asks other problems under this name.
        """
        folder = self.path / folder_name(benchmark.name)
        header: dict[str, Any] = {
            "name": benchmark.name,
            "source": benchmark.source,
            "synthetic": benchmark.synthetic,
        }
        if (benchmark.equality, benchmark.percent) != ("math", "fraction"):
            header |= {"equality": benchmark.equality, "percent": benchmark.percent}
        lines = [header, *(asdict(problem) for problem in benchmark.problems)]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        path = folder / PROBLEMS
        if path.exists():
            if path.read_bytes() == content:
                return
            raise FolderError(
                f"{path} holds other problems than this run asks ({len(benchmark.problems)} of {benchmark.source})"
                ": use the same --data and --limit as before, or choose another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)

    def seed(self, benchmark: str, seed: int) -> Path:
        """The folder of one seed of a benchmark."""
        return self.path / folder_name(benchmark) / f"seed-{seed}"

    def benchmarks(self) -> list[Benchmark]:
        """The benchmarks in the folder, in the order in which they were added.

        Their ``is_right`` compares answers; traces carry the benchmark's own verdict.

        Raises:
            FolderError: when a file of problems is damaged.
        """
        found = sorted(self.path.glob(f"*/{PROBLEMS}"), key=lambda path: path.stat().st_mtime_ns)
        return [_read_problems(path) for path in found]

    def samples(self) -> list[list[SeedSamples]]:
        """For each benchmark, its samples by seed; questions that are not complete in all of them are left out.

        Raises:
            FolderError: when no question is complete yet.
        """
        manifest = self.manifest()
        result = []
        for benchmark in self.benchmarks():
            n = int(manifest.sampling["n"])
            of_seed = [
                read_seed(
                    benchmark,
                    n=n,
                    seed=seed,
                    keep=manifest.keep,
                    out=self.seed(benchmark.name, seed),
                    passes=(FULL, *manifest.stopping),
                )
                for seed in manifest.seeds
            ]
            # A seed that has only begun must not take away the questions of the others.
            begun = [one for one in of_seed if one.full]
            shared = set.intersection(*({*one.full} for one in begun)) if begun else set()
            if shared:
                result.append([one.only(shared) for one in begun])
        if not result:
            raise FolderError(f"{self.path} has no question whose traces are complete: run the same command again")
        return result

    def voter(self, benchmark: Benchmark | None = None) -> WeightedVoter:
        """A voter with the head's options, a benchmark's equality, and without a language model."""
        config = self.manifest().head_config
        return WeightedVoter(
            config=None if config is None else QualityHeadConfig.from_dict(config),
            equality=benchmark.equality if benchmark else None,
            percent=benchmark.percent if benchmark else None,
        )


def folder_name(benchmark: str) -> str:
    """A benchmark's name as a folder's."""
    return benchmark.replace(":", "-")


def _read_problems(path: Path) -> Benchmark:
    try:
        header, *lines = (json.loads(line) for line in path.read_text().splitlines())
        name, synthetic, source = (header[field] for field in ("name", "synthetic", "source"))
        problems = tuple(Problem(**line) for line in lines)
        equality, percent = header.get("equality", "math"), header.get("percent", "fraction")
        is_right = by_equality(equality, percent)
    except (KeyError, TypeError, ValueError) as error:
        raise FolderError(f"{path} is damaged ({error}): restore it, or run into another folder") from None
    return Benchmark(
        name,
        problems,
        is_right=is_right,
        synthetic=synthetic,
        source=source,
        equality=equality,
        percent=percent,
    )


def _shown(value: Mapping[str, Any] | Sequence[Any] | str | float | None) -> str:
    return "none" if value is None else json.dumps(value)
