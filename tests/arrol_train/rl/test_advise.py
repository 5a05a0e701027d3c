"""Advice from a run's own figures: what is read from its log, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from arrol_train.cli import app
from arrol_train.rl.advise import advice_of, advise
from arrol_train.rl.breakeven import expected_signal
from arrol_tts.errors import InputError

CONFIG = {
    "prompts": 4,
    "rollout": {"group": 16, "detect": [{"at": 10, "keep": 0.5}], "policy": "tails", "cold_start": 2},
}


def line(step: int, **other: float) -> dict[str, Any]:
    """Of a step that started 64 rollouts and kept 32: 3,520 tokens in 3.52 s, 32 updates in 1.6 s."""
    return {
        "step": step,
        "rollout/success": 0.05,
        "rollout/success_square": 0.0025,
        "rollout/length": 100.0,
        "rollout/generated_tokens": 3520.0,
        "rollout/survivors": 32.0,
        "head/10/auroc_within": 0.95,
        "head/finish/auroc_within": 0.99,
        "cpu/rollout": 3.52,
        "cpu/logprob": 0.6,
        "cpu/update": 1.0,
        "cpu/push": 0.1,
        "cpu/head": 0.1,
        "cpu/step": 5.4,
    } | other


def test_costs_are_read_from_the_steps_after_the_cold_start() -> None:
    advice = advice_of([line(1, **{"cpu/rollout": 99.0}), line(3), line(4)], CONFIG)
    assert advice.steps == 2
    assert advice.cost.token == pytest.approx(0.001)
    assert advice.cost.rollout == pytest.approx(0.05)
    assert advice.cost.fixed == pytest.approx(0.2)
    assert advice.present.seconds == pytest.approx(0.2 + 4 * (0.88 + 0.4))


def test_rare_successes_and_a_good_head_make_pruning_pay() -> None:
    advice = advice_of([line(3)], CONFIG)
    assert advice.best[0].policy == "tails"
    assert advice.best[0].group > 8
    assert "pruned to 8 at token 10 by tails" in advice.sentence()
    assert "success rate of 0.05" in advice.sentence()


def test_common_successes_and_a_head_that_knows_nothing_make_sampling_fewer_pay() -> None:
    known = {"rollout/success": 0.5, "rollout/success_square": 0.25, "head/10/auroc_within": 0.52}
    advice = advice_of([line(3, **known)], CONFIG)
    assert advice.best[0] is advice.alone
    assert "sampling 8 and pruning nothing (1.00 times" in advice.sentence()


def test_the_auroc_of_all_rollouts_goes_before_that_of_survivors() -> None:
    advice = advice_of([line(3, **{"head/10/auroc_within_all": 0.6})], CONFIG)
    assert advice.aurocs == {10: 0.6}


def test_a_run_that_chooses_its_position_is_taken_at_the_last() -> None:
    chosen = {"rollout/position": 20.0, "head/20/auroc_within": 0.7}
    assert advice_of([line(3), line(4, **chosen)], CONFIG).present.position == 20


def rollouts(**changes: Any) -> dict[str, Any]:
    return CONFIG | {"rollout": {**CONFIG["rollout"], **changes}}  # type: ignore[dict-item]


def test_a_run_that_prunes_after_the_end_pays_for_whole_rollouts_and_knows_their_rewards() -> None:
    whole = line(3, **{"rollout/generated_tokens": 6400.0, "cpu/rollout": 6.4, "cpu/step": 8.2})
    advice = advice_of([whole], rollouts(prune="after"))
    assert (advice.present.group, advice.present.survivors, advice.present.policy) == (16, 8, "after")
    assert advice.present.seconds == pytest.approx(8.2)
    oracle = expected_signal(advice.rates, 16, 8, 1.0)
    assert advice.present.signal == pytest.approx(oracle)
    assert advice.present in advice.best


def test_the_best_way_may_be_to_prune_after_the_end() -> None:
    dear = {"cpu/update": 50.0, "head/10/auroc_within": 0.5}
    sentence = advice_of([line(3, **dear)], rollouts(prune="after")).sentence()
    assert "comes from 16 finished and pruned to 8 by their rewards" in sentence


def test_a_run_that_chooses_the_size_of_groups_is_taken_at_the_mean_of_those_that_were_started() -> None:
    some = {"rollout/started": 60.0, "rollout/given_up": 1.0}
    assert advice_of([line(3, **some)], rollouts(max_group=32)).present.group == 12
    none = {"rollout/started": 32.0, "rollout/given_up": 0.0}
    advice = advice_of([line(3, **none)], rollouts(max_group=32))
    assert advice.present == advice.alone


def test_all_steps_that_are_taken_on_a_batch_count_for_it() -> None:
    again = {"cpu/update": 1.0, "cpu/step": 1.0}  # of a line that has no rollouts
    lines = [line(3), {"step": 4, **again}, line(5), {"step": 6, **again}, line(7, **{"cpu/update": 99.0})]
    advice = advice_of(lines, CONFIG)
    assert advice.steps == 2
    assert advice.cost.rollout == pytest.approx((0.6 + 2.0) / 32)


def test_a_run_without_a_head_is_told_what_a_head_would_have_to_know() -> None:
    plain = {"prompts": 4, "rollout": {"group": 8, "detect": [], "policy": "tails", "cold_start": 0}}
    without = {name: value for name, value in line(3).items() if not name.startswith("head/")}
    advice = advice_of([without], plain)
    assert advice.aurocs == {}
    assert [choice.policy for choice in advice.best] == ["none"]
    assert set(advice.needed) == {5, 10, 20}
    assert 0.5 < advice.needed[5] < advice.needed[20] < 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rollouts_that_were_all_wrong_or_all_right_so_far_are_no_error(share: float) -> None:
    known = {"rollout/success": share, "rollout/success_square": share}
    advice = advice_of([line(3, **known), line(4, **known)], CONFIG)
    assert advice.rates.tolist() == [abs(share - 0.5 / 64)]
    assert advice.alone.signal > 0
    assert "success rate of" in advice.sentence()


def test_a_log_without_a_step_is_refused() -> None:
    with pytest.raises(InputError, match="let the run take a step first"):
        advice_of([{"step": 0, "eval/accuracy": 0.5}], CONFIG)


def test_the_command_prints_ways_and_the_advice(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(CONFIG))
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line(step)) + "\n" for step in (3, 4)))
    result = CliRunner().invoke(app, ["advise", str(tmp_path), "--clock", "cpu"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "by signal a second" in result.output
    assert advise(tmp_path).sentence() in result.output.replace("\n", " ").replace("  ", " ")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["advise", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no run" in result.output
