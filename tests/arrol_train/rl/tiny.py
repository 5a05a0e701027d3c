"""A run of a few steps, and what is compared of two."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from arrol_train.rewards import Row, pocket_reward
from arrol_train.rl.config import RunConfig

if TYPE_CHECKING:
    pass


TINY: dict[str, Any] = {
    "model": "pocket",
    "task": {"source": "pocket", "train": 64, "test": 6},
    "steps": 4,
    "prompts": 2,
    "learning_rate": 1e-3,
    "dtype": "float32",
    "rollout": {"group": 8, "detect": [{"at": 24, "keep": 0.5}], "cold_start": 1, "max_tokens": 220},
    # Forty epochs of a refit would make much of a rounding.
    "head": {"updates": 2, "buffer_rows": 256, "inner_size": 16, "refit": False},
    "engine": {"top_k": 5, "max_model_len": 256, "max_num_seqs": 16},
    "trl": {"gradient_checkpointing": False},
    "save_every": 1,
    "eval_samples": 2,
    "tensorboard": False,
}


def patchy_reward(row: Row, text: str) -> float:
    """Cannot grade some of the rollouts; which, depends on their text alone."""
    if zlib.crc32(text.encode()) % 4 == 0:
        raise KeyError("answer")
    return pocket_reward(row, text)


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate(TINY | changes)


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def policy_of(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "policy" / "model.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    """Two runs did the same, but for rounding."""
    names = ("step", "rollout/balance", "rollout/generated_tokens", "reward", "eval/right")
    for a, b in zip(log_of(first), log_of(second), strict=True):
        assert [a.get(name) for name in names] == [b.get(name) for name in names]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    for (name, a), b in zip(policy_of(first).items(), policy_of(second).values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0, msg=name)
    from arrol_tts.head import QualityHead

    heads = [QualityHead.from_pretrained(out / "head") for out in (first, second)]
    for a, b in zip(*(head.state_dict().values() for head in heads), strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)
