"""Traces of several lengths, one after another in one array, and what a head says of a part of each."""

from __future__ import annotations

import torch

from arrol_tts.head import QualityHead


def pooled_logits(
    head: QualityHead, states: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """Log-odds before calibration, each pooled over rows of its own.

    Args:
        head: of any pooling; one whose pooling is ``last`` is asked about single rows.
        states: float32 ``[rows, hidden_size]``.
        starts: int64 ``[...]``, the first row of each part; parts may overlap.
        ends: int64, of the same shape, the row after its last one.

    Returns:
        Float32 of that shape, as `QualityHead.logits` gives them at the last row of each.
    """
    weight, value = head.read(states)
    # Differences of running sums, in float64 because these grow with all rows, not with a part's.
    sums = torch.stack([weight, weight * value]).double().cumsum(-1)
    sums = torch.nn.functional.pad(sums, (1, 0))
    total, weighted = sums[:, ends] - sums[:, starts]
    logits: torch.Tensor = (weighted / total).float()
    return logits
