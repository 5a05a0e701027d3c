"""Stopping rules as plain data, and the Monitor that applies them: the same code in every engine.

A position k is counted in generated tokens: the score at k is read from the hidden state whose input
is the k-th generated token. The step that computes it has already sampled token k + 1, so a trace
pruned at k has k + 1 tokens.

An engine tells the Monitor what it sees (``add``, ``observe``, ``finish``, ``drop``), asks which
traces to stop (``take_verdicts``) and which to leave unscheduled until their group has met
(``is_held``). The Monitor knows nothing of models, tensors or schedulers.
"""

from __future__ import annotations

import base64
import json
import math
import time
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

MAX_POSITION = 1 << 24
MAX_GROUP_SIZE = 1 << 16
MAX_ENTRIES = 64
"""Bounds on what a request may ask for: a spec can come from anybody who reaches the server."""

PATIENCE_SECONDS = 5.0
"""How long a group waits for members that were announced but never submitted."""


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
    score of its finish and keeps its place when it is among the best.

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


Rule = Threshold | KeepShare
RULES: dict[str, Callable[..., Rule]] = {rule.kind: rule for rule in (Threshold, KeepShare)}


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """What to record of one trace and when to stop it: plain data that travels with the request.

    Args:
        group: names the prompt whose samples are compared with each other; "" for none, or in a
            template whose group and size the engine sets for each question.
        size: number of traces in the group.
        score_at: positions, in generated tokens, at which the head's score is logged.
        score_finish: log the score at the finish too.
        confidence: log DeepConf's confidence of every token.
        rules: stopping rules; each is applied on its own.
    """

    group: str = ""
    size: int = 1
    score_at: tuple[int, ...] = ()
    score_finish: bool = False
    confidence: bool = False
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.group, str) or len(self.group) > 256:
            raise ValueError("group must be a string of at most 256 characters")
        _number("size", self.size, 1, MAX_GROUP_SIZE, int)
        for name in ("score_finish", "confidence"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        for name in ("score_at", "rules"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or len(value) > MAX_ENTRIES:
                raise ValueError(f"{name} must be a list of at most {MAX_ENTRIES} entries")
            object.__setattr__(self, name, tuple(value))
        for position in self.score_at:
            _number("score_at", position, 1, MAX_POSITION, int)

    @property
    def scores(self) -> bool:
        """Whether a head is needed."""
        return bool(self.score_at or self.score_finish or self.rules)

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
        if any(isinstance(rule, KeepShare) for rule in spec.rules) and not spec.group:
            raise ValueError("a keep_share rule compares the traces of a group: set group and size")
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a trace is stopped: the rule, the position, the trace's score there, and words."""

    rule: str
    position: int
    score: float
    detail: str


@dataclass(slots=True)
class TraceLog:
    """What was observed of one trace.

    Attributes:
        scores: ``{position: score}``.
        confidence: float32, one per generated token, when the spec asks for it.
        verdict: why it was stopped, None while it was not.
        length: generated tokens seen so far.
    """

    spec: TraceSpec
    scores: dict[int, float] = field(default_factory=dict)
    confidence: array[float] = field(default_factory=lambda: array("f"))
    verdict: Verdict | None = None
    length: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form that leaves the engine with the finished request."""
        data: dict[str, Any] = {"scores": list(self.scores.items())}
        if self.spec.confidence:
            data["confidence"] = base64.b64encode(self.confidence.tobytes()).decode()
        if self.verdict is not None:
            data["pruned"] = asdict(self.verdict)
        return data


class _Meeting:
    """A group's traces meeting at a position, under one KeepShare rule."""

    def __init__(self, rule: KeepShare, size: int) -> None:
        self.rule, self.size = rule, size
        self.scores: dict[Hashable, float] = {}
        self.waiting: set[Hashable] = set()
        self.gone = 0
        self.decided = False
        self.last_arrival = time.monotonic()

    def arrive(self, key: Hashable, score: float, *, finished: bool) -> None:
        # A score that is not a number must never survive a pruning.
        self.scores[key] = score if score == score else -math.inf
        if not finished:
            self.waiting.add(key)
        self.last_arrival = time.monotonic()

    def leave(self, key: Hashable) -> None:
        self.waiting.discard(key)
        if key not in self.scores:
            self.gone += 1

    @property
    def complete(self) -> bool:
        return len(self.scores) + self.gone >= self.size

    def decide(self) -> list[tuple[Hashable, Verdict]]:
        """End the meeting and name the traces to prune; ties go to the earlier arrival."""
        kept = self.rule.survivors(len(self.scores))
        ranked = sorted(self.scores, key=self.scores.__getitem__, reverse=True)
        pruned = [key for key in ranked[kept:] if key in self.waiting]
        self.decided = True
        self.waiting.clear()
        return [
            (
                key,
                Verdict(
                    rule=self.rule.kind,
                    position=self.rule.at,
                    score=self.scores[key],
                    detail=f"score {self.scores[key]:.3f} at token {self.rule.at} is not among the best "
                    f"{kept} of {len(self.scores)}",
                ),
            )
            for key in pruned
        ]


class Monitor:
    """The score log and the stopping rules of all traces of one engine.

    Keys are the engine's own names of traces. Every method costs O(1) per call, but for the ranking
    when a group has met.
    """

    def __init__(self) -> None:
        self.logs: dict[Hashable, TraceLog] = {}
        self._meetings: dict[tuple[str, KeepShare], _Meeting] = {}
        self._members: dict[str, set[Hashable]] = {}
        self._verdicts: dict[Hashable, Verdict] = {}
        self._held: dict[Hashable, _Meeting] = {}

    def add(self, key: Hashable, spec: TraceSpec) -> TraceLog:
        """Begin to watch a trace."""
        log = self.logs[key] = TraceLog(spec)
        if spec.group:
            self._members.setdefault(spec.group, set()).add(key)
        return log

    def observe(
        self,
        key: Hashable,
        position: int,
        *,
        score: float | None = None,
        confidence: float | None = None,
        finished: bool = False,
    ) -> None:
        """Take in one step of a trace: a row whose input is the position-th generated token.

        Args:
            key: the trace.
            position: generated tokens up to and including the row's input; 0 is the prompt's end.
            score: the head's probability read from the row, None without a head.
            confidence: DeepConf's confidence of the token sampled from the row.
            finished: the token sampled from the row ended the trace.
        """
        log = self.logs[key]
        spec = log.spec
        log.length = position + 1
        if confidence is not None and spec.confidence:
            log.confidence.append(confidence)
        if score is None or not spec.scores:
            return
        if position in spec.score_at or (finished and spec.score_finish):
            log.scores[position] = score
        for rule in spec.rules:
            reached = position == rule.at
            if isinstance(rule, KeepShare):
                if reached or (finished and position < rule.at):
                    self._arrive(key, log, rule, score, finished)
            elif reached and not finished and not score >= rule.below:
                detail = f"score {score:.3f} at token {position} is below {rule.below:g}"
                self._verdicts.setdefault(key, Verdict(rule.kind, position, score, detail))

    def _arrive(self, key: Hashable, log: TraceLog, rule: KeepShare, score: float, finished: bool) -> None:
        meeting = self._meeting(log, rule)
        meeting.arrive(key, score, finished=finished)
        if not meeting.decided and not meeting.complete:
            if not finished:
                self._held[key] = meeting
            return
        # Complete, or the group has met without this late trace: it is judged against all it knows of.
        self._decide(meeting)

    def _decide(self, meeting: _Meeting) -> None:
        for key in meeting.waiting:
            self._held.pop(key, None)
        for key, verdict in meeting.decide():
            self._verdicts.setdefault(key, verdict)

    def drop(self, key: Hashable) -> TraceLog | None:
        """Forget a trace that ended, was pruned or was cancelled; returns its log."""
        log = self.logs.pop(key, None)
        if log is None:
            return None
        self._held.pop(key, None)
        self._verdicts.pop(key, None)
        if log.spec.group:
            members = self._members[log.spec.group]
            members.discard(key)
            for rule in log.spec.rules:
                if isinstance(rule, KeepShare):
                    meeting = self._meeting(log, rule)
                    meeting.leave(key)
                    if not meeting.decided and meeting.complete:
                        self._decide(meeting)
                    if not members:
                        self._meetings.pop((log.spec.group, rule), None)
            if not members:
                del self._members[log.spec.group]
        return log

    def _meeting(self, log: TraceLog, rule: KeepShare) -> _Meeting:
        name = (log.spec.group, rule)
        if name not in self._meetings:
            self._meetings[name] = _Meeting(rule, log.spec.size)
        return self._meetings[name]

    def take_verdicts(self) -> dict[Hashable, Verdict]:
        """The traces to stop now, each named once; the log of each remembers why."""
        verdicts, self._verdicts = self._verdicts, {}
        for key, verdict in verdicts.items():
            self.logs[key].verdict = verdict
        return verdicts

    def is_held(self, key: Hashable) -> bool:
        """Whether a trace waits for its group and must not be computed further."""
        return key in self._held

    @property
    def any_held(self) -> bool:
        """Whether any trace waits for its group."""
        return bool(self._held)

    def release(self, *, stuck: bool = False) -> None:
        """Let groups go on that wait in vain.

        A group decides without its missing members when all it has submitted are waiting and no other
        came for PATIENCE_SECONDS, or at once when the engine is ``stuck``: nothing at all can be
        scheduled, e.g. because waiting traces hold all KV blocks.
        """
        now = time.monotonic()
        for meeting in dict.fromkeys(self._held.values()):
            member = next(iter(meeting.waiting))
            present = self._members[self.logs[member].spec.group]
            alone = all(key in meeting.waiting for key in present)
            if stuck or (alone and now - meeting.last_arrival > PATIENCE_SECONDS):
                self._decide(meeting)
                if stuck:
                    return
