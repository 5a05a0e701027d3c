"""What reaches into TRL's trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from arrol_train.positions import FINISH
from arrol_train.rl.config import ConfigError
from arrol_train.rl.group import Group, Rollout
from arrol_train.rl.trl_bridge import Scoring, TrainedPolicy, check_checkpoint, last_checkpoint, trl_columns
from arrol_tts.errors import InputError
from arrol_tts.pocket import POCKET_MODEL
from tests.arrol_train.conftest import restore_pocket
from tests.arrol_train.rl.test_rollout import ROWS, forward, make_rollout, make_trainer

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


@pytest.mark.parametrize("name", ["vllm_engine", "transformers_engine"])
def test_an_engine_samples_with_the_adapters_that_were_trained(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """On the CPU pushed tensors are the trainer's own, which are unmerged again after the push."""
    from peft import LoraConfig

    engine = request.getfixturevalue(name)
    rollout = make_rollout(engine)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(rollout, rollout.reward_func, tmp_path, 4, peft_config=lora, learning_rate=0.1)
    trainer.train()
    assert rollout.metrics["rollout/survivors"] == rollout.metrics["rollout/started"] / 2
    rollout.push(trainer)
    (group,) = rollout.worker.roll([0], step=1)
    trained, plain = TrainedPolicy(trainer), forward(group.prompt_ids, group.survivors[0].token_ids)[0]
    own = trained.logprobs(group.prompt_ids, group.survivors[0].token_ids, 1.0)
    np.testing.assert_allclose(group.survivors[0].logprobs, own, atol=1e-3)
    assert np.abs(own - plain).max() > 0.01
    restore_pocket(engine)


def started_as(kind: str, processes: int) -> Any:
    """As much of a trainer as says how it was started."""
    from accelerate.utils import DistributedType

    return SimpleNamespace(
        accelerator=SimpleNamespace(distributed_type=DistributedType(kind), num_processes=processes)
    )


def test_a_checkpoint_goes_on_as_it_was_sharded_and_deepspeeds_with_as_many_processes(tmp_path: Path) -> None:
    check_checkpoint(tmp_path, started_as("NO", 1))
    check_checkpoint(tmp_path, started_as("MULTI_GPU", 8))
    with pytest.raises(ConfigError, match="neither of both wrote .* and FSDP is to go on"):
        check_checkpoint(tmp_path, started_as("FSDP", 2))
    (tmp_path / "global_step2").mkdir()
    (tmp_path / "latest").write_text("global_step2")
    for process in range(2):
        (tmp_path / f"global_step2/zero_pp_rank_{process}_mp_rank_00_optim_states.pt").touch()
    check_checkpoint(tmp_path, started_as("DEEPSPEED", 2))
    with pytest.raises(ConfigError, match="2 DeepSpeed processes wrote .* and 4 are to go on from it"):
        check_checkpoint(tmp_path, started_as("DEEPSPEED", 4))
    with pytest.raises(ConfigError, match="DeepSpeed wrote .* and neither of both is to go on"):
        check_checkpoint(tmp_path, started_as("MULTI_GPU", 2))


def survivors(*logprobs: list[float] | None) -> Group:
    rollouts = [Rollout([7, 8], row, reward=float(i)) for i, row in enumerate(logprobs)]
    return Group(0, 0, [1, 2], [*rollouts, Rollout([9], [-1.0], pruned_at=24)])


def test_trl_gets_the_survivors_group_by_group() -> None:
    other = survivors([-2.0, -1.0])
    other.row = 1
    rows = [{"prompt": "1+1", "answer": "2", "logprobs": "x"}, {"prompt": "1+2", "answer": "3", "prompts": "y"}]
    assert trl_columns([survivors([-0.5, -0.25]), other], rows) == {
        "prompt_ids": [[1, 2], [1, 2]],
        "completion_ids": [[7, 8], [7, 8]],
        "logprobs": [[-0.5, -0.25], [-2.0, -1.0]],
        "rollout_reward": [0.0, 0.0],
        "answer": ["2", "3"],
    }


def test_the_tokens_of_the_ungraded_are_masked() -> None:
    group = Group(0, 0, [1, 2], [Rollout([7, 8], [-1.0] * 2, True), Rollout([9], [-1.0], True, reward=1.0)])
    columns = trl_columns([group], [{}])
    assert columns["rollout_reward"] == [None, 1.0]
    assert columns["env_mask"] == [[0, 0], [1]]


def test_without_log_probabilities_of_all_trl_gets_none() -> None:
    assert trl_columns([survivors([-0.5, -0.25], None)], [{}])["logprobs"] is None


PROMPT = "1+2*3"
PROMPT_IDS = [5, 6, 7]


def written(reward: float | None, *token_ids: int, **fields: Any) -> Rollout:
    return Rollout(list(token_ids), [-1.0] * len(token_ids), ended=True, reward=reward, **fields)


def scored(
    group: Group, out: Path, rewards: Sequence[Callable[..., Any]] = (), *, baseline: bool = False, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """TRL's trainer and its batch of one group, whose rewards are the rollouts' and some more."""

    def task(completions: list[str], rollout_reward: list[float | None], **_: Any) -> list[float | None]:
        return rollout_reward

    size = len(group.survivors)
    trainer = make_trainer(
        lambda prompts, trainer: trl_columns([group], ROWS),
        [task, *rewards],
        out,
        size,
        per_device_train_batch_size=size,
        max_completion_length=8,
        **options,
    )
    Scoring(trainer, (lambda: [group]) if baseline else None, task)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    asked = [{"prompt": PROMPT, "answer": "7", "id": 1} for _ in range(size)]
    return trainer, trainer._generate_and_score_completions(asked)


def length(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A tenth for every token."""
    return [-0.1 * len(ids) for ids in completion_ids]


def test_other_reward_functions_see_the_row_that_a_group_is_of(tmp_path: Path) -> None:
    seen: list[list[Any]] = []

    def other(completions: list[str], answer: list[str], id: list[int], **_: Any) -> list[float]:
        seen.append([*answer, *id])
        return [0.0] * len(completions)

    scored(Group(0, 3, PROMPT_IDS, [written(1.0, 9), written(0.0, 10)]), tmp_path, [other])
    assert seen == [[ROWS[3]["answer"], ROWS[3]["answer"], 1, 1]]
    assert ROWS[3]["answer"] != "7"


GRADED = [((9, 10, 11, 12, 13), 1.0), ((9, 10), 0.0), ((8, 10, 12), 1.0)]
"""Tokens and rewards of those that could be graded."""


def own_gradient(advantages: Sequence[float], by_token: bool) -> list[torch.Tensor]:
    """Of minus the mean over rollouts of advantage x mean log-probability, or of their sums by the token."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    terms = []
    for (token_ids, _), advantage in zip(GRADED, advantages, strict=True):
        logits = model(torch.tensor([[*PROMPT_IDS, *token_ids]])).logits[0, len(PROMPT_IDS) - 1 : -1]
        logprobs = logits.log_softmax(-1)[torch.arange(len(token_ids)), list(token_ids)]
        terms.append(advantage * (logprobs.sum() if by_token else logprobs.mean()))
    count = sum(len(token_ids) for token_ids, _ in GRADED) if by_token else len(GRADED)
    (-torch.stack(terms).sum() / count).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
@pytest.mark.parametrize("punished", [False, True])
def test_an_ungraded_rollout_changes_neither_advantages_nor_gradient(
    loss_type: str, punished: bool, tmp_path: Path
) -> None:
    first, *others = [written(reward, *token_ids) for token_ids, reward in GRADED]
    group = Group(0, 0, PROMPT_IDS, [first, written(None, 14, 15, 16, 17), *others])
    trainer, batch = scored(group, tmp_path, [length] if punished else [], loss_type=loss_type)
    # Rewards 1, 0, 1: mean 2/3, squared distances 1/9, 4/9, 1/9, over 2: 1/3. With the punishments 0.5, 0.2 and
    # 0.3 they are 0.5, -0.2 and 0.7: mean 1/3, squared distances 1/36, 64/225, 121/900, over 2: 0.2233.
    mean, deviation = (1 / 3, 0.2233333**0.5) if punished else (2 / 3, (1 / 3) ** 0.5)
    rewards = (0.5, -0.2, 0.7) if punished else (1.0, 0.0, 1.0)
    advantages = [(reward - mean) / (deviation + 1e-4) for reward in rewards]
    expected = [advantages[0], 0.0, *advantages[1:]]
    np.testing.assert_allclose(batch["advantages"], expected, rtol=1e-5)
    assert batch["num_items_in_batch"] == 10
    assert trainer._metrics["train"]["reward"][-1] == pytest.approx(np.mean(rewards), abs=1e-6)
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    wanted = own_gradient(advantages, by_token=loss_type == "dapo")
    for parameter, gradient in zip(trainer.model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def test_a_group_of_the_ungraded_alone_has_no_gradient(tmp_path: Path) -> None:
    group = Group(0, 0, PROMPT_IDS, [written(None, 14, 15), written(None, 9)])
    trainer, batch = scored(group, tmp_path)
    assert batch["advantages"].tolist() == [0.0, 0.0]
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    assert all(not parameter.grad.any() for parameter in trainer.model.parameters())


def test_survivors_that_are_all_right_have_an_advantage_over_the_pruned(tmp_path: Path) -> None:
    # Without a group effect the two that were pruned are right with probability 1/2 each: mean 3/4, deviation 1/2.
    pruned = [Rollout([3], posterior=0.5, pruned_at=1) for _ in range(2)]
    group = Group(0, 0, PROMPT_IDS, [written(1.0, 9), pruned[0], pruned[1], written(1.0, 10, 11)])
    trainer, batch = scored(group, tmp_path, baseline=True)
    np.testing.assert_allclose(batch["advantages"], [0.25 / 0.5001] * 2, rtol=1e-6)
    np.testing.assert_allclose(list(trainer._logs["advantages"]), [0.25 / 0.5001] * 2, rtol=1e-6)
    _, batch = scored(group, tmp_path, baseline=True, scale_rewards="none")
    np.testing.assert_allclose(batch["advantages"], [0.25] * 2)
    _, batch = scored(group, tmp_path)
    assert batch["advantages"].tolist() == [0.0, 0.0]


def test_punishments_count_beside_the_baseline_of_all(tmp_path: Path) -> None:
    # The pruned one is known to be wrong and gets the mean punishment: 0.8, -0.1 and -0.15.
    left_out = written(0.0, 3, pruned_at=FINISH)
    group = Group(0, 0, PROMPT_IDS, [written(1.0, 9, 10), left_out, written(0.0, 10)])
    _, batch = scored(group, tmp_path, [length], baseline=True)
    whole = np.array([0.8, -0.1, -0.15])
    expected = (whole - whole.mean()) / (whole.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(batch["advantages"], expected[:2], rtol=1e-5)


def test_where_nothing_was_pruned_the_baseline_of_all_is_trls(tmp_path: Path) -> None:
    rollouts = [written(1.0, 9, 10), written(0.0, 10), written(None, 12), written(0.0, 11)]
    group = Group(0, 0, PROMPT_IDS, rollouts)
    for scale in ("group", "batch", "none"):
        batches = [scored(group, tmp_path, [length], baseline=all_, scale_rewards=scale)[1] for all_ in (0, 1)]
        np.testing.assert_allclose(batches[0]["advantages"], batches[1]["advantages"], atol=1e-6)


def test_settings_that_cannot_go_with_the_baseline_of_all_are_refused(tmp_path: Path) -> None:
    group = Group(0, 0, PROMPT_IDS, [written(1.0, 9), written(0.0, 10)])
    with pytest.raises(InputError, match="set multi_objective_aggregation to its default"):
        scored(group, tmp_path, baseline=True, multi_objective_aggregation="normalize_then_sum")
    with pytest.raises(InputError, match="has the weight 0; baseline 'all' needs more"):
        scored(group, tmp_path, baseline=True, reward_weights=[0.0])


def test_the_newest_checkpoint_is_the_last_that_is_complete(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / "arrol").mkdir(parents=True)
    (tmp_path / "checkpoint-12" / "arrol.tmp").mkdir(parents=True)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
