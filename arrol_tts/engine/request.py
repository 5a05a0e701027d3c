"""What an engine is asked for: questions, how to sample them, what to record of each trace and when to stop."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from arrol_tts.errors import InputError
from arrol_tts.messages import Message, as_conversation, check_asked, check_variables, text_of
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
        messages: what to ask: a text, or the messages of a chat in OpenAI's form (`arrol_tts.messages`), which the
            model's answer follows. A text is the user's message.
        token_ids: the whole prompt as token ids, in place of messages.
        chat: whether the messages go through the model's chat template; False, and models without one, make them
            paragraphs of plain text.
        samples: numbers of the traces to sample, such as those that an interrupted run lacks; None: all.
        chat_template_kwargs: variables of the chat template, such as ``{"enable_thinking": False}``.
        request_fields: further fields of OpenAI's chat completions for each trace, such as ``tools``,
            ``tool_choice`` and ``response_format``. Servers get them as they are; what else takes them says so.
    """

    id: str
    messages: str | Sequence[Message] = ()
    token_ids: tuple[int, ...] | None = None
    chat: bool = True
    samples: tuple[int, ...] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    request_fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What is asked: the text of the last message; "" for a prompt of token ids."""
        return text_of(self.conversation[-1]) if self.messages else ""

    @property
    def conversation(self) -> list[Message]:
        """The messages; a text as the user's."""
        return as_conversation(self.messages)

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
            raise InputError(f"stop is {self.stop!r:.200}; it must be a list of texts, none of them empty")
        if not isinstance(self.stop_token_ids, Sequence) or not all(map(_is_token_id, self.stop_token_ids)):
            raise InputError(f"stop_token_ids is {self.stop_token_ids!r:.200}; it must be a list of token ids")
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
        cancels: whether somebody may call a question off, whose traces are then to count what they had written.
    """

    questions: tuple[Question, ...]
    sampling: Sampling
    specs: tuple[TraceSpec, ...]
    every: float | None = None
    cancels: bool = False

    @classmethod
    def of(
        cls,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        every: float | None = None,
        *,
        cancels: bool = False,
    ) -> Request:
        """Give every question its own group; ``spec`` says the rest, for all of them."""
        call = os.urandom(6).hex()
        spec = spec or TraceSpec()
        spec = replace(spec, size=sampling.n, stop=spec.stop + sampling.stop, live=every is not None)
        specs = tuple(replace(spec, group=f"{call}/{i}") for i in range(len(questions)))
        return cls(tuple(questions), sampling, specs, every, cancels)

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
    def streams(self) -> bool:
        """Whether what a trace has written must be known before it ends."""
        return self.cancels or self.every is not None

    @property
    def traces(self) -> int:
        """How many it asks for, all questions together."""
        return sum(len(question.wanted(self.sampling.n)) for question in self.questions)


_API = "model messages prompt best_of use_beam_search max_completion_tokens echo logprobs top_logprobs stream"
_OURS = "stream_options vllm_xargs return_token_ids return_tokens_as_token_ids include_stop_str_in_output"
_TURN = "add_generation_prompt continue_final_message"
OWN_FIELDS = frozenset(
    [*(field.name for field in fields(Sampling)), *_API.split(), *_OURS.split(), *_TURN.split()]
)
"""Fields of a request that follow from the question, the `Sampling` and what is recorded."""


def _check_prompt(question: Question) -> None:
    if question.token_ids is not None:
        if not question.token_ids:
            raise InputError(f"question {question.id!r} is empty: ask something")
    elif isinstance(question.messages, str) and not question.messages.strip():
        raise InputError(f"question {question.id!r} is empty: ask something")
    else:
        check_asked(question.messages, f"question {question.id!r}")
    check_variables(question.chat_template_kwargs)
    for name in question.request_fields:
        if name in OWN_FIELDS:
            raise InputError(
                f"request_fields has {name!r}, which the engine says itself: leave it out, or give it as an "
                "option of the call where there is one"
            )
    if question.chat and question.token_ids is None:
        return
    for name in ("chat_template_kwargs", "request_fields"):
        if getattr(question, name):
            raise InputError(
                f"question {question.id!r} has {name} and is sent as plain text: leave out {name}, or chat=False"
            )


def _check_samples(question: Question) -> None:
    numbers = question.samples or ()
    is_right = all(isinstance(number, int) and number >= 0 for number in numbers)
    if not numbers or not is_right or len(set(numbers)) < len(numbers):
        raise InputError(
            f"samples of question {question.id!r} is {list(numbers)!r:.60}; it must be different numbers of "
            "traces, from 0 on, or left out for all of them"
        )


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
        _check_prompt(question)
        if question.samples is not None:
            _check_samples(question)
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
