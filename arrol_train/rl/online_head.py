"""The quality head that learns while the policy does.

After every step it learns from the rollouts that were finished (survivors and early finishers), and fits the
curve from its scores to probabilities. It reads hidden states that the engine copied out, so no gradient can
reach the policy. One that pools learns from all of a rollout's states, up to random positions and to the end; one
whose pooling is ``last`` from those at the detection positions and the end alone.
"""

from __future__ import annotations

import copy
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from arrol_train.losses import ranking_loss
from arrol_train.pooling import pooled_logits
from arrol_train.positions import FINISH
from arrol_train.rl.buffer import Batch, ReplayBuffer, SequenceBuffer
from arrol_train.rl.config import OnlineTraining
from arrol_train.rl.group import Rollout
from arrol_train.rl.group_effect import learn_tau
from arrol_train.rl.posterior import POSTERIORS, Corners, Posterior, check_rows
from arrol_tts.calibration import logit, platt_scale
from arrol_tts.errors import HeadError
from arrol_tts.files import write_atomic
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.metrics import auroc, expected_calibration_error, within_question_auroc

Floats = NDArray[np.float64]


class OnlineHead:
    """A `QualityHead`, its optimiser and its calibration.

    The same seed and the same rows give the same head, on every rank.

    Args:
        config: of the head.
        training: how it learns.
        seed: of the initial weights and of the order of rows.

    Attributes:
        head: what scores rollouts. Its output is the plain sigmoid of its logit; only `export` adds Platt
            scaling.
    """

    def __init__(
        self, config: QualityHeadConfig, training: OnlineTraining | None = None, *, seed: int = 0
    ) -> None:
        self.training = training or OnlineTraining()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = QualityHead(config).eval()
        self._optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=self.training.learning_rate, weight_decay=self.training.weight_decay
        )
        self._rng = np.random.default_rng(seed)
        self._posteriors: dict[int, Posterior] = defaultdict(POSTERIORS[self.training.posterior])
        self._tau: dict[int, float] = {}

    @property
    def stride(self) -> int:
        """Of the states that it reads; 0 where it reads those at the detection positions and the end alone."""
        return 0 if self.head.config.pooling == "last" else self.head.config.stride

    @torch.no_grad()
    def scores(self, rollouts: Sequence[Rollout], position: int) -> Floats:
        """Scores in (0, 1) of rollouts at a detection position or `FINISH`: float64 ``[n]``.

        They are 0.5 for those that were not read there, since they had ended or the engine gives no states.
        """
        scores = np.full(len(rollouts), 0.5)
        read = [i for i, rollout in enumerate(rollouts) if position in rollout.marks]
        if not read:
            return scores
        parts = [self._read(rollouts[i], position) for i in read]
        ends = np.cumsum([len(part) for part in parts])
        starts = np.concatenate([[0], ends[:-1]])
        rows = torch.from_numpy(np.concatenate(parts)).float()
        logits = pooled_logits(self.head, rows, torch.from_numpy(starts), torch.from_numpy(ends))
        scores[read] = logits.sigmoid().double().numpy()
        return scores

    def _read(self, rollout: Rollout, position: int) -> NDArray[np.float16]:
        """The states that the score at a position is read from."""
        if not self.stride:
            return rollout.marks[position][None]
        assert rollout.states is not None
        return rollout.states if position == FINISH else rollout.states[: position // self.stride + 1]

    def update(self, buffer: ReplayBuffer | SequenceBuffer, steps: int) -> dict[str, float]:
        """Take optimiser steps on random groups of the buffer.

        Cross-entropy is weighted by inverse inclusion probabilities, bounded and of mean 1 over the buffer; the
        ranking term compares rollouts that both survived and takes them as they are. Inputs are standardised by
        the buffer.

        Args:
            buffer: what to learn from, a `SequenceBuffer` for a head that pools; nothing happens while it is
                empty.
            steps: optimiser steps.

        Returns:
            Mean ``cross_entropy`` and ``ranking`` loss, and the ``label_mean`` of the buffer.
        """
        if not len(buffer) or steps < 1:
            return {}
        standardize(self.head, buffer)
        self.head.train()
        batches = buffer.batches(self._rng, self.training)
        mean_weight = propensity_weights(buffer.inclusion, self.training).mean()
        losses = []
        for _ in range(steps):
            cross_entropy, ranking = batch_losses(self.head, next(batches), self.training, mean_weight)
            self._optimizer.zero_grad()
            (cross_entropy + self.training.ranking * ranking).backward()
            self._optimizer.step()
            losses.append((cross_entropy.item(), ranking.item()))
        self.head.eval()
        cross_entropies, rankings = zip(*losses, strict=True)
        return {
            "cross_entropy": float(np.mean(cross_entropies)),
            "ranking": float(np.mean(rankings)),
            "label_mean": float(buffer.labels.mean()),
        }

    def fit_posterior(self, buffer: ReplayBuffer) -> None:
        """Fit the posterior and learn the group effect of every position in the buffer.

        They are fitted on the scores that the rows got before the head learned from them.
        """
        for position in np.unique(buffer.positions).tolist():
            rows = np.flatnonzero(buffer.positions == position)[-self.training.posterior_rows :]
            posterior = self._posteriors[position]
            labels, scores = buffer.labels[rows], buffer.scores[rows]
            posterior.fit(scores, labels, propensity_weights(buffer.inclusion[rows], self.training))
            if position != FINISH:  # nobody chooses among rollouts that have ended
                self._tau[position] = learn_tau(logit(posterior(scores), 1e-3), labels, buffer.groups[rows])

    def posterior(self, scores: ArrayLike, position: int) -> Floats:
        """Probability of ending right, for scores read at a position: float64 ``[n]``; 0.5 before any fit."""
        values = np.asarray(scores, np.float64)
        fitted = self._posteriors.get(position)
        return fitted(values) if fitted else np.full(values.shape, 0.5)

    def posterior_corners(self, position: int) -> Corners:
        """The curve of `posterior` at a position as its corners; see `Posterior.corners`."""
        fitted = self._posteriors.get(position)
        return fitted.corners() if fitted else ((0.5,), (0.5,))

    def tau_at(self, position: int) -> float:
        """Standard deviation of the group effect on the log-odds at a position; 0 before any fit."""
        return self._tau.get(position, 0.0)

    def track(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        groups: ArrayLike,
        inclusion: ArrayLike,
        position: int,
    ) -> dict[str, float]:
        """How good the head is on rollouts that it has not learned from yet.

        Args:
            scores, labels, groups, inclusion: as in `ReplayBuffer`, ``[n]``, read at one position.
            position: that position.

        Returns:
            ``rows``; ``accuracy`` (of ``posterior > 0.5``, weighted to all rollouts by inclusion probabilities);
            ``auroc``, ``auroc_within`` groups and ``ece``, of the survivors as they are. What is not defined, such
            as the AUROC of labels of one kind, is left out.
        """
        if not np.size(labels):
            return {"rows": 0.0}
        x, y, w = check_rows(scores, labels, propensity_weights(inclusion, self.training))
        q = self.posterior(x, position)
        metrics = {
            "rows": float(len(y)),
            "accuracy": float(np.average((q > 0.5) == (y > 0.5), weights=w)),
            "auroc": auroc(y, x),
            "auroc_within": within_question_auroc(y, x, groups),
            "ece": expected_calibration_error(q, y),
        }
        return {name: value for name, value in metrics.items() if np.isfinite(value)}

    def export(self, buffer: ReplayBuffer) -> QualityHead:
        """A copy for voting, Platt-scaled on the scores of finished rollouts; to be saved with the policy."""
        head = QualityHead(copy.deepcopy(self.head.config)).eval()
        head.load_state_dict(self.head.state_dict())
        rows = np.flatnonzero(buffer.positions == FINISH)[-self.training.posterior_rows :]
        if len(rows) and 0 < buffer.labels[rows].mean() < 1:
            head.config.calibration = list(platt_scale(logit(buffer.scores[rows]), buffer.labels[rows] > 0.5))
        return head

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, optimiser, calibration and random state into one safetensors file, atomically."""
        from safetensors.torch import save

        tensors = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        for i, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
        about = {
            "random": self._rng.bit_generator.state,
            "posterior": self.training.posterior,
            "pooling": self.head.config.pooling,
            "posteriors": {position: fitted.state_dict() for position, fitted in self._posteriors.items()},
            "tau": self._tau,
        }
        tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
        write_atomic(Path(path), save(tensors, {"online_head": json.dumps(about)}))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over what `save` wrote.

        Raises:
            HeadError: when the file is missing, broken, or of another head.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["online_head"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            pooling = about.get("pooling", "last")  # of what was saved before there was another
            for name, saved, now in (
                ("posterior", about["posterior"], self.training.posterior),
                ("pooling", pooling, self.head.config.pooling),
            ):
                if saved != now:
                    raise HeadError(
                        f"{path} was saved with the {name} {saved!r}, this run uses {now!r}: set it back"
                    )
            self.head.load_state_dict(
                {name.removeprefix("head."): v for name, v in tensors.items() if name.startswith("head.")}
            )
        except (SafetensorError, OSError, KeyError, RuntimeError) as error:
            raise HeadError(f"{path} holds no head of this run: {error}") from None
        moments: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, moment = name.split(".")
                moments[int(index)][moment] = value
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": dict(moments)})
        self._rng.bit_generator.state = about["random"]
        self._posteriors.clear()
        for position, state in about["posteriors"].items():
            self._posteriors[int(position)].load_state_dict(state)
        self._tau = {int(position): tau for position, tau in about["tau"].items()}


def propensity_weights(inclusion: ArrayLike, training: OnlineTraining) -> Floats:
    """Inverse-propensity weights, bounded: float64, of the shape of the inclusion probabilities."""
    return np.minimum(1 / np.asarray(inclusion, np.float64), training.max_weight)


@torch.no_grad()
def standardize(head: QualityHead, buffer: ReplayBuffer | SequenceBuffer) -> None:
    """Have a head standardise its inputs by the moments of a buffer's states."""
    mean, deviation = (torch.from_numpy(moment) for moment in buffer.moments())
    head.mean.copy_(mean)
    head.scale.copy_(1 / (deviation + 1e-4))


def batch_losses(
    head: QualityHead, batch: Batch, training: OnlineTraining, mean_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and ranking loss of a batch.

    Args:
        head: in training.
        batch: of a buffer.
        training: has the bound of the weights.
        mean_weight: of the buffer's rows, by which the batch's weights are divided.
    """
    states, starts, ends, labels, groups = (
        torch.from_numpy(each) for each in (batch.states, batch.starts, batch.ends, batch.labels, batch.groups)
    )
    weights = (propensity_weights(batch.inclusion, training) / mean_weight).astype(np.float32)
    logits = pooled_logits(head, states.float(), starts, ends)
    return part_losses(logits, labels, groups, torch.from_numpy(weights))


def part_losses(
    logits: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted cross-entropy, and the ranking loss within groups, of parts of rollouts ``[parts]``."""
    return binary_cross_entropy_with_logits(logits, labels, weight=weights), ranking_loss(logits, labels, groups)
