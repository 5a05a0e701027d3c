"""PrunedRollout in TRL's GRPOTrainer, on the pocket model in real vLLM."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from arrol_train.positions import FINISH
from arrol_train.rewards import pocket_reward
from arrol_train.rl.config import ConfigError, RolloutConfig
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.rollout import PrunedRollout
from arrol_train.rl.rollout_worker import EngineMismatchError
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.head_config import Pooling, QualityHeadConfig
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import TraceSpec
from tests.arrol_train.conftest import restore_pocket

if TYPE_CHECKING:
    from arrol_tts.engine.base import Engine
    from arrol_tts.engine.transformers_engine import TransformersEngine
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")
pytest.importorskip("trl")

AT = 24
PROMPTS = 4
CONFIG = RolloutConfig.model_validate(
    {
        "group": 8,
        "detect": [{"at": AT, "keep": 0.5}],
        "cold_start": 0,
        "max_tokens": 220,
        "exploration": 0.25,
        "correct_mismatch": False,
    }
)
ROWS = [
    {"prompt": q.text, "question": q.text, "answer": q.answer} for q in itertools.islice(questions("train"), 24)
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(POCKET_MODEL)


STRIDE = 3
"""Divides neither the detection position nor the tokens that are there when survivors go on."""


def online_head(seed: int = 0, pooling: Pooling = "gated") -> OnlineHead:
    stride = 1 if pooling == "last" else STRIDE
    config = QualityHeadConfig("../policy", 128, inner_size=16, positions=[AT], pooling=pooling, stride=stride)
    return OnlineHead(config, seed=seed)


def make_rollout(engine: Engine, config: RolloutConfig = CONFIG, **options: Any) -> PrunedRollout:
    reward: Callable[[Mapping[str, Any], str], float] = options.pop("reward", pocket_reward)
    return PrunedRollout(engine, ROWS, reward, config, options.pop("head", None) or online_head(), **options)


def make_trainer(rollout_func: Any, reward_func: Any, out: Path, size: int, **options: Any) -> Any:
    import os

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    arguments: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": 1,
        "per_device_train_batch_size": PROMPTS * size,
        "num_generations": size,
        "max_completion_length": 220,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    peft_config = options.pop("peft_config", None)
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
        reward_funcs=reward_func,
        args=GRPOConfig(**arguments | options),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS]),
        rollout_func=rollout_func,
        peft_config=peft_config,
    )


class Recorded:
    """A rollout function, with what it was asked and what it gave."""

    def __init__(self, rollout: Any) -> None:
        self.rollout = rollout
        self.prompts: list[list[str]] = []
        self.outputs: list[dict[str, Any]] = []

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        output = self.rollout(prompts, trainer)
        self.prompts.append(list(prompts))
        self.outputs.append({key: list(value) for key, value in output.items()})
        return dict(output)


def one_step(engine: Engine, out: Path, config: RolloutConfig = CONFIG, **options: Any) -> tuple[Any, Any, Any]:
    """A trainer that took a step, its rollout, and the record of it."""
    rollout = make_rollout(engine, config, **options)
    recorded = Recorded(rollout)
    trainer = make_trainer(recorded, rollout.reward_func, out, config.survivors)
    trainer.train()
    return trainer, rollout, recorded


@pytest.fixture(scope="module", params=["engine", "trainer"])
def stepped(
    vllm_engine: VLLMEngine, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Any, Any, Any]:
    """One step as most tests want it, whose head has learned nothing yet; to be looked at only."""
    config = CONFIG.model_copy(update={"choose_in": request.param})
    step = one_step(vllm_engine, tmp_path_factory.mktemp("stepped"), config, head_updates=0)
    restore_pocket(vllm_engine)
    return step


@cache
def pocket_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32).eval()


@torch.inference_mode()
def forward(prompt_ids: list[int], token_ids: list[int]) -> tuple[Any, Any]:
    """Log-probability of each token and last-layer states, of the pocket model as it is built in."""
    output = pocket_model()(torch.tensor([prompt_ids + token_ids]), output_hidden_states=True)
    logits = output.logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
    logprobs = logits.gather(1, torch.tensor(token_ids)[:, None])[:, 0]
    return logprobs.numpy(), output.hidden_states[-1][0, len(prompt_ids) - 1 :].numpy()


def test_every_prompt_gets_exactly_m_finished_rollouts_with_the_models_logprobs(
    stepped: tuple[Any, Any, Any], tokenizer: Any
) -> None:
    _, rollout, recorded = stepped
    prompts, output = recorded.prompts[0], recorded.outputs[0]
    assert len(prompts) == PROMPTS * 4
    assert {len(column) for column in output.values()} == {len(prompts)}
    answers = {row["prompt"]: row for row in ROWS}
    for i, prompt in enumerate(prompts):
        assert output["prompt_ids"][i] == encode_prompt(tokenizer, prompt)
        token_ids = output["completion_ids"][i]
        assert token_ids[-1] == tokenizer.eos_token_id or len(token_ids) == CONFIG.max_tokens
        text = tokenizer.decode(token_ids, skip_special_tokens=True)
        assert output["rollout_reward"][i] == pocket_reward(answers[prompt], text)
        # Written in one request or two, they are the log-probabilities of one sequence.
        logprobs, _ = forward(output["prompt_ids"][i], token_ids)
        np.testing.assert_allclose(output["logprobs"][i], logprobs, atol=1e-3)
    assert rollout.metrics["rollout/started"] == PROMPTS * 8
    assert rollout.metrics["rollout/survivors"] == PROMPTS * 4


def test_the_groups_that_were_returned_last_are_there_in_trls_order(stepped: tuple[Any, Any, Any]) -> None:
    _, rollout, recorded = stepped
    prompts, output = recorded.prompts[0], recorded.outputs[0]
    assert [len(group.rollouts) for group in rollout.groups] == [8] * PROMPTS
    for i, prompt in enumerate(prompts):
        group = rollout.groups[i // 4]
        assert ROWS[group.row]["prompt"] == prompt
        assert group.survivors[i % 4].token_ids == output["completion_ids"][i]


def test_pruned_rollouts_cost_no_more_tokens_than_up_to_the_position(stepped: tuple[Any, Any, Any]) -> None:
    _, rollout, _ = stepped
    pruned = rollout.metrics["rollout/generated_tokens"] - rollout.metrics["rollout/trained_tokens"]
    assert pruned == PROMPTS * 4 * (AT + 1)


def test_the_head_reads_survivors_only_and_each_as_one_pass_over_all_of_it_would(
    stepped: tuple[Any, Any, Any],
) -> None:
    """Written in one request or two, what is read of them is what a plain forward pass gives."""
    _, rollout, recorded = stepped
    output, buffer, head = recorded.outputs[0], rollout.learner.buffer, rollout.learner.head.head
    survivors = range(PROMPTS * 4)
    assert len(buffer) == 2 * len(survivors) == 2 * len(rollout.learner.sequences)
    for i in survivors:
        _, hidden = forward(output["prompt_ids"][i], output["completion_ids"][i])
        end = len(output["completion_ids"][i]) - 1
        read = rollout.learner.sequences.states[i]
        np.testing.assert_allclose(read, hidden[: end + 1 : STRIDE], atol=0.02)
        with torch.inference_mode():
            scores = head(torch.tensor(hidden[::STRIDE])).numpy()
        for position, at in ((AT, AT), (FINISH, end)):
            # Groups keep the order of the rollouts, the output that of the survivors: the same.
            row = np.flatnonzero(buffer.positions == position)[i]
            np.testing.assert_allclose(buffer.features[row], hidden[at], atol=0.02)
            assert buffer.labels[row] == output["rollout_reward"][i]
            assert buffer.scores[row] == pytest.approx(scores[at // STRIDE], abs=2e-4)
    assert np.ptp(buffer.scores) > 0.02
    # tails with an exploration of a quarter: each is kept with at least 0.25 * 4 / 8.
    assert buffer.inclusion.min() >= 0.125 - 1e-6
    assert buffer.inclusion.max() <= 1


def test_advantages_and_means_are_those_of_the_survivors(stepped: tuple[Any, Any, Any]) -> None:
    trainer, _, recorded = stepped
    rewards = np.array(recorded.outputs[0]["rollout_reward"]).reshape(PROMPTS, 4)
    mean = rewards.mean(axis=1, keepdims=True)
    deviation = np.sqrt(((rewards - mean) ** 2).sum(axis=1, keepdims=True) / 3)
    expected = (rewards - mean) / (deviation + 1e-4)
    assert 0 < rewards.mean() < 1
    np.testing.assert_allclose(list(trainer._logs["advantages"]), expected.reshape(-1), atol=1e-5)
    logged = trainer.state.log_history[0]
    assert logged["reward"] == pytest.approx(rewards.mean())
    assert logged["rollout/balance"] == pytest.approx(rewards.mean())
    assert logged["rollout/variance"] == pytest.approx((mean * (1 - mean)).mean())
    assert logged["rollout/no_signal"] == pytest.approx(float((deviation == 0).mean()))


def test_the_update_is_trls_own_on_the_same_rows(stepped: tuple[Any, Any, Any], tmp_path: Path) -> None:
    trainer, _, recorded = stepped
    rows = recorded.outputs[0]

    def replay(prompts: list[str], _: Any) -> dict[str, Any]:
        assert prompts == recorded.prompts[0]
        return {name: rows[name] for name in ("prompt_ids", "completion_ids", "logprobs")}

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        answers = {row["prompt"]: row for row in ROWS}
        return [pocket_reward(answers[p], c) for p, c in zip(prompts, completions, strict=True)]

    plain = make_trainer(replay, reward, tmp_path, 4)
    plain.train()
    first, second = trainer.state.log_history[0], plain.state.log_history[0]
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-7)
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
    assert first["grad_norm"] > 0
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_the_engine_samples_from_the_new_weights_after_an_update(engine: VLLMEngine, tmp_path: Path) -> None:
    rollout = make_rollout(engine)
    trainer = make_trainer(rollout, rollout.reward_func, tmp_path, 4, max_steps=2, learning_rate=3e-2)
    trainer.train()
    rollout.push(trainer)
    sampling = Sampling(n=1, max_tokens=64)
    (trace,) = engine.sample([Question("q", ROWS[0]["prompt"])], sampling, TraceSpec(logprobs=True))
    assert trace.token_ids is not None
    before, _ = forward(encode_prompt(trainer.processing_class, ROWS[0]["prompt"]), trace.token_ids)
    assert np.abs(np.asarray(trace.logprobs) - before).max() > 0.01  # the built-in model's are others


def test_rollouts_are_pruned_without_vllm_too(transformers_engine: TransformersEngine, tmp_path: Path) -> None:
    try:  # its log-probabilities are compared with the trainer's on the way
        _, rollout, recorded = one_step(transformers_engine, tmp_path)
    finally:
        restore_pocket(transformers_engine)
    assert len(recorded.outputs[0]["completion_ids"]) == PROMPTS * 4
    pruned = rollout.metrics["rollout/generated_tokens"] - rollout.metrics["rollout/trained_tokens"]
    assert pruned == PROMPTS * 4 * (AT + 1)


def test_an_engine_with_other_weights_is_noticed(engine: VLLMEngine, tmp_path: Path) -> None:
    rollout = make_rollout(engine)
    trainer = make_trainer(rollout, rollout.reward_func, tmp_path, 4)
    rollout._pushed = 0  # as if the push had been lost
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with pytest.raises(EngineMismatchError, match="does not hold the weights that are trained"):
        trainer.train()


def test_rollouts_that_end_before_the_position_count_with_their_reward(engine: VLLMEngine, tmp_path: Path) -> None:
    # Solutions take 90 to 230 tokens, so half of them end before token 150.
    config = RolloutConfig.model_validate(CONFIG.model_dump() | {"detect": [{"at": 150, "keep": 0.5}]})
    _, rollout, recorded = one_step(engine, tmp_path, config)
    early = rollout.metrics["rollout/early"]
    assert 0 < early < PROMPTS * 8
    buffer = rollout.learner.buffer
    ended = np.sum(buffer.positions == FINISH)
    assert ended == early + sum(len(ids) > 150 for ids in recorded.outputs[0]["completion_ids"])
    assert np.sum(buffer.positions == 150) == ended - early
    finished = [buffer.groups[i] for i in np.flatnonzero(buffer.inclusion == 1)]
    assert len(finished) >= early


@pytest.mark.parametrize("prune", ["engine", "trainer"])
def test_several_positions_prune_in_sequence(engine: VLLMEngine, tmp_path: Path, prune: str) -> None:
    detect = [{"at": 8, "keep": 0.75}, {"at": 16, "keep": 1 / 2}, {"at": 40, "keep": 0.25}]
    config = RolloutConfig.model_validate(CONFIG.model_dump() | {"detect": detect, "choose_in": prune})
    _, rollout, recorded = one_step(engine, tmp_path, config, head_updates=0)
    assert len(recorded.outputs[0]["prompt_ids"]) == PROMPTS * 2
    pruned = rollout.metrics["rollout/generated_tokens"] - rollout.metrics["rollout/trained_tokens"]
    assert pruned == PROMPTS * (2 * 9 + 2 * 17 + 2 * 41)
    counts = {at: int(np.sum(rollout.learner.buffer.positions == at)) for at in (8, 16, 40, FINISH)}
    assert counts == dict.fromkeys((8, 16, 40, FINISH), PROMPTS * 2)
    output, head = recorded.outputs[0], rollout.learner.head.head
    _, hidden = forward(output["prompt_ids"][0], output["completion_ids"][0])
    with torch.inference_mode():
        expected = head(torch.tensor(hidden[: len(output["completion_ids"][0]) : STRIDE])).numpy()
    scores = rollout.learner.buffer.scores[:4]
    np.testing.assert_allclose(scores, expected[[8 // STRIDE, 16 // STRIDE, 40 // STRIDE, -1]], atol=2e-4)


def test_a_head_that_pools_nothing_is_read_at_the_positions_alone(engine: VLLMEngine, tmp_path: Path) -> None:
    head = online_head(pooling="last")
    _, rollout, recorded = one_step(engine, tmp_path, head=head, head_updates=0)
    output, buffer = recorded.outputs[0], rollout.learner.buffer
    assert rollout.learner.sequences is None
    _, hidden = forward(output["prompt_ids"][0], output["completion_ids"][0])
    with torch.inference_mode():
        expected = head.head(torch.tensor(hidden[[AT, len(output["completion_ids"][0]) - 1]])).numpy()
    np.testing.assert_allclose(buffer.scores[:2], expected, atol=2e-4)


def test_the_cold_start_finishes_and_labels_all_and_trains_on_m(engine: VLLMEngine, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"cold_start": 1})
    _, rollout, recorded = one_step(engine, tmp_path, config)
    assert len(recorded.outputs[0]["prompt_ids"]) == PROMPTS * 4
    for position in (AT, FINISH):
        rows = rollout.learner.buffer.positions == position
        assert rows.sum() == PROMPTS * 8
        assert set(rollout.learner.buffer.inclusion[rows]) == {1.0}


def test_without_detection_all_are_kept_in_one_phase(engine: VLLMEngine, tmp_path: Path) -> None:
    config = RolloutConfig(group=4, max_tokens=220, cold_start=0, correct_mismatch=False)
    _, rollout, recorded = one_step(engine, tmp_path, config)
    assert len(recorded.outputs[0]["prompt_ids"]) == PROMPTS * 4
    assert rollout.metrics["rollout/generated_tokens"] == rollout.metrics["rollout/trained_tokens"]
    assert set(rollout.learner.buffer.positions) == {FINISH}


def test_rollouts_depend_on_the_seed(stepped: tuple[Any, Any, Any], engine: VLLMEngine, tmp_path: Path) -> None:
    _, rollout, recorded = stepped
    first = recorded.outputs[0]["completion_ids"]
    again, other = (
        one_step(engine, tmp_path / str(seed), rollout.config, seed=seed, head_updates=0)[2].outputs[0]
        for seed in (0, 1)
    )
    assert again["completion_ids"] == first
    assert other["completion_ids"] != first


def test_a_stop_text_ends_rollouts_and_is_not_graded(engine: VLLMEngine, tmp_path: Path, tokenizer: Any) -> None:
    graded: list[str] = []

    def reward(row: Mapping[str, Any], text: str) -> float:
        graded.append(text)
        return float(len(graded) % 2)

    config = RolloutConfig.model_validate(CONFIG.model_dump() | {"stop": ["="]})
    _, _, recorded = one_step(engine, tmp_path, config, reward=reward)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in recorded.outputs[0]["completion_ids"]]
    assert any(text.endswith("=") for text in texts)
    assert max(text.count("=") for text in texts) == 1
    assert not any("=" in text for text in graded)


def test_dynamic_sampling_replaces_groups_without_signal_within_its_bound(
    engine: VLLMEngine, tmp_path: Path
) -> None:
    easy = {row["prompt"] for row in ROWS[:12]}

    def reward(row: Mapping[str, Any], text: str) -> float:
        return 1.0 if row["prompt"] in easy else float(len(text) % 2)

    config = CONFIG.model_copy(update={"refills": 4})
    _, rollout, recorded = one_step(engine, tmp_path, config, reward=reward)
    rewards = np.array(recorded.outputs[0]["rollout_reward"]).reshape(PROMPTS, 4)
    asked = sum(prompt in easy for prompt in recorded.prompts[0][::4])
    assert asked > 0
    assert rollout.metrics["rollout/no_signal"] == np.mean(rewards.std(axis=1) == 0) < asked / PROMPTS
    config = CONFIG.model_copy(update={"refills": 2})
    _, rollout, recorded = one_step(engine, tmp_path, config, reward=lambda row, text: 1.0)
    assert rollout.metrics["rollout/no_signal"] == 1.0  # it gives up, and the batch is whole
    assert rollout.metrics["rollout/given_up"] == 2 * PROMPTS
    assert rollout.metrics["rollout/started"] == 3 * PROMPTS * 8
    assert len(recorded.outputs[0]["prompt_ids"]) == PROMPTS * 4


def test_the_mismatch_correction_is_trls(engine: VLLMEngine, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"correct_mismatch": True})
    trainer, _, _ = one_step(engine, tmp_path, config)
    logged = trainer.state.log_history[0]
    assert logged["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3)
    assert logged["sampling/sampling_logp_difference/max"] < 1e-3


def test_rollouts_without_a_reward_are_trained_on_by_nobody(engine: VLLMEngine, tmp_path: Path) -> None:
    calls = itertools.count(1)

    def reward(row: Mapping[str, Any], text: str) -> float:
        call = next(calls)
        if call % 3 == 0:
            raise RuntimeError("no")
        return float(call % 2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer, rollout, recorded = one_step(engine, tmp_path, reward=reward)
    output = recorded.outputs[0]
    ungraded = [reward is None for reward in output["rollout_reward"]]
    assert sum(ungraded) == 5  # of 16
    assert rollout.metrics["rollout/failed_rewards"] == sum(ungraded)
    for none, mask, tokens in zip(ungraded, output["env_mask"], output["completion_ids"], strict=True):
        assert mask == [1 - none] * len(tokens)
    advantages = np.array(trainer._logs["advantages"])
    assert (advantages[ungraded] == 0).all()
    assert abs(advantages).max() > 0
    graded = [reward for reward in output["rollout_reward"] if reward is not None]
    assert trainer.state.log_history[0]["reward"] == pytest.approx(np.mean(graded))
    buffer = rollout.learner.buffer
    assert (buffer.positions == FINISH).sum() == len(graded)


def test_the_baseline_of_all_replaces_trls_advantages(engine: VLLMEngine, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"baseline": "all"})
    rollout = make_rollout(engine, config)
    trainer = make_trainer(rollout, rollout.reward_func, tmp_path, 4)
    rollout.attach(trainer)
    trainer.train()
    found = np.array(trainer._logs["advantages"]).reshape(PROMPTS, 4)
    for row, group in zip(found, rollout.groups, strict=True):
        others = group.expected_of_others()
        np.testing.assert_allclose(others, 0.5)  # the head knows nothing yet
        mean = (group.survivors_rewards.sum() + others.sum()) / 8
        deviation = np.sqrt(mean * (1 - mean) * 8 / 7)  # of rewards that are 0 or 1, of eight, by seven
        np.testing.assert_allclose(row, (group.survivors_rewards - mean) / (deviation + 1e-4), rtol=1e-5)
    assert any(not group.has_signal for group in rollout.groups)
    assert np.isfinite(trainer.state.log_history[0]["loss"])


def test_the_baseline_of_all_wants_the_trainer_before_it_trains(engine: VLLMEngine, tmp_path: Path) -> None:
    rollout = make_rollout(engine, CONFIG.model_copy(update={"baseline": "all"}))
    trainer = make_trainer(rollout, rollout.reward_func, tmp_path, 4)
    with pytest.raises(ValueError, match=r"call rollout.attach\(trainer\) before it trains"):
        rollout([ROWS[0]["prompt"]] * 4, trainer)


def test_prompts_that_straddle_processes_and_unknown_prompts_are_refused(
    engine: VLLMEngine, tmp_path: Path
) -> None:
    rollout = make_rollout(engine)
    trainer = make_trainer(rollout, rollout.reward_func, tmp_path, 4)
    a, b = (row["prompt"] for row in ROWS[:2])
    with pytest.raises(ValueError, match="no group straddles processes"):
        rollout([a, a, a, b], trainer)
    with pytest.raises(ValueError, match="is not among the rows"):
        rollout(["1+1"] * 4, trainer)


def test_more_prompts_that_are_none_in_a_batch_are_refused() -> None:
    engine: Any = None
    rollout, policy = make_rollout(engine, CONFIG.model_copy(update={"start_prompts": 1.25})), SimpleNamespace()
    policy.group_size, policy.step = CONFIG.survivors, 0
    with pytest.raises(ValueError, match=r"start_prompts 1\.25 adds none to 2 prompts .* make it 1\.5 at least"):
        rollout._train_step([0, 1], policy)  # type: ignore[arg-type]


def test_another_number_of_generations_than_survivors_is_refused(engine: VLLMEngine, tmp_path: Path) -> None:
    rollout = make_rollout(engine)
    trainer = make_trainer(rollout, rollout.reward_func, tmp_path, 8)
    with pytest.raises(ValueError, match="set num_generations=4"):
        trainer.train()


def test_head_buffer_and_calibration_come_back_and_another_config_is_refused(
    engine: VLLMEngine, tmp_path: Path
) -> None:
    _, rollout, _ = one_step(engine, tmp_path)
    rollout.save(tmp_path / "saved")
    again = make_rollout(engine, head=online_head(seed=5))
    again.load(tmp_path / "saved")
    assert again.learner.buffer.labels.tolist() == rollout.learner.buffer.labels.tolist()
    for name, tensor in rollout.learner.head.head.state_dict().items():
        assert torch.equal(again.learner.head.head.state_dict()[name], tensor)  # type: ignore[union-attr]
    scores = np.linspace(0, 1, 9)
    assert again.learner.head is not None
    assert again.learner.head.posterior(scores, AT).tolist() == rollout.learner.head.posterior(scores, AT).tolist()
    other = make_rollout(engine, CONFIG.model_copy(update={"policy": "published"}))
    with pytest.raises(ConfigError, match="policy was 'tails' and is 'published'"):
        other.load(tmp_path / "saved")


def test_a_policy_that_needs_a_head_is_refused_without_one(engine: VLLMEngine) -> None:
    with pytest.raises(ValueError, match="needs a head"):
        PrunedRollout(engine, ROWS, pocket_reward, CONFIG)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "1"}, "row 1 has no prompt"),
        ({**ROWS[0], "answer": "x"}, "rows 0 and 1 have the same prompt and different answers: keep one of them"),
        ({**ROWS[0], "id": 7}, "rows 0 and 1 have the same prompt: keep one of them"),
    ],
)
def test_rows_without_prompt_or_with_that_of_another_are_refused(row: dict[str, Any], message: str) -> None:
    engine: Any = None
    with pytest.raises(ValueError, match=message):
        PrunedRollout(engine, [ROWS[0], row], pocket_reward, CONFIG, online_head())
