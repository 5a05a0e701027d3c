"""The reinforcement benchmark: what it asks to be run can be run, and its figures are what the logs say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from arrol_train.rl.config import RunConfig
from arrol_train.rl.tasks import load_task
from arrol_tts.pocket import POCKET_MODEL
from arrol_tts.pocket.task import parse, solve
from evals.bench import rl, rl_real, rl_runs, rl_tuned
from evals.bench.rl_figures import comparison, figure, rates, row
from evals.bench.rl_pictures import measured_cost
from evals.bench.rl_runs import (
    ARMS,
    PRUNED,
    RATES,
    REGIMES,
    UNPRUNED_G,
    UNPRUNED_M,
    UNPRUNED_WIDE,
    Arm,
    Log,
    Runs,
    arms_of,
    at_rate,
)
from evals.bench.rl_starts import asked_questions


@pytest.mark.parametrize("arm", [*arms_of("pocket_rare"), *rl.OPTIONS], ids=lambda arm: arm.name)
def test_every_run_has_a_valid_configuration(arm: Arm, tmp_path: Path) -> None:
    # As it is run, but for the policy, which takes a minute to make.
    regime = replace(REGIMES[rl.ABLATED], rare=None)
    config = RunConfig.model_validate(arm.config(regime, seed=1, folder=tmp_path))
    assert config.seed == 1
    assert config.rollout.survivors == (regime.group if arm is UNPRUNED_G else 8)


def test_a_warm_run_starts_with_the_head_that_another_seed_left(tmp_path: Path) -> None:
    written = Runs(tmp_path)._write("pocket", Arm("warm", warm=True), rl_runs.SEEDS - 1)
    config = RunConfig.model_validate(yaml.safe_load(written.read_text()))
    assert config.head is not None
    assert config.head.start_from == str(tmp_path / "pocket-pruned-0" / "head")
    assert config.rollout.cold_start == 0


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_run_of_the_real_model_has_a_valid_configuration_and_task(arm: Arm, tmp_path: Path) -> None:
    tuned_on = list(rl_real.ask(tmp_path))
    regime = rl_real.regime(tmp_path, tmp_path / "model")
    config = RunConfig.model_validate(arm.config(regime, seed=1, folder=tmp_path))
    assert config.rollout.survivors == (16 if arm is UNPRUNED_G else 4)
    task = load_task(config.task)
    assert (len(task.train), len(task.test)) == (rl_real.TRAIN, rl_real.TEST)
    asked = [
        {row["prompt"] for row in task.train},
        {row["prompt"] for row in task.test},
        {each for each, _ in tuned_on},
    ]
    assert len(set.union(*asked)) == rl_real.TRAIN + rl_real.TEST + rl_real.TUNING
    assert task.reward(task.test[0], f"So it is that. The answer is {task.test[0]['answer']}.") == 1.0


def test_names_of_runs_are_distinct() -> None:
    arms = [*arms_of("pocket_rare"), *(at_rate(arm, x) for arm in ARMS for x in RATES if x != 1), *rl.OPTIONS]
    assert len({arm.name for arm in arms}) == len(arms)


def test_both_baselines_prune_nothing_and_have_no_head(tmp_path: Path) -> None:
    for arm, group in ((UNPRUNED_M, 8), (UNPRUNED_G, 16)):
        config = RunConfig.model_validate(arm.config(REGIMES["pocket"], seed=0, folder=tmp_path))
        assert (config.rollout.group, config.rollout.survivors, config.head) == (group, group, None)


def test_the_wide_baseline_starts_as_many_rollouts_a_step_as_the_pruned_runs(tmp_path: Path) -> None:
    wide, pruned = (
        RunConfig.model_validate(arm.config(REGIMES["pocket"], seed=0, folder=tmp_path))
        for arm in (UNPRUNED_WIDE, PRUNED)
    )
    assert wide.prompts * wide.rollout.group == pruned.prompts * pruned.rollout.group == 64
    assert wide.rollout.survivors == pruned.rollout.survivors == 8


def test_the_second_task_speaks_the_pocket_language_and_shares_no_question(tmp_path: Path) -> None:
    config = RunConfig.model_validate(PRUNED.config(REGIMES["second"], seed=0, folder=tmp_path))
    task = load_task(config.task.model_copy(update={"train": 60, "test": 40}))
    assert len(task.test) == 40
    for question in task.test:
        numbers, operators = parse(question["prompt"])
        assert 7 <= len(numbers) <= 9
        assert all(2 <= number <= 9 for number in numbers)
        result = numbers[0]
        for operator, number in zip(operators, numbers[1:], strict=True):
            result = {"+": result + number, "-": result - number, "*": result * number}[operator]
        assert question["answer"] == str(result)  # from left to right
        assert task.reward(question, f"answer {question['answer']}") == 1.0
        assert task.reward(question, f"answer {result + 1}") == 0.0
    assert not {each["prompt"] for each in task.test} & {each["prompt"] for each in task.train}


def test_a_rare_regime_asks_only_what_tells_the_strategies_apart(tmp_path: Path) -> None:
    source = {"source": "pocket", "train": 30, "test": 20, "seed": 11}
    asked = asked_questions(source, tmp_path, differing=True)
    assert asked_questions(source, tmp_path, differing=True) == asked
    task = load_task(RunConfig.model_validate({"model": "pocket", "task": asked, "steps": 1, "prompts": 1}).task)
    assert (len(task.train), len(task.test)) == (30, 20)
    for question in [*task.train, *task.test]:
        assert task.reward(question, f"answer {solve(question['prompt'])[1]}") == 1.0
        assert task.reward(question, f"answer {solve(question['prompt'], 'left_to_right')[1]}") == 0.0


def test_a_policy_is_tuned_once_and_knows_what_it_was_tuned_on_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl_tuned, "STEPS", 2)
    texts = [("3+4*7-2*5+6-8", " nonsense")] * 2 * rl_tuned.BATCH
    folder = rl_tuned.tuned_policy(POCKET_MODEL, texts, tmp_path / "start")
    assert rl_tuned.tuned_policy(POCKET_MODEL, [], folder) == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("".join(texts[0]), return_tensors="pt")["input_ids"]
    before, after = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32)(input_ids=ids, labels=ids).loss.item()
        for each in (POCKET_MODEL, folder)
    )
    assert after < before - 0.1


def log(folder: Path, seconds: float, accuracies: tuple[float, ...], **fields: float) -> Log:
    """The log of ten steps of that many seconds each, tested before, halfway and at the end."""
    folder.mkdir()
    lines: list[dict[str, Any]] = [{"step": 0}]
    for step in range(1, 11):
        shares = {"rollout": seconds / 2, "logprob": seconds / 8, "update": seconds * 3 / 8, "step": seconds}
        clocks = {f"{clock}/{name}": value for clock in ("cpu", "time") for name, value in shares.items()}
        lines.append({"step": step, **clocks, **fields})
    for step, accuracy in zip((0, 5, 10), accuracies, strict=True):
        lines[step] |= {"eval/accuracy": accuracy, "eval/right": [round(4 * accuracy)], "eval/samples": 4}
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Log.read(folder)


FIELDS = {
    "rollout/generated_tokens": 100.0,
    "rollout/variance": 0.1,
    "rollout/no_signal": 0.2,
    "rollout/balance": 1,
}


def test_figures_follow_from_the_logs(tmp_path: Path) -> None:
    arms = {
        "pruned": [log(tmp_path / f"p{i}", 2.0, (0.25, 0.5, 1.0), **FIELDS) for i in range(2)],
        "unpruned_m": [log(tmp_path / f"m{i}", 1.0, (0.25, 0.5, 0.75), **FIELDS) for i in range(2)],
        "unpruned_g": [log(tmp_path / f"g{i}", 4.0, (0.25, 0.5, 1.0), **FIELDS) for i in range(2)],
        "unpruned_wide": [log(tmp_path / f"w{i}", 2.0, (0.25, 0.25, 0.25), **FIELDS) for i in range(2)],
    }
    figures = comparison(REGIMES["pocket"], arms)
    assert figures["speedup_total_over_unpruned_g"] == pytest.approx(2.0)
    assert figures["speedup_total_over_unpruned_m"] == pytest.approx(0.5)
    assert figures["accuracy_gain_equal_steps_over_unpruned_m"] == pytest.approx(0.25)
    # The mean accuracy over ten steps: (0.375 + 0.75) / 2 against (0.375 + 0.625) / 2.
    assert figures["area_gain_equal_steps_over_unpruned_m"] == pytest.approx(0.0625)
    # The runs of M rollouts end after ten seconds, when the pruned ones are halfway.
    assert figures["accuracy_gain_equal_time_over_unpruned_m"] == pytest.approx(-0.25)
    # By then those of G rollouts have done a quarter: (0.25 + 0.375) / 2 against (0.25 + 0.5) / 2.
    assert figures["area_gain_equal_time_over_unpruned_g"] == pytest.approx(0.0625)
    assert figures["area_gain_equal_time_over_unpruned_wide"] == pytest.approx(0.125)
    assert "area_gain_equal_steps_over_unpruned_wide" not in figures
    assert figures["accuracy_gain_equal_steps_over_unpruned_m_interval"] == pytest.approx([0.25, 0.25])
    assert figures["curve_pruned"] == [[0, 0, 0.25], [5, 10, 0.5], [10, 20, 1.0]]


def test_each_arm_is_compared_at_the_rate_where_its_own_area_is_largest(tmp_path: Path) -> None:
    ends = {1: {"pruned": 0.75, "unpruned_m": 0.75}, 2: {"pruned": 1.0, "unpruned_m": 0.25}}
    made = rates(
        REGIMES["pocket"],
        {
            times: {
                name: [log(tmp_path / f"{name}{times}", 1.0, (0.25, 0.5, end), **FIELDS)]
                for name, end in at.items()
            }
            for times, at in ends.items()
        },
    )
    assert made["best"] == {"pruned": 2.0, "unpruned_m": 1.0}
    # (0.375 + 0.75) / 2 against (0.375 + 0.625) / 2 and against (0.375 + 0.375) / 2.
    gains = {times: found["area_gain_equal_time_over_unpruned_m"] for times, found in made["areas"].items()}
    assert gains == pytest.approx({"1": 0.0, "2": 0.1875, "best": 0.0625})
    assert at_rate(UNPRUNED_M, 2).options == {"learning_rate": 2 * rl_runs.LEARNING_RATE}


def test_a_line_of_the_options_is_against_other_runs_of_the_same_seeds(tmp_path: Path) -> None:
    ours = [log(tmp_path / "p", 2.0, (0.25, 0.5, 1.0), **FIELDS)]
    others = {"unpruned_m": (1.0, 0.75), "pruned": (2.0, 0.5)}
    logs = {name: [log(tmp_path / name, s, (0.25, 0.5, end), **FIELDS)] for name, (s, end) in others.items()}
    made = row(REGIMES["pocket"], ours, logs)
    assert made["area_gain_equal_steps_over_unpruned_m"] == pytest.approx(0.0625)
    # After ten seconds ours are halfway: (0.25 + 0.5) / 2 against (0.375 + 0.625) / 2.
    assert made["area_gain_equal_time_over_unpruned_m"] == pytest.approx(-0.125)
    assert made["area_gain_equal_steps_over_pruned"] == pytest.approx(0.125)
    assert made["variance"] == pytest.approx(0.1)
    assert made["seconds_step"] == pytest.approx(2.0)


def test_the_cold_start_is_left_out_of_times_and_in_the_curve(tmp_path: Path) -> None:
    read = log(tmp_path / "a", 4.0, (0.25, 0.5, 0.75))
    read.lines[1]["cpu/step"] = 40.0
    assert read.seconds("total", after=2) == pytest.approx(4.0)
    assert read.curve[:, 1].tolist() == [0.0, 56.0, 76.0]


def test_one_seed_has_no_interval() -> None:
    assert figure("x", [0.5]) == {"x": 0.5, "x_interval": None, "x_per_seed": [0.5]}


def test_an_interval_is_student_s() -> None:
    made = figure("x", [1.0, 2.0, 3.0])
    assert made["x_interval"] == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-3)


def test_only_missing_runs_are_made_and_a_failed_one_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def call(command: list[str], **_: Any) -> int:
        folder = Path(command[-1])
        made.append(folder.name)
        (folder / "policy").mkdir(parents=True)
        return int("unpruned_m" in folder.name)

    monkeypatch.setattr(rl_runs.subprocess, "call", call)
    runs = Runs(tmp_path)
    (runs.folder("pocket", PRUNED, 0) / "policy").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="pocket-unpruned_m-0 failed"):
        runs.make([("pocket", arm, 0) for arm in ARMS])
    assert sorted(made) == ["pocket-unpruned_g-0", "pocket-unpruned_m-0"]
    assert runs.finished("pocket", (PRUNED,), range(2)) == [0]


@pytest.mark.parametrize(
    ("regimes", "seeds", "more_seeds", "options"),
    [("pocket", 1, 3, []), ("pocket_rare", 2, 1, [0]), ("pocket_rare,pocket", 5, 5, [0, 1, 2, 3, 4])],
)
def test_options_are_run_in_their_regime_after_what_they_start_with(
    regimes: str, seeds: int, more_seeds: int, options: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, Arm, int]] = []
    monkeypatch.setattr(Runs, "make", lambda _, wanted: made.extend(wanted))
    monkeypatch.setattr(rl, "figures_of", lambda *_, **__: {}[0])
    with pytest.raises(KeyError):
        rl.main(seeds, more_seeds, regimes, tmp_path)
    assert [seed for _, arm, seed in made if arm.warm] == options
    for place, (regime, arm, seed) in enumerate(made):
        if arm.warm:
            before = [(name, one, number) for name, one, number in made[:place] if name == regime]
            assert (regime, UNPRUNED_M, seed) in before
            assert (regime, PRUNED, (seed + 1) % rl_runs.SEEDS) in before


@pytest.mark.parametrize(("seeds", "more_seeds", "needed"), [(3, 3, 4), (1, 1, 2), (4, 5, 5)])
def test_options_of_more_seeds_than_the_main_comparison_leaves_heads_of_are_refused_at_once(
    seeds: int, more_seeds: int, needed: int, tmp_path: Path
) -> None:
    message = f"{more_seeds} seeds of the options need {needed} of the main comparison, not {seeds}"
    with pytest.raises(typer.BadParameter, match=message):
        rl.main(seeds, more_seeds, rl.ABLATED, tmp_path)


def test_the_map_takes_a_step_s_cost_from_the_runs_of_m_rollouts() -> None:
    found = {
        "prompts": 4,
        "tokens_unpruned_m": 4000.0,
        "seconds_rollout_unpruned_m": 2.0,
        "seconds_update_unpruned_m": 1.6,
        "seconds_total_unpruned_m": 4.0,
    }
    cost = measured_cost(found, 8)
    assert (cost.token, cost.rollout, cost.length) == pytest.approx((0.0005, 0.05, 125.0))
    assert cost.seconds(8, 8) == pytest.approx(4.0)
