"""What the commands share: how they fail, how they read NAME=VALUE, and what JSON cannot hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import typer


def fail(message: str) -> NoReturn:
    """End the command with an error in words."""
    typer.secho(f"error: {message}", err=True, fg="red")
    raise typer.Exit(2)


def pairs(flag: str, values: Iterable[str] | None) -> dict[str, str]:
    """``["a=b,c=d", "e=f"]`` as a dictionary.

    Raises:
        ValueError: for an item that is no NAME=VALUE.
    """
    found = {}
    for item in ",".join(values or []).split(","):
        name, separator, value = item.partition("=")
        if item and not (name and separator and value):
            raise ValueError(f"{flag} is {item!r}; write it as NAME=VALUE")
        if item:
            found[name.strip()] = value.strip()
    return found


def parsed(value: str) -> Any:
    """A value as JSON where it is some, else as text."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def finite(value: Any) -> Any:
    """The same for JSON, which has no nan: what is unknown becomes null."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
