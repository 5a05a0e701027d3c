"""The head that a run leaves: trained once more, on all that the replay buffer holds.

The head on the fly takes a few steps after each of the policy's, and is needed at once. At the end there is time:
a head goes through the whole buffer again and again. How often, is said by groups that are held out: the groups
are divided into folds, and a head learns from all but one fold until that one is predicted no better. What these
heads say of their own fold tells how good a head is that learns so, and calibrates the one that is left, which
learns from all the groups for as many epochs. Scores that earlier heads gave to earlier rollouts would calibrate
it badly.

They start where the run's head started. The head on the fly has learned from every group, so that none would be
held out from a copy of it; in the comparison it is at an advantage, and stays if it is better.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arrol_train.pooling import pooled_logits
from arrol_train.rl.buffer import ReplayBuffer, SequenceBuffer
from arrol_train.rl.config import OnlineTraining
from arrol_train.rl.online_head import batch_losses, part_losses, propensity_weights, standardize
from arrol_tts.calibration import platt_scale
from arrol_tts.head import QualityHead
from arrol_tts.metrics import within_question_auroc

FOLDS = 4
EPOCHS = 40
PATIENCE = 8
"""Epochs after which training ends where the loss on the fold that is held out has not fallen."""
LEARNING_RATE = 3e-3


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How good a head is on groups that are held out, at random positions and at the end.

    Attributes:
        loss: cross-entropy plus the weighted ranking term, as in training.
        auroc_within: groups, at one position; nan where no group has rewards that differ.
    """

    loss: float
    auroc_within: float

    def beats(self, other: HeldOut) -> bool:
        """Whether it is better by the loss and no worse by the ranks."""
        return self.loss < other.loss and self.auroc_within >= other.auroc_within


@dataclass(frozen=True, slots=True)
class Refit:
    """What came of it.

    Attributes:
        head: the new head, calibrated; None where the one on the fly stays.
        new, online: how good the two are; None where no group has rewards that differ.
        groups: of the buffer.
        epochs: that the new one has learned.
    """

    head: QualityHead | None
    new: HeldOut | None = None
    online: HeldOut | None = None
    groups: int = 0
    epochs: int = 0

    def figures(self) -> dict[str, float]:
        """For a log; nothing where there was too little to learn from."""
        if self.new is None or self.online is None:
            return {}
        return {
            "kept": float(self.head is not None),
            "groups": float(self.groups),
            "epochs": float(self.epochs),
            "loss": self.new.loss,
            "loss_online": self.online.loss,
            "auroc_within": self.new.auroc_within,
            "auroc_within_online": self.online.auroc_within,
        }


def refit(
    start: QualityHead,
    online: QualityHead,
    buffer: ReplayBuffer | SequenceBuffer,
    training: OnlineTraining,
    *,
    seed: int = 0,
) -> Refit:
    """Train a head on the buffer, and compare it with the one on the fly.

    The same seed, heads and buffer give the same head.

    Args:
        start: the head as the run began.
        online: the head on the fly, which must not lose by it.
        buffer: a `SequenceBuffer` for heads that pool.
        training: how the head on the fly learned: weights, positions, batches and the ranking term are the same.
        seed: of the folds and of the order of the groups.
    """
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.unique(buffer.groups))
    new, before, epochs, logits, labels = [], [], [], [], []
    for fold in np.array_split(groups, min(FOLDS, len(groups) // 2)) if len(groups) > 3 else ():
        out = np.isin(buffer.groups, fold)
        held = buffer.subset(out)
        head = _copy(start)
        found, after = _train_until(head, buffer.subset(~out), held, training, rng, seed)
        new.append(found)
        epochs.append(after)
        before.append(_measure(online, held, training, seed))
        ended = _at_the_end(head, held)
        logits.append(ended[0])
        labels.append(ended[1])
    if all(np.isnan(found.auroc_within) for found in new):
        return Refit(None)
    ours, theirs, count = _mean(new), _mean(before), round(np.mean(epochs))
    if not ours.beats(theirs):
        return Refit(None, ours, theirs, len(groups), count)
    head = _copy(start)
    for _ in itertools.islice(_epochs(head, buffer, training, rng), count):
        pass
    right = np.concatenate(labels) > 0.5
    if 0 < right.mean() < 1:
        head.config.calibration = list(platt_scale(np.concatenate(logits), right))
    return Refit(head, ours, theirs, len(groups), count)


def _copy(head: QualityHead) -> QualityHead:
    copied = QualityHead(copy.deepcopy(head.config)).eval()
    copied.load_state_dict(head.state_dict())
    return copied


def _mean(found: Sequence[HeldOut]) -> HeldOut:
    return HeldOut(
        float(np.mean([each.loss for each in found])), float(np.nanmean([each.auroc_within for each in found]))
    )


def _epochs(
    head: QualityHead, learned: ReplayBuffer | SequenceBuffer, training: OnlineTraining, rng: np.random.Generator
) -> Iterator[None]:
    """Endless epochs: a pass through all groups before each turn."""
    standardize(head, learned)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=training.weight_decay)
    batches = learned.batches(rng, training)
    mean_weight = float(propensity_weights(learned.inclusion, training).mean())
    while True:
        head.train()
        for batch in itertools.islice(batches, _passes(learned, training)):
            cross_entropy, ranking = batch_losses(head, batch, training, mean_weight)
            optimizer.zero_grad()
            (cross_entropy + training.ranking * ranking).backward()
            optimizer.step()
        head.eval()
        yield


def _passes(buffer: ReplayBuffer | SequenceBuffer, training: OnlineTraining) -> int:
    """Batches of a pass through all groups."""
    return -(-len(np.unique(buffer.groups)) // training.groups_per_batch)


def _train_until(
    head: QualityHead,
    learned: ReplayBuffer | SequenceBuffer,
    held: ReplayBuffer | SequenceBuffer,
    training: OnlineTraining,
    rng: np.random.Generator,
    seed: int,
) -> tuple[HeldOut, int]:
    """Leave the head as it was best on ``held``; how good that was, and after how many epochs."""
    best, after, weights = HeldOut(np.inf, np.nan), 0, head.state_dict()
    for epoch, _ in enumerate(itertools.islice(_epochs(head, learned, training, rng), EPOCHS), start=1):
        found = _measure(head, held, training, seed)
        if found.loss < best.loss:
            best, after, weights = found, epoch, copy.deepcopy(head.state_dict())
        elif epoch - after >= PATIENCE:
            break
    head.load_state_dict(weights)
    return best, after


@torch.no_grad()
def _measure(
    head: QualityHead, held: ReplayBuffer | SequenceBuffer, training: OnlineTraining, seed: int
) -> HeldOut:
    """On one pass through the groups, at the same positions every time."""
    batches = held.batches(np.random.default_rng(seed), training)
    parts: list[tuple[NDArray[Any], ...]] = []
    for i, batch in enumerate(itertools.islice(batches, _passes(held, training))):
        states, starts, ends = (torch.from_numpy(each) for each in (batch.states, batch.starts, batch.ends))
        logits = pooled_logits(head, states.float(), starts, ends).numpy()
        # Numbers of groups are distinct within a batch only.
        numbers = np.stack([np.full(len(batch.groups), i), batch.groups], axis=1)
        parts.append((logits, batch.labels, numbers, propensity_weights(batch.inclusion, training)))
    logits, labels, pairs, weights = (np.concatenate(each) for each in zip(*parts, strict=True))
    groups = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    cross_entropy, ranking = part_losses(
        torch.from_numpy(logits),
        torch.from_numpy(labels),
        torch.from_numpy(groups),
        torch.from_numpy((weights / weights.mean()).astype(np.float32)),
    )
    return HeldOut(
        float(cross_entropy + training.ranking * ranking), within_question_auroc(labels, logits, groups)
    )


@torch.no_grad()
def _at_the_end(
    head: QualityHead, held: ReplayBuffer | SequenceBuffer
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Log-odds of whole rollouts, and whether they were right: ``[rollouts]`` each."""
    rollouts = held.whole()
    states, starts, ends = (torch.from_numpy(each) for each in (rollouts.states, rollouts.starts, rollouts.ends))
    return pooled_logits(head, states.float(), starts, ends).double().numpy(), rollouts.labels
