"""What is chosen for a head, never by a test question: its size, its position, how votes weigh it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from arrol_train.heads.dataset import Collected, Group
from arrol_train.heads.knowledge import rights
from arrol_train.heads.train import HeadTraining, average_heads, calibrate, train_head
from arrol_tts.errors import InputError
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.replay import replay
from arrol_tts.stopping import KeepShare

LINEAR = 0
"""The size that stands for a linear head."""
MAX_BYTES = 5_000_000
"""Of a head's weights."""
WINDOWS = (8, 16, 32, 64, 256, 2048)
"""DeepConf windows tried, 2048 being the published one."""


@dataclass(frozen=True, slots=True)
class Split:
    """Questions to train on, to choose by, and to report."""

    train: frozenset[str]
    validation: frozenset[str]
    test: frozenset[str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A size and weight decay that were tried; ``size`` 0 is a linear head."""

    size: int
    weight_decay: float
    validation_auroc_within: float
    validation_auroc: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """A head, and what it was chosen among.

    Attributes:
        head: the best of several seeds; of heads without a gate, their average.
        best: what was chosen for it: that of the sizes asked for with the best AUROC within validation questions.
        probe: the best linear head.
        candidates: all that were tried, best first.
        seeds: validation AUROC within questions of each seed alone.
        strangers: parts of the training questions, each with a head that did not learn from it.
    """

    head: QualityHead
    best: Candidate
    probe: QualityHead
    candidates: list[Candidate]
    seeds: list[float]
    strangers: list[tuple[frozenset[str], QualityHead]]


def split_questions(question_ids: Sequence[str], *, seed: int, folds: int = 5, fold: int = 0) -> Split:
    """Deal the questions into folds: one to test, the next to validate, the others to train.

    Raises:
        InputError: for fewer than three folds, a fold that is not there, or fewer questions than folds.
    """
    if folds < 3 or not 0 <= fold < folds:
        raise InputError(f"fold {fold} of {folds}: there must be three or more, counted from 0")
    if len(question_ids) < folds:
        raise InputError(f"{len(question_ids)} questions cannot be dealt into {folds} folds: collect more")
    parts = _deal(question_ids, seed, folds)
    test, validation = parts[fold], parts[(fold + 1) % folds]
    return Split(frozenset(question_ids) - test - validation, validation, test)


def _deal(question_ids: Iterable[str], seed: int, parts: int) -> list[frozenset[str]]:
    names = sorted(question_ids)
    dealt = np.random.default_rng(seed).permutation(len(names)) % parts
    return [frozenset(name for name, k in zip(names, dealt, strict=True) if k == i) for i in range(parts)]


def choose_head(
    collected: Collected,
    split: Split,
    config: QualityHeadConfig,
    training: HeadTraining,
    *,
    sizes: Sequence[int] = (LINEAR, 32, 128),
    weight_decays: Sequence[float] = (0.05, 1.0),
    seeds: int = 3,
    cross_fit: int = 4,
) -> Chosen:
    """Try sizes and weight decays, take the best by the AUROC within validation questions, then its best seed.

    Seeds of heads without a gate are averaged instead; gates that differ do not add up to one.

    Args:
        collected: samples of all questions.
        split: of them; the test's are not touched.
        config: of the head.
        training: how to train each; its seed is the first.
        sizes: inner sizes to try; 0 is a linear head, which is always tried for comparison.
        weight_decays: to try with each.
        seeds: of the best.
        cross_fit: parts of the training questions, each scored by a head that did not learn from it; 0: none.

    Raises:
        InputError: when nothing can be learned (see ``train_head``), or the head would exceed ``MAX_BYTES``.
    """
    averaged = seeds > 1 and config.pooling != "gated"
    largest = max(size or 2 for size in sizes) * (seeds if averaged else 1)
    if largest * 4 * (config.hidden_size + 2) > MAX_BYTES:
        raise InputError(
            f"size {largest}{f', {seeds} seeds together,' if averaged else ''} makes a head of over "
            f"{MAX_BYTES / 1e6:g} MB at width "
            f"{config.hidden_size}: choose smaller --sizes or fewer --seeds"
        )
    fit = _Fit(collected, split.validation, config, training)
    tried: list[tuple[Candidate, QualityHead]] = []
    for size, weight_decay in itertools.product(dict.fromkeys((LINEAR, *sizes)), weight_decays):
        head = fit(split.train, size, weight_decay)
        found = head.config.metrics
        within, overall = found["validation_auroc_within"], found["validation_auroc"]
        tried.append((Candidate(size, weight_decay, within, overall), head))
    tried.sort(key=lambda pair: -pair[0].validation_auroc_within)
    best, first = next(pair for pair in tried if pair[0].size in sizes)
    probe = next(head for candidate, head in tried if candidate.size == LINEAR)
    heads = [first] + [fit(split.train, best.size, best.weight_decay, i) for i in range(1, seeds)]
    if averaged:
        head = average_heads(heads)
        held_out = collected.traces_of(split.validation)
        calibrate(head, collected.states, collected.labels, collected.questions, held_out)
    else:
        head = max(heads, key=lambda head: head.config.metrics["validation_auroc_within"])
    strangers = [
        (part, fit(split.train - part, best.size, best.weight_decay))
        for part in (_deal(split.train, training.seed, cross_fit) if cross_fit else ())
    ]
    return Chosen(
        head,
        best,
        probe,
        [candidate for candidate, _ in tried],
        [one.config.metrics["validation_auroc_within"] for one in heads],
        strangers,
    )


class _Fit:
    """Trains heads on some questions of a collection, with the same validation questions."""

    def __init__(
        self, collected: Collected, validation: frozenset[str], config: QualityHeadConfig, training: HeadTraining
    ) -> None:
        self._collected, self._validation = collected, validation
        self._config, self._training = config, training

    def __call__(self, train: frozenset[str], size: int, weight_decay: float, seed: int = 0) -> QualityHead:
        collected = self._collected
        return train_head(
            collected.states,
            collected.labels,
            collected.questions,
            replace(self._config, inner_size=size or 2, metrics={}),
            replace(
                self._training,
                linear=size == LINEAR,
                weight_decay=weight_decay,
                seed=self._training.seed + seed,
            ),
            train=collected.traces_of(train),
            held_out=collected.traces_of(self._validation),
        )


def detection_positions(collected: Collected, stride: int) -> list[int]:
    """What a detection position is chosen among: those of the collection, a tenth and a fifth of the mean length.

    Args:
        collected: of its positions, those that the mean trace does not reach are left out.
        stride: of the head; the two are multiples of it.
    """
    mean = collected.mean_tokens
    shares = {max(stride, round(mean / part / stride) * stride) for part in (10, 5)}
    found = sorted(position for position in {*collected.manifest.positions, *shares} if position < mean)
    return found or collected.manifest.positions[:1]


def choose_position(
    groups: Sequence[Group], positions: Sequence[int], keep: float, options: dict[str, Any]
) -> int:
    """The earliest position at which pruned votes are within a standard error of the best position's.

    Args:
        groups: scored traces of validation questions.
        positions: to choose among, ascending.
        keep: share kept.
        options: of the quality vote.
    """
    outcomes = {
        position: rights([replay(group, KeepShare(position, keep)) for group in groups], "quality", **options)
        for position in positions
    }
    best = max(positions, key=lambda position: outcomes[position].mean())
    for position in positions:
        behind = outcomes[best] - outcomes[position]
        if behind.mean() <= behind.std() / np.sqrt(len(behind)):
            return position
    return best


def choose_votes(known: Sequence[Group], held_out: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Each voting method's best options.

    Args:
        known: traces of all questions but the test's, for the methods that read no score.
        held_out: scored traces of questions that the head did not learn from.
    """
    longest = max(trace.num_tokens for group in known for trace in group)
    windows = [window for window in WINDOWS if window < longest] + [WINDOWS[-1]]
    found: dict[str, dict[str, Any]] = {}
    if all(trace.confidence is not None for group in known for trace in group):
        for method, option in (("deepconf", "window"), ("deepconf-lowest", "window"), ("deepconf-tail", "tail")):
            found[method] = _best(method, known, [{option: window} for window in windows])
    weightings = [
        {"over": over, "odds_power": power} for over in ("last", "mean") for power in (None, 0.5, 1.0, 2.0)
    ]
    found["quality"] = _best("quality", held_out, weightings)
    return found


def _best(method: str, groups: Sequence[Group], options: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first of those with the most right votes."""
    return max(options, key=lambda chosen: rights(groups, method, **chosen).mean())
