"""KeepSubset: a policy of reinforcement learning chooses who of a group goes on."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arrol_tts.errors import InputError
from arrol_tts.stopping.rules.base import (
    MAX_GROUP_SIZE,
    MAX_POSITION,
    GroupState,
    Rule,
    Verdict,
    Verdicts,
    check_number,
)
from arrol_tts.stopping.rules.meeting import Meeting
from arrol_tts.stopping.selection import POLICIES, Selection, select

MAX_CORNERS = 4096
"""Bound on the corners of a posterior: a rule can come from anybody who reaches the server."""


@dataclass(frozen=True, slots=True)
class KeepSubset(Rule):
    """Let exactly so many traces of a group go on, chosen by a policy that wants a mixture and not the best.

    The group meets at the position: a trace that arrives waits, without computing, until every member has arrived
    or was stopped by another rule. Then the policy chooses by their scores. A trace that has ended by then has a
    reward, which decides about its place and which no engine knows. In a group with such a trace all others are
    stopped at the position, and their verdicts say that nothing was chosen: who asked can choose, with ``select``,
    and have the chosen ones continued. So it is too where a group cannot meet, for want of memory or of members.

    Args:
        at: detection position in generated tokens.
        keep: how many go on.
        policy: one of `arrol_tts.stopping.selection.POLICIES`.
        posterior: the corners of the piecewise linear curve from a score to the probability to end right: the
            scores, which ascend, and the probabilities.
        tau, exploration, rho, strength, p_min, p_max: as `arrol_tts.stopping.selection.select` takes them.
        seed: the only source of chance, from 0 to 2^64 - 1.
    """

    kind: ClassVar[str] = "keep_subset"
    at: int
    keep: int
    policy: str
    posterior: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0, 1.0), (0.0, 1.0))
    tau: float = 0.0
    exploration: float = 0.1
    seed: int = 0
    rho: float = 0.5
    strength: float = 0.5
    p_min: float = 0.1
    p_max: float = 0.9

    def __post_init__(self) -> None:
        check_number("keep_subset.at", self.at, 1, MAX_POSITION, int)
        check_number("keep_subset.keep", self.keep, 1, MAX_GROUP_SIZE, int)
        if self.policy not in POLICIES:
            raise InputError(f"keep_subset.policy is {self.policy!r:.60}; choose one of {', '.join(POLICIES)}")
        check_number("keep_subset.tau", self.tau, 0, 100, float)
        check_number("keep_subset.seed", self.seed, 0, (1 << 64) - 1, int)
        check_number("keep_subset.strength", self.strength, -100, 100, float)
        for name in ("exploration", "rho", "p_min", "p_max"):
            check_number(f"keep_subset.{name}", getattr(self, name), 0, 1, float)
        object.__setattr__(self, "posterior", _corners(self.posterior))

    def select(self, scores: ArrayLike, rewards: ArrayLike | None = None) -> Selection:
        """Who goes on, and how likely each was to: the same in an engine and outside it, in whatever order.

        Args:
            scores: float ``[G]``, of the head at the position; one that is not finite counts as 0.
            rewards: float ``[G]``, 0 or 1 of those that have ended and not a number for the others; None where
                none has ended.

        Raises:
            InputError: when the policy cannot keep so many of these.
        """
        found = _finite(scores)
        reward = np.full(found.shape, np.nan) if rewards is None else np.asarray(rewards, np.float64)
        known = ~np.isnan(reward)
        q = np.where(known, reward, self.probabilities(found))
        # By score, so that the order of those with other scores does not matter: over a network it varies.
        order = np.lexsort((q, found))
        selection = select(
            self.policy,
            q[order],
            self.keep,
            np.random.default_rng(self.seed),
            known=known[order],
            scores=found[order],
            exploration=self.exploration,
            tau=self.tau,
            rho=self.rho,
            strength=self.strength,
            p_min=self.p_min,
            p_max=self.p_max,
        )
        inclusion = np.empty(len(order))
        inclusion[order] = selection.inclusion
        return Selection(np.sort(order[selection.kept]), inclusion, selection.at_random)

    def probabilities(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Of ending right, by the posterior: float64 ``[n]``."""
        return np.asarray(np.interp(_finite(scores), *self.posterior))

    def start(self, size: int) -> GroupState:
        """See ``Rule.start``."""
        return _State(self, size)


class _State(Meeting):
    def __init__(self, rule: KeepSubset, size: int) -> None:
        super().__init__(rule.at, size)
        self.rule = rule
        self.asked_at = rule.at
        self.order: list[Hashable] = []
        self.decided = False

    def join(self, key: Hashable) -> None:
        super().join(key)
        self.order.append(key)

    def decide(self) -> Verdicts:
        waiting, self.waiting = self.waiting, set()
        together = not self.decided and self.complete and not self.gone and len(waiting) == len(self.scores)
        self.decided = True
        if together:
            yield from self._choose()
            return
        for key in waiting:
            detail = f"its group was not whole at token {self.at}, and nothing was chosen"
            yield key, Verdict(self.rule.kind, self.at, self.scores[key], detail, chosen=False)

    def _choose(self) -> Verdicts:
        keys = [key for key in self.order if key in self.scores]  # as `select` is asked outside
        if len(keys) <= self.rule.keep:
            return
        kept = set(self.rule.select([self.scores[key] for key in keys]).kept.tolist())
        for i, key in enumerate(keys):
            if i not in kept:
                score = self.scores[key]
                detail = f"score {score:.3f} at token {self.at} is not among the {len(kept)} of {len(keys)} chosen"
                yield key, Verdict(self.rule.kind, self.at, score, detail)


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(scores, np.float64)
    return np.where(np.isfinite(found), found, 0.0)


def _corners(posterior: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A curve as tuples, which can be hashed.

    Raises:
        InputError: when it is none.
    """
    wanted = f"1 to {MAX_CORNERS} scores that ascend, and as many probabilities"
    lists = posterior if isinstance(posterior, (list, tuple)) else ()
    if len(lists) != 2 or not all(isinstance(each, (list, tuple)) for each in lists):
        raise InputError(f"keep_subset.posterior must be two lists: {wanted}")
    scores, probabilities = (tuple(each) for each in lists)
    if not 0 < len(scores) == len(probabilities) <= MAX_CORNERS:
        raise InputError(
            f"keep_subset.posterior has {len(scores)} and {len(probabilities)} entries: give {wanted}"
        )
    for value in (*scores, *probabilities):
        check_number("keep_subset.posterior", value, 0, 1, float)
    if any(a >= b for a, b in itertools.pairwise(scores)):
        raise InputError(f"the scores of keep_subset.posterior do not ascend: give {wanted}")
    return scores, probabilities
