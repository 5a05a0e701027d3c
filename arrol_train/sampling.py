"""How samples were drawn, as it is written down: in collections, and in the heads that learned from them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from arrol_tts.engine.request import Sampling

ALWAYS = ("temperature", "top_p", "max_tokens")


def sampling_record(sampling: Sampling) -> dict[str, Any]:
    """JSON-ready options of `Sampling`: temperature, top_p, max_tokens, and whatever else is not at its default.

    Neither ``n`` nor ``seed``: they say how many samples were drawn and which, not from what.
    """
    default = Sampling(max_tokens=sampling.max_tokens)
    record: dict[str, Any] = {}
    for name in (field.name for field in fields(Sampling)):
        value = getattr(sampling, name)
        if name in ALWAYS or (name not in ("n", "seed") and value != getattr(default, name)):
            record[name] = list(value) if isinstance(value, tuple) else value
    return record
