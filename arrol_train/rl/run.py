"""A run: from a configuration to a trained policy and its quality head.

In the run's folder: ``run.json`` (the configuration), ``log.jsonl`` (one line a step), ``tensorboard/``,
``checkpoints/`` while it runs, and at the end ``policy/`` and ``head/``, which WeightedVoter takes as they are.
Running the same configuration into the same folder goes on from the last complete checkpoint.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback

from arrol_train.rl.config import ConfigError, RunConfig, check_same
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.rollout import CHECKPOINT_FOLDER, PhaseClock, PrunedRollout
from arrol_train.rl.tasks import Task, load_task
from arrol_tts.engine.base import hidden_size_of
from arrol_tts.errors import ArrolError
from arrol_tts.files import claim_folder, write_atomic
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.pocket import POCKET_MODEL

if TYPE_CHECKING:
    from trl import GRPOConfig, GRPOTrainer

    from arrol_train.rl.sampler import TrainableEngine

LITTLE_SPACE = 64 << 20
"""Bytes of free disk below which a failed write is put down to a full disk."""


class DiskFullError(ArrolError, RuntimeError):
    """The disk was full; the last complete checkpoint is intact."""


def run(config: RunConfig, out: Path, engine: TrainableEngine | None = None) -> None:
    """Train, or go on training, or do nothing when the run has ended.

    Args:
        config: what to do.
        out: the run's folder.
        engine: samples the policy and has a quality head, instead of a vLLM engine of the run's own.

    Raises:
        ConfigError: before anything loads, when the configuration cannot work, or ``out`` holds another run.
        DiskFullError: when a file could not be written.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    state = PartialState(cpu=not torch.cuda.is_available())
    if config.prompts % state.num_processes:
        raise ConfigError(
            f"{config.prompts} prompts do not divide among {state.num_processes} processes: no group may straddle "
            "two, so make prompts a multiple of the processes"
        )
    if config.servers and len(config.servers) != state.num_processes:
        raise ConfigError(
            f"{len(config.servers)} servers for {state.num_processes} processes: each process pushes its weights "
            "to one of its own"
        )
    task = load_task(config.task)
    if len(task.train) < config.prompts:
        raise ConfigError(f"{len(task.train)} training questions are fewer than the {config.prompts} of a step")
    with state.main_process_first():
        _claim(config, out)
    if (out / "policy").is_dir():
        return
    model_path = str(POCKET_MODEL) if config.model == "pocket" else config.model
    head = _make_head(config, model_path)
    with _disk_watched(out), ExitStack() as stack:
        if engine is None:
            engine = _load_engine(config, model_path, head, out / f"engine-{state.process_index}")
            stack.callback(engine.close)
        rollout = PrunedRollout(
            engine,
            task.train,
            task.reward,
            config.rollout,
            head,
            buffer_rows=config.head.buffer_rows if config.head else 1,
            head_updates=config.head.updates if config.head else 0,
            seed=config.seed,
        )
        trainer = make_trainer(config, model_path, task, rollout, out)
        trainer.train(resume_from_checkpoint=last_checkpoint(out))
        state.wait_for_everyone()
        _save(config, trainer, rollout, out)


def make_trainer(config: RunConfig, model_path: str, task: Task, rollout: PrunedRollout, out: Path) -> GRPOTrainer:
    """TRL's trainer for a configuration, with the run's log."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.integration_utils import TensorBoardCallback
    from trl import GRPOTrainer
    from trl.rewards import get_soft_overlong_punishment

    arguments = trl_config(config, out, PartialState().num_processes)
    rewards: list[Any] = [rollout.reward_func]
    if config.algorithm == "dapo":
        buffer = config.overlong_buffer or max(1, config.rollout.max_tokens // 5)
        rewards.append(get_soft_overlong_punishment(config.rollout.max_tokens, buffer))
    peft_config = None
    if config.lora is not None:
        from peft import LoraConfig

        peft_config = LoraConfig(**{"task_type": "CAUSAL_LM"} | config.lora)
    log = RunLog(config, task, rollout, out)
    callbacks: list[TrainerCallback] = [log]
    if config.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(str(out / "tensorboard"))))
    trainer = GRPOTrainer(
        # Weights in float32: steps of 1e-6 would be lost in bfloat16, which is for autocast and the engine.
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model_path),
        reward_funcs=rewards,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in task.train]),
        rollout_func=rollout,
        peft_config=peft_config,
        callbacks=callbacks,
    )
    log.trainer = trainer
    return trainer


def trl_config(config: RunConfig, out: Path, processes: int) -> GRPOConfig:
    """TRL's configuration: one optimiser step for each batch of rollouts.

    Raises:
        ConfigError: when the micro-batch does not divide the batch.
    """
    from trl import GRPOConfig

    rows = config.prompts * config.rollout.survivors // processes
    micro = config.micro_batch or rows
    if rows % micro:
        raise ConfigError(f"micro_batch {micro} does not divide the {rows} rollouts of a step on each process")
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {
        "output_dir": str(out / "checkpoints"),
        "max_steps": config.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "num_generations": config.rollout.survivors,
        "max_completion_length": config.rollout.max_tokens,
        "temperature": config.rollout.temperature,
        "top_p": config.rollout.top_p,
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


def last_checkpoint(out: Path) -> str | None:
    """The newest complete checkpoint of a run, None when there is none."""
    complete = [path.parent for path in (out / "checkpoints").glob(f"checkpoint-*/{CHECKPOINT_FOLDER}")]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None


class RunLog(TrainerCallback):
    """Writes ``log.jsonl``, and tests the policy.

    A line has the ``step``, what TRL and PrunedRollout report of it, seconds of the update and of the whole step
    on the wall (``time/``) and of this process's processors (``cpu/``), ``train_s`` (on the wall, in steps so far)
    and after a test ``eval/accuracy`` with ``eval/right``, the right rollouts of each test question.
    """

    def __init__(self, config: RunConfig, task: Task, rollout: PrunedRollout, out: Path) -> None:
        self.trainer: GRPOTrainer | None = None
        self._config, self._task, self._rollout = config, task, rollout
        self._path = out / "log.jsonl"
        self._seconds = 0.0
        self._step = PhaseClock()
        self._news: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget steps that came after the checkpoint which the run goes on from."""
        kept = [line for line in _read_log(self._path) if line["step"] <= state.global_step]
        kept = kept if state.global_step else []
        self._seconds = kept[-1].get("train_s", 0.0) if kept else 0.0
        if state.is_world_process_zero:
            write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        if state.global_step == 0 and self._config.eval_every:
            self._test()
            self._write(state, {})

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step.start()
        self._rollout.clock.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        update = self._rollout.clock
        update.lap("update")
        self._step.lap("step")
        self._seconds += self._step.seconds["time/step"]
        self._news |= {name: update.seconds[name] for name in ("time/update", "cpu/update")}
        self._news |= self._step.seconds | {"train_s": self._seconds}
        every = self._config.eval_every
        if state.global_step == self._config.steps or (every and state.global_step % every == 0):
            self._test()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end of training
            return
        # In place, so that TensorBoard gets them too.
        logs |= {name: value for name, value in self._news.items() if not isinstance(value, list)}
        self._write(state, logs)

    def _write(self, state: Any, logs: dict[str, Any]) -> None:
        line = {"step": state.global_step, "processes": PartialState().num_processes, **logs, **self._news}
        self._news = {}
        if state.is_world_process_zero:
            with open(self._path, "a") as file:
                file.write(json.dumps(line) + "\n")

    def _test(self) -> None:
        """Sample the test questions without pruning, each process its share."""
        assert self.trainer is not None
        if not self._task.test:
            return
        started = time.perf_counter()
        state = PartialState()
        share = range(state.process_index, len(self._task.test), state.num_processes)
        self._rollout.push(self.trainer)
        rewards = self._rollout.evaluate(
            [self._task.test[i] for i in share], self._config.eval_samples, self._config.seed
        )
        found = gather_object([(i, sum(row)) for i, row in zip(share, rewards, strict=True)])
        right = [int(count) for _, count in sorted(found)]
        self._news |= {
            "eval/accuracy": float(np.mean(right)) / self._config.eval_samples,
            "eval/right": right,
            "eval/samples": self._config.eval_samples,
            "time/eval": time.perf_counter() - started,
        }


def _read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without one that was being written when the run was killed."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _claim(config: RunConfig, out: Path) -> None:
    """Take a folder for a run; one that holds this run already is gone on with."""
    there = claim_folder(out, "run.json", config.model_dump(mode="json"), error=ConfigError)
    if there is not None:
        check_same(there, config, str(out))


def _make_head(config: RunConfig, model_path: str) -> OnlineHead | None:
    if config.head is None:
        return None
    head_config = QualityHeadConfig(
        base_model="../policy",
        hidden_size=hidden_size_of(model_path),
        inner_size=config.head.inner_size,
        positions=[point.at for point in config.rollout.detect] or [max(1, config.rollout.max_tokens // 4)],
        keep=config.rollout.survivors / config.rollout.group,
        sampling={
            "temperature": config.rollout.temperature,
            "top_p": config.rollout.top_p,
            "max_tokens": config.rollout.max_tokens,
        },
        engine={name: config.engine[name] for name in ("dtype", "top_k") if name in config.engine},
    )
    head = OnlineHead(head_config, config.head.training, seed=config.seed)
    if config.head.start_from:
        start = QualityHead.from_pretrained(config.head.start_from)
        start.config.check_model(hidden_size=head_config.hidden_size, model=model_path)
        if start.config.inner_size != head_config.inner_size:
            raise ConfigError(
                f"head.start_from has inner_size {start.config.inner_size}: set head.inner_size to it"
            )
        head.head.load_state_dict(start.state_dict())
    return head


def _load_engine(config: RunConfig, model_path: str, head: OnlineHead | None, folder: Path) -> TrainableEngine:
    from arrol_tts.engine.server_engine import ServerEngine
    from arrol_tts.engine.vllm_engine import VLLMEngine

    if config.servers:
        return ServerEngine(config.servers[PartialState().process_index], **config.engine)
    if head is not None:
        head.head.save_pretrained(folder)
    options: dict[str, Any] = {"dtype": config.dtype} | config.engine
    if PartialState().num_processes > 1:
        # vLLM in this process, or in a fork of it, would take the trainers' process group for its own.
        options.setdefault("in_process", False)
        os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    try:
        return VLLMEngine(model_path, head=folder if head is not None else None, **options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _save(config: RunConfig, trainer: GRPOTrainer, rollout: PrunedRollout, out: Path) -> None:
    """Leave the policy and its head; the policy's folder appears last, and whole."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.accelerator.is_main_process:
        return
    if rollout.head is not None:
        rollout.head.export(rollout.buffer).save_pretrained(out / "head")
    temporary = out / "policy.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    if config.lora is not None:
        model.merge_and_unload().save_pretrained(temporary)
    else:
        model.save_pretrained(temporary, state_dict=state)
    trainer.processing_class.save_pretrained(temporary)
    temporary.rename(out / "policy")


@contextmanager
def _disk_watched(out: Path) -> Iterator[None]:
    """Say that the disk is full where that is why something failed: every library words it differently."""
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(out).free
        chain = itertools.takewhile(bool, _causes(error))
        if free < LITTLE_SPACE or any("space left on device" in str(cause) for cause in chain):
            last = last_checkpoint(out)
            kept = f"the last complete checkpoint is {last}" if last else "there is no complete checkpoint yet"
            raise DiskFullError(
                f"the disk of {out} is full ({free >> 20} MiB free): {kept}. Free some space and run the same "
                "command again to go on from there"
            ) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException | None]:
    while True:
        yield error
        error = error.__cause__ or error.__context__ if error else None
