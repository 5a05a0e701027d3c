"""Train a quality head on hidden states of finished traces.

Cross-entropy against right or wrong says how likely a trace is to be right; a ranking term between
right and wrong traces of the same question teaches what both voting and pruning use, the order inside
a group: most of what cross-entropy alone learns is how hard the question is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from arrol_train.heads.dataset import ROWS_AT_ONCE, FloatRows, pieces
from arrol_train.losses import ranking_loss
from arrol_tts.calibration import platt_scale
from arrol_tts.errors import InputError
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.metrics import auroc, within_question_auroc


@dataclass(frozen=True, slots=True)
class HeadTraining:
    """How to train a head.

    Args:
        epochs: passes over the training groups; the best by validation is kept.
        patience: passes without a better one after which training ends.
        groups_per_batch: groups whose rows form a batch.
        learning_rate: peak, warmed up and decayed linearly.
        weight_decay: of AdamW.
        ranking: weight of the within-group ranking term.
        linear: train a linear probe. It is saved as a head of inner size 2, which computes the same.
        validation_share: share of the questions held out for early stopping and calibration.
        seed: of the split, the initial weights and the order.
    """

    epochs: int = 30
    patience: int = 10
    groups_per_batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    ranking: float = 1.0
    linear: bool = False
    validation_share: float = 0.2
    seed: int = 0


class _Probe(nn.Module):
    """A linear probe on standardised vectors, which a `QualityHead` of inner size 2 can hold."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, head: QualityHead) -> None:
        super().__init__()
        self.register_buffer("mean", head.mean)
        self.register_buffer("scale", head.scale)
        self.layer = nn.Linear(head.config.hidden_size, 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer((hidden - self.mean) * self.scale).squeeze(-1)
        return logits

    @torch.no_grad()
    def write_into(self, head: QualityHead) -> None:
        """As ``gelu(x) - gelu(-x)``, which is x."""
        assert head.inner is not None
        head.inner.weight.copy_(torch.cat([self.layer.weight, -self.layer.weight]))
        head.inner.bias.copy_(torch.cat([self.layer.bias, -self.layer.bias]))
        head.outer.weight.copy_(torch.tensor([[1.0, -1.0]]))
        head.outer.bias.zero_()


def held_out_rows(questions: NDArray[np.int64], training: HeadTraining) -> NDArray[np.bool_]:
    """The rows whose questions are held out for validation: bool ``[rows]``."""
    names = np.random.default_rng(training.seed).permutation(np.unique(questions))
    chosen: NDArray[np.bool_] = np.isin(questions, names[: max(1, round(len(names) * training.validation_share))])
    return chosen


def train_head(
    features: FloatRows,
    labels: NDArray[np.bool_],
    questions: NDArray[np.int64],
    positions: NDArray[np.int64],
    config: QualityHeadConfig,
    training: HeadTraining | None = None,
    *,
    held_out: NDArray[np.bool_] | None = None,
) -> QualityHead:
    """Fit, pick the best epoch on held-out questions, and calibrate there.

    Features are read in pieces, so that they need not fit into memory. Right and wrong rows weigh the same in the
    cross-entropy, whatever their numbers; the calibration brings the true shares back.

    Args:
        features: hidden states ``[rows, hidden_size]``.
        labels: whether the row's trace is right, ``[rows]``.
        questions: the row's question, ``[rows]``.
        positions: the row's position class, ``[rows]``: rows are ranked within (question, position).
        config: of the head; its ``calibration`` and ``metrics`` are filled in.
        training: how to train.
        held_out: the rows to validate on, bool ``[rows]``; by default those of ``held_out_rows``.

    Raises:
        InputError: when features are not finite, labels hold one class only, or no held-out question has both
            right and wrong rows.
    """
    training = training or HeadTraining()
    if labels.all() or not labels.any():
        raise InputError(f"all {len(labels)} rows are {'right' if labels[0] else 'wrong'}: a head needs both")
    held_out = held_out_rows(questions, training) if held_out is None else held_out
    groups = np.unique(np.stack([questions, positions]), axis=1, return_inverse=True)[1].reshape(-1)
    if labels[~held_out].all() or not labels[~held_out].any() or not _has_pair(labels, groups, held_out):
        raise InputError(
            "too few questions have both right and wrong samples to train and to validate on: collect more, or "
            "easier or harder ones"
        )
    torch.manual_seed(training.seed)
    head = QualityHead(replace(config, inner_size=2, metrics={}) if training.linear else config)
    mean, scale = _standardisation(features, ~held_out)
    head.mean.copy_(torch.from_numpy(mean))
    head.scale.copy_(torch.from_numpy(scale))
    model = _Probe(head) if training.linear else head
    best_quality, epochs = _fit(model, features, labels, groups, held_out, training)
    if isinstance(model, _Probe):
        model.write_into(head)
    calibrate(head, features, labels, np.flatnonzero(held_out))
    head.config.metrics |= {
        "validation_questions": len(np.unique(questions[held_out])),
        "validation_auroc_within": round(best_quality, 4),
        "epochs": epochs,
    }
    return head.eval()


def calibrate(head: QualityHead, features: FloatRows, labels: NDArray[np.bool_], rows: NDArray[np.int64]) -> None:
    """Fit the head's Platt scaling on some rows, and note its AUROC there."""
    logits = _logits(head, features, rows)
    head.config.calibration = list(platt_scale(logits, labels[rows]))
    head.config.metrics["validation_auroc"] = round(auroc(labels[rows], logits), 4)


def average_heads(heads: Sequence[QualityHead]) -> QualityHead:
    """One head whose logits are the mean of several heads' on the same standardisation; not calibrated."""
    size = sum(head.config.inner_size for head in heads)
    average = QualityHead(replace(heads[0].config, inner_size=size, calibration=[1.0, 0.0]))
    inner = [head.inner for head in heads if head.inner is not None]
    assert average.inner is not None
    with torch.no_grad():
        average.mean.copy_(heads[0].mean)
        average.scale.copy_(heads[0].scale)
        average.inner.weight.copy_(torch.cat([layer.weight for layer in inner]))
        average.inner.bias.copy_(torch.cat([layer.bias for layer in inner]))
        average.outer.weight.copy_(torch.cat([head.outer.weight for head in heads], dim=1) / len(heads))
        average.outer.bias.copy_(torch.stack([head.outer.bias for head in heads]).mean(0))
    return average.eval()


def _fit(
    model: QualityHead | _Probe,
    features: FloatRows,
    labels: NDArray[np.bool_],
    groups: NDArray[np.int64],
    held_out: NDArray[np.bool_],
    training: HeadTraining,
) -> tuple[float, int]:
    """Train, and leave the weights of the best epoch; its within-group AUROC, and the epochs it took."""
    rng = np.random.default_rng(training.seed)
    y, g = torch.from_numpy(labels.astype(np.float32)), torch.from_numpy(groups)
    share = float(labels[~held_out].mean())
    weight_of = torch.where(y > 0, 0.5 / share, 0.5 / (1 - share))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    order = np.argsort(groups, kind="stable")
    order = order[~held_out[order]]
    rows_of = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    steps = training.epochs * math.ceil(len(rows_of) / training.groups_per_batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=steps)
    validation = np.flatnonzero(held_out)
    best, best_quality, best_epoch, epoch = {}, -math.inf, 0, 0
    for epoch in range(1, training.epochs + 1):
        model.train()
        shuffled = rng.permutation(len(rows_of))
        for first in range(0, len(shuffled), training.groups_per_batch):
            # Ascending, which a disk reads faster.
            rows = np.sort(
                np.concatenate([rows_of[i] for i in shuffled[first : first + training.groups_per_batch]])
            )
            x = torch.from_numpy(np.asarray(features[rows], np.float32))
            logits = model.logits(x)
            loss = binary_cross_entropy_with_logits(logits, y[rows], weight_of[rows])
            loss = loss + training.ranking * ranking_loss(logits, y[rows], g[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        logits_there = _logits(model, features, validation)
        quality = within_question_auroc(labels[validation], logits_there, groups[validation])
        if quality > best_quality:
            best = {k: v.clone() for k, v in model.state_dict().items()}
            best_quality, best_epoch = quality, epoch
        elif epoch - best_epoch >= training.patience:
            break
    model.load_state_dict(best)
    return best_quality, epoch


def _standardisation(
    features: FloatRows, fit: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean, and reciprocal of the standard deviation, of the rows to fit: float32 ``[hidden_size]`` each."""
    width = features.shape[1]
    shift, total, squares = np.zeros(width), np.zeros(width), np.zeros(width)
    for first in range(0, len(features), ROWS_AT_ONCE):
        piece = np.asarray(features[first : first + ROWS_AT_ONCE], np.float32)
        if not np.isfinite(piece).all():
            raise InputError("features hold NaN or infinite values: collect them again")
        if first == 0:
            shift = piece.mean(axis=0, dtype=np.float64)  # near the mean, so that the squares cancel little
        piece = piece[fit[first : first + ROWS_AT_ONCE]] - shift.astype(np.float32)
        total += piece.sum(axis=0, dtype=np.float64)
        squares += np.einsum("ij,ij->j", piece, piece, dtype=np.float64)
    count = int(fit.sum())
    # The shift that was taken off is the rounded one.
    mean = total / count
    variance = np.maximum(squares - count * mean**2, 0) / max(1, count - 1)
    return (shift.astype(np.float32) + mean).astype(np.float32), (1 / (np.sqrt(variance) + 1e-4)).astype(
        np.float32
    )


def _has_pair(labels: NDArray[np.bool_], groups: NDArray[np.int64], rows: NDArray[np.bool_]) -> bool:
    """Whether a group has both a right and a wrong one of the rows."""
    right, wrong = np.unique(groups[rows & labels]), np.unique(groups[rows & ~labels])
    return bool(np.intersect1d(right, wrong).size)


@torch.inference_mode()
def _logits(model: QualityHead | _Probe, features: FloatRows, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    model.eval()
    return np.concatenate([model.logits(piece).double().numpy() for piece in pieces(features, rows)])
