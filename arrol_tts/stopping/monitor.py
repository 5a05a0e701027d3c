"""The Monitor: the score log and the stopping rules of all traces of one engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

from arrol_tts.stopping.log import TraceLog
from arrol_tts.stopping.rules import GroupState, Rule, Verdict, Verdicts
from arrol_tts.stopping.spec import TraceSpec


class Monitor:
    """Watches traces, applies their rules, and says which to stop and which to let wait.

    Keys are the engine's own names of traces.
    """

    def __init__(self) -> None:
        self.logs: dict[Hashable, TraceLog] = {}
        self._groups: dict[tuple[str, Rule], GroupState] = {}
        self._verdicts: dict[Hashable, Verdict] = {}
        # Groups with waiting traces, in the order in which they began to wait.
        self._holding: dict[GroupState, None] = {}
        self._failures: dict[Hashable, Exception] = {}

    def add(self, key: Hashable, spec: TraceSpec) -> TraceLog:
        """Begin to watch a trace; whatever a rule raises here, it is not watched then."""
        log = self.logs[key] = TraceLog(spec)
        try:
            self._join(key, log)
        except Exception:
            self.drop(key)
            raise
        return log

    def _join(self, key: Hashable, log: TraceLog) -> None:
        spec = log.spec
        for rule in spec.rules:
            group = self._groups.get((spec.group, rule)) if spec.group else None
            if group is None:
                group = rule.start(spec.size)
                if spec.group:
                    self._groups[spec.group, rule] = group
            log.groups.append(group)
            group.join(key)
            if group.waiting:
                self._holding[group] = None
        log.followed = [group for group in log.groups if group.asked_at is None]
        # A rule that reads every token is told the score with it, where there is one.
        log.due = -1 if log.followed and log.wants_scores else self._next(log)
        if not (log.followed or spec.score_every or spec.score_after or spec.score_finish):
            log.scores_until = max((*spec.score_at, *(rule.at for rule in spec.rules)), default=-1)

    @staticmethod
    def _next(log: TraceLog) -> float:
        """The next position at which something of the trace is kept or judged that is not at every token."""
        asked = (group.asked_at for group in log.groups)
        rules = min((at for at in asked if at is not None and at >= log.length), default=math.inf)
        return min(rules, log.spec.next_kept(log.length))

    def observe(
        self,
        key: Hashable,
        position: int,
        score: float | None = None,
        confidence: float | None = None,
        logprob: float | None = None,
        token: int | None = None,
        feature: Callable[[], bytes] | None = None,
        finished: bool = False,
    ) -> None:
        """Take in one step of a trace: a row whose input is the position-th generated token.

        Args:
            key: the trace.
            position: generated tokens up to and including the row's input; 0 is the prompt's end.
            score: the head's probability of the trace up to the row, None without a head.
            confidence: DeepConf's confidence of the token sampled from the row.
            logprob: log-probability of the token sampled from the row, for specs with ``logprobs``.
            token: the row's input, for specs with ``score_after``.
            feature: gives the row's hidden vector, float32 bytes; called only where it is kept.
            finished: the token sampled from the row ended the trace.
        """
        log = self.logs[key]
        spec = log.spec
        log.length = position + 1
        # This runs for every token of every trace: what is rare comes behind one comparison.
        if score is not None and log.wants_scores and spec.scores_at(position, token, finished):
            log.scores[position] = score
        if confidence is not None and log.wants_confidence:
            log.confidence.append(confidence)
        if logprob is not None:
            log.logprobs.append(logprob)
        if feature is not None and position <= log.features_until and spec.keeps_features(position, finished):
            log.features[position] = feature()
        if log.groups:
            for group in log.groups:
                self._settle(group, group.observe, key, log, score, finished)
        if 0 <= log.due <= position:
            log.due = self._next(log)
        if position >= log.scores_until:
            log.wants_scores = False

    def drop(self, key: Hashable) -> TraceLog | None:
        """Forget a trace that ended, was pruned or was cancelled; returns its log."""
        log = self.logs.pop(key, None)
        if log is None:
            return None
        self._verdicts.pop(key, None)
        self._failures.pop(key, None)
        for rule, group in zip(log.spec.rules, log.groups, strict=False):  # fewer where one could not be joined
            self._settle(group, group.leave, key, log)
            group.members.discard(key)  # also where the rule failed
            if not group.members:
                self._groups.pop((log.spec.group, rule), None)
                self._holding.pop(group, None)
        log.groups.clear()
        return log

    def _settle(self, group: GroupState, news: Callable[..., Verdicts], *args: Any) -> None:
        """Tell a group something, and take what it says to that."""
        try:
            for key, verdict in news(*args):
                if key in self.logs:
                    self._verdicts.setdefault(key, verdict)
        except Exception as error:
            self._fail(group, error)
        if group.waiting:
            self._holding[group] = None
        else:
            self._holding.pop(group, None)

    def _fail(self, group: GroupState, error: Exception) -> None:
        """A rule that has failed cannot be relied on: its traces fail, and nobody waits for it."""
        self._failures |= {key: error for key in group.members if key in self.logs}
        group.waiting.clear()
        self._holding.pop(group, None)

    def take_verdicts(self) -> dict[Hashable, Verdict]:
        """The traces to stop now, each named once; the log of each remembers why."""
        verdicts, self._verdicts = self._verdicts, {}
        for key, verdict in verdicts.items():
            self.logs[key].verdict = verdict
        return verdicts

    def take_failures(self) -> dict[Hashable, Exception]:
        """The traces that cannot go on because a rule of theirs raised, each named once, with what it raised."""
        failures, self._failures = self._failures, {}
        return failures

    def is_held(self, key: Hashable) -> bool:
        """Whether a trace waits for its group and must not be computed further."""
        log = self.logs.get(key)
        return log is not None and any(key in group.waiting for group in log.groups)

    @property
    def any_held(self) -> bool:
        """Whether any trace waits for its group."""
        return bool(self._holding)

    def release(self, *, stuck: bool = False) -> None:
        """Let groups go on that wait in vain.

        A group decides without its missing members when all it has submitted are waiting and no other
        came for a while, or it has waited for long; or at once when the engine is ``stuck``: nothing at all can
        be scheduled, e.g. because waiting traces hold all KV blocks.
        """
        for group in list(self._holding):
            group.close()
            if group.waits_in_vain or (stuck and not group.expects_members):
                self._settle(group, group.unstick)
                if stuck:
                    return
