"""TraceLog: what was observed of one trace while it was written, and the Trace that it becomes.

Inside a process the log itself goes from who watched the trace to who makes a Trace of it. ``to_wire`` and
``from_wire`` are for the way between processes and machines, and the only place of JSON and base64.
"""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from arrol_tts.stopping.rules import GroupState, Verdict
from arrol_tts.stopping.spec import TraceSpec
from arrol_tts.thinking import split_thinking
from arrol_tts.trace import FinishReason, Trace, finite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 700.0
"""Log-odds up to which Python's exp gives a number."""


def probability_of(logit: float) -> float:
    """The probability of log-odds; not a number for what is not finite."""
    if -LARGEST < logit < LARGEST:  # this runs for every token of every trace
        return 1.0 / (1.0 + math.exp(-logit))
    return float(logit > 0) if math.isfinite(logit) else math.nan


def probabilities_of(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """`probability_of` each, to the last bit, which numpy's own exp would differ in."""
    import numpy as np

    if not np.abs(logits).max(initial=0.0) < LARGEST:
        return np.array([probability_of(logit) for logit in logits.tolist()])
    found: NDArray[np.float64] = 1.0 / (1.0 + np.array(list(map(math.exp, (-logits).tolist()))))
    return found


@dataclass(slots=True)
class TraceLog:
    """What was observed of one trace.

    Attributes:
        scores: ``{position: score}``; one that is not a number ranks below all others, is null on the wire, and 0
            in the trace.
        confidence: float32, one per generated token, when the spec or a rule asks for it.
        logprobs: float32, one per generated token, when the spec asks for it.
        features: ``{position: float32 hidden vector as bytes}``.
        weight: sum of the weights of the tokens pooled so far, for heads that pool.
        value: sum of their weighted values.
        steps: ends of steps pooled so far, for heads of steps.
        probability: sum of what was read there.
        certainty: sum of the tokens' self-certainties, when the spec asks for it.
        verdict: why it was stopped, None while it was not.
        stop_text: the text of ``spec.stop`` that ended it, "" for any other end.
        length: generated tokens seen so far.
        groups: the state of each of its rules, shared with the rest of its group.
        reported: how many of its scores have been reported live.
        last_token: the token sampled last; kept by engines for specs with ``score_after``.
        thinking: whether it is inside a thinking, where stop texts do not end it; None while that is not known.
        thought: generated tokens up to which that was looked for.
        received: the measures of a log that came over the wire, which has not every token's number.
        wants_scores: whether a head is needed, now and later; kept here because it is asked for at every token.
        wants_confidence: likewise, of token confidences.
        wants_certainty: likewise, of self-certainties.
        due: the position before which no row is kept or judged, but for what is so at every token; -1 for logs of
            which every row is.
        followed: those of its groups whose rule reads every token.
        scores_until: the last position at which a score is kept or judged, where that is known beforehand.
        features_until: the longest length at which the next step's hidden vector may be kept.
    """

    spec: TraceSpec
    scores: dict[int, float] = field(default_factory=dict)
    confidence: array[float] = field(default_factory=lambda: array("f"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    features: dict[int, bytes] = field(default_factory=dict)
    weight: float = 0.0
    value: float = 0.0
    steps: int = 0
    probability: float = 0.0
    certainty: float = 0.0
    verdict: Verdict | None = None
    stop_text: str = ""
    length: int = 0
    groups: list[GroupState] = field(default_factory=list)
    reported: int = 0
    last_token: int | None = None
    thinking: bool | None = None
    thought: int = 0
    received: dict[str, Any] | None = None
    due: float = -1
    followed: list[GroupState] = field(default_factory=list)
    scores_until: float = math.inf
    wants_scores: bool = field(init=False)
    wants_confidence: bool = field(init=False)
    wants_certainty: bool = field(init=False)
    features_until: float = field(init=False)

    def __post_init__(self) -> None:
        spec = self.spec
        self.wants_scores, self.wants_confidence = spec.scores, spec.confidences
        self.wants_certainty = spec.self_certainty
        always = spec.features_finish or spec.features_every
        self.features_until = math.inf if always else max(spec.features_at, default=-1)

    @property
    def wants_features(self) -> bool:
        """Whether the next step's hidden vector may be kept."""
        return self.length <= self.features_until

    def pool(self, position: int, weight: float, value: float, stride: int = 1) -> float:
        """Take in what a pooling head read from a row, and give its score of the trace up to there.

        A head that comes while the trace is being written adds to what the one before it has read.

        Args:
            position: of the row's input; 0 is the prompt's end. Every request begins anew: one whose prompt is
                another's prompt and first tokens has nothing of what was read of the other's.
            weight, value: as `QualityHead.reader` gives them.
            stride: rows between its multiples do not count.

        Returns:
            The probability; not a number from a row on that was not finite, and before any row has a weight.
        """
        # A head that comes late begins with the first row that it sees.
        if position % stride == 0 or not self.weight:
            self.weight += weight
            self.value += weight * value
        return probability_of(self.value / self.weight if self.weight else math.nan)

    def pool_steps(self, probability: float | None) -> float:
        """Take in what a head of steps read at the end of one, None elsewhere, and give its score up to there."""
        if probability is not None:
            self.steps += 1
            self.probability += probability
        return self.probability / self.steps if self.steps else 0.5

    def to_trace(
        self,
        question_id: str,
        sample_id: int,
        text: str,
        token_ids: Sequence[int] | None,
        finish_reason: FinishReason,
        detail: str = "",
        *,
        opened: bool = False,
    ) -> Trace:
        """The finished trace; its arrays are this log's, which must not be written on.

        Args:
            question_id: its question's.
            sample_id: its own.
            text: all that it wrote, thinking included.
            token_ids: generated, None where they are not known.
            finish_reason: how it ended, unless a rule stopped it.
            detail: of the finish reason.
            opened: its prompt ended inside a thinking.
        """
        spec = self.spec
        if self.stop_text and self.stop_text in text:
            text = text[: text.rfind(self.stop_text)]
        reasoning, text, _ = split_thinking(text, opened=opened)
        trace = Trace(
            question_id=question_id,
            sample_id=sample_id,
            text=text,
            reasoning=reasoning,
            num_tokens=len(token_ids) if token_ids is not None else self.length,
            finish_reason=finish_reason,
            detail=detail,
            scores={k: score if math.isfinite(score) else 0.0 for k, score in self.scores.items()},
            confidence=finite(_floats(self.confidence)) if spec.confidence else None,
            features={position: _floats(vector) for position, vector in self.features.items()},
            logprobs=_floats(self.logprobs) if spec.logprobs else None,
            token_ids=None if token_ids is None else list(token_ids),
            meta=dict(self._measures()),
        )
        if self.verdict is not None:
            trace.finish_reason, trace.detail = "pruned", self.verdict.detail
            trace.meta["verdict"] = {name: getattr(self.verdict, name) for name in ("rule", "position", "chosen")}
        return trace

    def to_wire(self) -> dict[str, Any]:
        """JSON-ready form, in which it leaves an engine core's process or a server."""
        data: dict[str, Any] = {"scores": [(k, _finite(score)) for k, score in self.scores.items()]}
        if self.spec.confidence:
            data["confidence"] = _packed(self.confidence)
        if self.spec.logprobs:
            data["logprobs"] = _packed(self.logprobs)
        if self.features:
            data["features"] = [(k, base64.b64encode(vector).decode()) for k, vector in self.features.items()]
        if measures := self._measures():
            data["measures"] = measures
        if self.verdict is not None:
            data["pruned"] = asdict(self.verdict) | {"score": _finite(self.verdict.score)}
        if self.stop_text:
            data["stop_text"] = self.stop_text
        return data

    @classmethod
    def from_wire(cls, data: dict[str, Any], spec: TraceSpec) -> TraceLog:
        """The inverse of ``to_wire``.

        Raises:
            LookupError, TypeError, ValueError: when it is nothing that ``to_wire`` made.
        """
        pruned = data.get("pruned")
        return cls(
            spec,
            scores={int(k): math.nan if score is None else float(score) for k, score in data["scores"]},
            confidence=_unpacked(data.get("confidence", "")),
            logprobs=_unpacked(data.get("logprobs", "")),
            features={int(k): base64.b64decode(vector) for k, vector in data.get("features", ())},
            verdict=None if pruned is None else Verdict(**pruned),
            stop_text=str(data.get("stop_text", "")),
            received=dict(data.get("measures", {})),
        )

    def take_news(self) -> dict[str, Any] | None:
        """The scores that were not reported yet, in the form of ``to_wire``; None when there are none."""
        if self.reported == len(self.scores):
            return None
        news = list(self.scores.items())[self.reported :]
        self.reported = len(self.scores)
        return {"scores": [(k, _finite(score)) for k, score in news]}

    def _measures(self) -> dict[str, Any]:
        """Numbers of the whole trace, in ``Trace.meta``."""
        if self.received is not None:
            return self.received
        measures: dict[str, Any] = {}
        if self.wants_certainty and self.length:
            measures["self_certainty"] = _finite(self.certainty / self.length) or 0.0
        if window := self.spec.confidence_window:
            measures["deepconf"] = {"window": window} | _windows(self.confidence, window)
        return measures


def _windows(confidence: array[float], window: int) -> dict[str, float]:
    """DeepConf's measures."""
    from arrol_tts.confidence import Measures, measures

    found = measures([finite(_floats(confidence))], window=window, tail=window)
    return {name: float(getattr(found, name)[0]) for name in Measures.__slots__}


def _floats(values: array[float] | bytes) -> NDArray[np.float32]:
    import numpy as np

    return np.frombuffer(values, dtype=np.float32)


def _packed(values: array[float]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _unpacked(text: str) -> array[float]:
    values = array("f")
    values.frombytes(base64.b64decode(text))
    return values


def _finite(score: float | None) -> float | None:
    # JSON has no word for numbers that are not finite.
    return score if score is not None and math.isfinite(score) else None
