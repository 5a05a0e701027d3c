"""Trace: one sampled solution with everything a vote, a report or head training needs of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from arrol_tts.errors import InputError, WrongTypeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FloatT = TypeVar("FloatT", bound="np.floating[Any]")
FinishReason = Literal["stop", "length", "pruned", "cancelled"]
FINISH_REASONS: tuple[str, ...] = get_args(FinishReason)


def finite(values: NDArray[FloatT]) -> NDArray[FloatT]:
    """The same, with 0 where a value is not finite: the least that a score or a confidence can be."""
    import numpy as np

    return values if np.isfinite(values).all() else np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(slots=True)
class Trace:
    """One sampled solution of one question.

    Attributes:
        question_id: names the question; all traces of a vote share it.
        sample_id: distinct among the traces of a question.
        text: the solution as decoded text, without the end-of-sequence token and without what a reasoning model
            thought before it; empty when the trace was cut inside its thinking.
        answer: the extracted answer, or the tool calls as JSON; None when there is none (pruned, cut off,
            malformed).
        num_tokens: generated tokens, thinking and end-of-sequence token included; positions count them too.
        finish_reason: ``stop`` (ended by itself), ``length`` (ran into the token limit), ``pruned``
            (stopped by a rule) or ``cancelled`` (no longer needed).
        detail: for pruned and cancelled traces, what stopped it and where, in words.
        scores: ``{position: score}``, in order: the quality head's probability that the trace will be right,
            read from the hidden state whose input is the position-th generated token; by a head that pools,
            from the states up to there. What is not finite, as after an overflow in the model, is recorded as 0,
            here and in ``confidence``: no vote counts less.
        confidence: DeepConf's confidence of each generated token, float32 ``[num_tokens]``:
            the mean negative log-probability of the top-k candidates (natural log), or None.
        features: ``{position: hidden vector}`` at requested positions, ``[hidden_size]``: float32 from an engine,
            float16 from a `arrol_tts.store.TraceStore`.
        logprobs: natural log-probability of each generated token under the distribution it was drawn
            from, float32 ``[num_tokens]``, or None.
        correct: whether the answer is right, when a reference is known.
        token_ids: the generated token ids, when kept.
        meta: anything else a source recorded; JSON-serialisable. An engine's ``verdict`` says which rule stopped a
            pruned trace, at which position, and whether the rule chose it (`arrol_tts.stopping.Verdict`).
        reasoning: what a reasoning model thought before its text, without the delimiters (`arrol_tts.thinking`);
            None when it did not think.
        tool_calls: of tools in OpenAI's form, ``{"id", "type", "function": {"name", "arguments"}}``, or None.
        prompt_tokens: tokens of the prompt, None where they are not known.
        cached_tokens: those of them that the engine's prefix cache spared computing, None where it is not known.

    Raises:
        WrongTypeError: when ``question_id``, ``text`` or ``answer`` is no text.
        InputError: when there is no such finish reason.
    """

    question_id: str
    sample_id: int
    text: str = ""
    answer: str | None = None
    num_tokens: int = 0
    finish_reason: FinishReason = "stop"
    detail: str = ""
    scores: dict[int, float] = field(default_factory=dict)
    confidence: NDArray[np.float32] | None = None
    features: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    logprobs: NDArray[np.float32] | None = None
    correct: bool | None = None
    token_ids: list[int] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, is_right, wanted in (
            ("question_id", isinstance(self.question_id, str), "text: pass str(...)"),
            ("text", isinstance(self.text, str), "text"),
            ("answer", self.answer is None or isinstance(self.answer, str), "text or None: pass str(...)"),
        ):
            if not is_right:
                value = getattr(self, name)
                raise WrongTypeError(
                    f"{name} of sample {self.sample_id!r} of question {self.question_id!r} is {value!r:.60} "
                    f"({type(value).__name__}); it must be {wanted}"
                )
        if self.finish_reason not in FINISH_REASONS:
            raise InputError(
                f"finish_reason is {self.finish_reason!r}; it must be one of {', '.join(FINISH_REASONS)}"
            )

    @property
    def written(self) -> str:
        """All that it wrote, for people to read: its thinking, and its text below."""
        return self.text if self.reasoning is None else f"{self.reasoning}\n\n{self.text}".rstrip()

    @property
    def score(self) -> float | None:
        """The last score of the head, None when it never scored this trace."""
        return self.scores[next(reversed(self.scores))] if self.scores else None
