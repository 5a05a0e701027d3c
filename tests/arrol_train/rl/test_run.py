"""Runs: what they leave, how they go on after an interruption, and what they refuse."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from arrol_train.rl.config import ConfigError
from arrol_train.rl.run import run
from arrol_train.rl.saving import DiskFullError
from arrol_train.rl.trainer import trl_config
from arrol_train.rl.trl_bridge import TrainedPolicy, last_checkpoint
from arrol_tts.files import lock_file
from arrol_tts.head import QualityHead
from tests.arrol_train.conftest import restore_pocket
from tests.arrol_train.rl.tiny import TINY, assert_same_run, config, log_of, policy_of

if TYPE_CHECKING:
    from arrol_tts.engine.transformers_engine import TransformersEngine
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")
pytest.importorskip("trl")


class CutOffError(Exception):
    pass


class InterruptedEngine:
    """The real engine, until the weights were pushed so many times."""

    def __init__(self, engine: VLLMEngine, pushes: int) -> None:
        self._engine, self._pushes = engine, pushes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._pushes -= 1
        if self._pushes < 0:
            raise CutOffError
        self._engine.load_weights(weights)


@pytest.fixture(scope="module")
def finished(vllm_engine: VLLMEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out: Path = tmp_path_factory.mktemp("run") / "out"
    run(config(), out, vllm_engine)
    restore_pocket(vllm_engine)
    return out


def test_a_run_leaves_a_policy_and_a_head_that_the_voter_takes_as_they_are(finished: Path) -> None:
    from arrol_tts import WeightedVoter

    voter = WeightedVoter.from_pretrained(finished / "head", engine="transformers")
    assert voter.config is not None
    assert voter.config.base_model == str((finished / "policy").resolve())
    assert voter.config.positions == [24]
    result = voter.solve("2+3*4-5*6+7-8", n=4)
    assert len(result.traces) == 4
    assert sum(trace.finish_reason == "pruned" for trace in result.traces) == 2


def test_a_run_logs_every_step_with_its_phases(finished: Path) -> None:
    lines = log_of(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        phases = [line[f"time/{name}"] for name in ("push", "rollout", "logprob", "update", "head")]
        assert min(phases) > 0
        assert 0.5 * line["time/step"] < sum(phases) < 1.01 * line["time/step"]
        assert 0 < line["cpu/rollout"] < line["cpu/step"]
        assert line["rollout/survivors"] == 8
        assert line["rollout/started"] == 16
        assert 0 <= line["rollout/variance"] <= 0.25
    generated = [line["rollout/generated_tokens"] for line in lines]
    assert generated[0] > generated[1]  # the cold start prunes nothing
    assert len(lines[-1]["eval/right"]) == 6
    assert lines[-1]["eval/accuracy"] == sum(lines[-1]["eval/right"]) / 12
    assert lines[-1]["eval/ungraded"] == 0
    assert "time/refit" not in lines[-1]


def test_a_finished_run_is_left_alone(finished: Path, engine: VLLMEngine) -> None:
    before = (finished / "policy" / "model.safetensors").stat().st_mtime_ns
    run(config(), finished, InterruptedEngine(engine, 0))  # type: ignore[arg-type]
    assert (finished / "policy" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("pushes", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_run_that_was_cut_off_and_goes_on_equals_one_that_was_not(
    finished: Path, engine: VLLMEngine, tmp_path: Path, pushes: int
) -> None:
    with pytest.raises(CutOffError):
        run(config(), tmp_path / "out", InterruptedEngine(engine, pushes))  # type: ignore[arg-type]
    assert last_checkpoint(tmp_path / "out/checkpoints") == tmp_path / f"out/checkpoints/checkpoint-{pushes}"
    run(config(), tmp_path / "out", engine)
    assert_same_run(finished, tmp_path / "out")


def test_a_checkpoint_and_a_line_that_are_not_complete_are_passed_over(engine: VLLMEngine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(CutOffError):
        run(config(), out, InterruptedEngine(engine, 3))  # type: ignore[arg-type]
    (out / "checkpoints/checkpoint-3/arrol").rename(out / "checkpoints/checkpoint-3/arrol.tmp")
    with open(out / "log.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert last_checkpoint(out / "checkpoints") == out / "checkpoints/checkpoint-2"
    run(config(), out, engine)
    assert [line["step"] for line in log_of(out)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_full_disk_is_said_and_loses_nothing_standin_for_the_disk(
    engine: VLLMEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arrol_train.rl import rollout_worker

    out, write = tmp_path / "out", rollout_worker.write_json
    full: list[Path] = []

    def fill(path: Path, content: dict[str, object]) -> None:
        if "checkpoint-3" in path.parts and not full:
            full.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    monkeypatch.setattr(rollout_worker, "write_json", fill)
    with pytest.raises(DiskFullError, match=r"is full .*last complete checkpoint is .*checkpoint-2\. Free some"):
        run(config(), out, engine)
    run(config(), out, engine)
    assert [line["step"] for line in log_of(out)] == [1, 2, 3, 4]
    assert (out / "policy").is_dir()


@pytest.mark.parametrize("questions", [4, 6])  # an epoch is two steps, which are all there are, or three
def test_a_run_that_was_cut_off_after_its_last_step_leaves_what_that_left_standin_for_the_disk(
    questions: int, transformers_engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, save, full = tmp_path / "out", TrainedPolicy.save, [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    def fill(policy: TrainedPolicy, folder: Path) -> None:
        if full:
            raise full.pop()
        save(policy, folder)

    monkeypatch.setattr(TrainedPolicy, "save", fill)
    short = config(
        steps=2,
        lr_schedule="constant",
        trl={"gradient_checkpointing": False, "weight_decay": 0.1},  # so that every step changes the policy
        task={"source": "pocket", "train": questions, "test": 0},
        rollout={"group": 4, "detect": [{"at": 4, "keep": 0.5}], "cold_start": 1, "max_tokens": 12},
    )
    try:
        with pytest.raises(DiskFullError):
            run(short, out, transformers_engine)
        before = QualityHead.from_pretrained(out / "head").state_dict()
        run(short, out, transformers_engine)
    finally:
        restore_pocket(transformers_engine)
    assert [line["step"] for line in log_of(out)] == [1, 2]
    for name, tensor in QualityHead.from_pretrained(out / "head").state_dict().items():
        assert torch.equal(tensor, before[name]), name
    checkpoint = load_file(out / "checkpoints/checkpoint-2/model.safetensors")
    assert all(torch.equal(tensor, checkpoint[name]) for name, tensor in policy_of(out).items())


def test_a_checkpoint_of_another_config_is_refused(finished: Path, tmp_path: Path) -> None:
    other = config(rollout=TINY["rollout"] | {"policy": "random"})
    with pytest.raises(ConfigError, match=r"another run: rollout\.policy was 'tails' and is 'random'"):
        run(other, finished)
    run(config(eval_every=7), finished)  # how often to test changes nothing that was trained


def test_more_prompts_that_are_none_on_a_process_are_refused_before_anything_loads(tmp_path: Path) -> None:
    for share, prompts in ((1.5, 1), (1.1, 4)):
        with pytest.raises(
            ConfigError, match=rf"rollout\.start_prompts {share} adds none to {prompts} prompts on"
        ):
            run(config(prompts=prompts, rollout=TINY["rollout"] | {"start_prompts": share}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        run(config(), tmp_path)


def test_a_folder_that_another_process_trains_in_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    held = lock_file(tmp_path / "run.lock", AssertionError())
    assert held is not None
    (tmp_path / "run.json").write_text(json.dumps(config().model_dump(mode="json")))
    with held, pytest.raises(ConfigError, match="is being trained in by another process"):
        run(config(), tmp_path)
    assert not (tmp_path / "log.jsonl").exists()


def test_dapo_uses_its_four_parts_and_a_run_says_how_its_head_was_refitted(
    engine: VLLMEngine, tmp_path: Path
) -> None:
    rollout, head = TINY["rollout"] | {"refills": 2, "max_tokens": 120}, TINY["head"] | {"refit": True}
    dapo = config(algorithm="dapo", steps=1, rollout=rollout, head=head)
    arguments = trl_config(dapo, tmp_path, 1)
    assert (arguments.loss_type, arguments.epsilon, arguments.epsilon_high) == ("dapo", 0.2, 0.28)
    run(dapo, tmp_path / "out", engine)
    (line,) = log_of(tmp_path / "out")
    # Solutions of up to 120 tokens: the punishment grows over the last 24.
    assert line["rewards/soft_overlong_punishment_reward/mean"] < 0
    assert line["reward"] < line["rewards/reward_func/mean"]
    assert line["time/refit"] > 0
    assert QualityHead.from_pretrained(tmp_path / "out" / "head").config.metrics == {"refit": {}}  # of two groups


def test_an_unpruned_run_without_a_head(engine: VLLMEngine, tmp_path: Path) -> None:
    plain = config(steps=1, head=None, rollout={"group": 4, "max_tokens": 220})
    run(plain, tmp_path / "out", engine)
    (line,) = log_of(tmp_path / "out")
    assert line["rollout/survivors"] == line["rollout/started"] == 8
    assert not any(name.startswith("head/") for name in line)
    assert not (tmp_path / "out/head").exists()


def test_tensorboard_gets_the_phases(engine: VLLMEngine, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(config(steps=1, tensorboard=True), tmp_path / "out", engine)
    events = EventAccumulator(str(tmp_path / "out/tensorboard"))
    events.Reload()
    names = " ".join(events.Tags()["scalars"])
    for phase in ("rollout", "logprob", "update"):
        assert f"time/{phase}" in names


@pytest.mark.slow
def test_a_run_killed_by_the_system_goes_on(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    command = [sys.executable, "-m", "arrol_train.cli", "rl", "--config", str(tmp_path / "tiny.yaml")]
    command += ["--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while last_checkpoint(out / "checkpoints") is None:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "policy").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert_same_run(finished, out)
