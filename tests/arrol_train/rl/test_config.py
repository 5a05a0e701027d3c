"""The configuration of a training run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from arrol_train.rl.config import CONFIGS, ConfigError, RolloutConfig, check_same, load_config
from arrol_train.rl.trainer import trl_config
from tests.arrol_train.rl.tiny import TINY, config

if TYPE_CHECKING:
    pass


def test_reading_a_configuration_imports_neither_torch_nor_trl() -> None:
    code = "import sys, arrol_train.rl.config; print({'torch', 'transformers', 'trl', 'vllm'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_checkpoint_from_before_a_field_is_one_with_its_default() -> None:
    saved = config().model_dump(mode="json")
    del saved["rollout"]["refills"]
    check_same(saved, config(), "out")
    with pytest.raises(ConfigError, match=r"rollout\.refills was 0 and is 2"):
        check_same(saved, config(rollout=TINY["rollout"] | {"refills": 2}), "out")


def test_a_run_from_before_heads_pooled_goes_on_as_it_was_or_is_refused() -> None:
    saved = config(head={"updates": 2}).model_dump(mode="json")
    for name in ("pooling", "stride", "buffer_mib"):
        del saved["head"][name]
    saved["head"]["inner_size"], saved["head"]["training"] = 128, {"groups_per_batch": 32}
    with pytest.raises(ConfigError, match=r"head\.pooling was 'last' and is 'mean'. Set it back to go on"):
        check_same(saved, config(head={"updates": 2}), "out")
    check_same(saved, config(head={"updates": 2, "pooling": "last"}), "out")
    pooled = config(head={"updates": 2, "pooling": "last", "training": {"groups_per_batch": 8}})
    with pytest.raises(ConfigError, match=r"head\.training\.groups_per_batch was 32 and is 8"):
        check_same(saved, pooled, "out")


@pytest.mark.parametrize(
    ("max_tokens", "detect", "stride", "expected"),
    [
        (256, [{"at": 32, "keep": 0.5}], None, 2),
        (256, [{"at": 16, "keep": 0.5}], None, 1),
        (4096, [{"at": 512, "keep": 0.5}], None, 32),
        (4096, [{"at": 128, "keep": 0.75}, {"at": 512, "keep": 0.5}], None, 8),
        (4096, [], None, 32),
        (100, [], None, 1),
        (256, [{"at": 32, "keep": 0.5}], 5, 5),
        (4096, [{"at": 256, "keep": 0.5, "candidates": [64, 256]}], None, 4),
    ],
)
def test_a_whole_rollout_has_128_states_and_its_first_part_16(
    max_tokens: int, detect: list[dict[str, float]], stride: int | None, expected: int
) -> None:
    made = config(rollout={"max_tokens": max_tokens, "detect": detect}, head={"stride": stride})
    assert made.stride == expected
    assert config(rollout={"max_tokens": max_tokens}, head={"pooling": "last"}).stride == 1


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
        (
            {"head": None, "rollout": TINY["rollout"] | {"policy": "random", "baseline": "all"}},
            "baseline 'all' asks the head",
        ),
        (
            {"head": None, "rollout": {"detect": [{"at": 24, "keep": 1.0}], "start_prompts": 2}},
            "start_prompts goes by what the head says",
        ),
        ({"rollout": {"detect": [{"at": 32, "keep": 0.3}]}}, "not whole"),
        ({"head": {"training": {"speed": 1}}}, "speed"),
        ({"head": {"pooling": "steps"}}, "pooling: Input should be 'last', 'mean' or 'gated'"),
        ({"head": {"pooling": "last", "inner_size": 0}}, "inner_size 0 is for heads that pool"),
        (
            {"head": {"pooling": "last", "stride": 4}},
            "stride is 4, and a head whose pooling is last pools nothing",
        ),
        ({"head": {"stride": 25}}, "up to the detection position 24 the head would read the prompt's end alone"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detect": [{"at": 24, "keep": 0.3}]}, "not whole"),
        ({"detect": [{"at": 24, "keep": 0.125}]}, "at least 2"),
        ({"detect": [{"at": 220, "keep": 0.5}]}, "beyond the completion length max_tokens=220"),
        ({"detect": [{"at": 32, "keep": 0.5}, {"at": 16, "keep": 0.25}]}, "must ascend"),
        ({"detect": [{"at": 16, "keep": 0.5}, {"at": 32, "keep": 0.75}]}, "must ascend and their keep"),
        ({"detect": [], "start_prompts": 2}, "start_prompts prunes groups at the first detection position: add"),
        (
            {"detect": [{"at": 24, "keep": 0.5, "candidates": [8, 16]}]},
            "candidates must ascend from 1 or more, and the position 24 be one of them",
        ),
        ({"detect": [{"at": 24, "keep": 0.5, "candidates": [32, 24]}]}, "candidates must ascend"),
        ({"detect": [{"at": 24, "keep": 0.5, "candidates": [24, 220]}]}, "candidate position 220 is beyond"),
        (
            {"detect": [{"at": 8, "keep": 0.75}, {"at": 24, "keep": 0.5, "candidates": [16, 24]}]},
            "candidates are for one detection position",
        ),
        (
            {"detect": [{"at": 24, "keep": 0.5, "candidates": [16, 24]}], "policy": "random"},
            "at which rollouts are pruned by the head",
        ),
        ({"prune": "after", "start_prompts": 2}, "prune 'after' finishes every rollout: leave out"),
        ({"max_group": 7}, "max_group is 7: make it at least the group of 8"),
        ({"max_group": 9, "detect": []}, "max_group is for one detection position"),
        ({"max_group": 9, "policy": "random"}, "max_group gains nothing with the policy 'random'"),
        ({"max_group": 9, "exploration": 0}, "max_group goes by how well .* and exploration is 0: raise it, or"),
        (
            {"detect": [{"at": 24, "keep": 0.5, "candidates": [16, 24]}], "exploration": 0},
            "candidates goes by how well the head ranks",
        ),
        ({"policy": "best"}, "there is no policy 'best'"),
        ({"policy": "none"}, "policy 'none' keeps everybody"),
        ({"policy_options": {"lambda": 1.0}}, "no option 'lambda'"),
        ({"policy_options": {"p_min": 5}}, "p_min is 5.0; it must be a number from 0 to 1"),
        ({"policy_options": {"rho": 3}}, "rho is 3.0; it must be"),
        (
            {"policy": "published", "group": 16, "detect": [{"at": 24, "keep": 15 / 16}]},
            "'published' keeps a share between p_min 0.1 and p_max 0.9, and 15 of 16 rollouts are to go on: keep",
        ),
        (
            {
                "policy": "group_signed",
                "group": 64,
                "detect": [{"at": 8, "keep": 0.5}, {"at": 24, "keep": 1 / 32}],
            },
            "and 2 of 32 rollouts are to go on",
        ),
        (
            {"policy": "group_signed", "group": 32, "detect": [{"at": 24, "keep": 2 / 32}], "prune": "after"},
            "and 2 of 32 rollouts are to go on",
        ),
        ({"policy": "published", "max_group": 128}, "and 4 of 128 rollouts are to go on"),
        ({"policy": "published", "policy_options": {"p_min": 0.6}}, "p_min 0.6 and p_max 0.9, and 4 of 8"),
        ({"group": 1}, "greater than or equal to 2"),
        ({"repetition_penalty": 1.1}, r"repetition_penalty: TRL computes .* leave it out \(1 is off\)"),
        ({"presence_penalty": 0.5}, "presence_penalty: TRL computes"),
        ({"stop": [""]}, "none of them empty"),
        ({"top_p": 0.9}, r"top_p: TRL computes .* leave it out \(1 is off\)"),
        ({"top_k": 20}, r"top_k: TRL computes .* leave it out \(0 is off\)"),
        ({"min_p": 0.1}, "min_p: TRL computes"),
        ({"max_failed_rewards": 2}, "less than or equal to 1"),
        ({"baseline": "mean"}, "Input should be 'survivors' or 'all'"),
    ],
)
def test_rollouts_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutConfig.model_validate(config().rollout.model_dump() | changes)


def test_a_policys_bounds_are_those_of_each_position_and_of_no_other_policy() -> None:
    detect = [{"at": 8, "keep": 8 / 32}, {"at": 24, "keep": 2 / 32}]
    made = RolloutConfig.model_validate({"group": 32, "detect": detect, "policy": "published"})
    assert made.survivors == 2
    RolloutConfig.model_validate({"group": 32, "detect": detect[1:], "policy": "tails", "max_group": 128})


def test_options_of_the_sampling_that_are_off_are_passed_over() -> None:
    off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert RolloutConfig.model_validate(TINY["rollout"] | off) == RolloutConfig.model_validate(TINY["rollout"])
