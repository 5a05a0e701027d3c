"""Meeting: what rules share that rank a group's traces at a position."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING

from arrol_tts.stopping.rules.base import GroupState, Verdicts

if TYPE_CHECKING:
    from arrol_tts.stopping.log import TraceLog


class Meeting(GroupState):
    """The traces of a group meet at a position, so that they can be ranked."""

    def __init__(self, at: int, size: int) -> None:
        super().__init__(size)
        self.at = at
        self.scores: dict[Hashable, float] = {}
        self.lost = 0
        self.gone = 0
        self.met = False

    def observe(self, key: Hashable, log: TraceLog, score: float | None, finished: bool) -> Verdicts:
        position = log.length - 1
        arrives = position == self.at or (finished and position < self.at)
        if not arrives or score is None:
            return
        # A score that is not a number must never survive a pruning.
        self.scores[key] = score if score == score else -math.inf
        if not finished:
            self.wait(key)
        # Late traces of a group that has met without them are judged at once.
        if self.met or self.complete:
            yield from self._meet()

    def leave(self, key: Hashable, log: TraceLog) -> Verdicts:
        yield from super().leave(key, log)
        if key not in self.scores:
            # One that another rule pruned still counts as a member that was not kept.
            if log.verdict is not None:
                self.lost += 1
            else:
                self.gone += 1
        if not self.met and self.complete:
            yield from self._meet()

    def unstick(self) -> Verdicts:
        yield from self._meet()

    @property
    def complete(self) -> bool:
        """Whether every member has arrived, was stopped by another rule or has gone."""
        return len(self.scores) + self.lost + self.gone >= self.size

    def _meet(self) -> Verdicts:
        self.met = True
        yield from self.decide()

    def ranked(self) -> list[Hashable]:
        """Best first; ties go to the earlier arrival."""
        return sorted(self.scores, key=self.scores.__getitem__, reverse=True)

    def decide(self) -> Verdicts:
        raise NotImplementedError
