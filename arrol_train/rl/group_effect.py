"""The group effect: what the posteriors of a group's rollouts are wrong by together.

A head misjudges a question before it misjudges a rollout. `arrol_tts.stopping.selection` takes that into account
by the standard deviation that is learned here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

LARGEST_TAU = 8.0


def learn_tau(log_odds: ArrayLike, labels: ArrayLike, groups: ArrayLike) -> float:
    """The group effect's standard deviation that makes the labels most likely.

    A head's errors are shared by a group: ``P(right) = sigmoid(log_odds + u)`` with one u ~ N(0, tau^2) for each
    group. u is integrated out on a grid, tau found by Brent's bounded search. Which rollouts survived depends on
    what the log-odds know, so labels of survivors are enough.

    Args:
        log_odds: finite float ``[n]``, of the posterior.
        labels: 0/1 ``[n]``.
        groups: whole numbers ``[n]``.

    Returns:
        tau, between 0 and 8.
    """
    from scipy.optimize import minimize_scalar

    group = np.asarray(groups)
    if not len(group):
        return 0.0
    order = np.argsort(group, kind="stable")
    first_rows = np.unique(group[order], return_index=True)[1]
    sign = np.where(np.asarray(labels)[order] > 0.5, 1.0, -1.0)[:, None]
    z = sign * np.asarray(log_odds, np.float64)[order, None]
    # Products of many labels are sharp in u: an even grid is safer than Gauss-Hermite here.
    u = np.linspace(-4, 4, 65)
    log_density = -(u**2) / 2 - np.log(np.exp(-(u**2) / 2).sum())

    def loss(tau: float) -> float:
        per_row = np.log1p(np.exp(-(z + tau * sign * u)))
        per_group = np.add.reduceat(per_row, first_rows)
        return -float(np.logaddexp.reduce(log_density - per_group, axis=1).sum())

    found = minimize_scalar(loss, bounds=(0.0, LARGEST_TAU), method="bounded", options={"xatol": 0.01})
    return float(found.x) if found.fun < loss(0.0) else 0.0
