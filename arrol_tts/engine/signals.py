"""Signals read off a step's logits, the same code in every engine."""

from __future__ import annotations

import math

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


def self_certainty(logits: torch.Tensor) -> torch.Tensor:
    """Self-certainty of a token (arXiv 2502.18581): the divergence of the uniform distribution from the model's.

    That is ``-mean_j log(V * p_j)`` over a vocabulary of V tokens: ``logsumexp(logits) - mean(logits) - log V``.

    Args:
        logits: ``[rows, vocabulary]``, any float dtype, before temperature.

    Returns:
        float32 ``[rows]`` in nats; 0 where all tokens are equally likely, high where the distribution is peaked.
    """
    logits = logits.float()
    return logits.logsumexp(dim=-1) - logits.mean(dim=-1) - math.log(logits.shape[-1])
