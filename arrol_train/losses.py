"""Losses that every quality head is trained with."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus


def ranking_loss(logits: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Mean softplus(wrong - right) over all pairs of a right and a wrong row of the same group.

    Args:
        logits: float ``[rows]``.
        labels: 0/1 ``[rows]``.
        groups: whole numbers ``[rows]``.

    Returns:
        A scalar; 0 when no group has both.
    """
    pair = (labels[:, None] > labels[None]) & (groups[:, None] == groups[None])
    right, wrong = pair.nonzero(as_tuple=True)
    return softplus(logits[wrong] - logits[right]).mean() if len(right) else logits.new_zeros(())
