"""A run: from a configuration to a trained policy and its quality head.

In the run's folder: ``run.json`` (the configuration), ``log.jsonl`` (one line a step), ``tensorboard/``,
``checkpoints/`` while it runs, and at the end ``policy/`` and ``head/``, which WeightedVoter takes as they are.
Running the same configuration into the same folder goes on from the last complete checkpoint.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from arrol_train.rl.config import ConfigError, RunConfig, check_same
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.rollout import PrunedRollout
from arrol_train.rl.saving import disk_watched, save_run
from arrol_train.rl.tasks import load_task
from arrol_train.rl.trainer import CHECKPOINTS, make_trainer
from arrol_train.rl.trl_bridge import check_checkpoint, last_checkpoint, train
from arrol_tts.engine.base import hidden_size_of
from arrol_tts.engine.load import load_engine
from arrol_tts.errors import InputError
from arrol_tts.files import claim_folder, lock_file
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.pocket import POCKET_MODEL

if TYPE_CHECKING:
    from arrol_tts.engine.base import Engine


def run(config: RunConfig, out: Path, engine: Engine | None = None) -> None:
    """Train, or go on training, or do nothing when the run has ended.

    Args:
        config: what to do.
        out: the run's folder.
        engine: samples the policy and has a quality head, instead of a vLLM engine of the run's own.

    Raises:
        ConfigError: before anything loads, when the configuration cannot work, ``out`` holds another run, or
            another process trains in it; later, when the run's last checkpoint was sharded in another way.
        DiskFullError: when a file could not be written.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    state = PartialState(cpu=not torch.cuda.is_available())
    _check_processes(config, state.num_processes)
    task = load_task(config.task)
    if len(task.train) < config.prompts:
        raise ConfigError(f"{len(task.train)} training questions are fewer than the {config.prompts} of a step")
    with state.main_process_first():
        _claim(config, out)
    if (out / "policy").is_dir():
        return
    model_path = str(POCKET_MODEL) if config.model == "pocket" else config.model
    head = _make_head(config, model_path)
    with disk_watched(out), ExitStack() as stack:
        if state.is_main_process:
            # Two processes that wrote a log and checkpoints side by side would damage both.
            busy = f"{out} is being trained in by another process: wait for it, or choose another folder"
            stack.enter_context(lock_file(out / "run.lock", ConfigError(busy)))
        if engine is None:
            engine = _load_engine(config, model_path)
            stack.callback(engine.close)
        rollout = PrunedRollout(
            engine,
            task.train,
            task.reward,
            config.rollout,
            head,
            buffer_rows=config.head.buffer_rows if config.head else 1,
            buffer_mib=config.head.buffer_mib if config.head else 1,
            head_updates=config.head.updates if config.head else 0,
            seed=config.seed,
        )
        trainer = make_trainer(config, model_path, task, rollout, out)
        checkpoint = last_checkpoint(out / CHECKPOINTS)
        if checkpoint is not None:
            check_checkpoint(checkpoint, trainer)
        train(trainer, checkpoint)
        state.wait_for_everyone()
        save_run(config, trainer, rollout, out)


def _check_processes(config: RunConfig, processes: int) -> None:
    if config.prompts % processes:
        raise ConfigError(
            f"{config.prompts} prompts do not divide among {processes} processes: no group may straddle two, so "
            "make prompts a multiple of the processes"
        )
    try:
        config.rollout.check_prompts(config.prompts // processes)
    except InputError as error:
        raise ConfigError(f"rollout.{error}") from None
    if config.servers and len(config.servers) != processes:
        raise ConfigError(
            f"{len(config.servers)} servers for {processes} processes: each process pushes its weights to one of "
            "its own"
        )


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
        pooling=config.head.pooling,
        stride=config.stride,
        positions=[*config.rollout.positions] or [max(1, config.rollout.max_tokens // 4)],
        keep=config.rollout.survivors / config.rollout.group,
        sampling=config.rollout.sampling.record(),
        engine={name: config.engine[name] for name in ("dtype", "top_k") if name in config.engine},
    )
    head = OnlineHead(head_config, config.head.training, seed=config.seed)
    if config.head.start_from:
        start = QualityHead.from_pretrained(config.head.start_from)
        start.config.check_model(hidden_size=head_config.hidden_size, model=model_path)
        for name in ("pooling", "stride", "inner_size"):
            if getattr(start.config, name) != getattr(head_config, name):
                raise ConfigError(
                    f"head.start_from has {name} {getattr(start.config, name)}: set head.{name} to it"
                )
        head.head.load_state_dict(start.state_dict())
    return head


def _load_engine(config: RunConfig, model_path: str) -> Engine:
    if config.servers:
        return load_engine(server=config.servers[PartialState().process_index], **config.engine)
    options: dict[str, Any] = {"dtype": config.dtype} | config.engine
    if PartialState().num_processes > 1:
        # vLLM in this process, or in a fork of it, would take the trainers' process group for its own.
        options.setdefault("in_process", False)
        os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    return load_engine(model_path, engine="vllm", **options)
