"""ConfidenceFloor: DeepConf online, a bound on the running confidence that the first traces of a group set."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from arrol_tts.stopping.rules.base import (
    MAX_GROUP_SIZE,
    MAX_POSITION,
    GroupState,
    Rule,
    Verdict,
    Verdicts,
    Window,
    check_number,
)

if TYPE_CHECKING:
    from arrol_tts.stopping.log import TraceLog


@dataclass(frozen=True, slots=True)
class ConfidenceFloor(Rule):
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
    reads: ClassVar[str] = "confidence"
    at: ClassVar[int] = 0
    warmup: int = 16
    keep: float = 0.9
    window: int = 2048

    def __post_init__(self) -> None:
        check_number("confidence_floor.warmup", self.warmup, 1, MAX_GROUP_SIZE, int)
        check_number("confidence_floor.keep", self.keep, 0, 1, float)
        check_number("confidence_floor.window", self.window, 1, MAX_POSITION, int)

    def start(self, size: int) -> GroupState:
        """See ``Rule.start``."""
        return _State(self, size)


class _State(GroupState):
    def __init__(self, rule: ConfidenceFloor, size: int) -> None:
        super().__init__(size)
        self.rule = rule
        self.warming: set[Hashable] = set()
        self.windows: dict[Hashable, Window] = {}
        self.warmed: list[float] = []
        self.gone = 0
        self.floor: float | None = None

    def join(self, key: Hashable) -> None:
        super().join(key)
        if self.joined <= self.rule.warmup:
            self.warming.add(key)
        elif self.floor is None:
            self.wait(key)  # from its beginning: so long it takes neither a slot nor memory

    def observe(self, key: Hashable, log: TraceLog, score: float | None, finished: bool) -> Verdicts:
        # This runs for every token of every trace.
        confidences, window = log.confidence, self.rule.window
        length = len(confidences)
        if not length:
            return ()
        trace = self._window(key)
        total = trace.total + confidences[-1]
        if length > window:
            total -= confidences[-1 - window]
        trace.total = total
        confidence = total / (length if length < window else window)
        if key in self.warming:
            if (length >= window or finished) and confidence < trace.lowest:
                trace.lowest = confidence
            if finished:
                self._warm(key, trace.lowest)
        elif self.floor is None:
            if not finished:
                self.wait(key)
        elif length >= window and not confidence >= self.floor and not finished:
            detail = f"confidence {confidence:.3f} of the last {window} tokens is below {self.floor:.3f}"
            return ((key, Verdict(self.rule.kind, log.length - 1, score, detail)),)
        return ()

    def window(self, key: Hashable) -> Window | None:
        waits = self.floor is None and key not in self.warming
        return None if waits else self._window(key)

    def _window(self, key: Hashable) -> Window:
        window = self.windows.get(key)
        if window is None:
            window = self.windows[key] = Window(self.rule.window, bound=self._bound(key))
        return window

    def _bound(self, key: Hashable) -> float:
        return -math.inf if self.floor is None or key in self.warming else self.floor

    def _warm(self, key: Hashable, lowest: float) -> None:
        """A trace that sets the floor has ended."""
        self.warming.discard(key)
        # Confidences that are not finite say nothing of a floor, and are below every one.
        if math.isfinite(lowest):
            self.warmed.append(lowest)
        else:
            self.gone += 1
        self._set_floor_when_warm()

    def leave(self, key: Hashable, log: TraceLog) -> Verdicts:
        yield from super().leave(key, log)
        self.windows.pop(key, None)
        if key in self.warming:
            # It was cancelled or pruned on the way: the floor is set without it.
            self.warming.discard(key)
            self.gone += 1
            self._set_floor_when_warm()

    def unstick(self) -> Verdicts:
        self._set_floor()
        yield from ()

    def _set_floor_when_warm(self) -> None:
        if len(self.warmed) + self.gone >= min(self.rule.warmup, self.size):
            self._set_floor()

    def _set_floor(self) -> None:
        self.floor = _percentile(self.warmed, 1 - self.rule.keep) if self.warmed else -math.inf
        for key, window in self.windows.items():
            window.bound = self._bound(key)
        self.waiting.clear()


def _percentile(values: list[float], share: float) -> float:
    """The value that a share of the values lies below, interpolated linearly as NumPy does."""
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (place - low) * (ranked[high] - ranked[low])
