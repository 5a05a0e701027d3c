"""Rollouts and their groups: one object for each rollout, annotated as more becomes known of it.

An engine's traces are appended to a `Rollout` (`Rollout.append`), the head's states and the policy's inclusion
probability are noted there, then the reward. From the finished `Group` come the rows of the replay buffer
(``learner.buffer_rows``) and what TRL trains on (``trl_bridge.trl_columns``); there are no forms between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from arrol_train.positions import FINISH

if TYPE_CHECKING:
    from arrol_tts.trace import Trace


@dataclass(slots=True)
class State:
    """The head's input at a position, float16 ``[hidden_size]``, and the score in (0, 1) that it gave."""

    features: NDArray[np.float16]
    score: float


@dataclass(slots=True)
class Rollout:
    """One rollout of a group.

    Attributes:
        token_ids: generated so far.
        logprobs: of these tokens, None where the engine gives none.
        reward: 0 or 1 once it has ended, None before, and for the pruned for ever.
        inclusion: probability that it was to be kept so far.
        states: by detection position, and by `FINISH` for the last.
        pruned_at: the position at which it was pruned, `FINISH` where it was finished and only left out of the
            update; None while it survives.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    reward: float | None = None
    inclusion: float = 1.0
    states: dict[int, State] = field(default_factory=dict)
    pruned_at: int | None = None

    def append(self, trace: Trace, marks: Iterable[int]) -> None:
        """Take over what an engine wrote from here on.

        Args:
            trace: whose positions count from where this rollout was.
            marks: of the trace's positions, those at which the head was to read.
        """
        begun = len(self.token_ids)
        self.token_ids += trace.token_ids or []
        if trace.logprobs is None or self.logprobs is None:
            self.logprobs = None
        else:
            self.logprobs += trace.logprobs.tolist()
        for mark in marks:
            if mark in trace.features:
                self.states[begun + mark] = _state(trace, mark)

    def end(self, reward: float, trace: Trace) -> None:
        """Note the reward, and the state at the last token of the trace that ended it."""
        self.reward = reward
        if trace.features:
            self.states[FINISH] = _state(trace, trace.num_tokens - 1)


@dataclass(slots=True)
class Group:
    """The rollouts of one prompt in one step.

    Attributes:
        id: distinct among all groups of a run.
        row: of the question.
        prompt_ids: its prompt.
        rollouts: all that were started.
        early: rollouts that had ended at the last detection position.
    """

    id: int
    row: int
    prompt_ids: list[int]
    rollouts: list[Rollout]
    early: int = 0

    @property
    def survivors(self) -> list[Rollout]:
        """Those that were not pruned: they are trained on."""
        return [rollout for rollout in self.rollouts if rollout.pruned_at is None]

    @property
    def graded(self) -> list[Rollout]:
        """Those with a reward, survivors or not."""
        return [rollout for rollout in self.rollouts if rollout.reward is not None]

    @property
    def has_signal(self) -> bool:
        """Whether the survivors' rewards differ."""
        return len({rollout.reward for rollout in self.survivors}) > 1


def summary(groups: Sequence[Group]) -> dict[str, float]:
    """How a step's rollouts went: counts, tokens, and the rewards that are trained on."""
    shares = np.array([np.mean([rollout.reward or 0.0 for rollout in group.survivors]) for group in groups])
    return {
        "rollout/started": float(sum(len(group.rollouts) for group in groups)),
        "rollout/survivors": float(sum(len(group.survivors) for group in groups)),
        "rollout/early": float(sum(group.early for group in groups)),
        "rollout/generated_tokens": float(sum(_tokens(group.rollouts) for group in groups)),
        "rollout/trained_tokens": float(sum(_tokens(group.survivors) for group in groups)),
        "rollout/balance": float(shares.mean()),
        "rollout/variance": float((shares * (1 - shares)).mean()),
        "rollout/no_signal": float(np.mean([not group.has_signal for group in groups])),
        "rollout/labelled_reward": float(np.mean([np.mean([r.reward for r in group.graded]) for group in groups])),
    }


def _tokens(rollouts: Iterable[Rollout]) -> int:
    return sum(len(rollout.token_ids) for rollout in rollouts)


def _state(trace: Trace, position: int) -> State:
    return State(trace.features[position].astype(np.float16), trace.scores.get(position, 0.5))
