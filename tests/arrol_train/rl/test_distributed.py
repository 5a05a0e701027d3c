"""Two processes under accelerate (gloo, CPU), an engine each: they do what one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from arrol_train.rl.buffer import ReplayBuffer
from arrol_train.rl.config import RunConfig
from arrol_train.rl.run import run
from tests.arrol_train.rl.one_of_several import start_from
from tests.arrol_train.rl.tiny import TINY, assert_same_run, log_of

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")
pytest.importorskip("trl")

SETTINGS = TINY | {"steps": 3, "prompts": 4, "save_every": 2}
# What goes over processes beside TRL's own: rewards that are missing, and advantages that replace TRL's.
PATCHY = SETTINGS | {
    "task": TINY["task"] | {"reward": "tests.arrol_train.rl.tiny:patchy_reward"},
    "rollout": TINY["rollout"] | {"baseline": "all", "max_failed_rewards": 1.0},
}
MODULE = ["-m", "arrol_train.cli", "rl"]
# "multi_gpu" is what accelerate calls its launcher of several processes; ACCELERATE_USE_CPU keeps them on the CPU.
TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
TWO += ["--mixed_precision", "no", "--dynamo_backend", "no"]
# vLLM would bind each engine to a NUMA node of its own, and refuse where there are fewer.
ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def launch(folder: Path, launcher: list[str], settings: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["--config", str(folder / "tiny.yaml"), "--out", str(folder / "out")]
    command = [sys.executable, *launcher, *MODULE, *arguments]
    return subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.slow
def test_two_processes_give_what_one_process_gives_and_one_goes_on_where_two_were_cut_off(
    tmp_path_factory: pytest.TempPathFactory, engine: VLLMEngine
) -> None:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("one", "two")}
    for name, launcher in (("one", []), ("two", TWO)):
        done = launch(folders[name], launcher, PATCHY)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (folder / "out" for folder in folders.values())
    assert [line["processes"] for line in log_of(two)] == [2, 2, 2]
    failed = [[line["rollout/failed_rewards"] for line in log_of(out)] for out in (one, two)]
    assert failed[0] == failed[1]
    assert sum(failed[0]) > 0
    assert_same_run(one, two)
    buffers = [ReplayBuffer.load(out / "checkpoints/checkpoint-3/arrol/buffer.safetensors") for out in (one, two)]
    assert buffers[0].groups.tolist() == buffers[1].groups.tolist()  # whole groups, in the same order
    assert buffers[0].labels.tolist() == buffers[1].labels.tolist()
    again = two.parent / "again"
    start_from(two, again, 2)
    run(RunConfig.model_validate(PATCHY), again, engine)
    assert [line["processes"] for line in log_of(again)] == [2, 2, 1]
    assert_same_run(one, again)


@pytest.mark.slow
def test_prompts_that_do_not_divide_among_the_processes_are_refused(tmp_path: Path) -> None:
    done = launch(tmp_path, TWO, SETTINGS | {"prompts": 3})
    assert done.returncode != 0
    assert "3 prompts do not divide among 2 processes" in done.stderr
