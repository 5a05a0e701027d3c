"""What every engine offers: questions in, traces out, scored and stopped on the way."""

from __future__ import annotations

import base64
import math
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from arrol_tts.engine.request import Question, Sampling, StopQuestion, never_stop
from arrol_tts.engine.stop_texts import before_stop
from arrol_tts.stopping import TraceSpec
from arrol_tts.trace import FinishReason, Trace

if TYPE_CHECKING:
    from pathlib import Path

    from arrol_tts.events import Progress
    from arrol_tts.streams import Closing


DEFAULT_TOP_K = 20
"""Candidates of a token confidence: DeepConf's."""


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


def group_specs(questions: Sequence[Question], sampling: Sampling, spec: TraceSpec) -> list[TraceSpec]:
    """The spec of each question's traces: its own group, and the sampling's stop texts."""
    call = uuid.uuid4().hex[:12]
    return [
        replace(spec, group=f"{call}/{i}", size=sampling.n, stop=spec.stop + sampling.stop)
        for i in range(len(questions))
    ]


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
