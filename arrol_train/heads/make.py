"""From a collection to a head with a card: split, train, choose, and measure on questions kept for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from arrol_train.heads.choose import (
    LINEAR,
    Chosen,
    Split,
    choose_head,
    choose_position,
    choose_votes,
    detection_positions,
    split_questions,
)
from arrol_train.heads.collect import CollectionManifest
from arrol_train.heads.dataset import Collected, Group
from arrol_train.heads.knowledge import Inspection, curve_positions, inspect_traces, rights
from arrol_train.heads.train import HeadTraining
from arrol_tts.combined import CombinedVoter, fit_combined
from arrol_tts.errors import InputError
from arrol_tts.files import write_json
from arrol_tts.head_config import Pooling, QualityHeadConfig
from arrol_tts.metrics import bootstrap_interval, mcnemar

COMBINED_FILE = "combined.json"
EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """How to make a head.

    Args:
        pooling: how the tokens of a trace make one score.
        stride: of the tokens that are pooled; by default the collection's.
        positions: detection positions to choose among, in tokens; by default `detection_positions`. A head whose
            pooling is ``last`` learns at the collection's, and has no others.
        sizes: inner sizes to try; 0 is a linear head.
        weight_decays: to try with each.
        seeds: of the best; the best one is taken, or the average where there is no gate.
        folds: parts the questions are dealt into; one tests, another validates.
        fold: which one tests.
        cross_fit: parts of the training questions that heads score which did not learn from them, so that position
            and votes are chosen on more than the validation questions; 0: on these alone.
        keep: share that pruning keeps.
        base_model: what the head calls its model, by default as the collection does.
        training: the rest.
    """

    pooling: Pooling = "mean"
    stride: int | None = None
    positions: tuple[int, ...] = ()
    sizes: tuple[int, ...] = (LINEAR, 32, 128)
    weight_decays: tuple[float, ...] = (0.05, 1.0)
    seeds: int = 3
    folds: int = 5
    fold: int = 0
    cross_fit: int = 4
    keep: float = 0.5
    base_model: str | None = None
    training: HeadTraining = field(default_factory=HeadTraining)


@dataclass(frozen=True, slots=True)
class VoteFigures:
    """A voting method on the test questions.

    Attributes:
        accuracy: with its 95% interval over questions.
        above_majority, above_deepconf: paired differences with their intervals; None for the method itself, or
            where nothing recorded confidences.
        p_value: McNemar's exact test against majority.
        right: verdict of each question.
    """

    accuracy: float
    interval: tuple[float, float]
    above_majority: tuple[float, float, float] | None
    above_deepconf: tuple[float, float, float] | None
    p_value: float
    right: dict[str, bool]


@dataclass(frozen=True, slots=True)
class HeadMade:
    """A head and everything its card says.

    Attributes:
        chosen: the head among its candidates.
        manifest: of the collection.
        split: of the questions.
        combined: the fitted combined vote; None where confidences or mixed questions are missing.
        votes: methods on the test questions.
        test: the head on them; ``probe`` the linear head.
        calibration: the head's last score of each test trace, and whether it is right.
    """

    chosen: Chosen
    manifest: CollectionManifest
    split: Split
    combined: CombinedVoter | None
    votes: dict[str, VoteFigures]
    test: Inspection
    probe: Inspection
    calibration: tuple[list[float], list[bool]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A head and how it is used.

    Attributes:
        chosen: the head; its config holds the detection position and the options of votes.
        combined: the fitted combined vote; None where confidences or mixed questions are missing.
        held_out: training and validation questions, scored by heads that did not learn from them, as in use.
    """

    chosen: Chosen
    combined: CombinedVoter | None
    held_out: list[Group]


def make_head(collected: Collected, options: HeadOptions) -> HeadMade:
    """Train a head on a collection, and measure it on the test questions.

    Raises:
        InputError: when the collection cannot teach a head; saying what to change.
    """
    _check_labels(collected)
    split = split_questions(
        collected.question_ids, seed=options.training.seed, folds=options.folds, fold=options.fold
    )
    fitted = fit_head(collected, split, options)
    chosen = fitted.chosen
    made = _measure(collected, split, chosen, fitted.combined)
    chosen.head.config.metrics = _metrics(made, collected)
    return made


def fit_head(collected: Collected, split: Split, options: HeadOptions) -> Fitted:
    """Train a head, and choose how it is used, on the training and validation questions of a split.

    Args:
        collected: samples of them, and perhaps of others.
        split: of the questions; the test's are not touched, and there need be none.
        options: its ``folds`` and ``fold`` are not read.

    Raises:
        InputError: when the collection cannot teach a head; saying what to change.
    """
    chosen = choose_head(
        collected,
        split,
        _head_config(collected, options),
        options.training,
        sizes=options.sizes,
        weight_decays=options.weight_decays,
        seeds=options.seeds,
        cross_fit=options.cross_fit,
    )
    return _choose_use(collected, split, chosen, options.keep)


def save_head(made: HeadMade, out: Path, collection: Path) -> None:
    """Write the head, its combined vote, its evaluation and its card into a folder."""
    from arrol_train.heads.card import write_card

    made.chosen.head.save_pretrained(out)
    if made.combined is not None:
        write_json(out / COMBINED_FILE, made.combined.to_dict())
    evaluation = {
        "collection": str(collection.resolve()),
        "split": {name: sorted(getattr(made.split, name)) for name in ("train", "validation", "test")},
        "chosen": asdict(made.chosen.best),
        "candidates": [asdict(candidate) for candidate in made.chosen.candidates],
        "seeds_validation_auroc_within": made.chosen.seeds,
        "votes": {name: asdict(figures) for name, figures in made.votes.items()},
        "test": made.test.to_dict(),
        "probe": made.probe.to_dict(),
    }
    write_json(out / EVALUATION_FILE, evaluation)
    write_card(made, out)


def _check_labels(collected: Collected) -> None:
    right = [bool(trace.correct) for trace in collected.traces]
    if all(right) or not any(right):
        raise InputError(
            f"all {len(right):,} samples are {'right' if right[0] else 'wrong'}: a head learns from questions "
            f"that have both; collect {'harder' if right[0] else 'easier'} ones, or look at how answers are read"
        )


def _head_config(collected: Collected, options: HeadOptions) -> QualityHeadConfig:
    """What a head of this collection says of itself before it is trained."""
    manifest = collected.manifest
    if options.pooling == "last":
        stride, positions = 1, manifest.positions
    else:
        stride = options.stride or manifest.stride or 1
        positions = sorted(options.positions) or detection_positions(collected, stride)
    return QualityHeadConfig(
        pooling=options.pooling,
        stride=stride,
        base_model=options.base_model or manifest.model,
        base_revision=manifest.revision,
        hidden_size=manifest.hidden_size,
        positions=positions,
        keep=options.keep,
        sampling={name: value for name, value in manifest.sampling.items() if name != "seed"},
        engine={"top_k": manifest.top_k} | {k: v for k, v in (manifest.engine or {}).items() if k == "dtype"},
        prompt=manifest.prompt,
        chat=manifest.chat,
        chat_template_kwargs=manifest.chat_template_kwargs,
    )


def _choose_use(collected: Collected, split: Split, chosen: Chosen, keep: float) -> Fitted:
    """Choose position and voting options, into the head's config; and fit the combined vote."""
    config = chosen.head.config
    # Questions that the scoring head did not learn from: on its own it would look better than it is.
    strangers = [*chosen.strangers, (split.validation, chosen.head)]
    fair = [group for part, head in strangers for group in collected.scored(head, part, config.positions)]
    position = choose_position(fair, config.positions, keep, {})
    config.positions = [position, *(p for p in config.positions if p != position)]
    at_use = [_as_used(group, position) for group in fair]
    config.voting = choose_votes(collected.groups_of(split.train | split.validation), at_use)
    return Fitted(chosen, _combined(at_use, config.voting), at_use)


def _measure(collected: Collected, split: Split, chosen: Chosen, combined: CombinedVoter | None) -> HeadMade:
    """What the card says of the test questions."""
    config = chosen.head.config
    detection, curve = sorted(config.positions), curve_positions(collected, config)
    test = collected.scored(chosen.head, split.test, curve)
    in_use = [_as_used(group, config.positions[0]) for group in test]
    traces = [trace for group in test for trace in group]
    return HeadMade(
        chosen=chosen,
        manifest=collected.manifest,
        split=split,
        combined=combined,
        votes=_votes(in_use, config.voting, combined),
        test=inspect_traces(test, detection, config.voting["quality"], curve=curve),
        probe=inspect_traces(collected.scored(chosen.probe, split.test, curve), detection, curve=curve),
        calibration=([trace.score or 0.0 for trace in traces], [bool(trace.correct) for trace in traces]),
    )


def _as_used(group: Group, position: int) -> Group:
    """The traces with the scores they have in use: at the detection position and at the finish."""
    return [
        replace(trace, scores={k: s for k, s in trace.scores.items() if k in (position, trace.num_tokens - 1)})
        for trace in group
    ]


def _combined(fair: Sequence[Group], voting: dict[str, dict[str, Any]]) -> CombinedVoter | None:
    windows = {
        "window": voting.get("deepconf", {}).get("window"),
        "tail": voting.get("deepconf-tail", {}).get("tail"),
    }
    try:
        return fit_combined(fair, folds=0, **{k: v for k, v in windows.items() if v})
    except ValueError:
        return None


def _votes(
    test: Sequence[Group], voting: dict[str, dict[str, Any]], combined: CombinedVoter | None
) -> dict[str, VoteFigures]:
    names = [group[0].question_id for group in test]
    methods: dict[str, tuple[Any, dict[str, Any]]] = {"majority": ("majority", {})}
    methods |= {name: (name, voting[name]) for name in voting}
    if combined is not None:
        methods["combined"] = (combined, {})
    outcomes = {name: rights(test, method, **options) for name, (method, options) in methods.items()}

    def above(name: str, other: str) -> tuple[float, float, float] | None:
        if name == other or other not in outcomes:
            return None
        difference = outcomes[name] - outcomes[other]
        return (float(difference.mean()), *bootstrap_interval(difference))

    return {
        name: VoteFigures(
            accuracy=float(right.mean()),
            interval=bootstrap_interval(right),
            above_majority=above(name, "majority"),
            above_deepconf=above(name, "deepconf"),
            p_value=mcnemar(right > 0, outcomes["majority"] > 0).p_value,
            right=dict(zip(names, (right > 0).tolist(), strict=True)),
        )
        for name, right in outcomes.items()
    }


def _metrics(made: HeadMade, collected: Collected) -> dict[str, Any]:
    """What the head's config says of it, for people to read."""
    finish = made.test.positions[-1].head
    return {
        "synthetic": made.manifest.synthetic,
        "questions": {name: len(getattr(made.split, name)) for name in ("train", "validation", "test")},
        "samples": len(collected.traces),
        "sample_accuracy": round(float(np.mean([bool(trace.correct) for trace in collected.traces])), 4),
        "mean_tokens": round(float(np.mean([trace.num_tokens for trace in collected.traces])), 1),
        "test_auroc": finish.auroc and round(finish.auroc, 4),
        "test_auroc_within": finish.within and round(finish.within, 4),
        **{f"test_accuracy_{name}": round(figures.accuracy, 4) for name, figures in made.votes.items()},
    }
