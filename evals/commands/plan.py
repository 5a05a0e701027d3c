"""`arrol-eval plan`: what a run would take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from arrol_tts.errors import InputError

from .. import benchmarks as known
from ..benchmarks import pocket, reasoning_gym
from ..sampling.estimate import (
    BANDWIDTH_SHARE,
    BYTES_PER_TOKEN,
    COMPUTE_SHARE,
    GPUS,
    MAX_RUNNING,
    estimate,
    shape_of,
)
from ..sampling.passes import FULL
from ..sampling.run_settings import RunSettings, read_recipe
from .shared import chosen_passes, errors_in_words

MEAN_SHARE = 0.5
"""Mean length of a trace as a share of max_tokens, where nothing better is known; a guess on the safe side."""


def plan(
    benchmarks: Annotated[list[str] | None, typer.Argument(help="as in arrol-eval run")] = None,
    recipe: Annotated[str | None, typer.Option(help="settings from a recipe or YAML file")] = None,
    model: Annotated[str | None, typer.Option(help="path or hub id")] = None,
    head: Annotated[str | None, typer.Option(help="with one, a pruned pass is planned too")] = None,
    stopping: Annotated[
        list[str] | None, typer.Option(help="passes with early stopping, as in arrol-eval run; repeatable")
    ] = None,
    n: Annotated[int | None, typer.Option(help="traces per question; 32", min=1)] = None,
    seeds: Annotated[int | None, typer.Option(help="how often everything is sampled; 1", min=1)] = None,
    limit: Annotated[int | None, typer.Option(help="questions of each benchmark", min=1)] = None,
    keep: Annotated[float | None, typer.Option(help="share that the pruned pass keeps; 0.5")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="of a trace", min=1)] = None,
    mean_tokens: Annotated[
        float | None, typer.Option(help="expected length of a trace; half of max-tokens unless measured", min=1)
    ] = None,
    detection: Annotated[int, typer.Option(help="position at which the pruned pass prunes", min=1)] = 512,
    gpu: Annotated[str, typer.Option(help=f"one of {', '.join(GPUS)}")] = "h100",
    gpus: Annotated[int, typer.Option(help="that share one copy of the model (tensor parallel)", min=1)] = 1,
    replicas: Annotated[int, typer.Option(help="copies of the model: data parallel, or servers", min=1)] = 1,
) -> None:
    """Predict tokens, hours, GPU memory and disk of a run before it starts; nothing is loaded or sampled."""
    given = {
        "benchmarks": tuple(benchmarks or ()) or None,
        "model": model,
        "head": head,
        "stopping": chosen_passes(stopping),
        "n": n,
        "seeds": seeds,
        "limit": limit,
        "keep": keep,
    }
    with errors_in_words():
        base = read_recipe(recipe) if recipe else RunSettings()
        changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if max_tokens is not None:
            changed["sampling"] = {**base.sampling, "max_tokens": max_tokens}
        settings = dataclasses.replace(base, **changed)
        if gpu not in GPUS:
            raise InputError(f"there is no GPU {gpu!r}; known: {', '.join(GPUS)}")
        model = settings.model_name()
        if not settings.benchmarks or not model:
            raise InputError("name benchmarks and a model, such as: arrol-eval plan amc23 --model Qwen/Qwen3-8B")
        # A head is read for its model and sampling only.
        longest = (
            (dataclasses.replace(settings, head=None) if settings.model else settings).drawn_from().max_tokens
        )
        mean = mean_tokens or MEAN_SHARE * longest
        counts = {name: _questions(name, settings.limit) for name in settings.benchmarks}
        shape = shape_of(model)
        table = Table(box=SIMPLE_HEAD)
        for heading in ("benchmark", "questions", "traces", "tokens", "hours", "disk GB"):
            table.add_column(heading, justify="left" if heading == "benchmark" else "right")
        whole = (FULL, *(name for name in settings.passes if name != "pruned"))
        found = {}
        for name, questions in (*counts.items(), ("all", sum(counts.values()))):
            traces = questions * settings.n * settings.seeds
            found[name] = estimate(
                shape,
                GPUS[gpu],
                traces=traces,
                mean_tokens=mean,
                max_tokens=longest,
                whole_passes=len(whole),
                kept_share=settings.keep if "pruned" in settings.passes else None,
                detection=detection,
                gpus=gpus,
                replicas=replicas,
            )
            e = found[name]
            table.add_row(
                name, f"{questions:,}", f"{traces:,}", f"{e.tokens:,.0f}", f"{e.hours:.2f}", f"{e.disk_gb:.1f}"
            )
    console = Console(markup=False)
    console.print(f"{model} on {gpus * replicas} x {gpu}: {settings.n} traces, {settings.seeds} seed(s)")
    console.print(table)
    every = found["all"]
    measured = "as given" if mean_tokens else f"{MEAN_SHARE:g} of max_tokens, a guess: measure some with --limit"
    console.print(
        f"{every.running} traces run at once, {every.tokens_per_second:,.0f} tokens/s a copy of the model; each "
        f"GPU needs {every.memory_gb:.0f} of its {GPUS[gpu].memory:g} GB."
    )
    console.print(
        f"Assumed: traces of {mean:,.0f} tokens ({measured}); "
        f"{'a' if 'pruned' in settings.passes else 'no'} pruned pass; {_whole(whole)}; "
        f"{BANDWIDTH_SHARE:.0%} of the GPU's bandwidth and {COMPUTE_SHARE:.0%} of its compute reached; at most "
        f"{MAX_RUNNING} traces at once; {BYTES_PER_TOKEN} bytes a token on disk. Nothing of it was measured."
    )


def _whole(passes: Sequence[str]) -> str:
    """What is counted in full, in words."""
    if len(passes) == 1:
        return "a full pass"
    return f"the passes {', '.join(passes)} at the cost of the full one each, which is an upper bound"


def _questions(name: str, limit: int | None) -> int:
    """How many questions a benchmark has, without reading it."""
    if name in known.TABLES:
        count = known.TABLES[name].rows[0]
    elif name == "pocket":
        return limit or pocket.QUESTIONS
    elif name.startswith("reasoning_gym:"):
        return limit or reasoning_gym.QUESTIONS
    else:
        raise InputError(f"there is no benchmark {name!r}; known: {', '.join(known.NAMES)}")
    return count if limit is None else min(limit, count)
