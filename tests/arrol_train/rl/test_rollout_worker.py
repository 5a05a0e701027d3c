"""RolloutWorker without any trainer, on the pocket model in real vLLM."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from arrol_train.positions import FINISH
from arrol_train.rewards import Reward, Row, pocket_reward
from arrol_train.rl import sampler
from arrol_train.rl.config import Detection, RolloutConfig
from arrol_train.rl.detection import Pairs, PositionChooser
from arrol_train.rl.group import Group, Rollout
from arrol_train.rl.prompts import Visited
from arrol_train.rl.rollout_worker import EngineMismatchError, FailedRewardsError, RolloutWorker
from arrol_train.rl.whole_groups import expected_signal
from tests.arrol_train.rl.test_rollout import AT, CONFIG, PROMPTS, ROWS, forward, online_head, pocket_model

if TYPE_CHECKING:
    from arrol_tts.engine.transformers_engine import TransformersEngine
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from arrol_tts.pocket import POCKET_MODEL

    return AutoTokenizer.from_pretrained(POCKET_MODEL)


def make_worker(engine: Any, tokenizer: Any, **options: Any) -> RolloutWorker:
    reward, config = options.pop("reward", pocket_reward), options.pop("config", CONFIG)
    return RolloutWorker(engine, ROWS, reward, config, online_head(), tokenizer=tokenizer, **options)


def own_logprobs(prompt_ids: Any, token_ids: Any, temperature: float) -> Any:
    assert temperature == 1.0
    return forward(list(prompt_ids), list(token_ids))[0]


def test_a_loop_without_a_trainer_gets_survivors_and_teaches_the_head(engine: VLLMEngine, tokenizer: Any) -> None:
    worker = make_worker(engine, tokenizer)
    assert worker.learner is not None
    before = copy.deepcopy(worker.learner.head.head.state_dict())
    worker.push(pocket_model().named_parameters())
    groups = worker.roll([3, 7, 1], step=0)
    assert [group.row for group in groups] == [3, 7, 1]
    for group in groups:
        assert [rollout.pruned_at for rollout in group.rollouts].count(AT) == 4
        for rollout in group.survivors:
            text = tokenizer.decode(rollout.token_ids, skip_special_tokens=True)
            assert rollout.reward == pocket_reward(ROWS[group.row], text)
            logprobs, _ = forward(group.prompt_ids, rollout.token_ids)
            np.testing.assert_allclose(rollout.logprobs, logprobs, atol=1e-3)  # type: ignore[arg-type]
            assert 0 < rollout.inclusion < 1
    metrics = worker.learn(groups, step=0)
    assert metrics == worker.metrics
    assert metrics["rollout/started"] == 3 * 8
    assert metrics["rollout/survivors"] == 3 * 4
    assert (worker.learner.buffer.positions == FINISH).sum() == 3 * 4
    after = worker.learner.head.head.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_a_group_does_not_depend_on_the_rows_and_processes_beside_it(
    vllm_engine: VLLMEngine, tokenizer: Any
) -> None:
    worker = make_worker(vllm_engine, tokenizer)
    together = worker.roll([3, 7], step=5)
    (alone,) = worker.roll([7], step=5, process=1)
    assert [rollout.token_ids for rollout in alone.rollouts] == [r.token_ids for r in together[1].rollouts]
    (later,) = worker.roll([7], step=6)
    assert [rollout.token_ids for rollout in later.rollouts] != [r.token_ids for r in together[1].rollouts]


def test_of_more_prompts_than_are_wanted_the_groups_of_the_most_signal_go_on(
    vllm_engine: VLLMEngine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: dict[int, float] = {}

    def noted(group: Group, *arguments: Any) -> float:
        signals[group.row] = expected_signal(group, *arguments)
        return signals[group.row]

    monkeypatch.setattr(sampler, "expected_signal", noted)
    changes = {"start_prompts": 2.0, "exploration": 0.0, "cold_start": 1}
    worker = make_worker(vllm_engine, tokenizer, config=CONFIG.model_copy(update=changes))
    cold = worker.roll([3, 7, 1], step=0)
    assert ([group.row for group in cold], signals) == ([3, 7, 1], {})
    worker.learn(cold, step=0)  # from here on the head tells groups apart
    groups = worker.roll([3, 7, 1], step=1)
    assert len(signals) == 6
    assert {3, 7, 1} < set(signals)
    rows = [group.row for group in groups]
    ranked = sorted(signals.values(), reverse=True)
    assert ranked[0] > ranked[-1]
    assert sorted((signals[row] for row in rows), reverse=True) == ranked[:3]
    assert [len(group.survivors) for group in groups] == [4] * 3
    given_up = [lost for group in groups for lost in group.given_up]
    assert {lost.row for lost in given_up} == set(signals) - set(rows)
    assert [(lost.rollouts, lost.tokens, lost.rewards) for lost in given_up] == [(8, 8 * (AT + 1), [])] * 3


def test_a_group_that_goes_on_is_as_it_would_be_alone(vllm_engine: VLLMEngine, tokenizer: Any) -> None:
    config = CONFIG.model_copy(update={"start_prompts": 1.5})
    many = make_worker(vllm_engine, tokenizer, config=config).roll([3, 7], step=4)
    few = {group.row: group for group in make_worker(vllm_engine, tokenizer).roll([3, 7], step=4)}
    found = [group for group in many if group.row in few]
    assert found  # of three
    for group in found:
        assert [r.token_ids for r in group.rollouts] == [r.token_ids for r in few[group.row].rollouts]
        assert group.inclusion == pytest.approx(2 / 3)  # the head cannot tell them apart yet
        for rollout, alone in zip(group.rollouts, few[group.row].rollouts, strict=True):
            assert rollout.inclusion == pytest.approx(alone.inclusion * 2 / 3)


def test_rollouts_are_shared_out_by_what_is_known_of_the_prompts(vllm_engine: VLLMEngine, tokenizer: Any) -> None:
    worker = make_worker(vllm_engine, tokenizer, config=CONFIG.model_copy(update={"max_group": 12}))
    assert worker.learner is not None
    worker.prompts.visited = {3: Visited(3, 17), 7: Visited(300, 0)}
    first = worker.roll([3, 7], step=0)  # how well the head ranks is not known yet
    assert [len(group.rollouts) for group in first] == [8, 8]
    worker.learner.pairs[AT] = Pairs(total=1000.0, ranked=900.0)
    worker.prompts.length = 400.0
    groups = worker.roll([3, 7], step=0)
    assert [len(group.rollouts) for group in groups] == [12, 4]
    assert [len(group.survivors) for group in groups] == [4, 4]
    assert [sum(r.pruned_at == AT for r in group.rollouts) for group in groups] == [8, 0]
    worker.learn(groups, step=0)
    assert worker.prompts.visited[3].wrong != 17


def test_prompts_without_signal_make_way_for_others(vllm_engine: VLLMEngine, tokenizer: Any) -> None:
    worker = make_worker(vllm_engine, tokenizer, config=CONFIG.model_copy(update={"revisit": 0.5}))
    worker.prompts.visited = {row: Visited(barren=60) for row in (3, *range(8, 24))}
    other, asked = worker.roll([3, 7], step=0)
    assert other.row in {0, 1, 2, 4, 5, 6}
    assert asked.row == 7
    worker.prompts.visited = {row: Visited(barren=60) for row in range(24)}
    assert [group.row for group in worker.roll([3, 7], step=0)] == [3, 7]  # there is none that is due


def test_pruned_after_their_end_rollouts_need_no_head_and_keep_the_most_variance(
    vllm_engine: VLLMEngine, tokenizer: Any
) -> None:
    config = CONFIG.model_copy(update={"prune": "after"})
    worker = RolloutWorker(vllm_engine, ROWS, pocket_reward, config, tokenizer=tokenizer)
    for group in worker.roll([3, 7, 1], step=0):
        assert [len(group.graded), len(group.survivors)] == [8, 4]
        right = sum(rollout.reward == 1 for rollout in group.rollouts)
        assert sum(rollout.reward == 1 for rollout in group.survivors) == min(max(2, right - 4), right)


def test_a_worker_goes_on_with_what_is_known_of_the_prompts(
    vllm_engine: VLLMEngine, tokenizer: Any, tmp_path: Path
) -> None:
    worker, again = (make_worker(vllm_engine, tokenizer) for _ in range(2))
    worker.learn(worker.roll([3, 7], step=0), step=0)
    worker.save(tmp_path / "saved")
    again.load(tmp_path / "saved")
    assert {3, 7} == set(again.prompts.visited)
    assert again.prompts.visited == worker.prompts.visited


def test_the_position_is_chosen_as_the_head_learns(
    vllm_engine: VLLMEngine, tokenizer: Any, tmp_path: Path
) -> None:
    point = Detection(at=AT, keep=0.5, candidates=(9, AT, 40))
    config = CONFIG.model_copy(update={"detect": (point,), "cold_start": 1})
    worker, again = (make_worker(vllm_engine, tokenizer, config=config) for _ in range(2))
    assert worker.learner is not None
    assert worker.position is not None
    cold = worker.roll([3, 7, 1], step=0)
    assert {(*rollout.marks,) for group in cold for rollout in group.rollouts} == {(9, AT, 40, FINISH)}
    metrics = worker.learn(cold, step=0)
    assert metrics["rollout/position"] == AT
    aurocs = {at: metrics[f"head/{at}/auroc_within_all"] for at in point.candidates}
    worths = {at: worker.position.worth(at, auroc) for at, auroc in aurocs.items()}
    chosen = worker.position.at
    assert chosen == max(worths, key=worths.__getitem__) != AT
    assert worker.learner.export().config.positions[0] == chosen
    groups = worker.roll([3], step=1)
    assert [rollout.pruned_at for rollout in groups[0].rollouts].count(chosen) == 4
    assert worker.learn(groups, step=1)["rollout/position"] == chosen
    worker.save(tmp_path / "saved")
    again.load(tmp_path / "saved")
    assert again.position is not None
    assert again.position.state_dict() == worker.position.state_dict()


def test_a_worker_is_saved_over_an_older_one_and_over_a_save_that_was_cut_off(tmp_path: Path) -> None:
    worker, again, saved = make_worker(None, None), make_worker(None, None), tmp_path / "checkpoint-3" / "arrol"
    (tmp_path / "checkpoint-3" / "arrol.tmp" / "head.safetensors").mkdir(parents=True)
    for step in (1, 2):
        worker.prompts.steps = step
        worker.save(saved)
        again.load(saved)
        assert again.prompts.steps == step
    assert [path.name for path in saved.parent.iterdir()] == ["arrol"]


@pytest.mark.parametrize("updates", [1, 2])
def test_the_position_is_chosen_every_ten_batches_however_many_steps_are_taken_on_each(
    updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = Detection(at=AT, keep=0.5, candidates=(9, AT))
    worker = make_worker(None, None, config=CONFIG.model_copy(update={"detect": (point,), "cold_start": 5}))
    chosen: list[int] = []
    monkeypatch.setattr(PositionChooser, "choose", lambda self, aurocs: chosen.append(step))
    for step in range(0, 40, updates):
        worker.learn([Group(step, 0, [], [Rollout(ended=True, reward=1.0)] * 2)], step)
    assert chosen == {1: [4, 14, 24, 34], 2: [4, 24]}[updates]


def test_whole_groups_are_neither_pruned_nor_learned_from(vllm_engine: VLLMEngine, tokenizer: Any) -> None:
    worker = make_worker(vllm_engine, tokenizer)
    groups = worker.roll_whole(range(PROMPTS), step=0, size=3)
    assert [len(group.graded) for group in groups] == [3] * PROMPTS
    assert [len(group.survivors) for group in groups] == [3] * PROMPTS
    assert worker.metrics == {}


def test_the_check_compares_with_the_trainers_own_log_probabilities(
    vllm_engine: VLLMEngine, tokenizer: Any
) -> None:
    worker = make_worker(vllm_engine, tokenizer)
    groups = worker.roll([0, 1], step=0)
    worker.check(groups, own_logprobs)
    with pytest.raises(EngineMismatchError, match=r"differ from the trainer's by 0\.5"):
        worker.check(groups, lambda *prompt_tokens_temperature: own_logprobs(*prompt_tokens_temperature) - 0.5)


def test_without_a_tokenizer_nothing_is_rolled_out(vllm_engine: VLLMEngine) -> None:
    with pytest.raises(ValueError, match="pass tokenizer=, that of the policy"):
        make_worker(vllm_engine, None).roll([0], step=0)


def test_groups_of_the_same_row_on_two_processes_have_numbers_of_their_own(
    transformers_engine: TransformersEngine, tokenizer: Any
) -> None:
    config = RolloutConfig(group=2, max_tokens=4, revisit=0.5)
    worker = RolloutWorker(transformers_engine, ROWS[:2], pocket_reward, config, tokenizer=tokenizer)
    worker.prompts.visited = {0: Visited(barren=60)}
    (further,), (asked,) = (worker.roll([process], step=3, process=process) for process in range(2))
    assert further.row == asked.row == 1
    assert further.id != asked.id == 3 * 2 + 1
    assert np.int64(further.id) == further.id


def test_a_row_that_comes_twice_in_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="row 3 is asked for twice in step 5"):
        make_worker(None, None).roll([3, 1, 3], step=5)


def test_no_rows_are_refused(vllm_engine: VLLMEngine) -> None:
    with pytest.raises(ValueError, match="there are no rows"):
        RolloutWorker(vllm_engine, [], pocket_reward, CONFIG, online_head())


def every_third_fails() -> Reward:
    calls = itertools.count(1)

    def reward(row: Row, text: str) -> float:
        if next(calls) % 3 == 0:
            raise KeyError("answer")
        return pocket_reward(row, text)

    return reward


def broken(row: Row, text: str) -> float:
    raise KeyError("answer")


@pytest.mark.filterwarnings("ignore:the reward function raised")
def test_rollouts_that_cannot_be_graded_are_the_first_to_go(vllm_engine: VLLMEngine, tokenizer: Any) -> None:
    config = CONFIG.model_copy(update={"cold_start": 1})
    worker = make_worker(vllm_engine, tokenizer, reward=every_third_fails(), config=config)
    groups = worker.roll(range(PROMPTS), step=0)
    counts = [sum(rollout.ungraded for rollout in group.rollouts) for group in groups]
    assert sum(counts) == 8 * PROMPTS // 3
    for group, count in zip(groups, counts, strict=True):
        assert len(group.survivors) == 4
        assert sum(rollout.ungraded for rollout in group.survivors) == max(0, count - 4)


@pytest.mark.filterwarnings("ignore:the reward function raised")
def test_a_reward_function_that_fails_too_often_stops_the_run_with_the_reason(
    vllm_engine: VLLMEngine, tokenizer: Any
) -> None:
    worker = make_worker(vllm_engine, tokenizer, reward=broken)
    groups = worker.roll(range(PROMPTS), step=0)
    assert worker.learn(groups, step=0)["rollout/failed_rewards"] == 4 * PROMPTS  # too few to judge by
    with pytest.raises(
        FailedRewardsError, match=r"failed on 32 of 32 .* = 0\.1 .* it raised KeyError: 'answer'; "
    ):
        worker.learn(groups, step=1)


@pytest.mark.filterwarnings("ignore:the reward function raised")
def test_below_the_share_of_failures_training_goes_on(vllm_engine: VLLMEngine, tokenizer: Any) -> None:
    config = CONFIG.model_copy(update={"max_failed_rewards": 1.0})
    worker = make_worker(vllm_engine, tokenizer, reward=broken, config=config)
    groups = worker.roll(range(PROMPTS), step=0)
    for step in range(3):
        assert worker.learn(groups, step)["rollout/no_signal"] == 1.0
    assert worker.learner is not None
    assert len(worker.learner.buffer) == 0


@pytest.mark.filterwarnings("ignore:the reward function raised")
def test_an_evaluation_has_no_reward_where_there_is_none(vllm_engine: VLLMEngine, tokenizer: Any) -> None:
    rewards = make_worker(vllm_engine, tokenizer, reward=every_third_fails()).evaluate(ROWS[:4], samples=4, seed=0)
    assert [len(row) for row in rewards] == [4] * 4
    assert {reward for row in rewards for reward in row} == {None, 0.0, 1.0}


def test_prompts_that_are_conversations_are_evaluated_too(vllm_engine: VLLMEngine, tokenizer: Any) -> None:
    asked = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS[:2]]
    graded: list[str] = []

    def reward(row: Row, text: str) -> float:
        graded.append(row["prompt"][0]["content"])
        return 1.0

    rewards = make_worker(vllm_engine, tokenizer, reward=reward).evaluate(asked, samples=2, seed=0)
    assert [len(row) for row in rewards] == [2, 2]
    assert set(graded) <= {row["prompt"] for row in ROWS[:2]}
    assert graded
