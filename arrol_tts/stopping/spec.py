"""TraceSpec: what to record of one trace, and when to stop it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from arrol_tts.errors import InputError
from arrol_tts.stopping.rules import RULES, Rule
from arrol_tts.stopping.rules.base import MAX_GROUP_SIZE, MAX_POSITION, check_number

MAX_ENTRIES = 64
"""Bound on the entries of a list: a spec can come from anybody who reaches the server."""

MAX_RULES = 8
"""Bound on the rules of a trace, each of which is asked at every token."""


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """What to record of one trace and when to stop it: plain data that travels with the request.

    A trace is one request, and so positions, and the rows that a head pools, count from the end of that request's
    prompt. Where the prompt holds a trace's first tokens, to have it continued, its scores are those of the
    continuation.

    Args:
        group: names the prompt whose samples are compared with each other; "" for none, or in a
            template whose group and size the engine sets for each question.
        size: number of traces in the group.
        score_at: positions, in generated tokens, at which the head's score is logged.
        score_every: log it at every multiple of this many tokens too; 0 is off.
        score_after: log it after these token ids too, such as those that end a paragraph.
        score_finish: log the score at the finish too.
        head: name of the head that scores, where an engine has loaded several; "" is the default one.
        confidence: log DeepConf's confidence of every token.
        confidence_window: log DeepConf's measures over windows of this many tokens, instead of or beside a
            number for every token; 0 is off.
        self_certainty: log the mean over the tokens of how far the model was from knowing nothing.
        logprobs: log the log-probability of every sampled token, for reinforcement learning.
        live: report new scores while the trace is written, not only at its end.
        features_at: positions at which the hidden vector itself is kept, for training heads.
        features_every: keep it at every multiple of this many tokens too, 0 included; 0 is off.
        features_from: the first position that ``features_every`` counts from.
        features_finish: keep it at the finish too.
        stop: texts that end the trace as soon as it has written one of them.
        rules: stopping rules; each is applied on its own.
    """

    group: str = ""
    size: int = 1
    score_at: tuple[int, ...] = ()
    score_every: int = 0
    score_after: tuple[int, ...] = ()
    score_finish: bool = False
    head: str = ""
    confidence: bool = False
    confidence_window: int = 0
    self_certainty: bool = False
    logprobs: bool = False
    live: bool = False
    features_at: tuple[int, ...] = ()
    features_every: int = 0
    features_from: int = 0
    features_finish: bool = False
    stop: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        for name in ("group", "head"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > 256:
                raise InputError(f"{name} must be a string of at most 256 characters")
            _check_text(name, value)
        check_number("size", self.size, 1, MAX_GROUP_SIZE, int)
        for name in ("score_finish", "confidence", "self_certainty", "logprobs", "live", "features_finish"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        check_number("score_every", self.score_every, 0, MAX_POSITION, int)
        check_number("features_every", self.features_every, 0, MAX_POSITION, int)
        check_number("features_from", self.features_from, 0, MAX_POSITION, int)
        check_number("confidence_window", self.confidence_window, 0, MAX_POSITION, int)
        for name in ("score_at", "score_after", "features_at", "stop", "rules"):
            value = getattr(self, name)
            most = MAX_RULES if name == "rules" else MAX_ENTRIES
            if not isinstance(value, (list, tuple)) or len(value) > most:
                raise InputError(f"{name} must be a list of at most {most} entries")
            object.__setattr__(self, name, tuple(value))
        for position in self.score_at:
            check_number("score_at", position, 1, MAX_POSITION, int)
        for position in self.features_at:
            check_number("features_at", position, 0, MAX_POSITION, int)
        for token in self.score_after:
            check_number("score_after", token, 0, MAX_POSITION, int)
        for text in self.stop:
            if not isinstance(text, str) or not 0 < len(text) <= 256:
                raise InputError(f"stop has {text!r:.60}; its entries must be texts of 1 to 256 characters")
            _check_text("stop", text)

    @property
    def asks_anything(self) -> bool:
        """Whether there is anything to record or to stop; "live" alone is not."""
        return replace(self, group="", size=1, live=False) != TraceSpec()

    @property
    def scores(self) -> bool:
        """Whether a head is needed."""
        by_score = any(rule.reads == "score" for rule in self.rules)
        return by_score or bool(self.score_at or self.score_every or self.score_after or self.score_finish)

    @property
    def confidences(self) -> bool:
        """Whether token confidences are needed."""
        by_confidence = any(rule.reads == "confidence" for rule in self.rules)
        return by_confidence or self.confidence or self.confidence_window > 0

    def next_kept(self, position: int) -> float:
        """The first position from this one on whose score or state is kept while the trace goes on.

        -1 where that is known of no row before it comes; infinite where nothing is kept any more. Scores that are
        kept at every token (``score_every`` is 1) do not count.
        """
        if self.score_after:
            return -1
        found = [at for at in (*self.score_at, *self.features_at) if at >= position]
        if (every := self.score_every) > 1:
            found.append(max(position, 1) + -max(position, 1) % every)
        if every := self.features_every:
            first = max(position, self.features_from)
            found.append(first + (self.features_from - first) % every)
        return min(found, default=math.inf)

    def keeps_features(self, position: int, finished: bool) -> bool:
        """Whether the hidden vector of a step is kept."""
        every, first = self.features_every, self.features_from
        return (
            (every > 0 and position >= first and (position - first) % every == 0)
            or position in self.features_at
            or (finished and self.features_finish)
        )

    def scores_at(self, position: int, token: int | None, finished: bool) -> bool:
        """Whether the score at a position is logged, whose input is the given token."""
        every = self.score_every
        return (
            (every > 0 and position > 0 and position % every == 0)
            or (finished and self.score_finish)
            or position in self.score_at
            or token in self.score_after
        )

    def __deepcopy__(self, _memo: object) -> TraceSpec:
        return self  # vLLM copies the parameters of every request

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, the inverse of ``parse``."""
        data = asdict(self)
        data["rules"] = [{"rule": rule.kind, **asdict(rule)} for rule in self.rules]
        return data

    @classmethod
    def parse(cls, data: object) -> TraceSpec:
        """Read a spec from a mapping or a JSON string; one that is a TraceSpec already stays as it is.

        Raises:
            InputError: for anything malformed, saying what to change. Nothing else is raised,
                whatever the input, since the input may come over the network.
        """
        if isinstance(data, cls):
            return data
        if isinstance(data, str):
            try:
                data = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise InputError(f"the trace spec is not valid JSON: {error}") from None
        values = _known_keys(data, (f.name for f in fields(cls)), "the trace spec")
        rules = values.get("rules", ())
        if not isinstance(rules, (list, tuple)) or len(rules) > MAX_RULES:
            raise InputError(f"rules must be a list of at most {MAX_RULES} entries")
        spec = cls(**{**values, "rules": tuple(_parse_rule(rule) for rule in rules)})
        for rule in spec.rules:
            if rule.compares and not spec.group:
                raise InputError(f"a {rule.kind} rule compares the traces of a group: set group and size")
        return spec


def _check_text(name: str, text: str) -> None:
    """Refuse half of a surrogate pair, which JSON can name and no text can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} has {text!r:.60}, which is no text: leave the lone surrogate out") from None


def _parse_rule(data: object) -> Rule:
    if not isinstance(data, Mapping) or not isinstance(data.get("rule"), str) or data["rule"] not in RULES:
        raise InputError(f'each rule must be a mapping with "rule" one of {", ".join(RULES)}')
    kind = RULES[data["rule"]]
    values = _known_keys(
        {k: v for k, v in data.items() if k != "rule"},
        (f.name for f in fields(kind)),
        f"rule {data['rule']}",
    )
    try:
        return kind(**values)
    except TypeError:
        names = ", ".join(f.name for f in fields(kind))
        raise InputError(f"rule {data['rule']} needs {names}") from None


def _known_keys(data: object, known: Iterable[str], what: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InputError(f"{what} must be a mapping, not {type(data).__name__}")
    known = tuple(known)
    unknown = [str(k)[:40] for k in data if k not in known]
    if unknown:
        raise InputError(f"{what} has unknown keys {unknown[:5]}; known keys: {', '.join(known)}")
    return dict(data)
