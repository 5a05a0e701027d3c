"""Heads of every kind that read the pocket model; what they say of a trace is made up."""

from __future__ import annotations

from typing import Any

import torch

from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.pocket import POCKET_MODEL

KINDS: dict[str, dict[str, Any]] = {
    "last": {"inner_size": 32},
    "mean": {"inner_size": 32, "pooling": "mean"},
    "gated": {"inner_size": 32, "pooling": "gated"},
    "linear": {"inner_size": 0, "pooling": "gated", "stride": 4},
}
"""What the head of each name is; the engines of the tests have them all, beside the pocket head."""


def head_of_kind(kind: str, pocket_head: QualityHead, *, seed: int = 0) -> QualityHead:
    """A random head whose scores differ from trace to trace."""
    config = QualityHeadConfig(
        str(POCKET_MODEL), hidden_size=len(pocket_head.mean), calibration=[1.5, 0.2], **KINDS[kind]
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        head = QualityHead(config)
        head.mean.copy_(pocket_head.mean)
        head.scale.copy_(pocket_head.scale)
        head.outer.weight.normal_(std=0.5 if head.inner is not None else 0.1)
    return head.eval()
