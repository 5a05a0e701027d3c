"""What every engine offers: questions in, traces out, scored and stopped on the way."""

from __future__ import annotations

import base64
import math
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from arrol_tts.engine.stop_texts import before_stop
from arrol_tts.stopping import Threshold, TraceSpec
from arrol_tts.trace import FinishReason, Trace

if TYPE_CHECKING:
    from pathlib import Path

    from arrol_tts.events import Progress
    from arrol_tts.streams import Closing


DEFAULT_TOP_K = 20
"""Candidates of a token confidence: DeepConf's."""


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
    """How to sample.

    Args:
        n: traces per question.
        temperature: 0 is greedy.
        top_p: nucleus share in (0, 1].
        top_k: 0 is off.
        max_tokens: limit on generated tokens of a trace.
        stop: texts that end a trace: it stops once it has written one, which its text is then cut before.
        seed: traces depend on the seed, the question's id and the sample's number only, not on what
            else is in the batch (but for rounding in the matrix products).
    """

    n: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low in (("n", 1), ("max_tokens", 1), ("top_k", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {low}")
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature is {self.temperature!r}; it must be from 0 to 100")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p!r}; it must be in (0, 1]")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop is {self.stop!r}; it must be a list of texts, none of them empty")
        object.__setattr__(self, "stop", tuple(self.stop))

    def seed_of(self, question_id: str, sample_id: int) -> int:
        """The seed of one trace: 31 bits."""
        return zlib.crc32(f"{self.seed}/{question_id}/{sample_id}".encode()) & 0x7FFFFFFF


StopQuestion = Callable[[Trace], str]
"""Takes a trace that has ended; returns why its question needs no more traces, "" while it does."""


def never_stop(_trace: Trace) -> str:
    """The StopQuestion that wants every trace."""
    return ""


class Engine(Protocol):
    """Samples questions with a language model, scoring and stopping traces while they are written.

    Attributes:
        model: path or hub id of the language model.
        hidden_size: width of its hidden states.
    """

    model: str
    hidden_size: int

    def sample(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        *,
        stop_question: StopQuestion = never_stop,
    ) -> Closing[Trace]:
        """Sample ``sampling.n`` traces of every question.

        Args:
            questions: with distinct ids.
            sampling: how to sample.
            spec: what to record and when to stop; its group and size are set for each question.
            stop_question: called with every trace that ends other than by being cancelled; when it gives
                a reason, the question's other traces are cancelled at once, and carry the reason. It may be
                called on a thread of the engine's, which waits for it.

        Yields:
            Traces as they end, without ``answer``; all of them, the pruned ones too.

        Raises:
            ValueError: before anything is generated, when questions, sampling and spec do not fit each
                other or the engine.
        """
        ...

    def stream(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        *,
        stop_question: StopQuestion = never_stop,
        every: float = 0.1,
    ) -> Closing[Progress | Trace]:
        """As ``sample``, with reports of progress between the traces.

        Args:
            questions: as in ``sample``.
            sampling: as in ``sample``.
            spec: as in ``sample``; scores are reported when they are known (``score_every`` for more of them).
            stop_question: as in ``sample``.
            every: seconds between reports; a trace that wrote nothing since the last is left out.

        Yields:
            Traces as they end, and what the others wrote meanwhile. What a trace wrote after its last
            Progress is in the Trace.
        """
        ...

    def close(self) -> None:
        """Free the model; the engine cannot be used afterwards."""
        ...


def check_request(
    questions: Sequence[Question],
    sampling: Sampling,
    spec: TraceSpec,
    *,
    has_head: bool,
) -> None:
    """Refuse what cannot work, before anything is generated.

    Raises:
        ValueError: saying what to change.
    """
    ids = [question.id for question in questions]
    if len(set(ids)) != len(ids):
        raise ValueError("two questions have the same id: give every question its own")
    for question in questions:
        if not (question.text.strip() if question.token_ids is None else question.token_ids):
            raise ValueError(f"question {question.id!r} is empty: ask something")
        if question.samples is not None and any(not isinstance(rule, Threshold) for rule in spec.rules):
            raise ValueError(
                f"question {question.id!r} asks for some of its traces only, and the stopping rules compare all "
                "of them: ask for all, or leave the rules out"
            )
    if spec.scores and not has_head:
        raise ValueError("scores and pruning need a quality head: pass head= to the engine, or ask for neither")
    positions = [*spec.score_at, *spec.features_at, *(rule.at for rule in spec.rules)]
    late = [position for position in positions if position >= sampling.max_tokens]
    if late:
        raise ValueError(
            f"detection position {late[0]} is beyond the last step of traces of max_tokens={sampling.max_tokens}: "
            f"use a position below max_tokens, or raise max_tokens"
        )


def group_specs(questions: Sequence[Question], sampling: Sampling, spec: TraceSpec) -> list[TraceSpec]:
    """The spec of each question's traces: its own group, and the sampling's stop texts."""
    call = uuid.uuid4().hex[:12]
    return [
        replace(spec, group=f"{call}/{i}", size=sampling.n, stop=spec.stop + sampling.stop)
        for i in range(len(questions))
    ]


def prompt_ids(tokenizer: Any, question: Question) -> list[int]:
    """Token ids of a question's prompt."""
    if question.token_ids is not None:
        return list(question.token_ids)
    if question.before and question.chat and getattr(tokenizer, "chat_template", None):
        return _encode_chat(tokenizer, question.messages)
    text = "\n\n".join(message["content"] for message in question.messages)
    return encode_prompt(tokenizer, text, chat=question.chat)


def encode_prompt(tokenizer: Any, text: str, *, chat: bool = True) -> list[int]:
    """Token ids of a text: through the chat template where the model has one, else as plain text."""
    if chat and getattr(tokenizer, "chat_template", None):
        return _encode_chat(tokenizer, [{"role": "user", "content": text}])
    return list(tokenizer.encode(text))


def _encode_chat(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(prompt, add_special_tokens=False))


def make_trace(
    question: Question,
    sample_id: int,
    text: str,
    token_ids: Sequence[int],
    finish_reason: FinishReason,
    log: dict[str, Any] | None,
    detail: str = "",
    stop: Sequence[str] = (),
) -> Trace:
    """Turn what left an engine (see ``TraceLog.to_dict``) into a Trace, its text cut before a stop text."""
    import numpy as np

    log = log or {}
    trace = Trace(
        question_id=question.id,
        sample_id=sample_id,
        text=before_stop(text, stop),
        num_tokens=len(token_ids),
        finish_reason=finish_reason,
        detail=detail,
        scores={int(k): math.nan if s is None else float(s) for k, s in log.get("scores", ())},
        token_ids=list(token_ids),
    )
    for name in ("confidence", "logprobs"):
        if name in log:
            setattr(trace, name, np.frombuffer(base64.b64decode(log[name]), dtype=np.float32))
    if "deepconf" in log:
        trace.meta["deepconf"] = log["deepconf"]
    for position, vector in log.get("features", ()):
        trace.features[int(position)] = np.frombuffer(base64.b64decode(vector), dtype=np.float32)
    if "pruned" in log:
        trace.finish_reason = "pruned"
        trace.detail = log["pruned"]["detail"]
    return trace


def hidden_size_of(model: str | Path) -> int:
    """Width of a model's hidden states, read from its config alone."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model))
    return int(config.get_text_config().hidden_size)
