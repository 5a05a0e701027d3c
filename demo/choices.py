"""What a user can choose, checked and capped; also as a link that brings the same page back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from arrol_tts.consensus import Consensus
from arrol_tts.errors import InputError
from arrol_tts.stopping import ConfidenceFloor, Threshold

RULES = {
    "share": "keep the best share",
    "bar": "keep scores above a bar",
    "deepconf": "DeepConf: stop when confidence drops",
    "none": "prune nothing",
}
"""Stopping rules by the name that links and the API use, and what the page calls them."""

MAX_QUESTION = 2000
"""Characters of a question."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How to sample and prune one run.

    Args:
        n: traces.
        temperature: of the sampling.
        rule: stopping rule, a name in ``RULES``.
        keep: share of the traces to keep; with ``bar`` the lowest score that is kept.
        at: detection position in generated tokens.
        consensus: share of the vote at which the rest is cancelled; 1 is never.
        seed: of the sampling.

    Raises:
        InputError: for a value out of range, saying what is possible.
    """

    n: int = 32
    temperature: float = 1.0
    rule: str = "share"
    keep: float = 0.5
    at: int = 32
    consensus: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InputError(f"the stopping rule is {self.rule!r}; choose from {', '.join(RULES)}")
        for name, low, high in (("n", 1, 256), ("at", 1, 1_000_000), ("seed", 0, 2**31 - 1)):
            _check(name, getattr(self, name), low, high, int)
        for name, least, most in (("temperature", 0.0, 5.0), ("keep", 0.01, 1.0), ("consensus", 0.5, 1.0)):
            _check(name, getattr(self, name), least, most, float)

    @property
    def prunes_at(self) -> int | None:
        """The detection position, None when the rule has none."""
        shares = self.rule == "share" and self.keep < 1
        return self.at if shares or self.rule == "bar" else None

    @property
    def label(self) -> str:
        """The choices in a few words, for the head of a run."""
        if self.rule == "share" and self.keep < 1:
            rule = f"keep the best {self.keep:.0%} at token {self.at}"
        elif self.rule == "bar":
            rule = f"keep scores of at least {self.keep:.2f} at token {self.at}"
        elif self.rule == "deepconf":
            rule = f"DeepConf, keep {self.keep:.0%}"
        else:
            rule = "nothing pruned"
        return f"{self.n} traces, {rule}, temperature {self.temperature:g}, seed {self.seed}"

    def options(self, *, window: int, max_tokens: int) -> dict[str, Any]:
        """Keyword options of ``WeightedVoter.stream``.

        Args:
            window: DeepConf's window in tokens.
            max_tokens: limit on a trace.

        Raises:
            InputError: when the detection position is not below the limit.
        """
        if self.prunes_at is not None and self.at >= max_tokens:
            raise InputError(f"traces end at token {max_tokens}: detect before that, not at {self.at}")
        rules: tuple[Any, ...] = ()
        if self.rule == "bar":
            rules = (Threshold(self.at, self.keep),)
        elif self.rule == "deepconf":
            rules = (ConfidenceFloor(warmup=max(1, min(16, self.n // 2)), keep=self.keep, window=window),)
        return {
            "temperature": self.temperature,
            "keep": self.keep if self.rule == "share" else 1.0,
            "at": min(self.at, max_tokens - 1),
            "rules": rules,
            "consensus": Consensus(share=self.consensus, method="quality") if self.consensus < 1 else None,
            "max_tokens": max_tokens,
            "seed": self.seed,
        }


def _check(name: str, value: object, low: float, high: float, kind: type) -> None:
    fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        raise InputError(f"{name} is {value!r}; give a {'whole ' * (kind is int)}number from {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class Ask:
    """A question and how to answer it.

    Args:
        question: what to ask.
        choices: of one run, or of two to compare.

    Raises:
        InputError: for a question that is empty or too long.
    """

    question: str
    choices: tuple[Choices, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.question, str) or not self.question.strip():
            raise InputError("the question is empty: ask something")
        if len(self.question) > MAX_QUESTION:
            raise InputError(f"the question has {len(self.question)} characters; the limit is {MAX_QUESTION}")

    @property
    def link(self) -> str:
        """The query string that brings this page back, ``?q=...``."""
        first, *others = self.choices
        fields = {"q": self.question, **{name: getattr(first, name) for name in SHARED + OWN}}
        for other in others:
            fields |= {"compare": 1} | {f"{name}_b": getattr(other, name) for name in OWN}
        return "?" + urlencode(fields)

    @classmethod
    def parse(cls, query: Mapping[str, str], default: Choices) -> Ask | None:
        """Read a link's query string; None when it asks nothing.

        Raises:
            InputError: for anything malformed.
        """
        if not query.get("q"):
            return None
        values = {name: _number(name, query[name]) for name in SHARED + OWN if name in query}
        first = replace(default, **values)
        if not query.get("compare"):
            return cls(query["q"], (first,))
        others = {name: _number(name, query[f"{name}_b"]) for name in OWN if f"{name}_b" in query}
        return cls(query["q"], (first, replace(first, **others)))


SHARED = ("n", "seed", "consensus")
"""Choices that two compared runs share."""
OWN = ("rule", "keep", "at", "temperature")
"""Choices that each of two compared runs has of its own."""


def _number(name: str, text: str) -> Any:
    if name == "rule":
        return text
    try:
        return int(text) if name in ("n", "at", "seed") else float(text)
    except ValueError:
        raise InputError(f"{name} in the link is {text[:40]!r}; it must be a number") from None
