"""Detection positions: how well the head ranks within groups at each, and which of several is worth most.

Rewards are known of survivors, and those of ``tails`` are the ends of their groups by the head's own score, which
are ranked better than a choice among all can count on. Inverse inclusion probabilities do not mend that: two
rollouts of the middle are kept together far more often than their probabilities multiplied, since it is whole
groups that are pruned at random. So these groups speak for the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from arrol_train.rl.breakeven import expected_signal, success_rates
from arrol_train.rl.group import Group, Rollout

MEMORY = 0.95
"""What earlier steps count in the next one: about twenty are remembered."""
EVERY = 10
"""Batches of rollouts between choices of a position, the first at the end of the cold start."""
CLEARLY = 0.05
"""By how much a position must be better than the present one: sampled AUROCs are noisy."""


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


class PositionChooser:
    """Chooses among the candidates of a detection position by what a group teaches for its tokens.

    Expected signal of M survivors (`arrol_train.rl.breakeven.expected_signal`), by the AUROC within groups at each
    candidate, for the tokens of G beginnings and M whole rollouts: an early position is cheap, a late one knows
    more. The same metrics give the same choice on every process.

    Args:
        candidates: positions, in generated tokens.
        at: the one to begin with.
        group, survivors: G and M.

    Attributes:
        at: the present choice.
        learned: batches that were learned from since the end of the cold start.
    """

    def __init__(self, candidates: Sequence[int], at: int, group: int, survivors: int) -> None:
        self.candidates, self.at = tuple(candidates), at
        self._group, self._survivors = group, survivors
        self.learned = 0
        self._seen: dict[str, float] = {}

    def note(self, metrics: Mapping[str, float]) -> None:
        """Take in a step's success rates and lengths, as `arrol_train.rl.group.summary` has them."""
        for name in ("rollout/success", "rollout/success_square", "rollout/length"):
            if name in metrics:
                before = self._seen.get(name, metrics[name])
                self._seen[name] = MEMORY * before + (1 - MEMORY) * metrics[name]

    def worth(self, position: int, auroc: float) -> float:
        """Expected signal of a group for a thousand tokens, nan where something is not known."""
        if not self._seen or math.isnan(auroc):
            return math.nan
        rates = success_rates(self._seen["rollout/success"], self._seen["rollout/success_square"])
        signal = expected_signal(rates, self._group, self._survivors, auroc)
        whole = self._seen["rollout/length"]
        begun = min(position + 1, whole)
        return 1000 * signal / (self._survivors * whole + (self._group - self._survivors) * begun)

    def choose(self, aurocs: Mapping[int, float]) -> None:
        """Move to the best candidate, where it is clearly better than the present one.

        Args:
            aurocs: of all rollouts within groups at each candidate; nan where it is not known.
        """
        worths = {at: self.worth(at, aurocs.get(at, math.nan)) for at in self.candidates}
        known = {at: worth for at, worth in worths.items() if not math.isnan(worth)}
        best = max(known, key=known.__getitem__, default=self.at)
        if best != self.at and known[best] > (1 + CLEARLY) * known.get(self.at, 0.0):
            self.at = best

    def state_dict(self) -> dict[str, Any]:
        """Choice and metrics, as JSON."""
        return {"at": self.at, "learned": self.learned, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.at, self._seen = int(state["at"]), dict(state["seen"])
        self.learned = state.get("learned", 0)  # older ones have none
