"""The training companion of arrol_tts: quality heads for any model, and reinforcement with pruned rollouts.

Two programs that do not know each other: ``heads`` (collect samples, train a head, look at it) and ``rl`` (GRPO
and DAPO with a head on the fly). Names load when first used, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arrol_train.heads.collect import Collection, CollectionManifest, collect
    from arrol_train.heads.dataset import States, open_collected
    from arrol_train.heads.inspect import inspect_head
    from arrol_train.heads.make import HeadOptions, make_head, save_head
    from arrol_train.heads.train import HeadTraining, train_head
    from arrol_train.questions import TrainingQuestion, read_prompt, read_questions
    from arrol_train.rl.async_rollout import AsyncPrunedRollout
    from arrol_train.rl.config import Detection, OnlineTraining, RolloutConfig, RunConfig, load_config
    from arrol_train.rl.online_head import OnlineHead
    from arrol_train.rl.rollout import PrunedRollout
    from arrol_train.rl.rollout_worker import RolloutWorker
    from arrol_train.rl.run import run

_HOMES = {
    "AsyncPrunedRollout": "rl.async_rollout",
    "Collection": "heads.collect",
    "CollectionManifest": "heads.collect",
    "Detection": "rl.config",
    "HeadOptions": "heads.make",
    "HeadTraining": "heads.train",
    "OnlineHead": "rl.online_head",
    "OnlineTraining": "rl.config",
    "PrunedRollout": "rl.rollout",
    "RolloutConfig": "rl.config",
    "RolloutWorker": "rl.rollout_worker",
    "RunConfig": "rl.config",
    "States": "heads.dataset",
    "TrainingQuestion": "questions",
    "collect": "heads.collect",
    "inspect_head": "heads.inspect",
    "load_config": "rl.config",
    "make_head": "heads.make",
    "open_collected": "heads.dataset",
    "read_prompt": "questions",
    "read_questions": "questions",
    "run": "rl.run",
    "save_head": "heads.make",
    "train_head": "heads.train",
}

__all__ = [
    "AsyncPrunedRollout",
    "Collection",
    "CollectionManifest",
    "Detection",
    "HeadOptions",
    "HeadTraining",
    "OnlineHead",
    "OnlineTraining",
    "PrunedRollout",
    "RolloutConfig",
    "RolloutWorker",
    "RunConfig",
    "States",
    "TrainingQuestion",
    "collect",
    "inspect_head",
    "load_config",
    "make_head",
    "open_collected",
    "read_prompt",
    "read_questions",
    "run",
    "save_head",
    "train_head",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
