"""What earlier visits say of each prompt, and what follows for the next: how many rollouts, or none.

A prompt's success rate has a Beta posterior, whose prior is fitted on the prompts that were visited. Rollouts are
shared out by what they add to the expected signal of a group (`arrol_train.rl.breakeven`) for their tokens: many
where the few that are right, or wrong, have to be found, and no more than are trained on where that is hopeless or
not needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arrol_train.rl.breakeven import signal_by_right
from arrol_train.rl.group import Group

Floats = NDArray[np.float64]

MEMORY = 0.5
"""What the evidence of earlier visits counts at the next one, since the policy has changed."""
HALF_LIFE = 8
"""Steps after which a visit counts half for what is expected of other prompts, for the same reason."""
STRENGTHS = (0.3, 50.0)
"""Between which the prior's strength is looked for: rollouts that it is worth."""
ROUNDS = 4
"""In which the price of a beginning settles; each raises signal for tokens, and three are nearly always enough."""


class Visited(NamedTuple):
    """What is known of a prompt.

    Attributes:
        right, wrong: rollouts, older ones counting less.
        barren: how many of its last groups had no signal, one after the other.
        step: of the last visit, counted in calls of `PromptTable.note`.
    """

    right: float = 0.0
    wrong: float = 0.0
    barren: int = 0
    step: int = 0


class PromptTable:
    """What is known of the prompts of a run, by their rows.

    The same groups in the same order give the same table, on every process.

    Attributes:
        visited: rows that were rolled out.
        steps: that were noted.
        length: mean tokens of rollouts that ended, those of older steps counting less; nan before any.
    """

    def __init__(self) -> None:
        self.visited: dict[int, Visited] = {}
        self.steps = 0
        self.length = math.nan

    def note(self, groups: Iterable[Group], posteriors: bool) -> None:
        """Take in a step's groups, and those that were given up when they had ended.

        Args:
            groups: whose rollouts have ended.
            posteriors: whether those of the pruned count; they are what a head said.
        """
        groups = list(groups)
        self.steps += 1
        if lengths := [len(rollout.token_ids) for group in groups for rollout in group.rollouts if rollout.ended]:
            mean = float(np.mean(lengths))
            self.length = mean if math.isnan(self.length) else MEMORY * self.length + (1 - MEMORY) * mean
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
            self.steps,
        )

    def barren(self, row: int) -> int:
        """How many of a prompt's last groups had no signal."""
        return self.visited.get(row, Visited()).barren

    @property
    def barren_share(self) -> float:
        """Share of the visited prompts whose last group had no signal; 0 before any visit."""
        return float(np.mean([each.barren > 0 for each in self.visited.values()])) if self.visited else 0.0

    def prior(self) -> tuple[float, float]:
        """The Beta distribution of success rates under which the visits are most likely, newer ones first of all.

        Even before any.
        """
        from scipy.optimize import minimize
        from scipy.special import betaln, expit

        if not self.visited:
            return 1.0, 1.0
        right, wrong, _, step = np.array(list(self.visited.values())).T
        weight = 0.5 ** ((self.steps - step) / HALF_LIFE)

        def loss(x: Floats) -> float:
            strength = np.exp(x[1])
            a, b = strength * expit(x[0]), strength * expit(-x[0])
            return float(betaln(a, b) - np.average(betaln(a + right, b + wrong), weights=weight))

        bounds = [(-6.0, 6.0), tuple(np.log(STRENGTHS))]
        x = minimize(loss, [0.0, 1.0], bounds=bounds, method="L-BFGS-B").x
        return float(np.exp(x[1]) * expit(x[0])), float(np.exp(x[1]) * expit(-x[0]))

    def group_sizes(
        self, rows: Sequence[int], group: int, survivors: int, most: int, auroc: float, position: int
    ) -> list[int]:
        """How many rollouts to start for each prompt, ``group`` on average at most.

        Those with the most signal for the tokens: a rollout that is begun in order to be pruned must add at least
        what its tokens would bring elsewhere. So there is none where fewer rollouts do as well.

        Args:
            rows: of the prompts.
            group: G, on average.
            survivors: M, fewest for each.
            most: for each.
            auroc: of the head within groups, where it chooses the survivors.
            position: where that is, in tokens.
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
        values, total = np.stack(signal, axis=1), (group - survivors) * len(rows)
        begun = 1.0 if math.isnan(self.length) else min(position / self.length, 1.0)
        more = [0] * len(rows)
        for _ in range(ROUNDS):  # until no other sizes have more signal for their tokens
            worth = sum(value[n] for value, n in zip(values, more, strict=True))
            spent = survivors * len(rows) + begun * sum(more)
            before, more = more, share_out(values, total, begun * worth / spent)
            if more == before:
                break
        return [survivors + each for each in more]

    def state_dict(self) -> dict[str, Any]:
        """The table, as JSON."""
        visited = {str(row): list(each) for row, each in self.visited.items()}
        return {
            "visited": visited,
            "steps": self.steps,
            "length": None if math.isnan(self.length) else self.length,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        visited = state.get("visited", state)  # older ones are nothing else, and have no steps
        self.visited = {int(row): Visited(each[0], each[1], *map(int, each[2:])) for row, each in visited.items()}
        self.steps = state.get("steps", 0)
        length = state.get("length")
        self.length = math.nan if length is None else float(length)


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
