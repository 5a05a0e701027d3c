"""Detection positions: how well the head ranks within groups at each, and which of several is worth most.

Rewards are known of survivors, and those of ``tails`` are the ends of their groups by the head's own score, which
are ranked better than a choice among all can count on. Inverse inclusion probabilities do not mend that: two
rollouts of the middle are kept together far more often than their probabilities multiplied, since it is whole
groups that are pruned at random. So these groups speak for the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from arrol_train.rl.group import Group, Rollout


class Pairs(NamedTuple):
    """Pairs of a right and a wrong rollout of one group, by weight.

    Attributes:
        total: of all pairs.
        ranked: of those in which the right one's score is the higher, ties counting one half.
    """

    total: float = 0.0
    ranked: float = 0.0

    @property
    def auroc(self) -> float:
        """The share that is ranked rightly; nan without pairs."""
        return self.ranked / self.total if self.total else float("nan")

    def followed_by(self, news: Pairs, memory: float) -> Pairs:
        """Sums in which what came before counts ``memory`` as much as the news."""
        return Pairs(memory * self.total + news.total, memory * self.ranked + news.ranked)


def ranked_pairs(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, weights: ArrayLike) -> Pairs:
    """Pairs within groups, each weighted by the product of its rollouts' weights.

    Args:
        labels: 0/1 ``[n]``.
        scores: float ``[n]``, higher meaning more likely right.
        groups: whole numbers ``[n]``.
        weights: float ``[n]``.
    """
    y, x, group = np.asarray(labels) > 0.5, np.asarray(scores, np.float64), np.asarray(groups)
    w = np.asarray(weights, np.float64)
    total = ranked = 0.0
    for each in np.unique(group):
        right, wrong = y & (group == each), ~y & (group == each)
        weight = w[right, None] * w[wrong]
        total += float(weight.sum())
        ranked += float((weight * (1 + np.sign(x[right, None] - x[wrong])) / 2).sum())
    return Pairs(total, ranked)


def stands_for(group: Group, rollout: Rollout) -> float:
    """How many rollouts of its group a graded one stands for: none where the head or a policy chose these.

    Whoever had ended at the detection position is graded in any case; of the others, those that went on stand for
    all.
    """
    if not group.at_random:
        return 0.0
    if rollout.inclusion == group.inclusion:
        return 1.0
    others = [each for each in group.rollouts if each.inclusion < group.inclusion]
    return len(others) / sum(each.reward is not None for each in others)
