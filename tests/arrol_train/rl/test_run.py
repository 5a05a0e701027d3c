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

from arrol_train.rl.config import CONFIGS, ConfigError, RunConfig, TaskConfig, check_same, load_config
from arrol_train.rl.run import run
from arrol_train.rl.sampler import sampling_of
from arrol_train.rl.saving import DiskFullError
from arrol_train.rl.tasks import load_task
from arrol_train.rl.trainer import trl_config
from arrol_train.rl.trl_bridge import last_checkpoint
from arrol_tts.engine.request import Sampling
from tests.arrol_train.conftest import restore_pocket

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")
pytest.importorskip("trl")

TINY: dict[str, Any] = {
    "model": "pocket",
    "task": {"source": "pocket", "train": 64, "test": 6},
    "steps": 4,
    "prompts": 2,
    "learning_rate": 1e-3,
    "dtype": "float32",
    "rollout": {"group": 8, "detect": [{"at": 24, "keep": 0.5}], "cold_start": 1, "max_tokens": 220},
    "head": {"updates": 2, "buffer_rows": 256, "inner_size": 16},
    "engine": {"top_k": 5, "max_model_len": 256, "max_num_seqs": 16},
    "trl": {"gradient_checkpointing": False},
    "save_every": 1,
    "eval_samples": 2,
    "tensorboard": False,
}


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate(TINY | changes)


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def policy_of(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "policy" / "model.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    """Two runs did the same, but for rounding."""
    names = ("step", "rollout/balance", "rollout/generated_tokens", "reward", "eval/right")
    for a, b in zip(log_of(first), log_of(second), strict=True):
        assert [a.get(name) for name in names] == [b.get(name) for name in names]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    for (name, a), b in zip(policy_of(first).items(), policy_of(second).values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0, msg=name)
    from arrol_tts.head import QualityHead

    heads = [QualityHead.from_pretrained(out / "head") for out in (first, second)]
    for a, b in zip(*(head.state_dict().values() for head in heads), strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)


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
    from arrol_train.rl import rollout

    out, write = tmp_path / "out", rollout.write_json
    written: list[Path] = []

    def fill(path: Path, content: dict[str, object]) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    monkeypatch.setattr(rollout, "write_json", fill)
    with pytest.raises(DiskFullError, match=r"is full .*last complete checkpoint is .*checkpoint-2\. Free some"):
        run(config(), out, engine)
    run(config(), out, engine)
    assert [line["step"] for line in log_of(out)] == [1, 2, 3, 4]
    assert (out / "policy").is_dir()


def test_a_checkpoint_of_another_config_is_refused(finished: Path, tmp_path: Path) -> None:
    other = config(rollout=TINY["rollout"] | {"policy": "random"})
    with pytest.raises(ConfigError, match=r"another run: rollout\.policy was 'tails' and is 'random'"):
        run(other, finished)
    run(config(eval_every=7), finished)  # how often to test changes nothing that was trained


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        run(config(), tmp_path)


def test_dapo_uses_its_four_parts(engine: VLLMEngine, tmp_path: Path) -> None:
    dapo = config(algorithm="dapo", steps=1, rollout=TINY["rollout"] | {"refills": 2, "max_tokens": 120})
    arguments = trl_config(dapo, tmp_path, 1)
    assert (arguments.loss_type, arguments.epsilon, arguments.epsilon_high) == ("dapo", 0.2, 0.28)
    run(dapo, tmp_path / "out", engine)
    (line,) = log_of(tmp_path / "out")
    # Solutions of up to 120 tokens: the punishment grows over the last 24.
    assert line["rewards/soft_overlong_punishment_reward/mean"] < 0
    assert line["reward"] < line["rewards/reward_func/mean"]


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


def test_reading_a_configuration_imports_neither_torch_nor_trl() -> None:
    code = "import sys, arrol_train.rl.config; print({'torch', 'transformers', 'trl', 'vllm'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_checkpoint_from_before_a_field_is_one_with_its_default() -> None:
    saved = config().model_dump(mode="json")
    del saved["rollout"]["refills"]
    check_same(saved, config(), "out")
    with pytest.raises(ConfigError, match=r"rollout\.refills was 0 and is 2"):
        check_same(saved, config(rollout=TINY["rollout"] | {"refills": 2}), "out")


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_the_built_in_configurations_can_be_read(name: str, tmp_path: Path) -> None:
    built_in = load_config(name)
    assert built_in.rollout.group == 16
    assert trl_config(built_in, tmp_path, 1).num_generations == built_in.rollout.survivors


def test_fields_can_be_set_over_the_file(tmp_path: Path) -> None:
    changed = load_config("pocket", {"rollout.policy": "random", "head": None, "seed": 3})
    assert (changed.rollout.policy, changed.head, changed.seed) == ("random", None, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, "stepz: Extra inputs"),
        ({"steps": 0}, "steps: Input should be greater"),
        ({"algorithm": "ppo"}, "algorithm: Input should be 'grpo' or 'dapo'"),
        ({"head": None}, "policy 'tails' needs a head"),
        ({"rollout": {"detect": [{"at": 32, "keep": 0.3}]}}, "not whole"),
        ({"head": {"training": {"speed": 1}}}, "speed"),
        ({"task": {"source": "pocket", "prompt": "Solve it"}}, "must hold {question}"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(TINY | changes))
    with pytest.raises(ConfigError, match=message):
        load_config(file)


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("[1]", "must hold fields")])
def test_a_file_that_is_no_configuration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file)
    with pytest.raises(ConfigError, match="built-in configurations: .*pocket"):
        load_config("no such")


def test_a_micro_batch_must_divide_the_batch(tmp_path: Path) -> None:
    assert trl_config(config(micro_batch=4), tmp_path, 1).gradient_accumulation_steps == 2
    with pytest.raises(ConfigError, match="micro_batch 3 does not divide the 8 rollouts"):
        trl_config(config(micro_batch=3), tmp_path, 1)
    with pytest.raises(ConfigError, match="TRL refuses"):
        trl_config(config(trl={"no_such": 1}), tmp_path, 1)


def test_options_of_the_sampling_reach_engine_trl_and_head() -> None:
    rollout = TINY["rollout"] | {"temperature": 0.6, "top_k": 20, "min_p": 0.1, "stop_token_ids": [3]}
    chosen = config(rollout=rollout | {"repetition_penalty": 1.0})
    arguments = trl_config(chosen, Path("out"), 1)
    assert (arguments.temperature, arguments.top_k, arguments.min_p) == (0.6, 20, 0.1)
    sampling = sampling_of(chosen.rollout, 8, 24, seed=5)
    expected = Sampling(n=8, temperature=0.6, top_k=20, min_p=0.1, stop_token_ids=(3,), max_tokens=24, seed=5)
    assert sampling == expected
    with pytest.raises(ConfigError, match="takes every rollout that a stop text or token ended"):
        trl_config(config(rollout=rollout, trl={"mask_truncated_completions": True}), Path("out"), 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "1+1"}], "row 1 has no 'answer'; it has 'question': name the column with task.answer"),
        ([{"question": "1+1", "answer": "2"}, {"question": "1+2", "answer": ""}], "row 2 has no 'answer'"),
        ([{"text": "1+1", "answer": "2"}], "row 1 has no 'question'"),
        (["x"], "row 1 is a str; a row must be an object"),
        ([{"question": "1+1", "answer": "2"}], "gives 0 training and 1 test questions"),
    ],
)
def test_a_dataset_that_cannot_be_trained_on_is_refused(rows: list[Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ConfigError, match=message):
        load_task(TaskConfig(source=str(file), train=4, test=1))


def test_a_source_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be 'pocket', 'reasoning_gym:NAME'"):
        load_task(TaskConfig(source="nowhere.jsonl"))
    with pytest.raises(ConfigError, match="no dataset 'no_such'"):
        load_task(TaskConfig(source="reasoning_gym:no_such"))


@pytest.mark.parametrize("source", ["pocket", "reasoning_gym:chain_sum", "file"])
def test_training_and_test_questions_are_disjoint_and_seeded(source: str, tmp_path: Path) -> None:
    if source == "file":
        source = str(tmp_path / "task.jsonl")
        rows = [{"question": f"{i}+1", "answer": i + 1} for i in range(40)]
        Path(source).write_text("\n".join(json.dumps(row) for row in rows))
    first, again = (load_task(TaskConfig(source=source, train=30, test=10)) for _ in range(2))
    train, test = ({row["prompt"] for row in rows} for rows in (first.train, first.test))
    assert (len(train), len(test)) == (30, 10)
    assert not train & test
    assert first.train == again.train
    row = first.test[0]
    assert first.reward(row, f"answer {row['answer']}") == 1.0
    assert first.reward(row, "answer 123456") == 0.0


def test_questions_are_rewritten_into_the_models_language() -> None:
    rewrite = ((r".*problem: ", ""), (" =$", ""), (" ", ""))
    task = load_task(
        TaskConfig(source="reasoning_gym:chain_sum", train=3, test=0, rewrite=rewrite, prompt="{question}?")
    )
    for row in task.train:
        assert set(row["prompt"]) <= set("0123456789+-?")
