"""What a run leaves, and what it says when the disk is full."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState

from arrol_train.rl.run_log import LOG_FILE, add_to_last
from arrol_train.rl.trainer import CHECKPOINTS
from arrol_train.rl.trl_bridge import TrainedPolicy, last_checkpoint
from arrol_tts.errors import ArrolError

if TYPE_CHECKING:
    from trl import GRPOTrainer

    from arrol_train.rl.config import RunConfig
    from arrol_train.rl.rollout import PrunedRollout

LITTLE_SPACE = 64 << 20
"""Bytes of free disk below which a failed write is put down to a full disk."""


class DiskFullError(ArrolError, RuntimeError):
    """The disk was full; the last complete checkpoint is intact."""


def save_run(config: RunConfig, trainer: GRPOTrainer, rollout: PrunedRollout, out: Path) -> None:
    """Leave ``head/`` and ``policy/``; the policy's folder appears last, and whole. Every process must call.

    The head is trained once more, see `arrol_train.rl.refit`; the log's last line says how that went.
    """
    main, temporary = PartialState().is_main_process, out / "policy.tmp"
    if main:
        shutil.rmtree(temporary, ignore_errors=True)
        if rollout.learner is not None and config.head is not None:
            began = time.perf_counter()
            head = rollout.learner.export(refit=config.head.refit, seed=config.seed)
            head.save_pretrained(out / "head")
            if config.head.refit:
                figures = {f"head/refit/{name}": value for name, value in head.config.metrics["refit"].items()}
                add_to_last(out / LOG_FILE, figures | {"time/refit": time.perf_counter() - began})
    TrainedPolicy(trainer).save(temporary)
    if main:
        temporary.rename(out / "policy")


@contextmanager
def disk_watched(out: Path) -> Iterator[None]:
    """Say that the disk is full where that is why something failed: every library words it differently."""
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(out).free
        chain = itertools.takewhile(bool, _causes(error))
        if free < LITTLE_SPACE or any("space left on device" in str(cause) for cause in chain):
            last = last_checkpoint(out / CHECKPOINTS)
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
