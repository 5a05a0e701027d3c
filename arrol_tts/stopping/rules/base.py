"""What every stopping rule is: plain data that travels with a request, and a state for each group at work."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from arrol_tts.errors import InputError

if TYPE_CHECKING:
    from arrol_tts.stopping.log import TraceLog

MAX_POSITION = 1 << 24
MAX_GROUP_SIZE = 1 << 16
"""Bounds on what a request may ask for: a rule can come from anybody who reaches the server."""

PATIENCE_SECONDS = 5.0
"""How long a group waits for members that were announced but never submitted."""

DEADLINE_SECONDS = 60.0
"""How long after its first wait a group expects members, however many keep coming."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a trace is stopped.

    Attributes:
        rule: its kind.
        position: where.
        score: of the trace there, None without.
        detail: in words.
        chosen: whether the rule chose this trace; otherwise it could not choose, and stopped all.
    """

    rule: str
    position: int
    score: float | None
    detail: str
    chosen: bool = True


Verdicts = Iterable[tuple[Hashable, Verdict]]


@dataclass(frozen=True, slots=True)
class Rule(ABC):
    """When to stop a trace: a frozen dataclass whose fields are plain data that can be hashed.

    Attributes:
        kind: its name in serialised form.
        at: detection position in generated tokens; 0 for rules that have none.
        reads: the signal that it decides by, ``"score"`` or ``"confidence"``.
        compares: whether it compares a group's traces, and so needs all of them in one engine.
    """

    kind: ClassVar[str]
    reads: ClassVar[str] = "score"
    compares: ClassVar[bool] = True

    if TYPE_CHECKING:  # a field of most rules, which would take it for its default

        @property
        def at(self) -> int: ...

    @abstractmethod
    def start(self, size: int) -> GroupState:
        """The rule's state in a group of that many traces that is only beginning."""


@dataclass(slots=True)
class Window:
    """A trace's last confidences, as a rule follows them that reads every one.

    Attributes:
        size: how many they are.
        total: their sum; of all while there are fewer.
        lowest: the lowest mean of a whole window so far.
        bound: the mean below which the rule must be told of a row.
    """

    size: float
    total: float = 0.0
    lowest: float = math.inf
    bound: float = -math.inf


class GroupState:
    """One rule at work in one group.

    Attributes:
        waiting: traces that must not be computed until the rule has decided.
        members: traces of the group that the engine has now.
        asked_at: the only position, beside a trace's end, at which the rule must be asked; None for every one.
    """

    asked_at: int | None = None

    def __init__(self, size: int) -> None:
        self.size = size
        self.waiting: set[Hashable] = set()
        self.members: set[Hashable] = set()
        self.joined = 0
        self.last_arrival = time.monotonic()
        self.first_wait = math.inf

    def join(self, key: Hashable) -> None:
        """A trace of the group was submitted."""
        self.members.add(key)
        self.joined += 1
        self.last_arrival = time.monotonic()

    def observe(self, key: Hashable, log: TraceLog, score: float | None, finished: bool) -> Verdicts:
        """Take in the step that made the trace ``log.length`` long."""
        raise NotImplementedError

    def window(self, key: Hashable) -> Window | None:
        """What the rule follows of a trace; None where it must be told of every row.

        Who moves it on need not tell the rule of rows, except of one that leaves the mean below the bound, or that
        ends the trace.
        """
        return None

    def leave(self, key: Hashable, log: TraceLog) -> Verdicts:
        """A trace ended, in whatever way."""
        self.members.discard(key)
        self.waiting.discard(key)
        return iter(())

    def unstick(self) -> Verdicts:
        """Let somebody go on although the rule is not ready to decide: it would wait for ever."""
        raise NotImplementedError

    def wait(self, key: Hashable) -> None:
        """Let a trace wait."""
        self.waiting.add(key)
        self.last_arrival = time.monotonic()
        self.first_wait = min(self.first_wait, self.last_arrival)

    def close(self) -> None:
        """Expect nobody else when the deadline has passed: somebody could go on announcing members for ever."""
        if self.joined < self.size and time.monotonic() - self.first_wait > DEADLINE_SECONDS:
            self.size = self.joined

    @property
    def expects_members(self) -> bool:
        """Whether announced members have yet to be submitted, and may still come: requests over a network
        arrive one by one, while the first of them may already wait."""
        return self.joined < self.size and time.monotonic() - self.last_arrival <= PATIENCE_SECONDS

    @property
    def waits_in_vain(self) -> bool:
        """Whether all that were submitted are waiting, and no other came for a while or is expected."""
        idle = time.monotonic() - self.last_arrival > PATIENCE_SECONDS
        closed = time.monotonic() - self.first_wait > DEADLINE_SECONDS
        return (idle or closed) and self.waiting == self.members


def check_number(name: str, value: object, low: float, high: float, kind: type) -> None:
    """Refuse what is no number of a kind, or out of its bounds.

    Raises:
        InputError: naming the value and the bounds.
    """
    wrong_type = isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float))
    if wrong_type or not (low <= value <= high):  # type: ignore[operator]
        wanted = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} is {value!r}; it must be {wanted} from {low:g} to {high:g}")
