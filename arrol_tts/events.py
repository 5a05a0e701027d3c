"""What happens while questions are sampled, as it happens: see ``WeightedVoter.stream``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arrol_tts.trace import Trace
    from arrol_tts.voting import VoteResult


@dataclass(slots=True)
class Progress:
    """A trace was written on.

    Attributes:
        question_id: its question.
        sample_id: its number.
        num_tokens: generated tokens so far.
        text: what was written since the last Progress of this trace, thinking included.
        scores: ``{position: score}`` of the head since then.
    """

    question_id: str
    sample_id: int
    num_tokens: int = 0
    text: str = ""
    scores: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """A trace ended: ``trace.finish_reason`` says how, ``trace.detail`` why in words."""

    trace: Trace


@dataclass(frozen=True, slots=True)
class Voted:
    """The vote over those traces of a question that have ended so far; the last one of a question is final."""

    result: VoteResult


Event = Progress | Ended | Voted
