"""Consensus: stop asking when the answer is clear.

Evaluated on the votes of a question's finished traces, each time one ends; when it is reached, the
remaining traces are cancelled in the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arrol_tts.errors import InputError
from arrol_tts.voting import Method, answered, vote

if TYPE_CHECKING:
    from arrol_tts.answers import Equality, PercentSign
    from arrol_tts.trace import Trace


@dataclass(frozen=True, slots=True)
class Consensus:
    """When a question needs no more traces.

    Args:
        share: stop when the leader has this share of the weight (DeepConf: 0.95); None: not by share.
        certainty: stop when the leader is the most likely answer of the model with this probability
            (Adaptive-Consistency, arXiv 2305.11860: 0.95); None: not by certainty.
        min_votes: never before so many traces have voted.
        method: voting method whose weights count; its weights are scaled to a mean of one vote.
        equality: what makes two answers one, see `arrol_tts.vote`; None: the voter's.
        percent: what a per cent sign means, likewise.

    Raises:
        InputError: when neither criterion is set, or a value is out of range.
    """

    share: float | None = 0.95
    certainty: float | None = None
    min_votes: int = 8
    method: str | Method = "majority"
    equality: Equality | None = None
    percent: PercentSign | None = None

    def __post_init__(self) -> None:
        if self.share is None and self.certainty is None:
            raise InputError("a consensus needs share= or certainty=")
        for name in ("share", "certainty"):
            value = getattr(self, name)
            if value is not None and not 0.5 <= value < 1:
                raise InputError(f"{name} is {value!r}; it must be in [0.5, 1)")
        if self.min_votes < 1:
            raise InputError(f"min_votes is {self.min_votes}; it must be at least 1")
        if self.equality is not None or self.percent is not None:
            from arrol_tts.answers import key_function

            key_function(self.equality or "math", self.percent or "fraction")

    def reached(self, traces: Sequence[Trace], **options: Any) -> str:
        """Why no more traces are needed, in words; empty while they are.

        Args:
            traces: those of one question that have ended.
            **options: of the vote and of its method.
        """
        votes = sum(map(answered, traces))
        if votes < self.min_votes:
            return ""
        own = {"equality": self.equality, "percent": self.percent}
        options |= {name: value for name, value in own.items() if value is not None}
        table = vote(traces, self.method, **options).table
        leader = table[0]
        if self.share is not None and leader.share >= self.share:
            return f"answer {leader.answer} has {leader.share:.0%} of the votes of {votes} traces"
        if self.certainty is not None:
            second = table[1].share if len(table) > 1 else 0.0
            certainty = most_likely(leader.share * votes, second * votes)
            if certainty >= self.certainty:
                return f"answer {leader.answer} leads with probability {certainty:.3f} after {votes} traces"
        return ""


def most_likely(leader: float, second: float) -> float:
    """Probability that the leading of two answers is the more likely one, under a uniform prior.

    P(p > 1/2) for p ~ Beta(leader + 1, second + 1): the stopping criterion of Adaptive-Consistency
    (arXiv 2305.11860, section 3), for votes that need not be whole.

    Args:
        leader: votes of the leading answer, at least 0.
        second: votes of the next one, at least 0.
    """
    grid = (np.arange(4096) + 0.5) / 4096
    log_density = leader * np.log(grid) + second * np.log1p(-grid)
    density = np.exp(log_density - log_density.max())
    return float(density[grid > 0.5].sum() / density.sum())
