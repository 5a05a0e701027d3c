"""A process of several that run configurations on a CPU, sharded: ``accelerate launch ... -m`` this ``JOBS``.

accelerate shards models on devices other than CPUs alone: where there is none it passes FSDP and DeepSpeed over
without a word, and every process holds the whole model. So here it is told that its processes have a device each,
which is the CPU, and that they speak over gloo. What shards, gathers, and takes steps is FSDP2 and DeepSpeed
themselves.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from arrol_train.rl.config import RunConfig
from arrol_train.rl.run import run
from arrol_tts.engine.load import load_engine
from arrol_tts.pocket import POCKET_MODEL


def shard_on_cpus() -> None:
    """Have accelerate take this process for one with a device."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    def set_device(state: Any) -> None:
        state.device = torch.device("cpu")

    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = set_device


def main(jobs: list[dict[str, Any]]) -> None:
    """Run each job: a configuration into a folder, which may begin as a copy of another run's checkpoint."""
    shard_on_cpus()
    engine = load_engine(POCKET_MODEL, engine="transformers", dtype="float32")
    for job in jobs:
        out = Path(job["out"])
        if "start" in job and torch.distributed.get_rank() == 0:
            start_from(Path(job["start"]), out, job["step"])
        torch.distributed.barrier()
        run(RunConfig.model_validate(job["config"]), out, engine)


def start_from(run_folder: Path, out: Path, step: int) -> None:
    """Leave in a new folder what a run would have there that was cut off after a checkpoint."""
    shutil.copytree(run_folder, out, ignore=shutil.ignore_patterns("policy", "head", "checkpoint-*"))
    name = f"checkpoints/checkpoint-{step}"
    shutil.copytree(run_folder / name, out / name)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
