"""What a vote gives back: the answer, and everything that explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arrol_tts.trace import Trace


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One distinct answer of a vote.

    Attributes:
        answer: its canonical spelling.
        votes: traces that gave it.
        weight: sum of their weights.
        share: its part of all weight, in [0, 1]; 0 when all weights are zero.
        probability: that it is right: its share, or, in a calibrated vote, the calibrated confidence for the
            winner and for the others their part, by share, of what that leaves.
    """

    answer: str
    votes: int
    weight: float
    share: float
    probability: float


@dataclass(frozen=True, slots=True)
class TokenLedger:
    """Tokens a question cost.

    Attributes:
        generated: tokens of all traces.
        pruned_traces: traces a rule stopped.
        saved: an estimate of what pruning and waves saved: that each pruned trace, and each that was not started,
            would have run to the mean length of the question's finished traces (``stop`` or ``length``); 0 when
            none finished.
        unstarted_traces: those of the n asked for that waves did without.
        prompt: tokens of their prompts, counted for every trace, as far as they are known; None where no trace
            knows.
        cached: those of them that the engine's prefix cache spared computing, likewise.
    """

    generated: int
    pruned_traces: int
    saved: int
    unstarted_traces: int = 0
    prompt: int | None = None
    cached: int | None = None

    @classmethod
    def of(cls, traces: Sequence[Trace], unstarted_traces: int = 0) -> TokenLedger:
        """Count over all traces of a question that were started, voting or not."""
        pruned = [t.num_tokens for t in traces if t.finish_reason == "pruned"]
        finished = [t.num_tokens for t in traces if t.finish_reason in ("stop", "length")]
        saved = 0
        if finished:
            expected = sum(finished) / len(finished)
            saved = round(sum(max(0.0, expected - n) for n in pruned) + unstarted_traces * expected)
        return cls(
            sum(t.num_tokens for t in traces),
            len(pruned),
            saved,
            unstarted_traces,
            prompt=_sum_known([t.prompt_tokens for t in traces]),
            cached=_sum_known([t.cached_tokens for t in traces]),
        )


@dataclass(frozen=True, slots=True)
class VoteResult:
    """The outcome of a vote, with what explains it.

    Attributes:
        question_id: the question.
        answer: the winning answer; None when nobody answered or the vote abstained.
        confidence: in [0, 1]: the winner's share of the weight, or, with a calibration, the probability
            that it is right. 0 when nobody answered.
        method: name of the method.
        table: every distinct answer, heaviest first; ``table[0]`` is the winner, abstained or not.
        traces: the traces, in the given order.
        weights: the weight of each trace, in the same order; 0 for a trace without an answer.
        choices: the row of ``table`` each trace voted for, in the same order; -1 without an answer.
        tokens: what the question cost.
        abstained: there is a winner, but its confidence is below ``min_confidence``.
    """

    question_id: str
    answer: str | None
    confidence: float
    method: str
    table: tuple[AnswerRow, ...]
    traces: tuple[Trace, ...]
    weights: tuple[float, ...]
    choices: tuple[int, ...]
    tokens: TokenLedger
    abstained: bool = False

    @property
    def correct(self) -> bool | None:
        """Whether the winner is right by ``Trace.correct`` of the traces that gave it; None if unlabelled.

        Where grouping merged answers that were graded apart, most of the labels decide.
        """
        labels = [
            trace.correct
            for trace, choice in zip(self.traces, self.choices, strict=True)
            if choice == 0 and trace.correct is not None
        ]
        return 2 * sum(labels) > len(labels) if labels else None

    def __str__(self) -> str:
        rows = [(row, _one_line(row.answer)) for row in self.table]
        unstarted = self.tokens.unstarted_traces
        started = f"{len(self.traces)} of {len(self.traces) + unstarted} traces started, " if unstarted else ""
        verdict = "abstained" if self.abstained else rows[0][1] if rows else "no answer"
        lines = [
            f"{self.question_id}: {verdict} (confidence {self.confidence:.2f}, {self.method})",
            *(f"  {row.probability:6.1%}  {row.votes:4d} votes  {row.weight:9.3f}  {text}" for row, text in rows),
            f"  {self.tokens.generated} tokens, {started}{self.tokens.pruned_traces} traces pruned, "
            f"about {self.tokens.saved} tokens saved",
        ]
        return "\n".join(lines)


def _sum_known(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _one_line(answer: str, width: int = 80) -> str:
    answer = " ".join(answer.split())
    return answer if len(answer) <= width else answer[: width - 3] + "..."
