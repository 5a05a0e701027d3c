"""Groups pruned in the engine and beside the trainer, on the pocket model in real vLLM."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from arrol_train.positions import FINISH
from arrol_train.rewards import Grader, pocket_reward
from arrol_train.rl.config import RolloutConfig
from arrol_train.rl.group import Group, Rollout
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.sampler import GroupSampler
from arrol_tts.engine.request import Question
from arrol_tts.errors import EngineError
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.trace import Trace
from tests.arrol_train.conftest import restore_pocket
from tests.arrol_train.rl.test_rollout import forward

if TYPE_CHECKING:
    from arrol_tts.engine.transformers_engine import TransformersEngine
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")

ROWS = [
    {"prompt": q.text, "question": q.text, "answer": q.answer} for q in itertools.islice(questions("train"), 12)
]
STRIDE = 3
AT = 9


@pytest.fixture
def doubtful(engine: VLLMEngine) -> VLLMEngine:
    """The pocket model with its logits scaled down: as it is, most rollouts of a group begin alike."""
    from safetensors.torch import load_file

    weights = load_file(POCKET_MODEL / "model.safetensors")
    weights["model.norm.weight"] *= 0.25
    engine.load_weights(weights.items())
    return engine


def config_of(prune: str, *points: tuple[int, float], **changes: Any) -> RolloutConfig:
    rollout = {
        "group": 8,
        "detect": [{"at": at, "keep": keep} for at, keep in points],
        "cold_start": 0,
        "max_tokens": 220,
        "exploration": 0.25,
        "choose_in": prune,
    }
    return RolloutConfig.model_validate(rollout | changes)


def online_head(seed: int = 0) -> OnlineHead:
    config = QualityHeadConfig(
        "../policy", 128, inner_size=16, positions=[24], pooling="gated", stride=STRIDE, calibration=[1.0, 0.0]
    )
    head = OnlineHead(config, seed=seed)
    with torch.no_grad():
        head.head.outer.weight *= 8  # scores far enough apart that rounding changes no rank
    return head


class Counted:
    """An engine, and how many requests it was asked for."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.requests = engine, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def sample(self, asked: Sequence[Question], sampling: Any, spec: Any) -> Any:
        self.requests += len(asked) * sampling.n
        return self._engine.sample(asked, sampling, spec)


def rolled(
    engine: Any,
    config: RolloutConfig,
    head: OnlineHead | None = None,
    rows: Sequence[int] = range(6),
    seed: int = 0,
) -> list[Group]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    grade = Grader(pocket_reward, 30.0)
    return GroupSampler(engine, ROWS, grade, config, head or online_head(), tokenizer, seed).roll_step(rows, 0)


def kept_after(group: Group, at: int) -> list[int]:
    """Who of the group went on from a position."""
    return [i for i, rollout in enumerate(group.rollouts) if rollout.pruned_at is None or rollout.pruned_at > at]


def fates(group: Group) -> list[Any]:
    return [(rollout.pruned_at, pytest.approx(rollout.inclusion)) for rollout in group.rollouts]


@pytest.mark.parametrize("policy", ["max_variance", "published"])
def test_the_same_survive_in_the_engine_as_beside_the_trainer(doubtful: VLLMEngine, policy: str) -> None:
    inside, beside, head = Counted(doubtful), Counted(doubtful), online_head()
    groups = rolled(inside, config_of("engine", (AT, 0.5), policy=policy), head)
    others = rolled(beside, config_of("trainer", (AT, 0.5), policy=policy), head)
    chosen = 0
    for group, other in zip(groups, others, strict=True):
        assert group.early == other.early
        assert [r.token_ids[: AT + 1] for r in group.rollouts] == [r.token_ids[: AT + 1] for r in other.rollouts]
        assert sorted(r.inclusion for r in group.rollouts) == pytest.approx(
            sorted(r.inclusion for r in other.rollouts)
        )
        if group.early:
            assert fates(group) == fates(other)
            continue
        chosen += 1
        scores = [rollout.scores[AT] for rollout in group.rollouts]
        # The same but for rollouts whose scores are as good as equal.
        assert sorted(scores[i] for i in kept_after(group, AT)) == pytest.approx(
            sorted(scores[i] for i in kept_after(other, AT)), abs=2e-3
        )
        for rollout in group.rollouts:
            assert rollout.inclusion < 1
            if rollout.pruned_at == AT:
                assert len(rollout.token_ids) == AT + 1
                assert rollout.reward is rollout.states is None
            else:
                assert rollout.ended
    assert 0 < chosen < len(groups)  # some groups of each kind
    # Survivors are asked for again only where one had ended.
    assert inside.requests < beside.requests
    assert inside.requests == 8 * len(groups) + sum(len(again(group)) for group in groups if group.early)


def again(group: Group) -> list[Rollout]:
    """The survivors that had not ended at the position."""
    return [rollout for rollout in group.survivors if len(rollout.token_ids) > AT + 1]


def test_several_positions_prune_in_one_request(doubtful: VLLMEngine) -> None:
    engine, head = Counted(doubtful), online_head()
    points = ((4, 0.75), (8, 0.5), (12, 0.25))
    groups = rolled(engine, config_of("engine", *points), head, range(3))
    others = rolled(doubtful, config_of("trainer", *points), head, range(3))
    undivided = [i for i, group in enumerate(groups) if not group.early]
    assert undivided
    assert engine.requests < len(groups) * 8 * 1.5
    for i in undivided:
        assert [len(kept_after(groups[i], at)) for at, _ in points] == [6, 4, 2]
        for rollout in groups[i].rollouts:
            assert rollout.pruned_at is None or len(rollout.token_ids) == rollout.pruned_at + 1
        # From the first position on they are written from other seeds.
        scores = [rollout.scores[4] for rollout in groups[i].rollouts]
        assert sorted(scores[k] for k in kept_after(groups[i], 4)) == pytest.approx(
            sorted(scores[k] for k in kept_after(others[i], 4)), abs=2e-3
        )


def test_a_group_that_is_handed_back_at_the_second_position_goes_on(doubtful: VLLMEngine) -> None:
    groups = rolled(doubtful, config_of("engine", (4, 0.75), (40, 0.5)))
    handed = [group for group in groups if group.early]
    assert handed
    for group in handed:
        assert len(kept_after(group, 4)) == 6
        assert len(group.survivors) == 4
        assert sum(rollout.stopped_at == 4 for rollout in group.rollouts) == 2
        assert not any(rollout.stopped_at == 40 for rollout in group.rollouts)
        assert all(rollout.ended for rollout in group.survivors)
        for rollout in group.survivors:
            assert rollout.logprobs is not None
            assert rollout.states is not None
            assert len(rollout.logprobs) == len(rollout.token_ids)
            assert len(rollout.states) == (len(rollout.token_ids) - 1) // STRIDE + 1


@pytest.mark.parametrize("prune", ["engine", "trainer"])
def test_the_head_is_read_at_a_position_right_after_another(
    transformers_engine: TransformersEngine, prune: str
) -> None:
    config = config_of(prune, (5, 0.75), (6, 0.5), max_tokens=10, exploration=0.0)
    (group,) = rolled(transformers_engine, config, rows=[0])
    restore_pocket(transformers_engine)
    assert [len(kept_after(group, at)) for at in (5, 6)] == [6, 4]
    for rollout in group.survivors:
        _, hidden = forward(group.prompt_ids, rollout.token_ids)
        assert sorted(rollout.marks) == [FINISH, 5, 6]
        np.testing.assert_allclose(rollout.marks[6], hidden[6], atol=2e-2)


def whole(groups: Sequence[Group]) -> Group:
    """The first group of which none ended early."""
    return next(group for group in groups if not group.early)


def test_one_request_gives_the_states_and_scores_that_two_give(doubtful: VLLMEngine) -> None:
    head = online_head()
    for prune in ("engine", "trainer"):
        group = whole(rolled(doubtful, config_of(prune, (AT, 0.5)), head, range(3)))
        for rollout in group.survivors:
            assert rollout.states is not None
            assert len(rollout.states) == (len(rollout.token_ids) - 1) // STRIDE + 1
            assert sorted(rollout.marks) == [0, AT]
            assert np.array_equal(rollout.marks[AT], rollout.states[AT // STRIDE])
        if prune == "engine":
            engines = [rollout.scores[AT] for rollout in group.survivors]
            assert engines == pytest.approx(head.scores(group.survivors, AT).tolist(), abs=2e-3)
            assert np.ptp(engines) > 0.02


def test_the_engine_scores_with_the_head_as_it_is_in_that_step(doubtful: VLLMEngine) -> None:
    config = config_of("engine", (AT, 0.5))
    first = whole(rolled(doubtful, config, online_head(0), range(3)))
    head = online_head(1)
    second = whole(rolled(doubtful, config, head, range(3)))
    changed = [(a.scores[AT], b.scores[AT]) for a, b in zip(first.rollouts, second.rollouts, strict=True)]
    assert max(abs(a - b) for a, b in changed) > 0.01
    survivors = second.survivors
    assert [r.scores[AT] for r in survivors] == pytest.approx(head.scores(survivors, AT).tolist(), abs=2e-3)


def test_other_seeds_keep_others(engine: VLLMEngine) -> None:
    config = config_of("engine", (AT, 0.5), policy="random")
    rolls = [rolled(engine, config, rows=[0], seed=seed)[0].rollouts for seed in (0, 0, 1)]
    kept = [[rollout.pruned_at for rollout in rollouts] for rollouts in rolls]
    assert kept[0] == kept[1] != kept[2]


def test_the_cold_start_prunes_nothing_in_the_engine(engine: VLLMEngine) -> None:
    for group in rolled(engine, config_of("engine", (AT, 0.5), cold_start=1), rows=range(2)):
        assert all(rollout.reward is not None for rollout in group.rollouts)
        assert len(group.survivors) == 4
        assert {rollout.pruned_at for rollout in group.rollouts} == {None, 0}


def test_auto_prunes_in_an_engine_that_takes_the_head_and_in_no_other(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sampler(prune: str, head: OnlineHead | None, policy: str = "tails") -> GroupSampler:
        config = config_of(prune, (AT, 0.5), policy=policy)
        return GroupSampler(engine, ROWS, Grader(pocket_reward, 30.0), config, head, None, 0)

    assert sampler("auto", online_head()).in_engine
    assert not sampler("trainer", online_head()).in_engine
    assert not sampler("auto", None, "random").in_engine
    with pytest.raises(ValueError, match="rollout.choose_in is 'engine', which chooses by a head: add one"):
        sampler("engine", None, "random")
    monkeypatch.setattr(type(engine), "takes_head", lambda self: False)
    assert not sampler("auto", online_head()).in_engine
    with pytest.raises(ValueError, match="the server has no head in whose place the run's could score"):
        sampler("engine", online_head())


def test_an_engine_that_keeps_others_than_the_policy_is_noticed(engine: VLLMEngine) -> None:
    config = config_of("engine", (AT, 0.5), group=4, exploration=0.0)
    sampler = GroupSampler(engine, ROWS, Grader(pocket_reward, 30.0), config, online_head(), None, 0)
    rollouts = [Rollout(scores={AT: score}) for score in (0.1, 0.4, 0.6, 0.9)]
    for rollout in rollouts[:2]:  # tails keeps the first and the last
        rollout.stopped_at = AT
    with pytest.raises(EngineError, match="keeps other rollouts at token 9 than policy 'tails' does"):
        sampler._prune(Group(0, 0, [], rollouts), AT, sampler._rule(AT, 2, (0, 0)))


def test_equal_scores_are_as_good_as_each_other() -> None:
    rollouts = [Rollout(scores={AT: score}, reward=1.0) for score in (0.4, 0.4, 0.4, 0.9)]
    sampler: Any = object.__new__(GroupSampler)
    sampler.config, sampler.head = config_of("engine", (AT, 0.5), group=4, exploration=0.0), None
    rule = replace(sampler._rule(AT, 2, (0, 0)), policy="tails")
    for stopped in itertools.combinations(range(3), 2):
        for i, rollout in enumerate(rollouts):
            rollout.stopped_at = AT if i in stopped else None
            rollout.pruned_at, rollout.inclusion = None, 1.0
        group = Group(0, 0, [], rollouts)
        sampler._prune(group, AT, rule)
        assert [i for i, rollout in enumerate(rollouts) if rollout.pruned_at == AT] == list(stopped)
        assert [rollout.inclusion for rollout in rollouts] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])


@pytest.mark.parametrize(("size", "keep", "ungraded"), [(16, 14, 1), (16, 14, 2), (11, 10, 0), (32, 2, 0)])
def test_a_group_of_another_size_is_pruned_within_wider_bounds(size: int, keep: int, ungraded: int) -> None:
    """For want of a reward, by a size of its own, or in the cold start where several positions prune."""
    sampler: Any = object.__new__(GroupSampler)
    sampler.config, sampler.head = config_of("trainer", policy="published", exploration=0.0), None
    group = Group(0, 0, [], [Rollout(ended=i < ungraded) for i in range(size)])
    sampler._prune(group, AT, sampler._rule(AT, keep, (0, 0)))
    assert len(group.survivors) == keep
    assert not any(rollout.ungraded for rollout in group.survivors)
    assert sum(rollout.inclusion for rollout in group.rollouts[ungraded:]) == pytest.approx(keep)


def test_what_was_written_past_a_hand_over_is_left_out() -> None:
    """Where vLLM schedules asynchronously, a trace that waits has got one token more."""
    verdict = {"rule": "keep_subset", "position": 3, "chosen": False}
    trace = Trace("q", 0, num_tokens=5, token_ids=[7, 8, 9, 10, 11], meta={"verdict": verdict}, scores={3: 0.5})
    trace.logprobs = np.array([-1, -2, -3, -4, -5], np.float32)
    trace.features = {position: np.full(2, position, np.float32) for position in range(5)}
    rollout = Rollout()
    rollout.append(trace, (3,), 2)
    assert rollout.token_ids == [7, 8, 9, 10]
    assert rollout.logprobs == [-1, -2, -3, -4]
    assert rollout.stopped_at is None
    assert rollout.states is not None
    assert rollout.states.tolist() == [[0, 0], [2, 2]]
    assert rollout.marks[3].tolist() == [3, 3]
