"""FSDP2 and DeepSpeed ZeRO through accelerate, two processes on a CPU: they do what one process does."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from arrol_train.rl.config import ConfigError
from arrol_train.rl.run import run
from tests.arrol_train.conftest import restore_pocket
from tests.arrol_train.rl.one_of_several import start_from
from tests.arrol_train.rl.tiny import TINY, assert_same_run, config, log_of

if TYPE_CHECKING:
    from arrol_tts.engine.transformers_engine import TransformersEngine

pytest.importorskip("trl")
pytestmark = pytest.mark.slow

ACCELERATE = Path(__file__).parents[3] / "arrol_train/configs/accelerate"
SETTINGS = TINY | {"steps": 3, "prompts": 2, "save_every": 2, "task": {"source": "pocket", "train": 64, "test": 0}}
LORA = {"lora": {"r": 4, "target_modules": ["q_proj", "down_proj"]}, "learning_rate": 1e-2, "steps": 2}


def launch(folder: Path, sharding: str, jobs: list[dict[str, Any]]) -> None:
    """Two processes under a configuration file that the project ships, but for what it says of the machine."""
    settings = yaml.safe_load((ACCELERATE / f"{sharding}.yaml").read_text())
    settings |= {"num_processes": 2, "mixed_precision": "no"}
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(settings))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(folder / "accelerate.yaml"),
    ]
    command += ["-m", "tests.arrol_train.rl.one_of_several", str(folder / "jobs.json")]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def one(transformers_engine: TransformersEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process does: a run, and one with adapters."""
    folder: Path = tmp_path_factory.mktemp("one")
    for name, changes in (("plain", {}), ("lora", LORA)):
        run(config(**SETTINGS | changes), folder / name, transformers_engine)
        restore_pocket(transformers_engine)
    return folder


@pytest.fixture(scope="module", params=["fsdp", "deepspeed-zero2", "deepspeed-zero3"])
def two(request: pytest.FixtureRequest, one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes do that shard the model: the same, and a run that goes on from the first's checkpoint."""
    if request.param != "fsdp" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    folder: Path = tmp_path_factory.mktemp(request.param)
    plain = {"config": SETTINGS, "out": str(folder / "plain")}
    again = plain | {"out": str(folder / "again"), "start": str(folder / "plain"), "step": 2}
    lora = {"config": SETTINGS | LORA, "out": str(folder / "lora")}
    launch(folder, request.param, [plain, again, lora])
    return folder


def test_two_processes_that_shard_the_model_give_what_one_process_gives(one: Path, two: Path) -> None:
    assert [line["processes"] for line in log_of(two / "plain")] == [2, 2, 2]
    assert_same_run(one / "plain", two / "plain")
    files = {path.name for path in (two / "plain/checkpoints/checkpoint-3").iterdir()}
    assert files & {"pytorch_model_fsdp.bin", "latest"}  # it was sharded


def test_a_sharded_run_that_was_cut_off_goes_on(one: Path, two: Path) -> None:
    assert_same_run(one / "plain", two / "again")


def test_adapters_are_trained_and_saved_merged_as_one_process_does(one: Path, two: Path) -> None:
    assert_same_run(one / "lora", two / "lora")


def test_one_process_does_not_go_on_from_a_sharded_checkpoint(
    two: Path, transformers_engine: TransformersEngine, tmp_path: Path
) -> None:
    start_from(two / "plain", tmp_path / "out", 2)
    with pytest.raises(ConfigError, match=r"wrote .*checkpoint-2 and neither of both is to go on from it"):
        run(config(**SETTINGS), tmp_path / "out", transformers_engine)
