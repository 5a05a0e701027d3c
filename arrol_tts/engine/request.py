"""What an engine is asked for: questions, how to sample them, what to record of each trace and when to stop."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from arrol_tts.errors import InputError
from arrol_tts.stopping import Threshold, TraceSpec
from arrol_tts.trace import Trace

MAX_TOKEN_ID = 1 << 31

StopQuestion = Callable[[Trace], str]
"""Takes a trace that has ended; returns why its question needs no more traces, "" while it does."""


def never_stop(_trace: Trace) -> str:
    """The StopQuestion that wants every trace."""
    return ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question to sample.

    Args:
        id: distinct among the questions of a call.
        text: what to ask, through the model's chat template where it has one.
        token_ids: the whole prompt as token ids, in place of the text.
        chat: whether the text goes through the chat template; False sends it as it is.
        samples: numbers of the traces to sample, such as those that an interrupted run lacks; None: all.
        before: messages of the chat that come before the text, as ``(role, content)``: worked examples, a system
            prompt. Models without a chat template get them as paragraphs.
    """

    id: str
    text: str = ""
    token_ids: tuple[int, ...] | None = None
    chat: bool = True
    samples: tuple[int, ...] | None = None
    before: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat that ends with the text."""
        return [{"role": role, "content": content} for role, content in (*self.before, ("user", self.text))]

    def wanted(self, n: int) -> tuple[int, ...]:
        """The numbers of its traces in a call that asks for n of every question."""
        return tuple(range(n)) if self.samples is None else self.samples


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample; these are the defaults of every engine, command and recipe.

    Every engine applies them in one order, vLLM's: ``min_tokens``, the penalties (repetition, frequency,
    presence), temperature, ``min_p``, ``top_k``, ``top_p``. Head, token confidence and self-certainty read the
    model's own logits, before any of it. What a server other than vLLM's does not know is refused.

    Args:
        n: traces per question.
        temperature: 0 is greedy.
        top_p: nucleus share in (0, 1].
        top_k: 0 is off.
        min_p: drop tokens less likely than this share of the likeliest one, in [0, 1]; 0 is off.
        repetition_penalty: divide the positive logits of tokens that the prompt or the trace has by it, multiply
            the negative ones; above 0, and 1 is off.
        presence_penalty: taken off the logits of tokens that the trace has, in [-2, 2]; 0 is off.
        frequency_penalty: taken off the logits of tokens for each time that the trace has them, in [-2, 2]; 0 is
            off.
        max_tokens: limit on generated tokens of a trace.
        min_tokens: tokens before which nothing of the model's own ends a trace: no end-of-sequence token, none of
            ``stop_token_ids`` and no text of ``stop``. Rules may prune it all the same.
        stop: texts that end a trace: it stops once it has written one, which its text is then cut before.
        stop_token_ids: tokens that end a trace, beside the model's own.
        seed: traces depend on the seed, the question's id and the sample's number only, not on what
            else is in the batch (but for rounding in the matrix products). None draws without seeds: not to be
            repeated, and faster in vLLM, which draws seeded tokens one trace at a time.

    Raises:
        InputError: for a value out of its range.
    """

    n: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 1024
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = 0

    def __post_init__(self) -> None:
        whole = [("n", 1), ("max_tokens", 1), ("min_tokens", 0), ("top_k", 0)]
        for name, low in whole if self.seed is None else [*whole, ("seed", 0)]:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise InputError(f"{name} is {value!r}; it must be a whole number of at least {low}")
        for name, low, high in (
            ("temperature", 0, 100),
            ("min_p", 0, 1),
            ("presence_penalty", -2, 2),
            ("frequency_penalty", -2, 2),
        ):
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high:
                raise InputError(f"{name} is {value!r}; it must be from {low} to {high}")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p!r}; it must be in (0, 1]")
        if not _is_number(self.repetition_penalty) or not 0 < self.repetition_penalty < math.inf:
            raise InputError(
                f"repetition_penalty is {self.repetition_penalty!r}; it must be a number above 0, and 1 is off"
            )
        if self.min_tokens > self.max_tokens:
            raise InputError(
                f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}: lower one or raise the "
                "other"
            )
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise InputError(f"stop is {self.stop!r}; it must be a list of texts, none of them empty")
        if not isinstance(self.stop_token_ids, Sequence) or not all(map(_is_token_id, self.stop_token_ids)):
            raise InputError(f"stop_token_ids is {self.stop_token_ids!r}; it must be a list of token ids")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))

    def seed_of(self, question_id: str, sample_id: int) -> int | None:
        """The seed of one trace: 31 bits; None for an unseeded one."""
        if self.seed is None:
            return None
        return zlib.crc32(f"{self.seed}/{question_id}/{sample_id}".encode()) & 0x7FFFFFFF

    def record(self) -> dict[str, Any]:
        """As it is written down, JSON-ready: temperature, top_p, max_tokens, and what else is not at its default.

        Neither ``n`` nor ``seed``: they say how many samples were drawn and which, not from what.
        """
        default = Sampling(max_tokens=self.max_tokens)
        record: dict[str, Any] = {}
        for name in SAMPLING_PARAMETERS:
            value = getattr(self, name)
            if name in ("temperature", "top_p", "max_tokens") or value != getattr(default, name):
                record[name] = list(value) if isinstance(value, tuple) else value
        return record


SAMPLING_PARAMETERS = tuple(field.name for field in fields(Sampling) if field.name not in ("n", "seed"))
"""What says from which distribution samples are drawn."""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKEN_ID


@dataclass(frozen=True, slots=True)
class Request:
    """One call of ``Engine.sample`` or ``stream``, as its engine gets it: checked, and grouped by question.

    Attributes:
        questions: with distinct ids.
        sampling: how to sample.
        specs: of each question's traces: what to record and when to stop, its own group, and the sampling's stop
            texts.
        every: seconds between reports of progress, None for none.
    """

    questions: tuple[Question, ...]
    sampling: Sampling
    specs: tuple[TraceSpec, ...]
    every: float | None = None

    @classmethod
    def of(
        cls,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        every: float | None = None,
    ) -> Request:
        """Give every question its own group; ``spec`` says the rest, for all of them."""
        call = os.urandom(6).hex()
        spec = spec or TraceSpec()
        spec = replace(spec, size=sampling.n, stop=spec.stop + sampling.stop, live=every is not None)
        specs = tuple(replace(spec, group=f"{call}/{i}") for i in range(len(questions)))
        return cls(tuple(questions), sampling, specs, every)

    def more(self, question_id: str, samples: Sequence[int]) -> Request:
        """A request for further traces of one of its questions; they are a group of their own.

        Raises:
            KeyError: when there is no such question.
        """
        asked = {question.id: i for i, question in enumerate(self.questions)}
        question = replace(self.questions[asked[question_id]], samples=tuple(samples))
        spec = replace(self.specs[asked[question_id]], group=f"{os.urandom(6).hex()}/0", size=len(samples))
        return replace(self, questions=(question,), specs=(spec,))

    @property
    def traces(self) -> int:
        """How many it asks for, all questions together."""
        return sum(len(question.wanted(self.sampling.n)) for question in self.questions)


def check_request(
    questions: Sequence[Question],
    sampling: Sampling,
    spec: TraceSpec,
    *,
    has_head: bool,
) -> None:
    """Refuse what cannot work, before anything is generated.

    Raises:
        InputError: saying what to change.
    """
    ids = [question.id for question in questions]
    if len(set(ids)) != len(ids):
        raise InputError("two questions have the same id: give every question its own")
    for question in questions:
        if not (question.text.strip() if question.token_ids is None else question.token_ids):
            raise InputError(f"question {question.id!r} is empty: ask something")
        if question.samples is not None and any(not isinstance(rule, Threshold) for rule in spec.rules):
            raise InputError(
                f"question {question.id!r} asks for some of its traces only, and the stopping rules compare all "
                "of them: ask for all, or leave the rules out"
            )
    if spec.scores and not has_head:
        raise InputError("scores and pruning need a quality head: pass head= to the engine, or ask for neither")
    positions = [*spec.score_at, *spec.features_at, *(rule.at for rule in spec.rules)]
    late = [position for position in positions if position >= sampling.max_tokens]
    if late:
        raise InputError(
            f"detection position {late[0]} is beyond the last step of traces of max_tokens={sampling.max_tokens}: "
            f"use a position below max_tokens, or raise max_tokens"
        )
