"""When pruning pays: what a group of survivors teaches, against what the pruned beginnings cost.

GRPO's normalised advantages of a group of M rollouts, k of them right, have absolute values that add up to twice
``sqrt(k (M - k))``: that is called the group's *signal*. Pruning G rollouts to M raises it, since survivors can be
chosen such that right and wrong ones balance; it costs the beginnings of G - M rollouts, which nobody learns from.
Against M rollouts that are sampled and all kept, pruning pays where the gain in signal exceeds that in seconds.

How many survivors are right is exact for a head whose ranks follow Plackett and Luce: from the top down, the next
rollout is right with probability ``theta a / (theta a + b)`` where a right and b wrong ones are left. The AUROC is
``theta / (1 + theta)`` then, which is how theta is found; random pruning is theta = 1. Such ranks are surer at one
end than at the other, so the mean of both directions is taken, which is within a few percent of heads whose scores
of right and wrong rollouts are normal with equal variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arrol_tts.errors import InputError

Floats = NDArray[np.float64]

_EDGE = 1e-6
"""An AUROC is kept this far from 0 and 1."""


def group_signal(right: ArrayLike, size: int) -> Floats:
    """``sqrt(k (M - k))`` for k right rollouts among M: float64, of the shape of ``right``."""
    k = np.asarray(right, np.float64)
    return np.asarray(np.sqrt(np.maximum(k * (size - k), 0.0)))


def success_rates(mean: float, square: float, points: int = 64) -> Floats:
    """How success rates differ between prompts: a Beta distribution with these moments.

    Args:
        mean: of the success rates, in [0, 1].
        square: mean of their squares, at least ``mean ** 2``; where it is not above, all rates are equal.
        points: at which the distribution is taken: equally likely quantiles.

    Returns:
        Equally likely rates, float64 ``[n]``.
    """
    from scipy.stats import beta

    variance = square - mean**2
    if not 0 < mean < 1 or variance <= 1e-6:
        return np.array([mean])
    # Moments beyond what a Beta can have: every prompt is nearly always right or nearly always wrong.
    strength = max(mean * (1 - mean) / variance - 1, 0.02)
    quantiles = (np.arange(points) + 0.5) / points
    rates = beta.ppf(quantiles, mean * strength, (1 - mean) * strength)
    return np.asarray(rates, np.float64)


def expected_signal(rates: ArrayLike, group: int, survivors: int, auroc: float = 0.5) -> float:
    """Mean signal of the survivors of a group, chosen by ``tails``: exact, see the module.

    Args:
        rates: float ``[n]``, success rates of equally likely prompts.
        group: G, rollouts started.
        survivors: M, those trained on; ``group == survivors``: nothing is pruned.
        auroc: of the head within groups where it chooses; 0.5 is random pruning, 1 an oracle.

    Raises:
        InputError: rates or an AUROC outside [0, 1], or survivors that are not between 1 and the group.
    """
    from scipy.stats import binom

    p = np.atleast_1d(np.asarray(rates, np.float64))
    if not ((p >= 0) & (p <= 1)).all() or not 0 <= auroc <= 1:
        raise InputError(
            f"success rates and AUROC must lie in [0, 1]; they are {p.min():g} to {p.max():g}, {auroc:g}"
        )
    if not 1 <= survivors <= group:
        raise InputError(f"{survivors} survivors of {group} rollouts: choose between 1 and the group")
    signal = signal_by_right(group, survivors, round(auroc, 3))
    by_rate = binom.pmf(np.arange(group + 1), group, p[:, None]) @ signal
    return float(np.mean(by_rate))


@cache
def signal_by_right(group: int, survivors: int, auroc: float) -> Floats:
    """Expected signal of the survivors where so many of the group are right: float64 ``[group + 1]``."""
    counts = np.arange(survivors + 1)
    signal = group_signal(counts, survivors)
    rights = range(group + 1)
    found: Floats = np.array([_right_survivors(group, survivors, auroc, right) @ signal for right in rights])
    found = (found + found[::-1]) / 2  # from the top down, and, right and wrong changed about, from the bottom up
    return found


def _right_survivors(group: int, survivors: int, auroc: float, right: int) -> Floats:
    """Distribution of the right ones among the highest and lowest of a group: float64 ``[survivors + 1]``."""
    known = min(max(auroc, _EDGE), 1 - _EDGE)
    theta = known / (1 - known)
    low, high = survivors // 2, survivors - survivors // 2
    if group == survivors:
        only: Floats = np.eye(survivors + 1)[right]
        return only
    # [right ones taken at the top, right ones taken so far]; only the first `high` count as taken at the top.
    state = np.zeros((high + 1, right + 1))
    state[0, 0] = 1.0
    taken = np.arange(right + 1)
    for drawn in range(group - low):
        a = right - taken
        b = np.maximum(group - drawn - a, 0)
        hit = np.divide(theta * a, theta * a + b, out=np.zeros(right + 1), where=a + b > 0)
        moved = np.zeros_like(state)
        gained = state * hit
        if drawn < high:
            moved[1:, 1:] += gained[:-1, :-1]
        else:
            moved[:, 1:] += gained[:, :-1]
        state = moved + state * (1 - hit)
    bottom = right - taken
    top, before = np.nonzero((state > 0) & (bottom <= low))
    found = np.zeros(survivors + 1)
    np.add.at(found, top + bottom[before], state[top, before])
    return found


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step of so many prompts costs, measured.

    Attributes:
        token: seconds of generation for a token.
        rollout: seconds of log-probabilities and update for a rollout that is trained on.
        fixed: seconds of a step that depend on neither: weights pushed, the head.
        length: mean tokens of a whole rollout.
        prompts: of a step.
    """

    token: float
    rollout: float
    fixed: float
    length: float
    prompts: int

    def seconds(self, group: int, survivors: int, position: int = 0) -> float:
        """Of a step in which G rollouts are started for each prompt and M survive a detection position."""
        begun = min(position, self.length)
        tokens = survivors * self.length + (group - survivors) * begun
        return self.fixed + self.prompts * (tokens * self.token + survivors * self.rollout)


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to spend a step.

    Attributes:
        group, survivors: G and M.
        position: at which the others are pruned; 0 where nothing is.
        policy: ``tails``, ``random``, ``none`` where nothing is pruned, or ``after`` where all are finished and
            the survivors chosen by their rewards.
        signal: expected, of a group.
        seconds: expected, of a step.
    """

    group: int
    survivors: int
    position: int
    policy: str
    signal: float
    seconds: float

    @property
    def rate(self) -> float:
        """Signal of a group for each second of a step."""
        return self.signal / self.seconds


def choices(
    rates: ArrayLike,
    cost: StepCost,
    aurocs: dict[int, float],
    survivors: int,
    groups: Sequence[int],
) -> list[Choice]:
    """Ways to spend a step, that with most signal a second first.

    Among them are M rollouts of which nothing is pruned, and G of which nothing is; random pruning stands for no
    head at all.

    Args:
        rates: as in `expected_signal`.
        cost: of a step.
        aurocs: AUROC within groups at each position at which rollouts might be pruned.
        survivors: M, rollouts of a group that are trained on.
        groups: G to consider, each at least M.
    """
    found = []
    for group in sorted({survivors, *groups}):
        whole = expected_signal(rates, group, group)
        found.append(Choice(group, group, 0, "none", whole, cost.seconds(group, group)))
        for position, auroc in aurocs.items() if group > survivors else ():
            seconds = cost.seconds(group, survivors, position)
            for policy, known in (("tails", auroc), ("random", 0.5)):
                signal = expected_signal(rates, group, survivors, known)
                found.append(Choice(group, survivors, position, policy, signal, seconds))
    return sorted(found, key=lambda choice: -choice.rate)


def pruned_after(rates: ArrayLike, cost: StepCost, group: int, survivors: int) -> Choice:
    """Finish all G rollouts, and keep those M whose rewards vary most; arguments as in `choices`."""
    signal = expected_signal(rates, group, survivors, 1.0)
    return Choice(group, survivors, 0, "after", signal, cost.seconds(group, survivors, math.ceil(cost.length)))


def worth_at(rates: ArrayLike, cost: StepCost, group: int, survivors: int, position: int) -> float:
    """The AUROC within groups from which on pruning pays against M rollouts of which nothing is pruned.

    Returns:
        The AUROC at which signal a second is equal, by bisection; nan where not even an oracle pays.
    """
    alone = expected_signal(rates, survivors, survivors) / cost.seconds(survivors, survivors)
    needed = alone * cost.seconds(group, survivors, position)
    if expected_signal(rates, group, survivors, 1.0) < needed:
        return math.nan
    low, high = 0.5, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        if expected_signal(rates, group, survivors, middle) < needed:
            low = middle
        else:
            high = middle
    return high
