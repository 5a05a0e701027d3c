"""Advantages whose baseline counts the pruned: the mean and the spread of all G rollouts of a group.

GRPO takes a reward's distance from the mean of those that are trained on. Selection moves that mean (``tails``
towards one half, in hard groups and in easy ones), and survivors that are all right or all wrong are worth nothing
by it. Here the group is completed instead: a rollout that was pruned counts with its posterior probability of
being right, which the survivors' rewards have corrected (`expected_rewards`), and `advantages` works with the
completed group as GRPO does with a whole one. Where nothing was pruned the two are equal.

**Why not inverse inclusion probabilities.** ``q + (reward - q) / inclusion`` for the kept and q for the pruned is
unbiased whatever the head knows, but ``tails`` keeps the middle of a group with a twentieth of the ends'
probability, and the weights make it four times as noisy as the survivors' plain mean. The correction by a group
effect needs no weights: a policy looks at posteriors and at nothing else, so that given these, which rollouts were
kept says nothing more of the group (they are missing at random).

**Why survivors' gradients are not weighted either.** Weighed by ``M / (G inclusion)`` the update would be
unbiased, for the whole group's gradient, and unweighted it leans to what the head's score goes by. But of a step's
signal the weights cost more than half, and bounded by 2 a tenth, while the bias leaves the gradient's direction
nearly as it was (cosine 0.95 to 0.97 in simulated groups, signal to noise 0.84 of an even task's without weights,
0.34 with all, 0.76 with bounded ones; 8 rollouts from the start have 0.72).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arrol_tts.calibration import logit, sigmoid

Floats = NDArray[np.float64]

Scale = Literal["group", "batch", "none"]
"""What divides advantages: the standard deviation of their group, of all groups, or nothing (TRL's
scale_rewards)."""

_EPS = 1e-3
"""Posteriors are kept this far from 0 and 1, as where a group's effect is learned."""
_STD_EPS = 1e-4
"""Added to standard deviations, as TRL does."""


def expected_rewards(rewards: ArrayLike, posteriors: ArrayLike, tau: ArrayLike) -> Floats:
    """What each rollout of a group is expected to be worth, given the rewards that are known.

    A head's errors are shared by a group: ``P(right) = sigmoid(logit(posterior) + tau u)`` with one u ~ N(0, 1)
    for the group. The known rewards say what u was likely to be, and the others' posteriors follow: where eight of
    eight survivors are wrong, the pruned most likely were too.

    Args:
        rewards: float ``[G]``, 0 or 1, nan where unknown.
        posteriors: float ``[G]``, probability of being right as the head said when the rollout was last chosen
            among, nan where it never was; such a rollout's reward must be known.
        tau: float ``[G]`` or one number, standard deviation of the group effect where that was said (see
            `arrol_train.rl.group_effect.learn_tau`).

    Returns:
        float64 ``[G]``: the reward where it is known, else a probability.
    """
    reward, posterior = np.asarray(rewards, np.float64), np.asarray(posteriors, np.float64)
    known = ~np.isnan(reward)
    told = known & ~np.isnan(posterior)
    u = np.linspace(-4, 4, 65)
    log_odds = logit(posterior, _EPS)[:, None] + np.broadcast_to(tau, reward.shape)[:, None] * u
    sign = np.where(reward[told] > 0.5, 1.0, -1.0)[:, None]
    log_weight = -(u**2) / 2 - np.log1p(np.exp(-sign * log_odds[told])).sum(axis=0)
    weight = np.exp(log_weight - log_weight.max())
    return np.where(known, reward, sigmoid(log_odds) @ (weight / weight.sum()))


@dataclass(frozen=True, slots=True)
class GroupRewards:
    """What is known of a group's rewards.

    Attributes:
        total: float64 ``[M]``, of each survivor, all reward functions together; nan where it could not be graded.
        task: float64 ``[M]``, the part of it that says right or wrong, 0 or its weight; nan likewise.
        others: float64 ``[n]``, the same part of those that are not trained on, as `expected_rewards` has it, in
            [0, weight].
    """

    total: Floats
    task: Floats
    others: Floats

    def completed(self, weight: float) -> tuple[Floats, Floats]:
        """Expected total and its variance of all that counts: float64 ``[graded survivors + n]`` each.

        What other reward functions would have given to those not trained on is taken to be what the survivors got.
        """
        graded = ~np.isnan(self.total)
        total, besides = self.total[graded], (self.total - self.task)[graded]
        others = self.others + (besides.mean() if len(besides) else 0.0)
        # Zero where the reward is known.
        variance = self.others * (weight - self.others)
        return np.concatenate([total, others]), np.concatenate([np.zeros(len(total)), variance])


def advantages(groups: Sequence[GroupRewards], scale: Scale = "group", weight: float = 1.0) -> list[Floats]:
    """Distance of each survivor's reward from the expected mean of all rollouts of its group.

    It is divided by the standard deviation that these rewards are expected to have (of n, with n - 1 below), so
    that nothing grows without bound where survivors agree: with k of G known to be right and none of the others
    expected to be, the deviation is that of k of G.

    Args:
        groups: the groups of a batch.
        scale: what divides.
        weight: of the reward that says right or wrong, above 0.

    Returns:
        float64 ``[M]`` for each group; 0 where a rollout could not be graded. A group without rollouts that
        differ, or could differ, has zeros.
    """
    completed = [group.completed(weight) for group in groups]
    batch = tuple(np.concatenate(parts) for parts in zip(*completed, strict=True))
    found = []
    for group, own in zip(groups, completed, strict=True):
        mean = own[0].mean() if len(own[0]) else 0.0
        divisor = 1.0 if scale == "none" else _deviation(*(own if scale == "group" else batch)) + _STD_EPS
        found.append(np.nan_to_num((group.total - mean) / divisor, nan=0.0))
    return found


def _deviation(expected: Floats, variance: Floats) -> float:
    if len(expected) < 2:
        return 0.0
    return float(np.sqrt((((expected - expected.mean()) ** 2).sum() + variance.sum()) / (len(expected) - 1)))
