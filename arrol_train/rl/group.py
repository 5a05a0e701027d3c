"""Rollouts and their groups: one object for each rollout, annotated as more becomes known of it.

An engine's traces are appended to a `Rollout` (`Rollout.append`), the head's states and the policy's inclusion
probability are noted there, then the reward. From the finished `Group` come the rows of the replay buffer
(``learner.buffer_rows``) and what TRL trains on (``trl_bridge.trl_columns``); there are no forms between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arrol_train.positions import FINISH
from arrol_train.rl.advantages import expected_rewards

if TYPE_CHECKING:
    from arrol_tts.trace import Trace


Vector = NDArray[np.float16]
"""A hidden state: float16 ``[hidden_size]``."""


@dataclass(slots=True)
class Rollout:
    """One rollout of a group.

    Attributes:
        token_ids: generated so far.
        logprobs: of these tokens, None where the engine gives none.
        ended: whether it was written to its end, or to the most tokens that it may have.
        cut_off: whether it was the latter: it has no answer, and its reward is 0 without being graded.
        reward: 0 or 1 once it was graded. None before, for the pruned for ever, and for one that has ended and
            could not be graded: it counts in no mean and is not learned from.
        inclusion: probability that it was to be kept so far.
        posterior: of ending right, as the head said where it was last chosen among; None where it never was.
        tau: of the group effect on the log-odds there.
        states: at every stride-th token from the prompt's end on, float16 ``[rows, hidden_size]``, for heads that
            pool; None while there are none.
        marks: the state at each detection position, and at the last token by `FINISH`.
        scores: the engine's, at the detection positions, where the engine prunes.
        stopped_at: the position at which the engine chose not to let it go on, None where it did not.
        pruned_at: the position at which it was pruned, `FINISH` where it was finished and only left out of the
            update; None while it survives.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    ended: bool = False
    cut_off: bool = False
    reward: float | None = None
    inclusion: float = 1.0
    posterior: float | None = None
    tau: float = 0.0
    states: NDArray[np.float16] | None = None
    marks: dict[int, Vector] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    stopped_at: int | None = None
    pruned_at: int | None = None

    def append(self, trace: Trace, marks: Iterable[int] = (), stride: int = 0) -> None:
        """Take over what an engine wrote from here on, and whether it was to go on.

        Where the engine stopped it without having chosen, it ends at that position: what was written past it
        meanwhile is left out.

        Args:
            trace: whose positions count from where this rollout was.
            marks: of the trace's positions, those that are detection positions.
            stride: of the states, 0 for none; counted from the rollout's beginning.
        """
        begun, count = len(self.token_ids), trace.num_tokens
        if verdict := trace.meta.get("verdict"):
            if verdict["chosen"]:
                self.stopped_at = begun + verdict["position"]
            else:
                count = verdict["position"] + 1
        self.scores |= {begun + position: score for position, score in trace.scores.items()}
        self.token_ids += (trace.token_ids or [])[:count]
        if trace.logprobs is None or self.logprobs is None:
            self.logprobs = None
        else:
            self.logprobs += trace.logprobs[:count].tolist()
        for mark in marks:
            if mark in trace.features:
                self.marks[begun + mark] = trace.features[mark].astype(np.float16)
        if stride and trace.features:
            rows = [trace.features[position] for position in range(-begun % stride, count, stride)]
            if rows:  # one that goes on may end before the next
                states = np.array(rows, np.float16)
                self.states = states if self.states is None else np.concatenate([self.states, states])

    def end(self, reward: float | None, trace: Trace) -> None:
        """Note the reward, None where it cannot be graded, and the state at the last token of the last trace."""
        self.ended = True
        self.reward = reward
        if trace.features:
            self.marks[FINISH] = trace.features[trace.num_tokens - 1].astype(np.float16)

    @property
    def ungraded(self) -> bool:
        """Whether it has ended and could not be graded."""
        return self.ended and self.reward is None


class GivenUp(NamedTuple):
    """A group that was begun and is not trained on.

    Attributes:
        row: of the question.
        rollouts: how many were started.
        tokens: that they have.
        rewards: of those that were graded; empty where it was pruned whole.
    """

    row: int
    rollouts: int
    tokens: int
    rewards: list[float]


@dataclass(slots=True)
class Group:
    """The rollouts of one prompt in one step.

    Attributes:
        id: distinct among all groups of a run.
        row: of the question.
        prompt_ids: its prompt.
        rollouts: all that were started.
        early: rollouts that had ended at the last detection position.
        inclusion: probability that it was not to be pruned whole; part of each rollout's.
        at_random: whether those that were kept at every detection position are a random subset.
        given_up: groups that were begun, and pruned whole or replaced since they had no signal.
    """

    id: int
    row: int
    prompt_ids: list[int]
    rollouts: list[Rollout]
    early: int = 0
    inclusion: float = 1.0
    at_random: bool = True
    given_up: list[GivenUp] = field(default_factory=list)

    @property
    def survivors(self) -> list[Rollout]:
        """Those that were not pruned: they are trained on, but for the ungraded."""
        return [rollout for rollout in self.rollouts if rollout.pruned_at is None]

    @property
    def graded(self) -> list[Rollout]:
        """Those with a reward, survivors or not."""
        return [rollout for rollout in self.rollouts if rollout.reward is not None]

    @property
    def has_signal(self) -> bool:
        """Whether the survivors' rewards differ, of those that have one."""
        return len({rollout.reward for rollout in self.survivors if rollout.reward is not None}) > 1

    @property
    def survivors_rewards(self) -> NDArray[np.float64]:
        """Float64 ``[M]``, nan of the ungraded."""
        return np.array([rollout.reward for rollout in self.survivors], np.float64)

    def expected_of_others(self) -> NDArray[np.float64]:
        """What the rollouts that are not trained on were worth, as far as is known: float64, at most ``[G - M]``.

        See `arrol_train.rl.advantages.expected_rewards`. The ungraded tell nothing, and nothing is told of them.
        """
        rollouts = [rollout for rollout in self.rollouts if not rollout.ungraded]
        expected = expected_rewards(
            np.array([rollout.reward for rollout in rollouts], np.float64),
            np.array([rollout.posterior for rollout in rollouts], np.float64),
            [rollout.tau for rollout in rollouts],
        )
        return expected[[rollout.pruned_at is not None for rollout in rollouts]]

    def give_up(self, other: Group) -> None:
        """Note that another group was given up for this one."""
        is_finished = all(rollout.ended for rollout in other.survivors)
        rewards = [rollout.reward for rollout in other.graded if rollout.reward is not None]
        lost = GivenUp(other.row, len(other.rollouts), _tokens(other.rollouts), rewards if is_finished else [])
        self.given_up += [*other.given_up, lost]


def summary(groups: Sequence[Group]) -> dict[str, float]:
    """How a step's rollouts went: counts, tokens, the rewards that are trained on, and what all would have got.

    There are ``rollout/given_up`` groups that were given up, and they count among what was started and generated.
    ``rollout/success`` and ``rollout/success_square`` are the mean and the mean square of the prompts' success
    rates, and ``rollout/length`` is the mean of the tokens of whole rollouts: estimates for all that were started,
    from those that were finished, by inverse inclusion probabilities. Means are of the graded; one over no reward
    at all is left out.
    """
    by_group = [[r.reward for r in group.survivors if r.reward is not None] for group in groups]
    shares = np.array([np.mean(rewards) for rewards in by_group if rewards])
    labelled = [np.mean([r.reward for r in group.graded]) for group in groups if group.graded]
    given_up = [each for group in groups for each in group.given_up]
    started = sum(len(group.rollouts) for group in groups) + sum(each.rollouts for each in given_up)
    generated = sum(_tokens(group.rollouts) for group in groups) + sum(each.tokens for each in given_up)
    figures = {
        "rollout/started": float(started),
        "rollout/given_up": float(len(given_up)),
        "rollout/survivors": float(sum(len(group.survivors) for group in groups)),
        "rollout/early": float(sum(group.early for group in groups)),
        "rollout/failed_rewards": float(sum(rollout.ungraded for group in groups for rollout in group.rollouts)),
        "rollout/generated_tokens": float(generated),
        "rollout/trained_tokens": float(sum(_tokens(_trained(group)) for group in groups)),
        "rollout/no_signal": float(np.mean([not group.has_signal for group in groups])),
        **_of_all_started([group for group in groups if len(group.graded) > 1]),
    }
    if len(shares):
        figures["rollout/balance"] = float(shares.mean())
        figures["rollout/variance"] = float((shares * (1 - shares)).mean())
    if labelled:
        figures["rollout/labelled_reward"] = float(np.mean(labelled))
    return figures


def _of_all_started(groups: Sequence[Group]) -> dict[str, float]:
    """See `summary`; of groups with at least two graded rollouts, and nothing where there are none."""
    if not groups:
        return {}
    weights = [1 / np.array([rollout.inclusion for rollout in group.graded]) for group in groups]
    shares, squares = [], []
    for group, w in zip(groups, weights, strict=True):
        wr = w * np.array([rollout.reward for rollout in group.graded])
        shares.append(wr.sum() / w.sum())
        # A rate squared is the chance that two different rollouts are right.
        squares.append((wr.sum() ** 2 - (wr**2).sum()) / (w.sum() ** 2 - (w**2).sum()))
    lengths = [len(rollout.token_ids) for group in groups for rollout in group.graded]
    of_groups = [1 / group.inclusion for group in groups]
    return {
        "rollout/success": float(np.average(shares, weights=of_groups)),
        "rollout/success_square": float(np.average(squares, weights=of_groups)),
        "rollout/length": float(np.average(lengths, weights=np.concatenate(weights))),
    }


def _trained(group: Group) -> Iterator[Rollout]:
    return (rollout for rollout in group.survivors if not rollout.ungraded)


def _tokens(rollouts: Iterable[Rollout]) -> int:
    return sum(len(rollout.token_ids) for rollout in rollouts)
