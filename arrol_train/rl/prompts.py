"""What earlier visits say of each prompt, and what follows for the next: how many rollouts, or none.

A prompt's success rate has a Beta posterior, whose prior is fitted on all prompts that were visited. Rollouts are
shared out by what they add to the expected signal of a group (`arrol_train.rl.breakeven`): many where the few that
are right, or wrong, have to be found, and no more than are trained on where that is hopeless or not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arrol_train.rl.breakeven import signal_by_right
from arrol_train.rl.group import Group

Floats = NDArray[np.float64]

MEMORY = 0.5
"""What the evidence of earlier visits counts at the next one, since the policy has changed."""
STRENGTHS = (0.3, 50.0)
"""Between which the prior's strength is looked for: rollouts that it is worth."""
WORTH = 1e-3
"""What a rollout must add to the signal of its group to be started, as a share of the most that there can be."""


class Visited(NamedTuple):
    """What is known of a prompt.

    Attributes:
        right, wrong: rollouts, older ones counting less.
        barren: how many of its last groups had no signal, one after the other.
    """

    right: float = 0.0
    wrong: float = 0.0
    barren: int = 0


class PromptTable:
    """What is known of the prompts of a run, by their rows.

    The same groups in the same order give the same table, on every process.

    Attributes:
        visited: rows that were rolled out.
    """

    def __init__(self) -> None:
        self.visited: dict[int, Visited] = {}

    def note(self, groups: Iterable[Group], posteriors: bool) -> None:
        """Take in a step's groups, and those that were given up when they had ended.

        Args:
            groups: whose rollouts have ended.
            posteriors: whether those of the pruned count; they are what a head said.
        """
        for group in groups:
            for lost in group.given_up:
                self._note(lost.row, lost.rewards, lost.rewards)
            rewards = [rollout.reward for rollout in group.graded if rollout.reward is not None]
            expected = rewards
            if posteriors:
                kept = [rollout.reward for rollout in group.survivors if rollout.reward is not None]
                expected = [*kept, *group.expected_of_others().tolist()]
            self._note(group.row, rewards, expected)

    def _note(self, row: int, rewards: Sequence[float], expected: Sequence[float]) -> None:
        if not rewards:
            return
        before, count, rate = self.visited.get(row, Visited()), len(rewards), float(np.mean(expected))
        self.visited[row] = Visited(
            MEMORY * before.right + count * rate,
            MEMORY * before.wrong + count * (1 - rate),
            before.barren + 1 if len(set(rewards)) == 1 else 0,
        )

    def barren(self, row: int) -> int:
        """How many of a prompt's last groups had no signal."""
        return self.visited.get(row, Visited()).barren

    @property
    def barren_share(self) -> float:
        """Share of the visited prompts whose last group had no signal; 0 before any visit."""
        return float(np.mean([each.barren > 0 for each in self.visited.values()])) if self.visited else 0.0

    def prior(self) -> tuple[float, float]:
        """The Beta distribution of success rates under which the visits are most likely; even before any."""
        from scipy.optimize import minimize
        from scipy.special import betaln, expit

        if not self.visited:
            return 1.0, 1.0
        right, wrong, _ = np.array(list(self.visited.values())).T

        def loss(x: Floats) -> float:
            strength = np.exp(x[1])
            a, b = strength * expit(x[0]), strength * expit(-x[0])
            return float(betaln(a, b) - betaln(a + right, b + wrong).mean())

        bounds = [(-6.0, 6.0), tuple(np.log(STRENGTHS))]
        x = minimize(loss, [0.0, 1.0], bounds=bounds, method="L-BFGS-B").x
        return float(np.exp(x[1]) * expit(x[0])), float(np.exp(x[1]) * expit(-x[0]))

    def group_sizes(self, rows: Sequence[int], group: int, survivors: int, most: int, auroc: float) -> list[int]:
        """How many rollouts to start for each prompt, ``group`` on average at most.

        Args:
            rows: of the prompts.
            group: G, on average.
            survivors: M, fewest for each.
            most: for each.
            auroc: of the head within groups, where it chooses the survivors.
        """
        from scipy.stats import betabinom

        a, b = self.prior()
        known = [self.visited.get(row, Visited()) for row in rows]
        right = np.array([a + each.right for each in known])[:, None]
        wrong = np.array([b + each.wrong for each in known])[:, None]
        sizes = range(survivors, most + 1)
        signal = [
            betabinom.pmf(np.arange(size + 1), size, right, wrong)
            @ signal_by_right(size, survivors, round(auroc, 2))
            for size in sizes
        ]
        more = share_out(np.stack(signal, axis=1), (group - survivors) * len(rows), WORTH * survivors / 2)
        return [survivors + each for each in more]

    def state_dict(self) -> dict[str, list[float]]:
        """The table, as JSON."""
        return {str(row): list(each) for row, each in self.visited.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take over what `state_dict` returned."""
        self.visited = {int(row): Visited(each[0], each[1], int(each[2])) for row, each in state.items()}


def share_out(values: Floats, total: int, price: float = 0.0) -> list[int]:
    """Deal out up to ``total`` pieces such that the values, less their price, add up to the most, exactly.

    Args:
        values: float ``[n, 1 + most]``, of each with 0, 1, ... pieces.
        total: pieces.
        price: of each; those that are not worth it are not dealt out.

    Returns:
        How many each gets.
    """
    # By dynamic programming over the first few and what is left for them.
    priced = values - price * np.arange(values.shape[1])
    best = np.zeros(total + 1)
    chosen = np.zeros((len(values), total + 1), int)
    for i, value in enumerate(priced):
        found = np.full((len(value), total + 1), -np.inf)
        for pieces in range(min(len(value), total + 1)):
            found[pieces, pieces:] = best[: total + 1 - pieces] + value[pieces]
        chosen[i], best = found.argmax(axis=0), found.max(axis=0)
    dealt, left = [0] * len(values), total
    for i in reversed(range(len(values))):
        dealt[i] = int(chosen[i, left])
        left -= dealt[i]
    return dealt
