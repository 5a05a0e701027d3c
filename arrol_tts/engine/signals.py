"""Signals read off a step's hidden states and logits, the same code in every engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from arrol_tts.head import QualityHead
    from arrol_tts.stopping import TraceLog


class HeadKind(NamedTuple):
    """What the numbers of a head are.

    Attributes:
        width: numbers of a row; 2 for a head that pools.
        stride: of the rows that it pools.
        pool_after: for a head of steps, the tokens that end one.
    """

    width: int = 1
    stride: int = 1
    pool_after: frozenset[int] = frozenset()


class HeadReader:
    """A head as engines run it at every step, on one row of each trace.

    Args:
        head: later changes of it do not show.
    """

    def __init__(self, head: QualityHead) -> None:
        config = head.config
        self._read = head.reader()
        width = 1 if config.pooling in ("last", "steps") else 2
        self.kind = HeadKind(width, config.stride, frozenset(config.pool_after))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 ``[rows, hidden_size]`` to what a `HeadReading` is made of: float32 ``[1 or 2, rows]``."""
        return self._read(hidden)


@dataclass(frozen=True, slots=True)
class HeadReading:
    """What one head read from a step's rows.

    Attributes:
        values: of each row, its probability; for a head that pools, the row's value.
        weights: of each row, for a head that pools; else None.
        stride: of the rows that it pools.
        pool_after: for a head of steps, the tokens that end one.
    """

    values: list[float]
    weights: list[float] | None = None
    stride: int = 1
    pool_after: frozenset[int] = frozenset()

    @classmethod
    def of(cls, numbers: list[list[float]], kind: HeadKind) -> HeadReading:
        """From the rows of a `HeadReader`'s table."""
        return cls(numbers[-1], numbers[0] if kind.width == 2 else None, kind.stride, kind.pool_after)

    def score(self, row: int, position: int, log: TraceLog, token: int | None) -> float:
        """The score of the trace whose token at a position is a row's input; to be asked once a row, in order.

        Args:
            row: of this reading.
            position: of the row's input; 0 is the prompt's end.
            log: of the trace.
            token: the row's input, where the trace has written it.
        """
        if self.weights is None:
            if self.pool_after:
                return log.pool_steps(self.values[row] if token in self.pool_after else None)
            return self.values[row]
        return log.pool(position, self.weights[row], self.values[row], self.stride)


def token_confidence(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """DeepConf's token confidence (arXiv 2508.15260, section 3): minus the mean of the top-k log-probabilities.

    Args:
        logits: ``[rows, vocabulary]``, any float dtype, before temperature.
        top_k: candidates averaged over; at most the vocabulary is used.

    Returns:
        float32 ``[rows]`` in nats; high where the distribution is peaked.
    """
    k = min(top_k, logits.shape[-1])
    if logits.dtype == torch.float32:  # few operations: with a small vocabulary, starting each is what it costs
        return logits.log_softmax(dim=-1).topk(k, dim=-1, sorted=False).values.mean(dim=-1).neg_()
    # Candidates are found several times as fast in half precision, before anything is widened.
    top = logits.topk(k, dim=-1, sorted=False).values.float()
    peak = top.amax(dim=-1, keepdim=True)
    total = logits.float().sub_(peak).exp_().sum(dim=-1)
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
