"""Groups pruned whole: of the prompts that were started, which go on past the first detection position.

A group whose rollouts will all be right, or all wrong, teaches nothing. DAPO's dynamic sampling finds out when
they are finished, and replaces it then; a head may tell while they are begun.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from arrol_train.rl.group import Group
from arrol_train.rl.online_head import OnlineHead
from arrol_tts.errors import InputError
from arrol_tts.stopping.selection import Selection, expected_variance


def largest_variance(q: ArrayLike, keep: int, tau: float = 0.0, known: ArrayLike | None = None) -> float:
    """Expected variance of the rewards of a group's best survivors: the lowest few and the highest few by q.

    Args:
        q: float ``[G]``, posterior probability of each rollout to end right.
        keep: M, how many survive.
        tau: standard deviation of the group effect; see `expected_variance`.
        known: bool ``[G]``, whether q is a reward.
    """
    values = np.asarray(q, np.float64)
    order = values.argsort()
    values, ended = values[order], (np.zeros(len(values), bool) if known is None else np.asarray(known)[order])
    ends = [np.r_[0:low, len(values) - keep + low : len(values)] for low in range(keep + 1)]
    return max(expected_variance(values[end], tau, ended[end]) for end in ends)


def select_groups(signal: ArrayLike, keep: int, rng: np.random.Generator, exploration: float) -> Selection:
    """Choose the groups that go on: those of the most signal, and some at random.

    Each of the places goes with the probability ``exploration`` to any of the groups that are not among the best,
    so that the head learns from what it thinks little of too.

    Args:
        signal: float ``[n]``, expected of each group.
        keep: how many go on.
        rng: the only source of chance.
        exploration: in [0, 1].

    Raises:
        InputError: when ``keep`` is not from 1 to n.
    """
    values = np.asarray(signal, np.float64)
    size = len(values)
    if not 1 <= keep <= size:
        raise InputError(f"keep is {keep}; it must be between 1 and the {size} groups that were started")
    order = np.lexsort((rng.random(size), -values))
    drawn = int(rng.binomial(keep, exploration))
    best, others = order[: keep - drawn], order[keep - drawn :]
    kept = np.sort(np.concatenate([best, rng.permutation(others)[:drawn]]))
    # Among the best, or one of the k that are drawn from what is left, whatever k is.
    by_rank = np.zeros(size)
    for k in range(keep + 1):
        chance = math.comb(keep, k) * exploration**k * (1 - exploration) ** (keep - k)
        by_rank += chance * np.where(np.arange(size) < keep - k, 1.0, k / max(1, size - keep + k))
    # Groups of equal signal share their ranks.
    ranked = np.sort(-values)
    first, last = np.searchsorted(ranked, -values, "left"), np.searchsorted(ranked, -values, "right")
    sums = np.concatenate([[0.0], by_rank.cumsum()])
    inclusion = (sums[last] - sums[first]) / (last - first)
    return Selection(kept, inclusion.clip(max=1.0), at_random=exploration == 1)


def expected_signal(group: Group, head: OnlineHead, keep: int, position: int) -> float:
    """`largest_variance` of a group whose rollouts have come to a position, or ended before it."""
    rollouts = [rollout for rollout in group.rollouts if not rollout.ungraded]
    known = np.array([rollout.reward is not None for rollout in rollouts], bool)
    rewards = np.array([rollout.reward or 0.0 for rollout in rollouts])
    q = head.posterior(head.scores(rollouts, position), position)
    keep = min(keep, len(rollouts))
    return largest_variance(np.where(known, rewards, q), keep, head.tau_at(position), known) if keep else 0.0
