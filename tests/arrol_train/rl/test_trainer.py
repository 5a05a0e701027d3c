"""What a configuration becomes for TRL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arrol_train.rl.config import ConfigError
from arrol_train.rl.sampler import sampling_of
from arrol_train.rl.trainer import trl_config
from arrol_tts.engine.request import Sampling
from tests.arrol_train.rl.tiny import TINY, config

if TYPE_CHECKING:
    pass


pytest.importorskip("trl")


def test_a_micro_batch_must_divide_the_batch(tmp_path: Path) -> None:
    assert trl_config(config(micro_batch=4), tmp_path, 1).gradient_accumulation_steps == 2
    with pytest.raises(ConfigError, match="micro_batch 3 does not divide the 8 rollouts"):
        trl_config(config(micro_batch=3), tmp_path, 1)
    with pytest.raises(ConfigError, match="TRL refuses"):
        trl_config(config(trl={"no_such": 1}), tmp_path, 1)


def test_options_of_the_sampling_reach_engine_trl_and_head() -> None:
    rollout = TINY["rollout"] | {"temperature": 0.6, "stop_token_ids": [3]}
    chosen = config(rollout=rollout | {"repetition_penalty": 1.0})
    arguments = trl_config(chosen, Path("out"), 1)
    assert arguments.temperature == 0.6
    sampling = sampling_of(chosen.rollout, 8, 24, seed=5)
    expected = Sampling(n=8, temperature=0.6, stop_token_ids=(3,), max_tokens=24, seed=5)
    assert sampling == expected
    with pytest.raises(ConfigError, match="takes every rollout that a stop text or token ended"):
        trl_config(config(rollout=rollout, trl={"mask_truncated_completions": True}), Path("out"), 1)
