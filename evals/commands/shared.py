"""What the commands share: how they fail, and how they read NAME=VALUE."""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from arrol_tts.errors import InputError

ResultsFolder = Annotated[Path, typer.Argument(help="results folder of arrol-eval run")]

DATASETS_MISSING = "dataset folders need the package datasets: pip install 'arrol[benchmarks]'"


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Ends the command with a line in place of a traceback, for what its user can change."""
    try:
        yield
    except typer.Exit:  # is a RuntimeError
        raise
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        typer.secho(f"error: {_words(error)}", err=True, fg="red")
        raise typer.Exit(2) from error


@contextmanager
def notes_in_words() -> Iterator[None]:
    """Prints warnings as notes, each once and without the place in the code that gave them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                typer.secho(f"note: {message}", err=True, fg="yellow")


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"the disk is full ({error.filename or error.strerror}): free some space and run the same command; "
            "what was stored is kept, and it goes on from there"
        )
    return str(error)


def pairs(flag: str, values: Iterable[str] | None) -> dict[str, str]:
    """``["a=b,c=d", "e=f"]`` as a dictionary.

    Raises:
        InputError: for an item that is no NAME=VALUE.
    """
    found = {}
    for item in ",".join(values or []).split(","):
        name, separator, value = item.partition("=")
        if item and not (name and separator and value):
            raise InputError(f"{flag} is {item!r}; write it as NAME=VALUE")
        if item:
            found[name.strip()] = value.strip()
    return found


def parsed(value: str) -> Any:
    """A value as JSON where it is some, else as text."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def chosen_passes(names: list[str] | None) -> tuple[str, ...] | None:
    """Of ``--stopping``; None: by default, and ``none`` is no pass."""
    return tuple(name for name in names if name != "none") if names else None
