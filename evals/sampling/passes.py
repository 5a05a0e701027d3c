"""The passes of a run: a benchmark sampled in full, and again under each way of stopping early."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from arrol_tts.confidence import WINDOW
from arrol_tts.consensus import Consensus
from arrol_tts.stopping import Budget, ConfidenceFloor, Threshold
from arrol_tts.store import TraceStore
from arrol_tts.voter import WeightedVoter
from arrol_tts.waves import Waves

FULL = "full"
FOLDERS = {
    FULL: "traces",
    "pruned": "traces_pruned",
    "threshold": "traces_threshold",
    "budget": "traces_budget",
    "deepconf-online": "traces_deepconf_online",
    "consensus": "traces_consensus",
    "waves": "traces_waves",
}
"""``{pass: its trace store in the folder of a benchmark and seed}``."""

STOPPING = tuple(name for name in FOLDERS if name != FULL)
"""Passes with early stopping: ``pruned`` keeps the best share of a question's traces by the head, ``threshold``
those above one score for all questions, ``budget`` spends the same share of the tokens on the best traces first,
``deepconf-online`` stops traces whose confidence falls too low and questions whose vote by confidence is clear,
``consensus`` stops questions whose majority is,
``waves`` starts few traces of a question and more only while its vote is open."""

BY_SCORE = ("pruned", "threshold", "budget")
"""Those that need a quality head."""


def pass_options(name: str, voter: WeightedVoter, n: int, keep: float, full: Path, waves: Waves) -> dict[str, Any]:
    """Options of ``WeightedVoter.sample`` that make a pass; some follow from what the full pass has stored."""
    if name == "pruned":
        return {"keep": keep}
    whole: dict[str, Any] = {"keep": 1.0} if voter.config is not None else {}
    if name == "threshold":
        return {**whole, "rules": (_threshold(voter, keep, full),)}
    if name == "budget":
        return {**whole, "rules": (_budget(voter, n, keep, full),)}
    if name == "deepconf-online":
        # DeepConf warms up with 16 of 512 traces; with few traces, with half of them.
        warmup = max(1, min(16, n // 2))
        floor = ConfidenceFloor(warmup, window=_window(voter, full))
        return {**whole, "rules": (floor,), "consensus": Consensus(min_votes=warmup, method="deepconf")}
    if name == "consensus":
        return {**whole, "consensus": Consensus()}
    if name == "waves":
        return {**whole, **asdict(waves)}
    return whole


def _threshold(voter: WeightedVoter, keep: float, full: Path) -> Threshold:
    """The bound that the share ``keep`` of the full pass's traces reach; no reference answer goes into it."""
    assert voter.config is not None
    position = voter.config.positions[0]
    scores = [
        trace.scores[min(position, trace.num_tokens - 1)]
        for trace in TraceStore(full).read(("question_id", "sample_id", "num_tokens", "scores"))
    ]
    return Threshold(position, float(np.quantile(scores, 1 - keep)))


def _budget(voter: WeightedVoter, n: int, keep: float, full: Path) -> Budget:
    """The share ``keep`` of what a question takes in full on average."""
    assert voter.config is not None
    mean = _mean_tokens(full)
    return Budget(voter.config.positions[0], tokens=max(1, round(keep * n * mean)), length=max(1, round(mean)))


def _window(voter: WeightedVoter, full: Path) -> int:
    """DeepConf's window: the head's own, else the published one, but a quarter of a mean trace at most.

    No trace is stopped before its first whole window.
    """
    own = voter.config.voting.get("deepconf", {}) if voter.config else {}
    return min(int(own.get("window", WINDOW)), max(1, round(_mean_tokens(full) / 4)))


def _mean_tokens(full: Path) -> float:
    lengths = [trace.num_tokens for trace in TraceStore(full).read(("question_id", "sample_id", "num_tokens"))]
    return float(np.mean(lengths))
