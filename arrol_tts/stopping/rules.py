"""Stopping rules as plain data: what to record of a trace, and when to stop it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

MAX_POSITION = 1 << 24
MAX_GROUP_SIZE = 1 << 16
MAX_ENTRIES = 64
"""Bounds on what a request may ask for: a spec can come from anybody who reaches the server."""


def _number(name: str, value: object, low: float, high: float, kind: type) -> None:
    wrong_type = isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float))
    if wrong_type or not (low <= value <= high):  # type: ignore[operator]
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} is {value!r}; it must be {wanted} from {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class Threshold:
    """Prune a trace whose score at a position is below a bound.

    Args:
        at: detection position in generated tokens.
        below: probability in [0, 1]; a lower score is pruned.
    """

    kind: ClassVar[str] = "threshold"
    at: int
    below: float

    def __post_init__(self) -> None:
        _number("threshold.at", self.at, 1, MAX_POSITION, int)
        _number("threshold.below", self.below, 0, 1, float)


@dataclass(frozen=True, slots=True)
class KeepShare:
    """Prune a group to the share of its traces with the highest scores at a position.

    The group meets at the position: a trace that arrives early waits, without computing, until every
    member has arrived, finished or gone. A trace that finished before the position competes with the
    score of its finish and keeps its place when it is among the best. Several such rules prune in
    sequence; the share is always of the whole group.

    Args:
        at: detection position in generated tokens.
        share: share of the group to keep, in (0, 1]; at least one trace is kept.
    """

    kind: ClassVar[str] = "keep_share"
    at: int
    share: float

    def __post_init__(self) -> None:
        _number("keep_share.at", self.at, 1, MAX_POSITION, int)
        _number("keep_share.share", self.share, 1e-9, 1, float)

    def survivors(self, members: int) -> int:
        """How many of ``members`` traces are kept."""
        return max(1, math.floor(self.share * members + 0.5))


@dataclass(frozen=True, slots=True)
class ConfidenceFloor:
    """DeepConf online (arXiv 2508.15260, section 3.3): stop a trace when its confidence falls too low.

    The first ``warmup`` traces of a group run to their end and set the floor: the percentile of their
    lowest window confidences that ``keep`` of them stay above. The others wait until then, and stop as
    soon as the mean confidence of their last ``window`` tokens falls below it.

    Args:
        warmup: traces that set the floor (DeepConf: 16).
        keep: share of the warm-up traces above the floor: DeepConf-high is 0.9, DeepConf-low 0.1.
        window: tokens (DeepConf: 2048).
    """

    kind: ClassVar[str] = "confidence_floor"
    at: ClassVar[int] = 0
    warmup: int = 16
    keep: float = 0.9
    window: int = 2048

    def __post_init__(self) -> None:
        _number("confidence_floor.warmup", self.warmup, 1, MAX_GROUP_SIZE, int)
        _number("confidence_floor.keep", self.keep, 0, 1, float)
        _number("confidence_floor.window", self.window, 1, MAX_POSITION, int)


@dataclass(frozen=True, slots=True)
class Budget:
    """Spend a number of tokens on a group, on its most promising traces first.

    All traces run to the position. From there on the best by score continue, as many as the rest of the
    budget should pay for; the others wait and follow when one has ended and tokens are left. When the
    budget is spent, whatever still runs or waits is stopped.

    Args:
        at: detection position in generated tokens.
        tokens: generated tokens of the whole group.
        length: tokens a trace is expected to take, until traces of the group have ended and tell. Too small a
            number lets so many go on that none may end within the budget: rather estimate too high.
    """

    kind: ClassVar[str] = "budget"
    at: int
    tokens: int
    length: int

    def __post_init__(self) -> None:
        _number("budget.at", self.at, 1, MAX_POSITION, int)
        _number("budget.tokens", self.tokens, 1, MAX_POSITION * MAX_GROUP_SIZE, int)
        _number("budget.length", self.length, 1, MAX_POSITION, int)


Rule = Threshold | KeepShare | ConfidenceFloor | Budget
RULES: dict[str, Callable[..., Rule]] = {
    rule.kind: rule for rule in (Threshold, KeepShare, ConfidenceFloor, Budget)
}


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """What to record of one trace and when to stop it: plain data that travels with the request.

    Args:
        group: names the prompt whose samples are compared with each other; "" for none, or in a
            template whose group and size the engine sets for each question.
        size: number of traces in the group.
        score_at: positions, in generated tokens, at which the head's score is logged.
        score_every: log it at every multiple of this many tokens too; 0 is off.
        score_after: log it after these token ids too, such as those that end a paragraph.
        score_finish: log the score at the finish too.
        head: name of the head that scores, where an engine has loaded several; "" is the default one.
        confidence: log DeepConf's confidence of every token.
        confidence_window: log DeepConf's measures over windows of this many tokens, instead of or beside a
            number for every token; 0 is off.
        logprobs: log the log-probability of every sampled token, for reinforcement learning.
        live: report new scores while the trace is written, not only at its end.
        features_at: positions at which the hidden vector itself is kept, for training heads.
        features_finish: keep it at the finish too.
        stop: texts that end the trace as soon as it has written one of them.
        rules: stopping rules; each is applied on its own.
    """

    group: str = ""
    size: int = 1
    score_at: tuple[int, ...] = ()
    score_every: int = 0
    score_after: tuple[int, ...] = ()
    score_finish: bool = False
    head: str = ""
    confidence: bool = False
    confidence_window: int = 0
    logprobs: bool = False
    live: bool = False
    features_at: tuple[int, ...] = ()
    features_finish: bool = False
    stop: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        for name in ("group", "head"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > 256:
                raise ValueError(f"{name} must be a string of at most 256 characters")
        _number("size", self.size, 1, MAX_GROUP_SIZE, int)
        for name in ("score_finish", "confidence", "logprobs", "live", "features_finish"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        _number("score_every", self.score_every, 0, MAX_POSITION, int)
        _number("confidence_window", self.confidence_window, 0, MAX_POSITION, int)
        for name in ("score_at", "score_after", "features_at", "stop", "rules"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or len(value) > MAX_ENTRIES:
                raise ValueError(f"{name} must be a list of at most {MAX_ENTRIES} entries")
            object.__setattr__(self, name, tuple(value))
        for position in self.score_at:
            _number("score_at", position, 1, MAX_POSITION, int)
        for position in self.features_at:
            _number("features_at", position, 0, MAX_POSITION, int)
        for token in self.score_after:
            _number("score_after", token, 0, MAX_POSITION, int)
        for text in self.stop:
            if not isinstance(text, str) or not 0 < len(text) <= 256:
                raise ValueError(f"stop has {text!r:.60}; its entries must be texts of 1 to 256 characters")

    @property
    def asks_anything(self) -> bool:
        """Whether there is anything to record or to stop; "live" alone is not."""
        return replace(self, group="", size=1, live=False) != TraceSpec()

    @property
    def scores(self) -> bool:
        """Whether a head is needed."""
        by_score = any(not isinstance(rule, ConfidenceFloor) for rule in self.rules)
        return by_score or bool(self.score_at or self.score_every or self.score_after or self.score_finish)

    @property
    def confidences(self) -> bool:
        """Whether token confidences are needed."""
        floor = any(isinstance(rule, ConfidenceFloor) for rule in self.rules)
        return floor or self.confidence or self.confidence_window > 0

    def keeps_features(self, position: int, finished: bool) -> bool:
        """Whether the hidden vector of a step is kept."""
        return position in self.features_at or (finished and self.features_finish)

    def scores_at(self, position: int, token: int | None, finished: bool) -> bool:
        """Whether the score at a position is logged, whose input is the given token."""
        every = self.score_every
        return (
            (every > 0 and position > 0 and position % every == 0)
            or (finished and self.score_finish)
            or position in self.score_at
            or token in self.score_after
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, the inverse of ``parse``."""
        data = asdict(self)
        data["rules"] = [{"rule": rule.kind, **asdict(rule)} for rule in self.rules]
        return data

    @classmethod
    def parse(cls, data: object) -> TraceSpec:
        """Read a spec from a mapping or a JSON string.

        Raises:
            ValueError: for anything malformed, saying what to change. Nothing else is raised,
                whatever the input, since the input may come over the network.
        """
        if isinstance(data, str):
            try:
                data = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"the trace spec is not valid JSON: {error}") from None
        values = _known_keys(data, (f.name for f in fields(cls)), "the trace spec")
        rules = values.get("rules", ())
        if not isinstance(rules, (list, tuple)) or len(rules) > MAX_ENTRIES:
            raise ValueError(f"rules must be a list of at most {MAX_ENTRIES} entries")
        spec = cls(**{**values, "rules": tuple(_parse_rule(rule) for rule in rules)})
        for rule in spec.rules:
            if not isinstance(rule, Threshold) and not spec.group:
                raise ValueError(f"a {rule.kind} rule compares the traces of a group: set group and size")
        return spec


def _parse_rule(data: object) -> Rule:
    if not isinstance(data, Mapping) or not isinstance(data.get("rule"), str) or data["rule"] not in RULES:
        raise ValueError(f'each rule must be a mapping with "rule" one of {", ".join(RULES)}')
    kind = RULES[data["rule"]]
    values = _known_keys(
        {k: v for k, v in data.items() if k != "rule"},
        (f.name for f in fields(kind)),  # type: ignore[arg-type]
        f"rule {data['rule']}",
    )
    try:
        return kind(**values)
    except TypeError:
        names = ", ".join(f.name for f in fields(kind))  # type: ignore[arg-type]
        raise ValueError(f"rule {data['rule']} needs {names}") from None


def _known_keys(data: object, known: Iterable[str], what: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a mapping, not {type(data).__name__}")
    known = tuple(known)
    unknown = [str(k)[:40] for k in data if k not in known]
    if unknown:
        raise ValueError(f"{what} has unknown keys {unknown[:5]}; known keys: {', '.join(known)}")
    return dict(data)
