"""Threshold: a bound on the score at a position."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from arrol_tts.stopping.rules.base import MAX_POSITION, GroupState, Rule, Verdict, Verdicts, check_number

if TYPE_CHECKING:
    from arrol_tts.stopping.log import TraceLog


@dataclass(frozen=True, slots=True)
class Threshold(Rule):
    """Prune a trace whose score at a position is below a bound.

    Args:
        at: detection position in generated tokens.
        below: probability in [0, 1]; a lower score is pruned.
    """

    kind: ClassVar[str] = "threshold"
    compares: ClassVar[bool] = False
    at: int
    below: float

    def __post_init__(self) -> None:
        check_number("threshold.at", self.at, 1, MAX_POSITION, int)
        check_number("threshold.below", self.below, 0, 1, float)

    def start(self, size: int) -> GroupState:
        """See ``Rule.start``."""
        return _State(self, size)


class _State(GroupState):
    def __init__(self, rule: Threshold, size: int) -> None:
        super().__init__(size)
        self.rule = rule
        self.asked_at = rule.at

    def observe(self, key: Hashable, log: TraceLog, score: float | None, finished: bool) -> Verdicts:
        # A score that is not a number is below every bound.
        if log.length - 1 == self.rule.at and score is not None and not finished and not score >= self.rule.below:
            detail = f"score {score:.3f} at token {self.rule.at} is below {self.rule.below:g}"
            yield key, Verdict(self.rule.kind, self.rule.at, score, detail)
