"""Signals read off a step's logits, the same code in every engine."""

from __future__ import annotations

import torch


def token_confidence(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """DeepConf's token confidence (arXiv 2508.15260, section 3): minus the mean of the top-k log-probabilities.

    Args:
        logits: ``[rows, vocabulary]``, any float dtype, before temperature.
        top_k: candidates averaged over; at most the vocabulary is used.

    Returns:
        float32 ``[rows]`` in nats; high where the distribution is peaked.
    """
    top = logits.topk(min(top_k, logits.shape[-1]), dim=-1, sorted=False).values.float()
    peak = top.amax(dim=-1, keepdim=True)
    # logsumexp with one array of the vocabulary's width instead of three, which are what it costs on a CPU; a
    # subtraction that also converts would be slower than both.
    shifted = logits - peak if logits.dtype == torch.float32 else logits.float().sub_(peak)
    total = shifted.exp_().sum(dim=-1)
    return total.log_() + (peak.squeeze(-1) - top.mean(dim=-1))
