"""KeepShare: the best share of a group goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from arrol_tts.stopping.rules.base import MAX_POSITION, GroupState, Rule, Verdict, Verdicts, check_number
from arrol_tts.stopping.rules.meeting import Meeting


@dataclass(frozen=True, slots=True)
class KeepShare(Rule):
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
        check_number("keep_share.at", self.at, 1, MAX_POSITION, int)
        check_number("keep_share.share", self.share, 1e-9, 1, float)

    def survivors(self, members: int) -> int:
        """How many of ``members`` traces are kept."""
        return max(1, math.floor(self.share * members + 0.5))

    def start(self, size: int) -> GroupState:
        """See ``Rule.start``."""
        return _State(self, size)


class _State(Meeting):
    def __init__(self, rule: KeepShare, size: int) -> None:
        super().__init__(rule.at, size)
        self.rule = rule
        self.asked_at = rule.at

    def decide(self) -> Verdicts:
        kept = min(self.rule.survivors(len(self.scores) + self.lost), len(self.scores))
        pruned = [key for key in self.ranked()[kept:] if key in self.waiting]
        self.waiting.clear()
        for key in pruned:
            score = self.scores[key]
            detail = f"score {score:.3f} at token {self.at} is not among the best {kept} of {len(self.scores)}"
            yield key, Verdict(self.rule.kind, self.at, score, detail)
