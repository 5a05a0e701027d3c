"""Budget: a group's tokens are spent on its most promising traces first."""

from __future__ import annotations

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
    check_number,
)
from arrol_tts.stopping.rules.meeting import Meeting

if TYPE_CHECKING:
    from arrol_tts.stopping.log import TraceLog


@dataclass(frozen=True, slots=True)
class Budget(Rule):
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
        check_number("budget.at", self.at, 1, MAX_POSITION, int)
        check_number("budget.tokens", self.tokens, 1, MAX_POSITION * MAX_GROUP_SIZE, int)
        check_number("budget.length", self.length, 1, MAX_POSITION, int)

    def start(self, size: int) -> GroupState:
        """See ``Rule.start``."""
        return _State(self, size)


class _State(Meeting):
    def __init__(self, rule: Budget, size: int) -> None:
        super().__init__(rule.at, size)
        self.rule = rule
        self.lengths: dict[Hashable, int] = {}
        self.spent = 0
        self.ended: list[int] = []

    def observe(self, key: Hashable, log: TraceLog, score: float | None, finished: bool) -> Verdicts:
        self.spent += log.length - self.lengths.get(key, 0)
        self.lengths[key] = log.length
        yield from super().observe(key, log, score, finished)
        if finished:
            self.ended.append(log.length)
        if self.spent >= self.rule.tokens:
            self.waiting.clear()
            detail = f"the group's budget of {self.rule.tokens} tokens is spent"
            for other in list(self.members):
                if other != key or not finished:
                    position = self.lengths.get(other, 1) - 1
                    yield other, Verdict(self.rule.kind, position, self.scores.get(other), detail)

    def leave(self, key: Hashable, log: TraceLog) -> Verdicts:
        self.lengths.pop(key, None)
        yield from super().leave(key, log)
        if self.met:
            yield from self.decide()

    def unstick(self) -> Verdicts:
        if not self.met:
            yield from self._meet()
            return
        # Waiting traces hold the memory that the running ones need: give up the least promising.
        worst = next((key for key in reversed(self.ranked()) if key in self.waiting), None)
        if worst is not None:
            self.waiting.discard(worst)
            yield worst, Verdict(self.rule.kind, self.at, self.scores[worst], "no memory is left for its group")

    def decide(self) -> Verdicts:
        """Let the best waiting traces run, as many as the rest of the budget should pay for."""
        expected = sum(self.ended) / len(self.ended) if self.ended else self.rule.length
        running = [key for key in self.members - self.waiting if key in self.lengths]
        committed = self.spent + sum(max(expected - self.lengths[key], 1) for key in running)
        for key in [key for key in self.ranked() if key in self.waiting]:
            committed += max(expected - self.lengths[key], 1)
            if committed > self.rule.tokens and running:
                break
            self.waiting.discard(key)
            running.append(key)
        return iter(())
