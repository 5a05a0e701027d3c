"""TRL's trainer for a run's configuration, with the run's log and its tests of the policy."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from arrol_train.rl.advise import Clock, advice_of
from arrol_train.rl.config import ConfigError, RunConfig
from arrol_train.rl.rollout import PrunedRollout
from arrol_train.rl.run_log import LOG_FILE, RunLog
from arrol_train.rl.tasks import Task
from arrol_tts.errors import InputError

if TYPE_CHECKING:
    from trl import GRPOConfig, GRPOTrainer

CHECKPOINTS = "checkpoints"
"""TRL's output folder inside a run's."""
ADVICE_AFTER = 5
"""Steps after the cold start from which a run's own figures say whether pruning pays."""


def make_trainer(config: RunConfig, model_path: str, task: Task, rollout: PrunedRollout, out: Path) -> GRPOTrainer:
    """TRL's trainer for a configuration, with the run's log."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.integration_utils import TensorBoardCallback
    from trl import GRPOTrainer
    from trl.rewards import get_soft_overlong_punishment

    rewards: list[Any] = [rollout.reward_func]
    if config.algorithm == "dapo":
        buffer = config.overlong_buffer or max(1, config.rollout.max_tokens // 5)
        rewards.append(get_soft_overlong_punishment(config.rollout.max_tokens, buffer))
    peft_config = None
    if config.lora is not None:
        from peft import LoraConfig

        peft_config = LoraConfig(**{"task_type": "CAUSAL_LM"} | config.lora)
    trainer = GRPOTrainer(
        # Weights in float32: steps of 1e-6 would be lost in bfloat16, which is for autocast and the engine.
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model_path),
        reward_funcs=rewards,
        args=trl_config(config, out, PartialState().num_processes),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in task.train]),
        rollout_func=rollout,
        peft_config=peft_config,
    )
    rollout.attach(trainer)
    test = partial(test_policy, config, task, rollout, trainer)
    trainer.add_callback(
        RunLog(
            out / LOG_FILE,
            rollout.clock,
            test,
            every=config.eval_every,
            steps=config.steps,
            advise=partial(_advice, config),
            advise_at=min(config.rollout.cold_start + ADVICE_AFTER, config.steps),
        )
    )
    if config.tensorboard:  # after the log, which adds to what is logged
        from torch.utils.tensorboard import SummaryWriter

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(out / "tensorboard"))))
    return trainer


def trl_config(config: RunConfig, out: Path, processes: int) -> GRPOConfig:
    """TRL's configuration: one optimiser step for each batch of rollouts.

    Raises:
        ConfigError: when the micro-batch does not divide the batch, or TRL refuses its options.
    """
    from trl import GRPOConfig

    rows = config.prompts * config.rollout.survivors // processes
    micro = config.micro_batch or rows
    if rows % micro:
        raise ConfigError(f"micro_batch {micro} does not divide the {rows} rollouts of a step on each process")
    if config.trl.get("mask_truncated_completions") and (config.rollout.stop or config.rollout.stop_token_ids):
        raise ConfigError(
            "trl.mask_truncated_completions takes every rollout that a stop text or token ended for one that was "
            "cut off: leave it out, or rollout.stop and rollout.stop_token_ids"
        )
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {
        "output_dir": str(out / CHECKPOINTS),
        "max_steps": config.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "num_generations": config.rollout.survivors,
        "max_completion_length": config.rollout.max_tokens,
        "temperature": config.rollout.temperature,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_schedule,
        "warmup_steps": round(config.warmup * config.steps),
        "beta": config.beta,
        "loss_type": config.algorithm,
        "seed": config.seed,
        "save_steps": config.save_every,
        "save_total_limit": config.keep_checkpoints,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not cuda,
        "bf16": cuda and config.dtype == "bfloat16",
    }
    if config.algorithm == "dapo":
        options["epsilon_high"] = 0.28
    try:
        return GRPOConfig(**options | config.trl)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"TRL refuses its options: {error}") from None


def _advice(config: RunConfig, lines: list[dict[str, Any]]) -> str:
    # What an engine elsewhere or a GPU does is not in this process's processor time.
    clock: Clock = "time" if torch.cuda.is_available() or config.servers else "cpu"
    try:
        return advice_of(lines, config.model_dump(mode="json"), clock).sentence()
    except InputError as error:
        return str(error)


def test_policy(config: RunConfig, task: Task, rollout: PrunedRollout, trainer: GRPOTrainer) -> dict[str, Any]:
    """Sample the test questions without pruning, each process its share.

    Returns:
        ``eval/accuracy`` of the rollouts that could be graded, left out where none could; ``eval/right`` (the
        right rollouts of each test question) and ``eval/samples`` of each; ``eval/ungraded``, those without a
        reward; and the seconds it took. Nothing without test questions.
    """
    if not task.test:
        return {}
    started = time.perf_counter()
    state = PartialState()
    share = range(state.process_index, len(task.test), state.num_processes)
    rollout.push(trainer)
    rewards = rollout.evaluate([task.test[i] for i in share], config.eval_samples, config.seed)
    found = gather_object([(i, row.count(1.0), row.count(None)) for i, row in zip(share, rewards, strict=True)])
    right = [count for _, count, _ in sorted(found)]
    ungraded = sum(count for *_, count in found)
    graded = len(right) * config.eval_samples - ungraded
    accuracy = {"eval/accuracy": sum(right) / graded} if graded else {}
    return accuracy | {
        "eval/right": right,
        "eval/samples": config.eval_samples,
        "eval/ungraded": ungraded,
        "time/eval": time.perf_counter() - started,
    }
