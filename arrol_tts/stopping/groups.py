"""What each stopping rule remembers of a group of traces while it runs."""

from __future__ import annotations

import base64
import math
import time
from array import array
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from arrol_tts.stopping.rules import Budget, ConfidenceFloor, KeepShare, Rule, Threshold, TraceSpec

PATIENCE_SECONDS = 5.0
"""How long a group waits for members that were announced but never submitted."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a trace is stopped: the rule, the position, the trace's score there (None without), and words."""

    rule: str
    position: int
    score: float | None
    detail: str


@dataclass(slots=True)
class TraceLog:
    """What was observed of one trace.

    Attributes:
        scores: ``{position: score}``.
        confidence: float32, one per generated token, when the spec or a rule asks for it.
        logprobs: float32, one per generated token, when the spec asks for it.
        features: ``{position: float32 hidden vector as bytes}``.
        verdict: why it was stopped, None while it was not.
        length: generated tokens seen so far.
        groups: the state of each of its rules, shared with the rest of its group.
        reported: how many of its scores have been reported live.
        last_token: the token sampled last; kept by engines for specs with ``score_after``.
        wants_scores: the spec's need of a head; kept here because it is asked for at every token.
        wants_confidence: likewise, of token confidences.
        features_until: the longest length at which the next step's hidden vector may be kept.
    """

    spec: TraceSpec
    scores: dict[int, float] = field(default_factory=dict)
    confidence: array[float] = field(default_factory=lambda: array("f"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    features: dict[int, bytes] = field(default_factory=dict)
    verdict: Verdict | None = None
    length: int = 0
    groups: list[GroupState] = field(default_factory=list)
    reported: int = 0
    last_token: int | None = None
    wants_scores: bool = field(init=False)
    wants_confidence: bool = field(init=False)
    features_until: float = field(init=False)

    def __post_init__(self) -> None:
        spec = self.spec
        self.wants_scores, self.wants_confidence = spec.scores, spec.confidences
        self.features_until = math.inf if spec.features_finish else max(spec.features_at, default=-1)

    @property
    def wants_features(self) -> bool:
        """Whether the next step's hidden vector may be kept."""
        return self.length <= self.features_until

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form that leaves the engine with the finished request."""
        data: dict[str, Any] = {"scores": [(k, _finite(score)) for k, score in self.scores.items()]}
        if self.spec.confidence:
            data["confidence"] = _packed(self.confidence)
        if self.spec.confidence_window:
            data["deepconf"] = self._deepconf()
        if self.spec.logprobs:
            data["logprobs"] = _packed(self.logprobs)
        if self.features:
            data["features"] = [(k, base64.b64encode(vector).decode()) for k, vector in self.features.items()]
        if self.verdict is not None:
            data["pruned"] = asdict(self.verdict) | {"score": _finite(self.verdict.score)}
        return data

    def take_news(self) -> dict[str, Any] | None:
        """The scores that were not reported yet, in the form of ``to_dict``; None when there are none."""
        if self.reported == len(self.scores):
            return None
        news = list(self.scores.items())[self.reported :]
        self.reported = len(self.scores)
        return {"scores": [(k, _finite(score)) for k, score in news]}

    def _deepconf(self) -> dict[str, float]:
        import numpy as np

        from arrol_tts.confidence import measures

        window = self.spec.confidence_window
        found = measures([np.array(self.confidence, np.float32)], window=window, tail=window)
        return {"window": window} | {name: float(getattr(found, name)[0]) for name in found.__slots__}


def _packed(values: array[float]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _finite(score: float | None) -> float | None:
    # JSON has no word for numbers that are not finite.
    return score if score is not None and math.isfinite(score) else None


Verdicts = Iterator[tuple[Hashable, Verdict]]


class GroupState:
    """One rule at work in one group.

    Attributes:
        waiting: traces that must not be computed until the rule has decided.
        members: traces of the group that the engine has now.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.waiting: set[Hashable] = set()
        self.members: set[Hashable] = set()
        self.joined = 0
        self.last_arrival = time.monotonic()

    def join(self, key: Hashable) -> None:
        """A trace of the group was submitted."""
        self.members.add(key)
        self.joined += 1
        self.last_arrival = time.monotonic()

    def observe(self, key: Hashable, log: TraceLog, score: float | None, finished: bool) -> Verdicts:
        """Take in the step that made the trace ``log.length`` long."""
        raise NotImplementedError

    def leave(self, key: Hashable, log: TraceLog) -> Verdicts:
        """A trace ended, in whatever way."""
        self.members.discard(key)
        self.waiting.discard(key)
        return iter(())

    def unstick(self) -> Verdicts:
        """Let somebody go on although the rule is not ready to decide: it would wait for ever."""
        raise NotImplementedError

    def wait(self, key: Hashable) -> None:
        """Let a trace wait."""
        self.waiting.add(key)
        self.last_arrival = time.monotonic()

    @property
    def expects_members(self) -> bool:
        """Whether announced members have yet to be submitted, and may still come: requests over a network
        arrive one by one, while the first of them may already wait."""
        return self.joined < self.size and time.monotonic() - self.last_arrival <= PATIENCE_SECONDS

    @property
    def waits_in_vain(self) -> bool:
        """Whether all that were submitted are waiting, and no other came for a while."""
        idle = time.monotonic() - self.last_arrival > PATIENCE_SECONDS
        return idle and self.waiting == self.members


class _Threshold(GroupState):
    def __init__(self, rule: Threshold, size: int) -> None:
        super().__init__(size)
        self.rule = rule

    def observe(self, key: Hashable, log: TraceLog, score: float | None, finished: bool) -> Verdicts:
        # A score that is not a number is below every bound.
        if log.length - 1 == self.rule.at and score is not None and not finished and not score >= self.rule.below:
            detail = f"score {score:.3f} at token {self.rule.at} is below {self.rule.below:g}"
            yield key, Verdict(self.rule.kind, self.rule.at, score, detail)


class _Meeting(GroupState):
    """The traces of a group meet at a position, so that they can be ranked."""

    def __init__(self, at: int, size: int) -> None:
        super().__init__(size)
        self.at = at
        self.scores: dict[Hashable, float] = {}
        self.lost = 0
        self.gone = 0
        self.met = False

    def observe(self, key: Hashable, log: TraceLog, score: float | None, finished: bool) -> Verdicts:
        position = log.length - 1
        arrives = position == self.at or (finished and position < self.at)
        if not arrives or score is None:
            return
        # A score that is not a number must never survive a pruning.
        self.scores[key] = score if score == score else -math.inf
        if not finished:
            self.wait(key)
        # Late traces of a group that has met without them are judged at once.
        if self.met or self._complete:
            yield from self._meet()

    def leave(self, key: Hashable, log: TraceLog) -> Verdicts:
        yield from super().leave(key, log)
        if key not in self.scores:
            # One that another rule pruned still counts as a member that was not kept.
            if log.verdict is not None:
                self.lost += 1
            else:
                self.gone += 1
        if not self.met and self._complete:
            yield from self._meet()

    def unstick(self) -> Verdicts:
        yield from self._meet()

    @property
    def _complete(self) -> bool:
        return len(self.scores) + self.lost + self.gone >= self.size

    def _meet(self) -> Verdicts:
        self.met = True
        yield from self.decide()

    def ranked(self) -> list[Hashable]:
        """Best first; ties go to the earlier arrival."""
        return sorted(self.scores, key=self.scores.__getitem__, reverse=True)

    def decide(self) -> Verdicts:
        raise NotImplementedError


class _KeepShare(_Meeting):
    def __init__(self, rule: KeepShare, size: int) -> None:
        super().__init__(rule.at, size)
        self.rule = rule

    def decide(self) -> Verdicts:
        kept = min(self.rule.survivors(len(self.scores) + self.lost), len(self.scores))
        pruned = [key for key in self.ranked()[kept:] if key in self.waiting]
        self.waiting.clear()
        for key in pruned:
            score = self.scores[key]
            detail = f"score {score:.3f} at token {self.at} is not among the best {kept} of {len(self.scores)}"
            yield key, Verdict(self.rule.kind, self.at, score, detail)


class _Budget(_Meeting):
    def __init__(self, rule: Budget, size: int) -> None:
        super().__init__(rule.at, size)
        self.rule = rule
        self.lengths: dict[Hashable, int] = {}
        self.spent = 0
        self.ended: list[int] = []

    def observe(self, key: Hashable, log: TraceLog, score: float | None, finished: bool) -> Verdicts:
        self.spent += log.length - self.lengths.get(key, 0)
        self.lengths[key] = log.length
        yield from super().observe(key, log, score, finished)
        if finished:
            self.ended.append(log.length)
        if self.spent >= self.rule.tokens:
            self.waiting.clear()
            detail = f"the group's budget of {self.rule.tokens} tokens is spent"
            for other in list(self.members):
                if other != key or not finished:
                    position = self.lengths.get(other, 1) - 1
                    yield other, Verdict(self.rule.kind, position, self.scores.get(other), detail)

    def leave(self, key: Hashable, log: TraceLog) -> Verdicts:
        self.lengths.pop(key, None)
        yield from super().leave(key, log)
        if self.met:
            yield from self.decide()

    def unstick(self) -> Verdicts:
        if not self.met:
            yield from self._meet()
            return
        # Waiting traces hold the memory that the running ones need: give up the least promising.
        worst = next((key for key in reversed(self.ranked()) if key in self.waiting), None)
        if worst is not None:
            self.waiting.discard(worst)
            yield worst, Verdict(self.rule.kind, self.at, self.scores[worst], "no memory is left for its group")

    def decide(self) -> Verdicts:
        """Let the best waiting traces run, as many as the rest of the budget should pay for."""
        expected = sum(self.ended) / len(self.ended) if self.ended else self.rule.length
        running = [key for key in self.members - self.waiting if key in self.lengths]
        committed = self.spent + sum(max(expected - self.lengths[key], 1) for key in running)
        for key in [key for key in self.ranked() if key in self.waiting]:
            committed += max(expected - self.lengths[key], 1)
            if committed > self.rule.tokens and running:
                break
            self.waiting.discard(key)
            running.append(key)
        return iter(())


class _ConfidenceFloor(GroupState):
    def __init__(self, rule: ConfidenceFloor, size: int) -> None:
        super().__init__(size)
        self.rule = rule
        self.warming: set[Hashable] = set()
        self.lowest: dict[Hashable, float] = {}
        self.sums: dict[Hashable, float] = {}
        self.warmed: list[float] = []
        self.gone = 0
        self.floor: float | None = None

    def join(self, key: Hashable) -> None:
        super().join(key)
        if self.joined <= self.rule.warmup:
            self.warming.add(key)

    def observe(self, key: Hashable, log: TraceLog, score: float | None, finished: bool) -> Verdicts:
        if not log.confidence:
            return
        window, length = self.rule.window, len(log.confidence)
        total = self.sums.get(key, 0.0) + log.confidence[-1]
        if length > window:
            total -= log.confidence[-1 - window]
        self.sums[key] = total
        confidence = total / min(length, window)
        if key in self.warming:
            if length >= window or finished:
                self.lowest[key] = min(self.lowest.get(key, math.inf), confidence)
            if finished:
                self.warming.discard(key)
                self.warmed.append(self.lowest[key])
                self._set_floor_when_warm()
        elif self.floor is None:
            if not finished:
                self.wait(key)
        elif length >= window and confidence < self.floor and not finished:
            detail = f"confidence {confidence:.3f} of the last {window} tokens is below {self.floor:.3f}"
            yield key, Verdict(self.rule.kind, log.length - 1, score, detail)

    def leave(self, key: Hashable, log: TraceLog) -> Verdicts:
        yield from super().leave(key, log)
        self.sums.pop(key, None)
        self.lowest.pop(key, None)
        if key in self.warming:
            # It was cancelled or pruned on the way: the floor is set without it.
            self.warming.discard(key)
            self.gone += 1
            self._set_floor_when_warm()

    def unstick(self) -> Verdicts:
        self._set_floor()
        return iter(())

    def _set_floor_when_warm(self) -> None:
        if len(self.warmed) + self.gone >= min(self.rule.warmup, self.size):
            self._set_floor()

    def _set_floor(self) -> None:
        self.floor = _percentile(self.warmed, 1 - self.rule.keep) if self.warmed else -math.inf
        self.waiting.clear()


def _percentile(values: list[float], share: float) -> float:
    """The value that a share of the values lies below, interpolated linearly as NumPy does."""
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (place - low) * (ranked[high] - ranked[low])


def start(rule: Rule, size: int) -> GroupState:
    """The state of a rule in a group that is only beginning."""
    if isinstance(rule, Threshold):
        return _Threshold(rule, size)
    if isinstance(rule, KeepShare):
        return _KeepShare(rule, size)
    if isinstance(rule, Budget):
        return _Budget(rule, size)
    return _ConfidenceFloor(rule, size)
