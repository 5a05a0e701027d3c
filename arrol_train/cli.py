"""``arrol-train``: quality heads for any model, and reinforcement that prunes rollouts before they end."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

import typer
import yaml

from arrol_tts.engine.request import Sampling
from arrol_tts.errors import ArrolError
from arrol_tts.messages import check_variables

if TYPE_CHECKING:
    from arrol_tts.engine.base import Engine
    from arrol_tts.engine.request import Question

DEFAULT = Sampling()
"""Of every option of the sampling."""

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.callback()
def main() -> None:
    """Train policies and their quality heads."""


@app.command()
def rl(
    config: Annotated[str, typer.Option(help="YAML file, or the name of a built-in configuration: pocket")],
    out: Annotated[Path, typer.Option(help="the run's folder; a run that was cut off there goes on")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="a field to change, as rollout.policy=random; repeatable")
    ] = None,
) -> None:
    """GRPO or DAPO with pruned rollouts; leaves OUT/policy and OUT/head for WeightedVoter."""
    # What the libraries say of each other is not the reader's concern here.
    warnings.simplefilter("ignore", FutureWarning)
    from arrol_train.rl.config import load_config
    from arrol_train.rl.run import run

    try:
        settings = load_config(config, dict(_assignment(text) for text in change or ()))
        run(settings, out)
    except (ArrolError, ValueError) as error:
        _fail(str(error))
    typer.echo(f"policy: {out / 'policy'}" + (f", head: {out / 'head'}" if settings.head else ""))


@app.command()
def advise(
    run: Annotated[Path, typer.Argument(help="folder of a run of `rl`; it may be going on")],
    clock: Annotated[
        Literal["cpu", "time"],
        typer.Option(help="cpu: processor seconds; time: by the clock, for engines elsewhere and GPUs"),
    ] = "time",
) -> None:
    """Say of a run's own figures whether pruning pays, and which G, position and policy would pay most."""
    from rich.console import Console

    from arrol_train.rl.advise import advise as advise_run
    from arrol_train.rl.advise import tables

    try:
        advice = advise_run(run, clock)
    except (ArrolError, ValueError, OSError) as error:
        _fail(str(error))
    console = Console(markup=False)
    for table in tables(advice):
        console.print(table)
    console.print(advice.sentence())


@app.command()
def collect(
    model: Annotated[str, typer.Option(help="folder or hub id; with --server, the name it is served under")],
    data: Annotated[Path, typer.Option(help="questions with answers: JSON lines, JSON, CSV or Parquet")],
    out: Annotated[Path, typer.Option(help="folder; a collection that was cut off there goes on")],
    n: Annotated[int, typer.Option(help="samples per question", min=2)] = 16,
    question_column: Annotated[str, typer.Option(help="column of the questions")] = "question",
    answer_column: Annotated[str, typer.Option(help="column of the answers")] = "answer",
    limit: Annotated[int | None, typer.Option(help="questions, from the first on", min=1)] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="text with {question}, or a JSON list of chat messages that ends with it")
    ] = None,
    few_shot: Annotated[
        Path | None, typer.Option(help="JSON lines of worked examples: question and solution")
    ] = None,
    system: Annotated[str | None, typer.Option(help="system prompt, which the head will be used with")] = None,
    chat_template_kwarg: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the chat template, as enable_thinking=false; repeat")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="ask without the model's chat template, as base models are asked")
    ] = False,
    show_prompt: Annotated[bool, typer.Option("--show-prompt", help="print the first prompt, and stop")] = False,
    temperature: Annotated[float, typer.Option(help="of the sampling")] = DEFAULT.temperature,
    top_p: Annotated[float, typer.Option(help="nucleus share")] = DEFAULT.top_p,
    top_k: Annotated[int, typer.Option(help="likeliest tokens that are drawn from; 0: all")] = DEFAULT.top_k,
    min_p: Annotated[float, typer.Option(help="least probability, as a share of the likeliest token's")] = (
        DEFAULT.min_p
    ),
    repetition_penalty: Annotated[float, typer.Option(help="on tokens that are there already; 1 is off")] = (
        DEFAULT.repetition_penalty
    ),
    presence_penalty: Annotated[float, typer.Option(help="on tokens that were generated before; 0 is off")] = (
        DEFAULT.presence_penalty
    ),
    frequency_penalty: Annotated[float, typer.Option(help="for each time that they were; 0 is off")] = (
        DEFAULT.frequency_penalty
    ),
    max_tokens: Annotated[int, typer.Option(help="limit on a sample's tokens", min=2)] = DEFAULT.max_tokens,
    min_tokens: Annotated[int, typer.Option(help="tokens before which no sample ends")] = DEFAULT.min_tokens,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="text that ends a sample, for base models; repeatable; \\n is a new line"),
    ] = None,
    stop_token_id: Annotated[
        list[int] | None, typer.Option(help="token that ends a sample, beside the model's own; repeatable")
    ] = None,
    positions: Annotated[str, typer.Option(help="generated tokens at which a head may decide, as 16,32,64")] = "",
    stride: Annotated[
        int | None,
        typer.Option(
            help="tokens from one hidden vector that is kept to the next; by default 1, or what the disk has room "
            "for; 0: at the positions and the finish alone",
            min=0,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="of the sampling", min=0)] = 0,
    unseeded: Annotated[
        bool, typer.Option("--unseeded", help="draw without seeds: not to be repeated, and faster in vLLM")
    ] = False,
    engine: Annotated[str, typer.Option(help="auto (vLLM where it is installed), vllm or transformers")] = "auto",
    server: Annotated[
        list[str] | None, typer.Option(help="base URL of a server with the plug-in; repeatable")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="module:function that grades, instead of comparing answers")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="an engine option, as dtype=bfloat16; repeatable")
    ] = None,
) -> None:
    """Sample questions, grade the answers, and keep hidden vectors: what `head` learns from."""
    warnings.simplefilter("ignore", FutureWarning)
    from arrol_train.heads.collect import CollectionManifest, default_positions, default_stride
    from arrol_train.heads.collect_progress import collect_with_progress
    from arrol_train.questions import read_prompt, read_questions
    from arrol_train.rewards import load_reward, math_reward
    from arrol_tts.engine.base import DEFAULT_TOP_K, hidden_size_of
    from arrol_tts.engine.load import ENGINE_NAMES, EngineName, load_engine
    from arrol_tts.files import file_sha256
    from arrol_tts.revision import model_revision

    options = dict(_assignment(text) for text in option or ())
    try:
        questions = read_questions(data, question_column=question_column, answer_column=answer_column, limit=limit)
        asked = read_prompt(prompt, few_shot, chat=not plain)
        if system is not None:
            asked = asked.with_system(system)
        if chat_template_kwarg:
            if plain:
                _fail("--chat-template-kwarg is for the chat template, which --plain leaves out: give one of them")
            asked = replace(asked, chat_template_kwargs=_template_variables(chat_template_kwarg))
        if show_prompt:
            _show_prompt(None if server else model, asked.ask("", questions[0].question))
            return
        if engine not in ENGINE_NAMES:
            _fail(f"--engine {engine}: use {', '.join(ENGINE_NAMES)}")
        served = load_engine(model, server=server, **options) if server else None
        sampling = Sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            stop=tuple(text.replace("\\n", "\n") for text in stop or ()),
            stop_token_ids=tuple(stop_token_id or ()),
        )
        manifest = CollectionManifest(
            model=model if server or not Path(model).is_dir() else str(Path(model).resolve()),
            revision=None if server else model_revision(model),
            hidden_size=served.hidden_size if served else hidden_size_of(model),
            data=data.name,
            data_sha256=file_sha256(data),
            prompt=asked.to_messages(),
            chat=asked.chat,
            chat_template_kwargs=dict(asked.chat_template_kwargs),
            sampling=sampling.record() | {"seed": None if unseeded else seed},
            positions=_positions(positions) or default_positions(max_tokens),
            top_k=int(options.get("top_k", DEFAULT_TOP_K)),
            engine=options,
        )
        if stride is None:
            stride = default_stride(manifest, len(questions) * n, out)
        manifest = replace(manifest, stride=stride)
        grade = load_reward(reward) if reward else math_reward

        def load() -> Engine:
            chosen = cast(EngineName, engine)
            return served or load_engine(manifest.model, engine=chosen, **{"top_k": manifest.top_k} | options)

        collect_with_progress(load, manifest, questions, grade, out, n=n)
    except (ArrolError, ValueError, OSError, RuntimeError) as error:
        _fail(str(error))


@app.command()
def head(
    collection: Annotated[Path, typer.Argument(help="folder that `collect` wrote")],
    out: Annotated[Path, typer.Option(help="folder of the head")],
    pooling: Annotated[
        str, typer.Option(help="of the tokens' values: mean, gated (a weighted mean), or last (its state alone)")
    ] = "mean",
    stride: Annotated[
        int | None,
        typer.Option(help="tokens from one that is pooled to the next; the collection's by default", min=1),
    ] = None,
    positions: Annotated[
        str,
        typer.Option(help="tokens at which it may prune, as 16,32; one is chosen; by default the collection's"),
    ] = "",
    sizes: Annotated[str, typer.Option(help="inner sizes to try; 0 is a linear head")] = "0,32,128",
    weight_decays: Annotated[str, typer.Option(help="to try with each size")] = "0.05,1",
    seeds: Annotated[
        int, typer.Option(help="seeds of the best, which are averaged; of a gated one the best is taken", min=1)
    ] = 3,
    ranking: Annotated[float, typer.Option(help="weight of the within-question ranking term", min=0)] = 1.0,
    epochs: Annotated[int, typer.Option(help="passes at most", min=1)] = 12,
    learning_rate: Annotated[float, typer.Option(help="peak")] = 2e-3,
    folds: Annotated[int, typer.Option(help="parts of the questions: one tests, another validates")] = 5,
    fold: Annotated[int, typer.Option(help="which part tests")] = 0,
    cross_fit: Annotated[
        int,
        typer.Option(help="parts of the training questions scored by heads that did not learn from them; 0: none"),
    ] = 4,
    keep: Annotated[float, typer.Option(help="share that pruning keeps")] = 0.5,
    base_model: Annotated[
        str | None, typer.Option(help="what the head calls its model, such as its hub id")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the split and the training", min=0)] = 0,
) -> None:
    """Train a head on collected samples, choose its size and position, and measure it on held-out questions."""
    from rich.console import Console

    from arrol_train.heads.card import CARD_FILE
    from arrol_train.heads.dataset import open_collected
    from arrol_train.heads.make import HeadOptions, make_head, save_head
    from arrol_train.heads.train import TRAINED, HeadTraining
    from arrol_tts.head_config import Pooling

    console = Console(markup=False)
    training = HeadTraining(epochs=epochs, learning_rate=learning_rate, ranking=ranking, seed=seed)
    try:
        if pooling not in TRAINED:
            _fail(f"--pooling {pooling}: use {', '.join(TRAINED)}")
        options = HeadOptions(
            pooling=cast(Pooling, pooling),
            stride=stride,
            positions=tuple(_positions(positions)),
            sizes=tuple(int(part) for part in sizes.split(",")),
            weight_decays=tuple(float(part) for part in weight_decays.split(",")),
            seeds=seeds,
            folds=folds,
            fold=fold,
            cross_fit=cross_fit,
            keep=keep,
            base_model=base_model,
            training=training,
        )
        with console.status("reading"), open_collected(collection) as collected:
            with console.status("training"):
                made = make_head(collected, options)
            save_head(made, out, collection)
    except (ArrolError, ValueError, OSError) as error:
        _fail(str(error))
    for name, figures in made.votes.items():
        low, high = figures.interval
        console.print(f"{name:16} {figures.accuracy:.3f} ({low:.3f} to {high:.3f})")
    console.print(f"on {len(made.split.test)} test questions; more in {out / CARD_FILE}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="a step scorer of STEP (arXiv 2601.09093): a file of torch")],
    base_model: Annotated[str, typer.Option(help="folder or hub id of the model that it was trained for")],
    out: Annotated[Path | None, typer.Option(help="folder of the head; heads/MODEL by default")] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="how to ask the model, in place of STEP's prompt; as for `collect`")
    ] = None,
    at: Annotated[int, typer.Option(help="token at which `solve` prunes where it is told to", min=1)] = 4096,
) -> None:
    """Make a head of a step scorer that others trained; nothing in the file is executed."""
    from arrol_train.heads.step_scorer import import_step_scorer, save_imported
    from arrol_train.questions import read_prompt

    out = out or Path("heads") / Path(base_model).name
    try:
        made = import_step_scorer(file, base_model, prompt=read_prompt(prompt) if prompt else None, at=at)
        save_imported(made, file, out)
    except (ArrolError, ValueError, OSError) as error:
        _fail(str(error))
    typer.echo(f"head: {out}; {len(made.config.pool_after)} tokens end a step")


@app.command()
def inspect(
    head: Annotated[str, typer.Argument(help="folder or hub id of a head")],
    collection: Annotated[
        Path | None, typer.Option(help="other samples to look at, of this or another task or model")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the figures; HEAD/inspection by default")] = None,
) -> None:
    """Show how early a head knows, on which questions, and what pruning would save and cost."""
    from rich.console import Console

    from arrol_train.heads.figures import tables
    from arrol_train.heads.inspect import inspect_head

    console = Console(markup=False)
    try:
        with console.status("reading"):
            found, folder = inspect_head(head, collection, out)
    except (ArrolError, ValueError, OSError) as error:
        _fail(str(error))
    for table in tables(found):
        console.print(table)
    console.print(f"{found.questions} questions, {found.samples:,} samples; figures in {folder}")


def _positions(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")}) if text else []
    except ValueError:
        _fail(f"--positions {text}: list token counts, such as 16,32,64")


def _show_prompt(model: str | None, question: Question) -> None:
    """As the model sees it; without its tokenizer here, the messages."""
    if model is None:
        typer.echo("\n\n".join(f"[{m['role']}] {m['content']}" for m in question.conversation))
        return
    from transformers import AutoTokenizer

    from arrol_tts.prompts import prompt_ids

    tokenizer = AutoTokenizer.from_pretrained(model)
    typer.echo(tokenizer.decode(prompt_ids(tokenizer, question)))


def _template_variables(given: list[str]) -> dict[str, Any]:
    option = "--chat-template-kwarg"
    variables = dict(_assignment(text, option, "enable_thinking=false") for text in given)
    check_variables(variables)
    return variables


def _assignment(text: str, option: str = "--set", such_as: str = "rollout.policy=random") -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        _fail(f"{option} {text}: write NAME=VALUE, such as {such_as}")
    return name.strip(), yaml.safe_load(value)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
