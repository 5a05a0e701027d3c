"""AsyncPrunedRollout in TRL's AsyncGRPOTrainer, on the pocket model in real vLLM.

TRL's trainer wants a CUDA device twice: it asks for the card's name, and attends by FlashAttention 3. Here the
name is not asked for, and PyTorch's own attention stands in for the kernel; all else is TRL's.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from arrol_train.rewards import pocket_reward
from arrol_train.rl.async_rollout import AsyncPrunedRollout
from arrol_train.rl.config import RolloutConfig
from arrol_train.rl.group import Group, Rollout
from arrol_train.rl.rollout_worker import RolloutWorker
from arrol_train.rl.trl_bridge import async_samples
from arrol_tts.pocket import POCKET_MODEL
from tests.arrol_train.rl.test_rollout import AT, CONFIG, ROWS, online_head

if TYPE_CHECKING:
    from arrol_tts.engine.base import Engine
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")
async_grpo = pytest.importorskip("trl.experimental.async_grpo")

PROMPTS = 2


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(POCKET_MODEL)


def make_rollout(engine: Engine | None, tokenizer: Any, config: RolloutConfig = CONFIG, **options: Any) -> Any:
    reward = options.pop("reward", pocket_reward)
    worker = RolloutWorker(engine, ROWS, reward, config, online_head(), tokenizer=tokenizer)  # type: ignore[arg-type]
    return AsyncPrunedRollout(worker, prompts=options.pop("prompts", PROMPTS), **options)


def plain_tree_attention(module: Any, query: Any, key: Any, value: Any, _: Any, **tree: Any) -> tuple[Any, None]:
    """What TRL's kernel computes: every segment of a packed tree sees the path from the root to itself."""
    query, key, value = (states[0] for states in (query, key, value))
    key, value = (states.repeat_interleave(len(query) // len(key), 0) for states in (key, value))
    outputs = []
    queries, keys = tree["tree_cu_seqlens_q"].tolist(), tree["tree_cu_seqlens_k"].tolist()
    for begin, end, first, last in zip(queries, queries[1:], keys, keys[1:], strict=False):
        path = tree["tree_kv_index"][first:last]
        seen = torch.ones(end - begin, last - first, dtype=torch.bool).tril(last - first - (end - begin))
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[:, begin:end], key[:, path], value[:, path], seen, scale=tree["scaling"]
            )
        )
    return torch.cat(outputs, 1).transpose(0, 1)[None], None


def make_trainer(rollout: AsyncPrunedRollout, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    from datasets import Dataset
    from transformers import AttentionInterface
    from trl.experimental.async_grpo import AsyncGRPOTrainer, async_grpo_trainer
    from trl.experimental.async_grpo.packing import TREE_ATTENTION

    monkeypatch.setattr(async_grpo_trainer, "get_peak_flops_per_device", lambda *_: None)
    trainer = AsyncGRPOTrainer(
        str(POCKET_MODEL),
        args=config_of(out, **options),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS]),
        rollout_worker=rollout,
        weight_transfer=rollout,
        callbacks=[rollout],
    )
    AttentionInterface.register(TREE_ATTENTION, plain_tree_attention)
    return trainer


def config_of(out: Path, **options: Any) -> Any:
    arguments: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": 2,
        "per_device_train_batch_size": PROMPTS * CONFIG.survivors,
        "num_generations": CONFIG.survivors,
        "token_budget": 0,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return async_grpo.AsyncGRPOConfig(**arguments | options)


def logprobs_of(model: Any) -> Any:
    """The trained model's own log-probabilities, as `RolloutWorker.check` wants them."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32).eval()
    plain.load_state_dict(model.state_dict())

    @torch.inference_mode()
    def logprobs(prompt_ids: Any, token_ids: Any, temperature: float) -> Any:
        logits = plain(torch.tensor([[*prompt_ids, *token_ids]])).logits[0, len(prompt_ids) - 1 : -1]
        return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0].numpy()

    return logprobs


def test_survivors_are_trained_on_while_the_next_are_rolled_out_with_a_stand_in_for_the_kernel(
    engine: VLLMEngine, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = make_rollout(engine, tokenizer)
    trainer = make_trainer(rollout, tmp_path, monkeypatch)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    first, second = [line for line in trainer.state.log_history if "loss" in line]
    # The trainer's log-probabilities of the survivors' tokens are the engine's, so positions and masks agree.
    assert first["ratio"] == pytest.approx(1, abs=1e-4)
    assert first["kl"] < 1e-6
    assert first["grad_norm"] > 0
    assert first["batch/samples_per_step"] == PROMPTS * 4
    assert first["rollout/started"] == PROMPTS * 8
    assert first["rollout/generated_tokens"] - first["rollout/trained_tokens"] == PROMPTS * 4 * (AT + 1)
    assert second["sample/staleness_max"] <= 2
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    # The engine has the weights of the last step, and not those that it began with.
    groups = rollout.worker.roll([0], step=99)
    own = logprobs_of(trainer.model)(groups[0].prompt_ids, groups[0].survivors[0].token_ids, 1.0)
    np.testing.assert_allclose(groups[0].survivors[0].logprobs, own, atol=1e-3)
    # What it left goes on: head and buffer, and the batches after those of the checkpoint.
    again = make_rollout(engine, tokenizer)
    trainer = make_trainer(again, tmp_path, monkeypatch, max_steps=3)
    rolled: list[int] = []
    roll = again.worker.roll
    again.worker.roll = lambda rows, step: rolled.append(step) or roll(rows, step)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert rolled[0] == 2
    steps = again.worker.learner.buffer.groups // len(ROWS)
    assert set(steps.tolist()) >= {0, 1, 2}


def test_a_survivors_advantage_is_its_groups_z_score_and_masks_follow_the_prompt(
    vllm_engine: VLLMEngine, tokenizer: Any
) -> None:
    rollout = make_rollout(vllm_engine, tokenizer)
    samples = rollout._roll(0)
    assert len(samples) == PROMPTS * 4
    by_group: dict[int, list[Any]] = {}
    for sample in samples:
        by_group.setdefault(sample.group_id, []).append(sample)
    assert [len(group) for group in by_group.values()] == [4, 4]
    for group in by_group.values():
        rewards = np.array([sample.metrics["reward"] for sample in group])
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        np.testing.assert_allclose([sample.advantage for sample in group], expected, atol=1e-6)
    sample, row = samples[0], ROWS[int(samples[0].group_id) % len(ROWS)]
    assert sample.prompt == [{"role": "user", "content": row["prompt"]}]
    prompt = int((sample.completion_mask == 0).sum())
    text = tokenizer.decode(sample.input_ids[prompt:], skip_special_tokens=True)
    assert sample.completion == [{"role": "assistant", "content": text}]
    assert sample.metrics["reward"] == pocket_reward(row, text)
    assert (sample.old_log_probs[:prompt] == 0).all()
    assert (sample.old_log_probs[prompt:] != 0).any()


def test_the_ungraded_are_left_out_and_the_pruned_may_count(tokenizer: Any) -> None:
    def written(*token_ids: int, **fields: Any) -> Rollout:
        return Rollout(list(token_ids), [-1.0] * len(token_ids), **fields)

    right = [written(5, 6, ended=True, reward=1.0), written(7, ended=True, reward=1.0)]
    pruned = [written(5, posterior=0.5, pruned_at=AT) for _ in range(2)]
    group = Group(0, 0, [1, 2], [right[0], written(8, ended=True), *pruned, right[1]])
    samples = async_samples([group], make_rollout(None, tokenizer).worker, 0)
    assert [(sample.advantage, sample.input_ids.tolist()) for sample in samples] == [
        (0.0, [1, 2, 5, 6]),
        (0.0, [1, 2, 7]),
    ]
    config = CONFIG.model_copy(update={"baseline": "all"})
    samples = async_samples([group], make_rollout(None, tokenizer, config=config).worker, 0)
    # Two right, two by a coin: mean 3/4, deviation 1/2.
    assert [sample.advantage for sample in samples] == pytest.approx([0.25 / 0.5001] * 2)


def test_every_row_comes_once_before_any_comes_again(tokenizer: Any) -> None:
    rollout = make_rollout(None, tokenizer, prompts=5)
    rows = [row for batch in range(24) for row in rollout._rows(batch)]
    assert set(Counter(rows[: len(ROWS)]).values()) == {1}
    assert rollout._rows(3) == rollout._rows(3)
    assert rows[: len(ROWS)] != sorted(rows[: len(ROWS)])


def test_weights_wait_for_the_batch_that_is_under_way(tokenizer: Any) -> None:
    rollout = make_rollout(None, tokenizer)
    begun, go_on = threading.Event(), threading.Event()
    events: list[str] = []

    def roll(batch: int) -> list[Any]:
        events.append("begun")
        begun.set()
        assert go_on.wait(10)
        events.append("ended")
        return []

    rollout._roll = roll
    rollout._batch = 0
    rollout.start()
    assert begun.wait(10)
    threading.Timer(0.2, go_on.set).start()
    rollout.pause()
    assert events[-1] == "ended"
    count = len(events)
    time.sleep(0.1)
    assert len(events) == count
    rollout.resume()
    rollout.stop()


def test_what_fails_on_the_thread_reaches_the_trainer(vllm_engine: VLLMEngine, tokenizer: Any) -> None:
    rollout = make_rollout(vllm_engine, tokenizer, reward=lambda row, text: 0.5)
    rollout._batch = 0
    rollout.start()
    rollout._thread.join()
    with pytest.raises(RuntimeError, match=r"rollouts have ended: the reward function returned 0\.5"):
        rollout.check_health(300)
    rollout.stop()


def test_a_batch_that_hangs_is_noticed(tokenizer: Any) -> None:
    rollout = make_rollout(None, tokenizer)
    rollout._alive -= 400
    with pytest.raises(RuntimeError, match="has taken 400 s: raise heartbeat_stale_after_s"):
        rollout.check_health(300)


def test_settings_that_are_not_the_rollouts_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    rollout = make_rollout(None, tokenizer)
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    with pytest.raises(ValueError, match="set num_generations=4"):
        rollout.on_train_begin(config_of(tmp_path, num_generations=8), state, None)
    with pytest.raises(ValueError, match=r"has temperature 0\.7 and the rollouts 1"):
        rollout.on_train_begin(config_of(tmp_path, temperature=0.7), state, None)
    with pytest.raises(ValueError, match=r"pass callbacks=\[rollout\] too"):
        rollout.start()
    with pytest.raises(ValueError, match="choose from 1 to the 24 rows"):
        make_rollout(None, tokenizer, prompts=25)
    with pytest.raises(ValueError, match=r"start_prompts 1\.25 adds none to 2 prompts"):
        make_rollout(None, tokenizer, CONFIG.model_copy(update={"start_prompts": 1.25}))
