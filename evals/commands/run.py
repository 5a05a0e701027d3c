"""`arrol-eval run`: sample benchmarks into a results folder, and report."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from arrol_tts.errors import InputError
from arrol_tts.prompts import prompt_ids

from ..benchmarks import Benchmark
from ..reporting.report import print_report, write_report
from ..sampling.folder import RunFolder, folder_name
from ..sampling.passes import STOPPING
from ..sampling.prompt_style import choose_style
from ..sampling.run_settings import RunSettings, read_recipe
from ..sampling.session import sample_run
from .shared import chosen_passes, errors_in_words, pairs, parsed


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
    equality: Annotated[
        str | None, typer.Option(help="what makes answers one: math, text, exact, choice, json; the benchmark's")
    ] = None,
    percent: Annotated[
        str | None, typer.Option(help="50% is: fraction (0.5) or unit (50); the benchmark's")
    ] = None,
    keep: Annotated[float | None, typer.Option(help="share of the traces that the pruned pass keeps; 0.5")] = None,
    stopping: Annotated[
        list[str] | None,
        typer.Option(help=f"sample again with early stopping: {', '.join(STOPPING)} or none; repeatable"),
    ] = None,
    start: Annotated[int | None, typer.Option(help="traces of the first wave of --stopping waves; 4")] = None,
    step: Annotated[int | None, typer.Option(help="traces of each further wave; 2")] = None,
    certainty: Annotated[float | None, typer.Option(help="of the vote, with which waves end; 0.95")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; the head's, else 1")] = None,
    top_p: Annotated[float | None, typer.Option(help="nucleus share; the head's, else 1")] = None,
    top_k: Annotated[int | None, typer.Option(help="tokens to choose among; 0 is off")] = None,
    min_p: Annotated[float | None, typer.Option(help="leave out tokens below this share of the likeliest")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="of prompt and trace; 1 is off")] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="of tokens in the trace; 0 is off")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="the same, for each time; 0 is off")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="of a trace; the head's, else 1024")] = None,
    min_tokens: Annotated[int | None, typer.Option(help="before which a trace does not end by itself")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="text that ends a trace; repeatable")] = None,
    stop_token_ids: Annotated[
        list[int] | None, typer.Option("--stop-token-id", help="token that ends a trace; repeatable")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="auto, chat, few-shot or head")] = None,
    system: Annotated[str | None, typer.Option(help="system prompt, in place of the head's own")] = None,
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
        "equality": equality,
        "percent": percent,
        "keep": keep,
        "stopping": chosen_passes(stopping),
        "start": start,
        "step": step,
        "certainty": certainty,
        "prompt": prompt,
        "system": system,
        "engine": engine,
        "servers": tuple(server or ()) or None,
    }
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "stop": stop or None,
        "stop_token_ids": stop_token_ids or None,
    }
    with errors_in_words():
        base = read_recipe(recipe) if recipe else RunSettings()
        options = {name: parsed(value) for name, value in pairs("--engine-option", engine_option).items()}
        settings = dataclasses.replace(
            base,
            **{name: value for name, value in given.items() if value is not None},
            sampling={**base.sampling, **{k: v for k, v in sampling.items() if v is not None}},
            engine_options=base.engine_options | options,
        )
        if {start, step, certainty} != {None} and "waves" not in (settings.stopping or ()):
            raise InputError("--start, --step and --certainty are of a pass in waves: add --stopping waves")
        loaded = settings.load_benchmarks(_copies(data, settings), partial=partial)
        settings = settings.complete(loaded)
        if show_prompt:
            _show_prompt(settings, loaded[0])
            return
        console = Console(markup=False)
        folder = RunFolder(out or Path("runs") / "-".join(map(folder_name, settings.benchmarks)))
        sample_run(settings, loaded, folder, console)
        with console.status("voting"):
            report = write_report(folder)
        print_report(report, console)
        console.print(f"report: {folder.path / 'report.html'}, report.md, report.json")


def _show_prompt(settings: RunSettings, benchmark: Benchmark) -> None:
    tokenizer = settings.tokenizer()
    prompt = choose_style(settings.prompt, tokenizer, settings.head_config(), system=settings.system)
    question = prompt.question(benchmark, benchmark.problems[0], settings.head_config())
    if tokenizer is not None:
        typer.echo(tokenizer.decode(prompt_ids(tokenizer, question)))
        return
    typer.echo("\n\n".join(message["content"] for message in question.conversation))
    typer.echo("\n(the server puts its chat template around it)" * question.chat, err=True)


def _copies(data: list[str] | None, settings: RunSettings) -> dict[str, Path]:
    if data and len(data) == 1 and "=" not in data[0]:
        if len(settings.benchmarks) != 1:
            raise InputError("--data FILE is for one benchmark; with several say --data BENCHMARK=FILE for each")
        return {settings.benchmarks[0]: Path(data[0])}
    return {name: Path(path) for name, path in pairs("--data", data).items()}
