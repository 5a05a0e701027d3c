"""What reaches into TRL's trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from arrol_train.rl.group import Group, Rollout
from arrol_train.rl.trl_bridge import TrainedPolicy, last_checkpoint, trl_columns
from arrol_tts.pocket import POCKET_MODEL
from tests.arrol_train.rl.test_rollout import make_rollout, make_trainer

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine


def test_adapters_are_pushed_merged(engine: VLLMEngine, tmp_path: Path) -> None:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    rollout = make_rollout(engine)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(rollout, rollout.reward_func, tmp_path, 4, peft_config=lora, learning_rate=1e-2)
    trainer.train()
    pushed = {name: tensor.clone() for name, tensor in TrainedPolicy(trainer).weights()}
    merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    expected = dict(merged.named_parameters())
    assert pushed.keys() == expected.keys()
    plain = dict(AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32).named_parameters())
    changed = [name for name, tensor in pushed.items() if not torch.equal(tensor, plain[name])]
    assert len(changed) == 2 * 4
    for name, tensor in pushed.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)


def survivors(*logprobs: list[float] | None) -> Group:
    rollouts = [Rollout([7, 8], row, reward=float(i)) for i, row in enumerate(logprobs)]
    return Group(0, 0, [1, 2], [*rollouts, Rollout([9], [-1.0], pruned_at=24)])


def test_trl_gets_the_survivors_group_by_group() -> None:
    assert trl_columns([survivors([-0.5, -0.25]), survivors([-2.0, -1.0])]) == {
        "prompt_ids": [[1, 2], [1, 2]],
        "completion_ids": [[7, 8], [7, 8]],
        "logprobs": [[-0.5, -0.25], [-2.0, -1.0]],
        "rollout_reward": [0.0, 0.0],
    }


def test_without_log_probabilities_of_all_trl_gets_none() -> None:
    assert trl_columns([survivors([-0.5, -0.25], None)])["logprobs"] is None


def test_the_newest_checkpoint_is_the_last_that_is_complete(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / "arrol").mkdir(parents=True)
    (tmp_path / "checkpoint-12" / "arrol.tmp").mkdir(parents=True)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
