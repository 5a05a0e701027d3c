"""``arrol-train``: reinforce a language model with rollouts that are pruned while they are generated."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import yaml

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
    from arrol_train.config import load_config
    from arrol_train.rl import DiskFullError, run
    from arrol_train.rollout import EngineMismatchError

    try:
        settings = load_config(config, dict(_assignment(text) for text in change or ()))
        run(settings, out)
    except (ValueError, DiskFullError, EngineMismatchError) as error:
        _fail(str(error))
    typer.echo(f"policy: {out / 'policy'}" + (f", head: {out / 'head'}" if settings.head else ""))


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        _fail(f"--set {text}: write NAME=VALUE, such as rollout.policy=random")
    return name.strip(), yaml.safe_load(value)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
