"""Designs of a head, trained by one recipe: what each reads of a token, and how it pools over the trace so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from arrol_tts.head import GATE_LIMIT
from arrol_tts.metrics import within_question_auroc

from .candidate_states import GroupStates

Pooling = Literal["last", "mean", "mean and last", "gated", "fading", "max"]
Extra = Literal["", "confidence", "entropy", "position", "relative states", "relative scores"]

SPREAD = 3.0
"""Averages are multiplied by it: they vary less than the scores of single tokens."""
NUMBERS = {"gated": 2, "mean and last": 2}
"""That are read of a token, where these are not one."""
HALF_LIFE = 16.0
"""Tokens, of the fading mean before training; it is learned."""


@dataclass(frozen=True, slots=True)
class Design:
    """What a head reads, and how it pools.

    Attributes:
        pooling: of the tokens so far: the last one's score, their mean, their mean and a second score of the last
            one, their mean weighted by a gate that is read from the same state, their mean with weights that fade
            with the distance, or the largest score.
        inner: width of the MLP; 0 for a linear head.
        fixed: whether it learns from the setting's fixed positions and the finish, instead of from random ones.
        layers: of which it reads the states: 1, the last; 2, from half the depth on; 4, each quarter's end.
        extra: further inputs (the confidence of the token that is predicted, that and the entropy of its
            distribution, the position), or what is relative to the group's traces at the same position.
    """

    pooling: Pooling
    inner: int = 128
    fixed: bool = False
    layers: int = 1
    extra: Extra = ""

    @property
    def name(self) -> str:
        """In results."""
        parts = [self.pooling, "MLP" if self.inner else "linear"]
        parts += ["fixed positions"] * self.fixed + [f"{self.layers} layers"] * (self.layers > 1)
        return ", ".join([*parts, *([self.extra] if self.extra else [])])

    def cost(self, width: int) -> dict[str, int | str]:
        """What an engine has to do for it.

        Args:
            width: of a hidden state.
        """
        parameters = sum(p.numel() for p in Head(self, self.inputs(width)).parameters())
        return {
            "numbers_a_row": NUMBERS.get(self.pooling, 1),
            "sums_a_trace": {"last": 0, "gated": 2}.get(self.pooling, 1),
            "parameters": parameters,
            "beyond_the_last_state": self._beyond(),
            "in_engines_today": "yes" if self._known else "no",
        }

    def inputs(self, width: int) -> int:
        """How many numbers it reads of a token, of states that are ``width`` wide."""
        return self.layers * width + {"confidence": 1, "entropy": 2, "position": 1}.get(self.extra, 0)

    @property
    def _known(self) -> bool:
        return self.pooling in ("last", "mean", "gated") and self.layers == 1 and not self.extra

    def _beyond(self) -> str:
        if self.layers > 1:
            return f"{self.layers - 1} earlier layers"
        return {
            "confidence": "token confidence",
            "entropy": "token confidence, entropy",
            "position": "position",
            "relative states": "the group's states",
            "relative scores": "the group's scores",
        }.get(self.extra, "nothing")


class Head(nn.Module):
    """A design with its weights.

    Args:
        design: what it is.
        inputs: numbers of a token.
    """

    def __init__(self, design: Design, inputs: int) -> None:
        super().__init__()
        self.design = design
        self.inner = nn.Linear(inputs, design.inner) if design.inner else None
        self.outer = nn.Linear(design.inner or inputs, NUMBERS.get(design.pooling, 1))
        fading = math.log(1 / (2 ** (1 / HALF_LIFE) - 1))  # whose sigmoid halves in so many steps
        self.fading = nn.Parameter(torch.tensor(fading)) if design.pooling == "fading" else None

    def read(self, inputs: torch.Tensor) -> torch.Tensor:
        """Float ``[rows, inputs]`` to the numbers of each row, ``[rows, 1 or 2]``."""
        inner = inputs if self.inner is None else functional.gelu(self.inner(inputs))
        numbers: torch.Tensor = self.outer(inner)
        return numbers

    def pool(self, numbers: torch.Tensor) -> torch.Tensor:
        """Float ``[..., tokens, 1 or 2]`` to the score of each trace up to each token, ``[..., tokens]``."""
        values = numbers[..., 0]
        if self.design.pooling == "last":
            return values
        if self.design.pooling == "max":
            return values.cummax(-1).values
        if self.design.pooling == "gated":
            gates = numbers[..., 1].clamp(-GATE_LIMIT, GATE_LIMIT).exp()
            return SPREAD * (gates * values).cumsum(-1) / gates.cumsum(-1)
        if self.fading is not None:
            tokens = torch.arange(values.shape[-1])
            distance = (tokens[:, None] - tokens).clamp(min=0)
            weights = (functional.logsigmoid(self.fading) * distance).exp().tril()
            return SPREAD * values @ (weights / weights.sum(-1, keepdim=True)).T
        mean = SPREAD * values.cumsum(-1) / torch.arange(1, values.shape[-1] + 1)
        return mean + numbers[..., 1] if self.design.pooling == "mean and last" else mean


class Inputs:
    """What a design reads of states, standardised.

    Args:
        design: that reads.
        states: with earlier layers and entropy where it needs them.
        fit: groups whose mean and deviation are taken.
    """

    def __init__(self, design: Design, states: GroupStates, fit: Sequence[int]) -> None:
        self.design, self.states = design, states
        sample = self._raw(fit[:: max(1, len(fit) // 16)])
        self.mean, self.scale = sample.mean(0), 1 / (sample.std(0) + 1e-4)

    def __call__(self, groups: Sequence[int]) -> torch.Tensor:
        """Float ``[rows, inputs]`` of some groups."""
        return (self._raw(groups) - self.mean).mul_(self.scale)

    def _raw(self, groups: Sequence[int]) -> torch.Tensor:
        states, design = self.states, self.design
        rows = [states.rows_of(group) for group in groups]

        def gather(array: NDArray[np.floating]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([np.asarray(array[r], np.float32) for r in rows]))

        last = gather(states.last)
        if design.extra == "relative states":
            last = last - self._group_means(last, groups)
        parts = [last]
        if states.earlier is not None:
            parts += [gather(states.earlier[:, i]) for i in {1: (), 2: (1,), 4: (0, 1, 2)}[design.layers]]
        if design.extra in ("confidence", "entropy"):
            parts.append(gather(states.confidence)[:, None])
        if design.extra == "entropy" and states.entropy is not None:
            parts.append(gather(states.entropy)[:, None])
        if design.extra == "position":
            parts.append(self._positions(groups).float().log1p()[:, None])
        return torch.cat(parts, dim=1) if len(parts) > 1 else last

    def _positions(self, groups: Sequence[int]) -> torch.Tensor:
        return torch.cat([torch.arange(int(length)) for length in self.states.lengths(groups)])

    def _group_means(self, rows: torch.Tensor, groups: Sequence[int]) -> torch.Tensor:
        """For each row the mean of its group's rows at the same position."""
        lengths = torch.from_numpy(self.states.lengths(groups))
        longest = int(lengths.max())
        group = torch.arange(len(lengths)).div(self.states.n, rounding_mode="floor").repeat_interleave(lengths)
        place = group * longest + self._positions(groups)
        total = torch.zeros(len(groups) * longest, rows.shape[1]).index_add_(0, place, rows)
        count = torch.zeros(len(total)).index_add_(0, place, torch.ones(len(rows)))
        return (total / count.clamp(min=1)[:, None])[place]


def scores(head: Head, inputs: torch.Tensor, lengths: torch.Tensor, n: int) -> torch.Tensor:
    """The score of each trace up to each token.

    Args:
        head: that reads.
        inputs: float ``[rows, inputs]``, trace after trace.
        lengths: int64 ``[traces]``, rows of each; they lie group after group.
        n: traces of a group.

    Returns:
        Float ``[traces, longest]``; what lies behind a trace's end means nothing.
    """
    running = torch.arange(int(lengths.max())) < lengths[:, None]
    read = head.read(inputs)
    numbers = read.new_zeros(*running.shape, read.shape[-1])
    numbers[running] = read
    if head.design.extra == "relative scores":
        there = running.view(-1, n, running.shape[1]).float()
        values = numbers[..., 0].view(there.shape)
        means = values.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        values = ((values - means) * there).view(running.shape)
        numbers = torch.stack([values, *numbers.unbind(-1)[1:]], dim=-1)
    return head.pool(numbers)


def held(scores: torch.Tensor, lengths: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Scores ``[traces, longest]`` at positions ``[traces, some]``; a trace that has ended keeps its last one."""
    return scores.gather(1, torch.minimum(positions, lengths[:, None] - 1))


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recipe:
    """How every design is trained.

    Attributes:
        epochs: passes at most; the best by the questions for choosing is kept.
        patience: passes without a better one after which training ends.
        groups_per_batch: questions of a batch.
        learning_rate, weight_decay: of AdamW.
        positions: random ones of every trace of a batch, beside its finish.
    """

    epochs: int = 12
    patience: int = 4
    groups_per_batch: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    positions: int = 6


@dataclass(frozen=True, slots=True)
class GroupSplit:
    """Groups that heads learn from, that the epoch is chosen on, and that designs are compared on."""

    train: list[int]
    choose: list[int]
    compare: list[int]


def train(
    design: Design,
    states: GroupStates,
    split: GroupSplit,
    seed: int,
    *,
    fixed: Sequence[int],
    early: int,
    recipe: Recipe | None = None,
) -> tuple[Head, Inputs, dict[str, float]]:
    """Train a head, and keep the epoch that orders the traces of the questions for choosing best.

    At random positions of every trace and at its finish, each counting the same however long the trace is:
    cross-entropy, and a ranking term over pairs of a right and a wrong trace at the same position of a question.

    Args:
        design: what to train.
        states: of the setting.
        split: of its groups.
        seed: of the weights, the order and the positions.
        fixed: positions that designs with fixed ones learn from.
        early: the position at which the epoch is chosen, beside the finish.
        recipe: the same for all.

    Returns:
        The head, what it reads, and ``epochs`` with ``choosing``: the AUROC that chose.
    """
    recipe = recipe or Recipe()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    inputs = Inputs(design, states, split.train)
    head = Head(design, design.inputs(states.last.shape[1]))
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    best, best_quality, best_epoch, epoch = {}, -math.inf, 0, 0
    for epoch in range(1, recipe.epochs + 1):
        order = rng.permutation(split.train)
        for first in range(0, len(order), recipe.groups_per_batch):
            batch = [int(group) for group in order[first : first + recipe.groups_per_batch]]
            lengths = torch.from_numpy(states.lengths(batch))
            logits = scores(head, inputs(batch), lengths, states.n)
            positions = _positions(lengths, states.n, fixed if design.fixed else None, recipe.positions)
            chosen = held(logits, lengths, positions).view(len(batch), states.n, -1)
            loss = loss_of(chosen, torch.from_numpy(states.labels(batch)).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curve = within(head, inputs, split.choose, [early])
        quality = float(np.nanmean([curve[early], curve[FINISH]]))
        if quality > best_quality:
            best = {name: value.clone() for name, value in head.state_dict().items()}
            best_quality, best_epoch = quality, epoch
        elif epoch - best_epoch >= recipe.patience:
            break
    head.load_state_dict(best)
    return head, inputs, {"epochs": best_epoch, "choosing": best_quality}


FINISH = 0
"""Stands for each trace's own last position."""


def _positions(lengths: torch.Tensor, n: int, fixed: Sequence[int] | None, count: int) -> torch.Tensor:
    """Positions to learn from, the same for all traces of a question: int64 ``[traces, some]``."""
    longest = lengths.view(-1, n).max(1).values
    if fixed is not None:
        chosen = torch.tensor(fixed).expand(len(longest), -1)
    else:
        chosen = (torch.rand(len(longest), count) * longest[:, None]).long()
    return torch.cat([chosen.repeat_interleave(n, 0), lengths[:, None] - 1], dim=1)


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, and ranking within question and position.

    Args:
        logits: float ``[questions, traces, positions]``.
        labels: 0 or 1, float ``[questions, traces]``.
    """
    difference = logits[:, :, None] - logits[:, None]  # [questions, traces, traces, positions]
    pairs = (labels[:, :, None] > labels[:, None]).float()[..., None].expand_as(difference)
    ranking = (functional.softplus(-difference) * pairs).sum() / pairs.sum().clamp(min=1)
    targets = labels[..., None].expand_as(logits)
    return functional.binary_cross_entropy_with_logits(logits, targets) + ranking


@torch.inference_mode()
def scores_at(head: Head, inputs: Inputs, groups: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
    """Log-odds before calibration at some positions: float32 ``[positions, groups, n]``; see `FINISH`."""
    states, found = inputs.states, []
    for group in groups:
        lengths = torch.from_numpy(states.lengths([group]))
        logits = scores(head, inputs([group]), lengths, states.n)
        at = torch.stack([lengths - 1 if p == FINISH else torch.full_like(lengths, p) for p in positions], dim=1)
        found.append(held(logits, lengths, at).T)
    return torch.stack(found, dim=1).numpy()


def within(head: Head, inputs: Inputs, groups: Sequence[int], positions: Sequence[int]) -> dict[int, float]:
    """AUROC within questions at some positions and at the finish, ``{position: AUROC}``."""
    labels = inputs.states.labels(groups)
    questions = np.broadcast_to(np.arange(len(groups))[:, None], labels.shape)
    at = [*positions, FINISH]
    found = scores_at(head, inputs, groups, at)
    return {
        position: within_question_auroc(labels.ravel(), row.ravel(), questions.ravel())
        for position, row in zip(at, found, strict=True)
    }
