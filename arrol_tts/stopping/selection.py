"""Which rollouts of a group survive: policies as pure functions with their inclusion probabilities.

GRPO learns nothing from a group whose rewards are all equal; a group with a share rho of right rollouts
carries variance rho (1 - rho). A policy looks at the posterior probability q of each rollout to end right
and chooses exactly M of the G. How likely each rollout was to be chosen (its *inclusion probability*) is part
of the answer: labels exist for survivors only, and whatever learns from them weighs by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arrol_tts.calibration import logit, sigmoid
from arrol_tts.errors import InputError

Floats = NDArray[np.float64]

_EPS = 1e-4
"""Posteriors of rollouts that are still being written are kept this far from 0 and 1."""
_NEARLY = 0.02
"""Relative differences of expected variances below this are noise of the posterior."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The survivors of a group.

    Attributes:
        kept: int64 ``[M]``, their indices, ascending.
        inclusion: float64 ``[G]``, the probability that each rollout of the group was to be kept, in (0, 1].
        at_random: whether they are a uniformly random subset.
    """

    kept: NDArray[np.int64]
    inclusion: Floats
    at_random: bool = False


@dataclass(frozen=True, slots=True)
class _Group:
    """What a rule looks at; arrays are ``[G]``."""

    q: Floats  # 0 or 1 where the reward is known, strictly between elsewhere
    rank_by: Floats
    keep: int
    tau: float
    rho: float
    strength: float
    p_min: float
    p_max: float


def select(
    policy: str,
    q: ArrayLike,
    keep: int,
    rng: np.random.Generator,
    *,
    known: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    exploration: float = 0.1,
    tau: float = 0.0,
    rho: float = 0.5,
    strength: float = 0.5,
    p_min: float = 0.1,
    p_max: float = 0.9,
) -> Selection:
    """Choose exactly ``keep`` survivors of one group.

    With probability ``exploration`` the survivors are a uniformly random subset, so that no rollout is
    certain to go and every inclusion probability is positive. Rollouts that a rule cannot tell apart are
    equally likely to be kept.

    Args:
        policy: one of `POLICIES`.
        q: float ``[G]``, posterior probability of each rollout to end right.
        keep: M, the number of survivors; with ``keep == G`` everybody survives under every policy.
        rng: the only source of chance.
        known: bool ``[G]``, whether the rollout has ended and q is its reward, 0 or 1.
        scores: float ``[G]``, finer than q (a histogram has ties), used where only the order counts.
        exploration: probability of a uniformly random subset.
        tau: standard deviation of the group effect on the log-odds, for ``max_variance``.
        rho: share of right rollouts to steer to, for ``published`` and ``group_signed``.
        strength: lambda of these two: how much q changes the survival probability.
        p_min, p_max: bounds of the survival probability of these two.

    Raises:
        InputError: an unknown policy, q outside [0, 1], a known q that is no reward, lengths that differ,
            ``keep`` that the policy cannot meet, options out of range.
    """
    posterior = np.asarray(q, dtype=np.float64)
    size = len(posterior)
    ended = np.zeros(size, bool) if known is None else np.asarray(known, bool)
    finer = posterior if scores is None else np.asarray(scores, np.float64)
    if policy not in _RULES:
        raise InputError(f"there is no policy {policy!r}; choose one of {', '.join(POLICIES)}")
    if posterior.ndim != 1 or not posterior.shape == ended.shape == finer.shape:
        raise InputError(f"q, known and scores have shapes {posterior.shape}, {ended.shape}, {finer.shape}")
    if not ((posterior >= 0) & (posterior <= 1)).all() or not np.isfinite(finer).all():
        raise InputError("q must lie in [0, 1] and scores must be finite")
    if not np.isin(posterior[ended], (0.0, 1.0)).all():
        raise InputError("q of an ended rollout is its reward, which must be 0 or 1")
    if not 1 <= keep <= size:
        raise InputError(f"keep is {keep}; it must be between 1 and the group's {size} rollouts")
    if not 0 <= exploration <= 1 or tau < 0:
        raise InputError(f"exploration is {exploration} and tau {tau}; they must lie in [0, 1] and not below 0")
    if keep == size:
        return Selection(np.arange(size), np.ones(size), at_random=True)

    open_q = np.clip(posterior, _EPS, 1 - _EPS)
    group = _Group(
        q=np.where(ended, posterior, open_q),
        rank_by=np.where(ended, np.where(posterior > 0.5, np.inf, -np.inf), finer),
        keep=keep,
        tau=tau,
        rho=rho,
        strength=strength,
        p_min=p_min,
        p_max=p_max,
    )
    selection = _RULES[policy](group, rng)
    kept, at_random = selection.kept, policy == "random"
    if rng.random() < exploration:
        kept, at_random = _random(group, rng).kept, True
    return Selection(kept, (1 - exploration) * selection.inclusion + exploration * keep / size, at_random)


# --- the rules ------------------------------------------------------------------------------------


def _none(group: _Group, rng: np.random.Generator) -> Selection:
    raise InputError(f"policy 'none' keeps all {len(group.q)} rollouts of a group, not {group.keep}")


def _random(group: _Group, rng: np.random.Generator) -> Selection:
    """The control: every subset is equally likely."""
    size = len(group.q)
    return Selection(np.sort(rng.permutation(size)[: group.keep]), np.full(size, group.keep / size))


def _published(group: _Group, rng: np.random.Generator) -> Selection:
    """Survival falls in q: `survival_probabilities` of the group itself, exactly M at a time.

    The paper finds delta over the buffer and tosses a coin for each rollout, so that the number of survivors
    varies. Here delta is found over the group, which makes the probabilities add up to M, and a systematic
    sample keeps exactly M with these probabilities. What is lost: the paper keeps more of a hard group
    than of an easy one.
    """
    return _systematic(_survival(group, group.strength), rng)


def _group_signed(group: _Group, rng: np.random.Generator) -> Selection:
    """As ``published``, but towards rho from whichever side the group's mean lies.

    Where most rollouts are expected to be wrong, the likely right ones are kept, not dropped.
    """
    return _systematic(_survival(group, float(np.sign(group.q.mean() - group.rho)) * group.strength), rng)


def _survival(group: _Group, strength: float) -> Floats:
    return survival_probabilities(
        group.q, group.keep / len(group.q), strength=strength, rho=group.rho, p_min=group.p_min, p_max=group.p_max
    )


def _max_variance(group: _Group, rng: np.random.Generator) -> Selection:
    """The subset with the largest expected variance of its rewards.

    It is the lowest few and the highest few by q. Why: the expected variance of independent rewards is affine in
    each q, so moving a kept rollout to one of two unkept neighbours, one on either side, never loses. With the
    group effect its slope in the log-odds is a mixture of logistic densities with weights that change sign
    once over the group effect; such a mixture changes sign at most once, from falling to rising
    (the logistic density is log-concave, Karlin 1968), so the best is again at an end.

    How many are low is a close call where a head knows little, and there its ranks are surer than its
    probabilities: of the splits within `_NEARLY` of the best, the most even one is taken.
    """
    size, keep = len(group.q), group.keep
    q = np.sort(group.q)
    p = _under_group_effect(q, group.tau, known=q % 1 == 0)
    zero = np.zeros((len(p), 1))
    right, spread = (np.concatenate([zero, x.cumsum(axis=1)], axis=1) for x in (p, p * (1 - p)))
    low = np.arange(keep + 1)
    total, noise = (x[:, low] + x[:, [-1]] - x[:, size - keep + low] for x in (right, spread))
    mean = total / keep
    variance = _normal()[1] @ (mean * (1 - mean) - noise / keep**2)
    near = np.flatnonzero(variance >= variance.max() - _NEARLY * abs(variance.max()))
    split = int(near[abs(near - keep / 2).argmin()])
    # A histogram has ties, which the finer scores break.
    rank = np.unique(np.stack([group.q, group.rank_by]), axis=1, return_inverse=True)[1]
    return _ends(rank.reshape(-1).astype(np.float64), split, keep - split, rng)


def _tails(group: _Group, rng: np.random.Generator) -> Selection:
    """The highest M/2 and the lowest M/2 by rank: ``max_variance`` where the group effect is large.

    An odd one goes to the end that the group is short of: to the top where most are expected to be wrong.
    """
    half, odd = divmod(group.keep, 2)
    top = odd if group.q.mean() <= 0.5 else 0
    return _ends(group.rank_by, half + odd - top, half + top, rng)


_RULES: dict[str, Callable[[_Group, np.random.Generator], Selection]] = {
    "none": _none,
    "random": _random,
    "published": _published,
    "group_signed": _group_signed,
    "max_variance": _max_variance,
    "tails": _tails,
}
POLICIES = tuple(_RULES)
"""Names of the policies."""


# --- their parts ----------------------------------------------------------------------------------


def survival_probabilities(
    q: ArrayLike,
    keep: float,
    *,
    rho: float = 0.5,
    strength: float = 0.5,
    p_min: float = 0.1,
    p_max: float = 0.9,
) -> Floats:
    """The published rule as quoted: ``p = clip(keep + delta + strength (rho - q), p_min, p_max)``.

    delta is found by bisection so that the mean of p over the given q (the paper: of the buffer) is ``keep``. The
    paper then keeps each rollout independently: ``rng.random(len(p)) < p``.

    Args:
        q: float ``[n]``, posterior probabilities.
        keep: the share to keep, in [p_min, p_max].

    Returns:
        float64 ``[n]``.

    Raises:
        InputError: when the bounds do not allow that share.

    Source: arXiv 2603.24840, survival rule.
    """
    if not p_min <= keep <= p_max:
        raise InputError(f"the share to keep is {keep:g}, outside the bounds p_min {p_min} and p_max {p_max}")
    wanted = keep + strength * (rho - np.asarray(q, dtype=np.float64))
    low, high = p_min - wanted.max(), p_max - wanted.min()
    for _ in range(60):
        delta = (low + high) / 2
        if np.clip(wanted + delta, p_min, p_max).mean() < keep:
            low = delta
        else:
            high = delta
    return np.asarray(np.clip(wanted + high, p_min, p_max))


def expected_variance(q: ArrayLike, tau: float = 0.0, known: ArrayLike | None = None) -> float:
    """Expected variance ``rho (1 - rho)`` of the rewards of rollouts, rho being the share that ends right.

    ``E[rho (1 - rho)] = mu (1 - mu) - sum(p (1 - p)) / n^2``, mu the mean of p, averaged over a group effect
    u ~ N(0, tau^2) that shifts the log-odds of all rollouts of the group.

    Args:
        q: float ``[n]``, posterior probabilities.
        tau: standard deviation of the group effect; 0: rewards are independent.
        known: bool ``[n]``, rewards that are known and that no group effect shifts.
    """
    values = np.asarray(q, dtype=np.float64)
    ended = np.zeros(values.shape, bool) if known is None else np.asarray(known, bool)
    p = _under_group_effect(values, tau, ended)
    mean = p.mean(axis=1)
    return float(_normal()[1] @ (mean * (1 - mean) - (p * (1 - p)).sum(axis=1) / len(values) ** 2))


@cache
def _normal() -> tuple[Floats, Floats]:
    """Nodes and weights by which the standard normal distribution is integrated over (Gauss-Hermite)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    return nodes, weights / weights.sum()


def _under_group_effect(q: Floats, tau: float, known: NDArray[np.bool_]) -> Floats:
    """Probabilities at each node of the group effect: ``[nodes, n]``."""
    shifted = sigmoid(logit(q, _EPS) + tau * _normal()[0][:, None])
    return np.where(known, q, shifted)


def _ends(values: Floats, low: int, high: int, rng: np.random.Generator) -> Selection:
    """The ``low`` lowest and the ``high`` highest; ties are broken at random."""
    size = len(values)
    order = np.lexsort((rng.random(size), values))
    kept = np.sort(np.concatenate([order[:low], order[size - high :]]))
    # Equal values share the ranks [first, last), and with them the chosen ranks among these.
    ranks = np.sort(values)
    first, last = np.searchsorted(ranks, values, "left"), np.searchsorted(ranks, values, "right")
    chosen = np.clip(low - first, 0, last - first) + np.clip(last - np.maximum(first, size - high), 0, None)
    return Selection(kept, chosen / (last - first))


def _systematic(p: Floats, rng: np.random.Generator) -> Selection:
    """Exactly ``sum(p)`` (a whole number), each with probability p: equal steps along a random order."""
    order = rng.permutation(len(p))
    ends = p[order].cumsum()
    steps = rng.random() + np.arange(round(p.sum()))
    return Selection(np.sort(order[np.searchsorted(ends / ends[-1] * len(steps), steps, "right")]), p)
