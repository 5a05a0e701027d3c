"""The request that an app sends to ``arrol-serve`` for the answer that a run shows."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from .choices import Choices


@dataclass(frozen=True, slots=True)
class Served:
    """Where an app asks.

    Attributes:
        url: of the endpoint, without ``/v1``.
        model: its name there; "" leaves it to the endpoint, which has one.
        start: the command that starts it; "" where it runs already.
    """

    url: str
    model: str = ""
    start: str = ""

    def words(self, request: dict[str, Any]) -> str:
        """A request as commands for a shell."""
        named = {"model": self.model} if self.model else {}
        body = shlex.quote(json.dumps(named | request))
        ask = f"curl {shlex.quote(self.url + '/v1/chat/completions')} --json {body}"
        return f"{self.start}\n{ask}" if self.start else ask


def request_of(
    question: str, one: Choices, *, max_tokens: int, score_every: int, system: str | None = None
) -> dict[str, Any] | None:
    """The body of a request for the same samples and the same vote, without the model's name.

    Args:
        question: what is asked.
        one: how the run samples and prunes.
        max_tokens: limit on a trace.
        score_every: tokens between two scores; the vote may average over them.
        system: system prompt, in place of the head's own.

    Returns:
        None for a stopping rule that is not among the endpoint's fields.
    """
    if one.rule not in ("share", "none"):
        return None
    vote: dict[str, Any] = {
        "n": one.n,
        "method": "quality",
        "keep": one.keep if one.rule == "share" else 1,
        "at": min(one.at, max_tokens - 1),
        "score_every": score_every,
    }
    if system is not None:
        vote["system"] = system
    if one.consensus < 1:
        vote["consensus"] = one.consensus
    return {
        "messages": [{"role": "user", "content": question}],
        "temperature": one.temperature,
        "max_tokens": max_tokens,
        "seed": one.seed,
        "arrol": vote,
    }
