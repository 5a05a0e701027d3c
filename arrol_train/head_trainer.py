"""Train a quality head on hidden states of finished traces.

Cross-entropy against right or wrong says how likely a trace is to be right; a ranking term between
right and wrong traces of the same question teaches what both voting and pruning use, the order inside
a group: most of what cross-entropy alone learns is how hard the question is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from arrol_tts.calibration import platt_scale
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.metrics import auroc, within_question_auroc


@dataclass(frozen=True, slots=True)
class HeadTraining:
    """How to train a head.

    Args:
        epochs: passes over the training groups; the best by validation is kept.
        groups_per_batch: groups whose rows form a batch.
        learning_rate: peak, warmed up and decayed linearly.
        weight_decay: of AdamW.
        ranking: weight of the within-group ranking term.
        validation_share: share of the questions held out for early stopping and calibration.
        seed: of the split, the initial weights and the order.
    """

    epochs: int = 30
    groups_per_batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    ranking: float = 1.0
    validation_share: float = 0.2
    seed: int = 0


def held_out_rows(questions: NDArray[np.int64], training: HeadTraining) -> NDArray[np.bool_]:
    """The rows whose questions are held out for validation: bool ``[rows]``."""
    names = np.random.default_rng(training.seed).permutation(np.unique(questions))
    chosen: NDArray[np.bool_] = np.isin(questions, names[: max(1, round(len(names) * training.validation_share))])
    return chosen


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
    if not bool(pair.any()):
        return logits.new_zeros(())
    return softplus(logits[None] - logits[:, None])[pair].mean()


def train_head(
    features: NDArray[np.float32],
    labels: NDArray[np.bool_],
    questions: NDArray[np.int64],
    positions: NDArray[np.int64],
    config: QualityHeadConfig,
    training: HeadTraining | None = None,
) -> QualityHead:
    """Fit, pick the best epoch on held-out questions, and calibrate there.

    Args:
        features: hidden states ``[rows, hidden_size]``.
        labels: whether the row's trace is right, ``[rows]``.
        questions: the row's question, ``[rows]``; the held-out split is by question.
        positions: the row's position class, ``[rows]``: rows are ranked within (question, position).
        config: of the head; its ``calibration`` and ``metrics`` are filled in.
        training: how to train.

    Raises:
        ValueError: when features are not finite, or labels hold one class only.
    """
    training = training or HeadTraining()
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinite values: collect them again")
    if labels.all() or not labels.any():
        raise ValueError(f"all {len(labels)} rows are {'right' if labels[0] else 'wrong'}: a head needs both")
    rng = np.random.default_rng(training.seed)
    held_out = held_out_rows(questions, training)
    groups = np.unique(np.stack([questions, positions]), axis=1, return_inverse=True)[1].reshape(-1)

    torch.manual_seed(training.seed)
    head = QualityHead(config)
    x, y = torch.from_numpy(features), torch.from_numpy(labels.astype(np.float32))
    g = torch.from_numpy(groups)
    fit = torch.from_numpy(~held_out)
    head.mean.copy_(x[fit].mean(0))
    head.scale.copy_(1 / (x[fit].std(0) + 1e-4))
    optimizer = torch.optim.AdamW(head.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    rows_of = [np.flatnonzero(~held_out & (groups == group)) for group in np.unique(groups[~held_out])]
    steps = training.epochs * math.ceil(len(rows_of) / training.groups_per_batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=steps)
    best, best_quality = None, -math.inf
    for _ in range(training.epochs):
        head.train()
        order = rng.permutation(len(rows_of))
        for first in range(0, len(order), training.groups_per_batch):
            chosen = [rows_of[i] for i in order[first : first + training.groups_per_batch]]
            rows = torch.from_numpy(np.concatenate(chosen))
            logits = head.logits(x[rows])
            loss = binary_cross_entropy_with_logits(logits, y[rows])
            loss = loss + training.ranking * ranking_loss(logits, y[rows], g[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        held_out_logits = _logits(head, x[~fit])
        quality = within_question_auroc(labels[held_out], held_out_logits, groups[held_out])
        if quality > best_quality:
            best = {k: v.clone() for k, v in head.state_dict().items()}
            best_quality = quality
    assert best is not None
    head.load_state_dict(best)
    held_out_logits = _logits(head, x[~fit])
    head.config.calibration = list(platt_scale(held_out_logits, labels[held_out]))
    head.config.metrics |= {
        "validation_questions": len(np.unique(questions[held_out])),
        "validation_auroc": round(auroc(labels[held_out], held_out_logits), 4),
        "validation_auroc_within": round(best_quality, 4),
    }
    return head.eval()


@torch.inference_mode()
def _logits(head: QualityHead, features: torch.Tensor) -> NDArray[np.float64]:
    head.eval()
    return head.logits(features).double().numpy()
