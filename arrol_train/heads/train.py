"""Train a quality head on hidden states of finished traces.

Cross-entropy against right or wrong says how likely a trace is to be right; a ranking term between
right and wrong traces of the same question teaches what both voting and pruning use, the order inside
a group: most of what cross-entropy alone learns is how hard the question is.

A head that pools learns from every trace at positions drawn anew in each pass, and at the finish, so that its
score means something wherever it is read. Every trace weighs the same, however long it is. A head that reads the
last state alone learns at the positions of its config, and at the finish.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from arrol_train.heads.dataset import NUMBERS_AT_ONCE, States, logits_at
from arrol_train.losses import ranking_loss
from arrol_tts.calibration import platt_scale
from arrol_tts.errors import InputError
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.metrics import auroc, within_question_auroc

TRAINED = ("mean", "gated", "last")
"""Poolings of the heads that are trained here."""
LOGIT_SCALE = 3.0
"""While a head learns, its logits count so many times as much, as means over many tokens are small."""
STEPS_OF_A_PASS = 16
"""At least, where there are as many questions: few questions would else be few steps."""
SHARES = (0.2, 0.5)
"""Of a question's mean length: where a head that pools is validated and calibrated, beside the finish."""


@dataclass(frozen=True, slots=True)
class HeadTraining:
    """How to train a head.

    Args:
        epochs: passes over the training questions; the best by validation is kept.
        patience: passes without a better one after which training ends.
        questions_per_batch: questions whose traces form a batch; fewer where there are few.
        draws: positions of each question that a head that pools learns at in a pass, beside the finish.
        learning_rate: peak, warmed up and decayed linearly.
        weight_decay: of AdamW.
        ranking: weight of the within-question ranking term.
        linear: train a linear head. Without pooling it is saved with inner size 2, which computes the same.
        validation_share: share of the questions held out for early stopping and calibration.
        seed: of the split, the initial weights, the order and the positions.
    """

    epochs: int = 12
    patience: int = 6
    questions_per_batch: int = 8
    draws: int = 6
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    ranking: float = 1.0
    linear: bool = False
    validation_share: float = 0.2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Task:
    """What heads are fitted to: traces as a head reads them, what became of them, and which it may learn from."""

    states: States
    labels: NDArray[np.bool_]
    questions: NDArray[np.int64]
    config: QualityHeadConfig
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]

    def positions(self, traces: NDArray[np.int64], rng: np.random.Generator, draws: int) -> NDArray[np.int64]:
        """Where to learn from some traces, ``[traces, k]``: alike in the traces of a question, the finish last."""
        if self.config.pooling == "last":
            return self._with_finish(traces, np.array(self.config.positions))
        ends, question = self.states.ends[traces], np.unique(self.questions[traces], return_inverse=True)[1]
        # Any token of any trace of the question, so that positions count by how many traces get there.
        drawn = np.empty((len(traces), draws), np.int64)
        for i in range(int(question.max(initial=-1)) + 1):
            lengths = rng.choice(ends[question == i], draws)
            drawn[question == i] = rng.integers(np.minimum(lengths, 1), lengths + 1)
        return self._with_finish(traces, drawn)

    def fixed_positions(self, traces: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where heads are validated and calibrated, ``[traces, k]``."""
        if self.config.pooling == "last":
            return self._with_finish(traces, np.array(self.config.positions))
        ends, question = self.states.ends[traces], np.unique(self.questions[traces], return_inverse=True)[1]
        mean = (np.bincount(question, ends) / np.bincount(question))[question]
        return self._with_finish(traces, np.rint(mean[:, None] * np.array(SHARES)).astype(np.int64))

    def _with_finish(self, traces: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        ends = self.states.ends[traces][:, None]
        return np.concatenate([np.broadcast_to(positions, (len(traces), positions.shape[-1])), ends], axis=1)

    def counts(self, traces: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the positions a head is told of: without pooling, those at which a trace's state was kept."""
        if self.config.pooling != "last":
            return np.ones(positions.shape, bool)
        there: NDArray[np.bool_] = self.states.tokens[self.states.rows_at(traces, positions)] == positions
        there[:, :-1] &= positions[:, :-1] != positions[:, -1:]  # once, as the finish
        return there

    def groups(self, traces: NDArray[np.int64], columns: int) -> NDArray[np.int64]:
        """Number of each trace's (question, position), ``[traces, columns]``: what traces are ranked within."""
        return self.questions[traces][:, None] * columns + np.arange(columns)


def held_out_traces(questions: NDArray[np.int64], training: HeadTraining) -> NDArray[np.int64]:
    """The traces whose questions are held out for validation, by index."""
    names = np.random.default_rng(training.seed).permutation(np.unique(questions))
    return np.flatnonzero(np.isin(questions, names[: max(1, round(len(names) * training.validation_share))]))


def train_head(
    states: States,
    labels: NDArray[np.bool_],
    questions: NDArray[np.int64],
    config: QualityHeadConfig,
    training: HeadTraining | None = None,
    *,
    train: NDArray[np.int64] | None = None,
    held_out: NDArray[np.int64] | None = None,
) -> QualityHead:
    """Fit, pick the best epoch on held-out questions, and calibrate there.

    Hidden vectors are read a few questions at a time, so that they need not fit into memory. Right and wrong
    traces weigh the same in the cross-entropy, whatever their numbers; the calibration brings the shares back.

    Args:
        states: hidden vectors of the traces.
        labels: whether each trace is right, ``[traces]``.
        questions: number of each trace's question, ``[traces]``.
        config: of the head; its ``calibration`` and ``metrics`` are filled in.
        training: how to train.
        train: indices of the traces to learn from; by default all that are not held out.
        held_out: of those to validate on; by default ``held_out_traces``.

    Raises:
        InputError: when hidden vectors are missing or not finite, labels hold one class only, or no held-out
            question has both right and wrong traces.
    """
    training = training or HeadTraining()
    if labels.all() or not labels.any():
        raise InputError(f"all {len(labels)} traces are {'right' if labels[0] else 'wrong'}: a head needs both")
    held_out = held_out_traces(questions, training) if held_out is None else held_out
    train = np.setdiff1d(np.arange(len(labels)), held_out) if train is None else train
    task = _Task(states.read_by(config), labels, questions, config, train, held_out)
    if labels[train].all() or not labels[train].any() or not _has_pair(labels[held_out], questions[held_out]):
        raise InputError(
            "too few questions have both right and wrong samples to train and to validate on: collect more, or "
            "easier or harder ones"
        )
    torch.manual_seed(training.seed)
    model = _untrained(config, training.linear)
    mean, scale = _standardisation(task.states, train)
    model.mean.copy_(torch.from_numpy(mean))
    model.scale.copy_(torch.from_numpy(scale))
    best_quality, epochs = _fit(model, task, training)
    head = _of_inner_size_2(model) if model.inner is None and config.pooling == "last" else model
    calibrate(head, states, labels, questions, held_out)
    head.config.metrics |= {
        "validation_questions": len(np.unique(questions[held_out])),
        "validation_auroc_within": round(best_quality, 4),
        "epochs": epochs,
    }
    return head.eval()


def calibrate(
    head: QualityHead,
    states: States,
    labels: NDArray[np.bool_],
    questions: NDArray[np.int64],
    traces: NDArray[np.int64],
) -> None:
    """Fit the head's Platt scaling on some traces, where heads are validated, and note its AUROC there."""
    task = _Task(states.read_by(head.config), labels, questions, head.config, traces, traces)
    logits, right, _ = _validation(head, task)
    head.config.calibration = list(platt_scale(logits, right))
    head.config.metrics["validation_auroc"] = round(auroc(right, logits), 4)


def average_heads(heads: Sequence[QualityHead]) -> QualityHead:
    """One head whose logits are the mean of several heads' on the same standardisation; not calibrated.

    Only of heads without a gate: gates that differ do not add up to one.
    """
    size = sum(head.config.inner_size for head in heads)
    average = QualityHead(replace(heads[0].config, inner_size=size, calibration=[1.0, 0.0]))
    inner = [head.inner for head in heads if head.inner is not None]
    with torch.no_grad():
        average.mean.copy_(heads[0].mean)
        average.scale.copy_(heads[0].scale)
        if average.inner is not None:
            average.inner.weight.copy_(torch.cat([layer.weight for layer in inner]))
            average.inner.bias.copy_(torch.cat([layer.bias for layer in inner]))
            average.outer.weight.copy_(torch.cat([head.outer.weight for head in heads], dim=1) / len(heads))
        else:
            average.outer.weight.copy_(torch.stack([head.outer.weight for head in heads]).mean(0))
        average.outer.bias.copy_(torch.stack([head.outer.bias for head in heads]).mean(0))
    return average.eval()


def _untrained(config: QualityHeadConfig, linear: bool) -> QualityHead:
    config = replace(config, metrics={})
    if not linear:
        return QualityHead(config)
    if config.pooling != "last":
        return QualityHead(replace(config, inner_size=0))
    # The format has no linear head without pooling: this one is written into a head of inner size 2.
    head = QualityHead(replace(config, inner_size=0, pooling="mean"))
    head.config = replace(config, inner_size=2)
    return head


@torch.no_grad()
def _of_inner_size_2(linear: QualityHead) -> QualityHead:
    """What computes the same as a linear head: ``gelu(x) - gelu(-x)`` is x."""
    head = QualityHead(linear.config)
    assert head.inner is not None
    head.mean.copy_(linear.mean)
    head.scale.copy_(linear.scale)
    head.inner.weight.copy_(torch.cat([linear.outer.weight, -linear.outer.weight]))
    head.inner.bias.copy_(torch.cat([linear.outer.bias, -linear.outer.bias]))
    head.outer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    head.outer.bias.zero_()
    return head


def _fit(model: QualityHead, task: _Task, training: HeadTraining) -> tuple[float, int]:
    """Train, and leave the weights of the best epoch; its within-question AUROC, and the epochs it took."""
    rng = np.random.default_rng(training.seed)
    share = float(task.labels[task.train].mean())
    weight_of = torch.tensor([0.5 / (1 - share), 0.5 / share])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    traces_of = _by_question(task.questions, task.train)
    together = max(1, min(training.questions_per_batch, len(traces_of) // STEPS_OF_A_PASS))
    steps = training.epochs * math.ceil(len(traces_of) / together)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=steps)
    best, best_quality, best_epoch, epoch = {}, -math.inf, 0, 0
    for epoch in range(1, training.epochs + 1):
        model.train()
        shuffled = rng.permutation(len(traces_of))
        for first in range(0, len(shuffled), together):
            batch = [traces_of[i] for i in shuffled[first : first + together]]
            optimizer.zero_grad()
            for part in _parts(task.states, batch):
                traces = np.concatenate(part)
                positions = task.positions(traces, rng, training.draws)
                logits, y, group = _rows(model, task, traces, positions)
                loss = binary_cross_entropy_with_logits(logits, y, weight_of[y.long()])
                loss = loss + training.ranking * ranking_loss(logits, y, group)
                (loss * (len(part) / len(batch))).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        found, right, groups = _validation(model, task)
        quality = within_question_auroc(right, found, groups)
        if quality > best_quality:
            best = {k: v.clone() for k, v in model.state_dict().items()}
            best_quality, best_epoch = quality, epoch
        elif epoch - best_epoch >= training.patience:
            break
    model.load_state_dict(best)
    with torch.no_grad():
        model.outer.weight[0] *= LOGIT_SCALE
        model.outer.bias[0] *= LOGIT_SCALE
    return best_quality, epoch


def _rows(
    model: QualityHead, task: _Task, traces: NDArray[np.int64], positions: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scaled logits of traces at positions, labels and (question, position) groups, ``[n]`` each."""
    counts = torch.from_numpy(task.counts(traces, positions))
    logits = LOGIT_SCALE * logits_at(model, task.states, traces, positions)
    labels = torch.from_numpy(task.labels[traces].astype(np.float32))[:, None].expand_as(logits)
    groups = torch.from_numpy(task.groups(traces, positions.shape[1]))
    return logits[counts], labels[counts], groups[counts]


@torch.inference_mode()
def _validation(
    model: QualityHead, task: _Task
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Logits of the held-out traces, labels and (question, position) groups, ``[n]`` each."""
    positions = task.fixed_positions(task.held_out)
    counts = task.counts(task.held_out, positions)
    of = np.argsort(task.held_out)
    logits = np.empty(positions.shape)
    for part in task.states.parts(task.held_out):
        at = of[np.searchsorted(task.held_out, part, sorter=of)]
        logits[at] = logits_at(model, task.states, part, positions[at]).double().numpy()
    labels = np.broadcast_to(task.labels[task.held_out][:, None], positions.shape)
    return logits[counts], labels[counts], task.groups(task.held_out, positions.shape[1])[counts]


def _by_question(questions: NDArray[np.int64], traces: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = traces[np.argsort(questions[traces], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(questions[order])) + 1)


def _parts(states: States, batch: Sequence[NDArray[np.int64]]) -> Iterator[list[NDArray[np.int64]]]:
    """The questions of a batch in parts that fit into memory; traces of a question are ranked together."""
    part: list[NDArray[np.int64]] = []
    numbers = 0
    for traces in batch:
        size = int((states.starts[traces + 1] - states.starts[traces]).sum()) * states.features.shape[1]
        if part and numbers + size > NUMBERS_AT_ONCE:
            yield part
            part, numbers = [], 0
        part.append(traces)
        numbers += size
    yield part


def _standardisation(states: States, traces: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean, and reciprocal of the standard deviation, of some traces' rows: float32 ``[hidden_size]`` each."""
    width = states.features.shape[1]
    shift, total, squares, count = np.zeros(width, np.float32), np.zeros(width), np.zeros(width), 0
    for part in states.parts(np.sort(traces)):
        piece = np.asarray(states.features[states.rows_of(part)[0]], np.float32)
        if not np.isfinite(piece).all():
            raise InputError("features hold NaN or infinite values: collect them again")
        if not count:
            shift = piece.mean(axis=0, dtype=np.float64).astype(np.float32)  # so that the squares cancel little
        piece = piece - shift
        total += piece.sum(axis=0, dtype=np.float64)
        squares += np.einsum("ij,ij->j", piece, piece, dtype=np.float64)
        count += len(piece)
    mean = total / count
    variance = np.maximum(squares - count * mean**2, 0) / max(1, count - 1)
    return (shift + mean).astype(np.float32), (1 / (np.sqrt(variance) + 1e-4)).astype(np.float32)


def _has_pair(labels: NDArray[np.bool_], questions: NDArray[np.int64]) -> bool:
    """Whether a question has both a right and a wrong trace."""
    return bool(np.intersect1d(questions[labels], questions[~labels]).size)
