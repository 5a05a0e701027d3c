"""Waves: start a few traces of a question, and more only while its vote is open.

The decision needs no engine: `Waves.more` says from a question's ended traces how many come next, and
`replay_waves` says it of traces that were recorded. ``WeightedVoter`` asks it at the end of every wave
(`arrol_tts.streams`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from arrol_tts.consensus import most_likely
from arrol_tts.errors import InputError
from arrol_tts.voting import METHODS, Method, VoteResult, vote

if TYPE_CHECKING:
    from arrol_tts.calibration import AnswerCalibration
    from arrol_tts.trace import Trace


_EPS = 1e-4
"""How far scores are kept from 0 and 1 where they become odds, as in the vote by odds."""


@dataclass(frozen=True, slots=True)
class Waves:
    """How many traces of a question to start, and when it has enough.

    A wave is decided on when all traces started so far have ended, so which traces a question gets follows from
    their seeds alone: always the first ones of a full run.

    Args:
        start: traces of the first wave.
        step: of each further one.
        certainty: no more once the vote is this sure of its leader, see `sureness`; 1: all n are sampled.

    Raises:
        InputError: for a value out of its range.
    """

    start: int = 4
    step: int = 2
    certainty: float = 0.95

    def __post_init__(self) -> None:
        for name in ("start", "step"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if not isinstance(self.certainty, (int, float)) or not 0.5 <= self.certainty <= 1:
            raise InputError(
                f"certainty is {self.certainty!r}; it must be from 0.5, where the first wave nearly always "
                "decides, to 1, where all n traces are sampled"
            )

    def check(self, n: int) -> None:
        """Refuse a first wave of more traces than a question may have.

        Raises:
            InputError: saying what to change.
        """
        if self.start > n:
            raise InputError(f"start is {self.start} and n is {n}: start with n traces at most, or raise n")

    def more(
        self,
        traces: Sequence[Trace],
        n: int,
        vote: Callable[[Sequence[Trace]], VoteResult] = vote,
        *,
        calibration: AnswerCalibration | None = None,
    ) -> int:
        """How many traces to start next.

        Args:
            traces: all traces of one question that were started so far; they have ended.
            n: traces of the question at most.
            vote: the vote over them, by default of the majority.
            calibration: of such votes, see `sureness`.

        Returns:
            The size of the next wave; 0 when the question has enough.
        """
        if not traces:
            return min(self.start, n)
        left = n - len(traces)
        if left <= 0:
            return 0
        is_sure = self.certainty < 1 and sureness(vote(traces), calibration) >= self.certainty
        return 0 if is_sure else min(self.step, left)

    def ends_at(self, started: int, n: int) -> bool:
        """Whether a wave ends with so many traces of a question started."""
        return started == n or (started >= self.start and (started - self.start) % self.step == 0)


def sureness(result: VoteResult, calibration: AnswerCalibration | None = None) -> float:
    """How sure a vote is of its leader, in [0, 1]; 0 when nobody answered or all weights are zero.

    - With a calibration: its probability that the leader is right.
    - Where the method reads the head's scores: the leader's share of the odds that its traces are right, with odds
      of one, those of a trace as likely right as wrong, against it. One trace that the head gives 0.95 is 0.95
      sure. Weights are not odds: of those that are probabilities it would take nineteen to outweigh the one.
    - Otherwise: the probability that the leader is the model's most likely answer, as in `Consensus`; weights are
      scaled to a mean of one vote. For ``majority`` this is Adaptive-Consistency (arXiv 2305.11860), asked once a
      wave: four votes without a rival are enough for 0.95.

    Args:
        result: of a vote.
        calibration: of votes by the same method.

    Raises:
        InputError: when the calibration is of another method.
    """
    if calibration is not None:
        return calibration.probability(result)
    total = sum(row.weight for row in result.table)
    if not total:
        return 0.0
    if result.method in METHODS and "scores" in METHODS[result.method].needs:
        odds = [0.0] * len(result.table)
        for trace, choice in zip(result.traces, result.choices, strict=True):
            if choice >= 0:
                p = min(max(0.5 if trace.score is None else trace.score, _EPS), 1 - _EPS)
                odds[choice] += p / (1 - p)
        return odds[0] / (sum(odds) + 1.0)
    leader, second = (*(row.weight for row in result.table), 0.0)[:2]
    votes = sum(row.votes for row in result.table)
    return most_likely(leader * votes / total, second * votes / total)


def replay_waves(
    traces: Sequence[Trace],
    waves: Waves,
    *,
    method: str | Method = "majority",
    n: int | None = None,
    calibration: AnswerCalibration | None = None,
    **options: Any,
) -> list[Trace]:
    """The traces of one question that waves would have started, of those that were recorded.

    All of them are as they were recorded, so a vote over them is the one that ``solve`` would have held, and the
    sum of their ``num_tokens`` is what it would have cost. For another order of sampling renumber ``sample_id``.

    Args:
        traces: of one question, sampled whole, in any order.
        waves: the decision.
        method: voting method that decides.
        n: traces at most; by default all of them.
        calibration: see `Waves.more`.
        **options: of the vote and of its method, such as ``odds_power=1.0`` or ``equality="text"``.

    Returns:
        The first of them by ``sample_id``, in that order.

    Raises:
        InputError: for an unknown method or option, or a first wave of more than n traces.
    """
    ordered = sorted(traces, key=lambda trace: trace.sample_id)
    n = len(ordered) if n is None else min(n, len(ordered))
    waves.check(n)
    started = 0
    decide = partial(vote, method=method, **options)
    while more := waves.more(ordered[:started], n, decide, calibration=calibration):
        started += more
    return ordered[:started]
