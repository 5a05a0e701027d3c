"""PrunedRollout: TRL's ``rollout_func`` with rollouts that are pruned before they are finished.

Every distinct prompt gets G rollouts. At a detection position the quality head scores the group, a policy
chooses exactly M survivors, and only they go on: as requests of their own, whose beginning the engine has in
its prefix cache. TRL sees M rollouts per prompt (``num_generations = M``), so its log-probability and update
shrink too, and a pruned rollout is part of no mean. Groups run side by side: one may be at its end while
another is still short of the position.

Departures from arXiv 2603.24840: exactly M survivors instead of M on average, since TRL's shapes are static. In
the cold start all G are finished and labelled, but again M are trained on, chosen by the same policy, which
then knows every reward.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object

from arrol_train.rewards import Grader, Reward, Row
from arrol_train.rl.config import RolloutConfig, check_same
from arrol_train.rl.group import Group, summary
from arrol_train.rl.learner import HeadLearner
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.run_log import StepClock
from arrol_train.rl.sampler import GroupSampler, sampling_of
from arrol_train.rl.trl_bridge import TrainedPolicy, log_metrics, trl_columns
from arrol_tts.engine.request import Question
from arrol_tts.errors import EngineError, InputError
from arrol_tts.files import write_json

if TYPE_CHECKING:
    from trl import GRPOTrainer

    from arrol_tts.engine.base import Engine

CONFIG_FILE = "rollout.json"
CHECKED_ROLLOUTS = 2
CHECKED_CALLS = 3
CHECKED_TOKENS = 128
MISMATCH = 0.2
"""Mean difference in nats between the engine's and the trainer's log-probabilities that no rounding explains."""


class EngineMismatchError(EngineError):
    """The engine samples from another model than the one that is trained."""


class PrunedRollout:
    """A ``rollout_func`` for TRL's GRPOTrainer.

    Use::

        rollout = PrunedRollout(engine, rows, reward, config, head)
        GRPOTrainer(
            args=GRPOConfig(num_generations=config.survivors, ...),
            reward_funcs=rollout.reward_func,
            rollout_func=rollout,
            ...
        )

    On its first call it registers with the trainer for checkpoints: head, buffer and calibration are saved in
    TRL's checkpoint folders and come back when TRL resumes.

    Args:
        engine: samples; it needs no head. One for each process, servers of its own too, since every process
            pushes the weights.
        rows: the training questions, with ``prompt`` as in TRL's dataset, and whatever the reward wants.
        reward: grades a rollout, 0 or 1.
        config: how rollouts are generated and pruned.
        head: the quality head on the fly; None only where nothing is pruned, or at random.
        buffer_rows: rows of its replay buffer.
        buffer_mib: MiB that whole rollouts' states may take, for a head that pools.
        head_updates: its optimiser steps in each step of the policy.
        seed: rollouts depend on it, the step and the row only.

    Attributes:
        learner: the head on the fly and its buffer, None without a head.
        metrics: of the last call; the reward function hands them to TRL's logs.
        clock: times the phases of a step; what follows TRL's call for rewards is the update.

    Raises:
        InputError: when rows lack prompts, two rows of the same prompt differ in their answer, or the policy
            needs a head.
    """

    def __init__(
        self,
        engine: Engine,
        rows: Iterable[Row],
        reward: Reward,
        config: RolloutConfig,
        head: OnlineHead | None = None,
        *,
        buffer_rows: int = 8192,
        buffer_mib: int = 1024,
        head_updates: int = 8,
        seed: int = 0,
    ) -> None:
        if head is None and config.survivors < config.group and config.policy != "random":
            raise InputError(f"policy {config.policy!r} needs a head: pass head=, or choose the policy 'random'")
        self.engine = engine
        self.config = config
        self.learner = (
            HeadLearner(head, buffer_rows=buffer_rows, buffer_mib=buffer_mib, updates=head_updates)
            if head
            else None
        )
        self.grade = Grader(reward, config.reward_timeout)
        self.metrics: dict[str, float] = {}
        self.clock = StepClock()
        self._rows = list(rows)
        self._row_of = _index(self._rows)
        self._seed = seed
        self._sampler: GroupSampler | None = None
        self._pushed = -1
        self._calls = 0

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """Roll out a batch.

        Args:
            prompts: each distinct prompt repeated ``num_generations`` times.
            trainer: whose model is sampled.

        Returns:
            ``prompt_ids``, ``completion_ids``, ``logprobs`` and ``rollout_reward``, aligned with the prompts.

        Raises:
            InputError: when groups are not whole, or a prompt is not among the rows.
            EngineMismatchError: when the engine's log-probabilities are not the trainer's.
        """
        policy = TrainedPolicy(trainer)
        sampler = self._sampler = self._sampler or self._attach(policy)
        rows = self._distinct(prompts, policy.group_size)
        if not policy.is_training:
            self._push_once(trainer, policy.step)
            return trl_columns([sampler.roll_whole(row, policy.step, policy.group_size) for row in rows])
        self._check_size(policy.group_size)
        self.clock.begin(policy.step)
        self._push_once(trainer, policy.step)
        self.clock.lap("push")
        groups = sampler.roll_step(rows, policy.step, policy.process)
        self.clock.lap("rollout")
        if self._calls < CHECKED_CALLS:
            self._check_logprobs(groups, policy)
            self.clock.lap("check")
        self._calls += 1
        self._learn(groups, policy.step)
        self.clock.lap("head")
        return trl_columns(groups)

    def reward_func(self, completions: list[Any], **columns: Any) -> list[float]:
        """The reward function for TRL: the rewards are those that were known before."""
        self.clock.lap("logprob")  # TRL computes log-probabilities between the rollouts and the rewards
        log_metrics(columns, self.metrics | self.clock.seconds)
        return [float(reward) for reward in columns["rollout_reward"]]

    def evaluate(self, rows: Sequence[Row], samples: int, seed: int) -> list[list[float]]:
        """Rewards of whole rollouts, ``samples`` for each row, with the weights that the engine has.

        The rows' prompts are distinct. A row's rollouts do not depend on the other rows.
        """
        sampling = sampling_of(self.config, samples, self.config.max_tokens, seed)
        row_of = {row["prompt"]: row for row in rows}
        rewards: dict[str, list[float]] = {prompt: [] for prompt in row_of}
        for trace in self.engine.sample([Question(prompt, prompt) for prompt in row_of], sampling):
            ended = trace.finish_reason == "stop"
            rewards[trace.question_id].append(self.grade(row_of[trace.question_id], trace.text) if ended else 0.0)
        return list(rewards.values())

    def push(self, trainer: GRPOTrainer) -> None:
        """Bring the trainer's weights into the engine."""
        self.engine.load_weights(TrainedPolicy(trainer).weights())

    def save(self, folder: Path) -> None:
        """Write head, buffer and calibration; the folder appears whole or not at all."""
        temporary = folder.with_name(folder.name + ".tmp")
        temporary.mkdir(parents=True, exist_ok=True)
        if self.learner is not None:
            self.learner.save(temporary)
        write_json(temporary / CONFIG_FILE, self.config.model_dump(mode="json"))
        temporary.rename(folder)

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            ConfigError: when it comes from another configuration.
        """
        check_same(json.loads((folder / CONFIG_FILE).read_text()), self.config, str(folder.parent))
        if self.learner is not None:
            self.learner.load(folder)

    def _attach(self, policy: TrainedPolicy) -> GroupSampler:
        """What can be done only once there is a trainer that has begun."""
        policy.complete_checkpoints(self.save)
        if policy.checkpoint.is_dir():
            self.load(policy.checkpoint)
        elif policy.step:
            warnings.warn(
                f"{policy.checkpoint} is missing: the head starts afresh at step {policy.step}", stacklevel=4
            )
        if self.config.correct_mismatch:
            policy.correct_mismatch()
        head = self.learner.head if self.learner else None
        return GroupSampler(self.engine, self._rows, self.grade, self.config, head, policy.tokenizer, self._seed)

    def _push_once(self, trainer: GRPOTrainer, step: int) -> None:
        if step != self._pushed:
            self.push(trainer)
            self._pushed = step

    def _distinct(self, prompts: list[Any], size: int) -> list[int]:
        """The row of each group's prompt."""
        keys = [_key(prompt) for prompt in prompts]
        firsts = keys[::size]
        if keys != [key for key in firsts for _ in range(size)]:
            raise InputError(
                f"this process got {len(keys)} prompts that are not groups of {size}: choose "
                "per_device_train_batch_size x steps_per_generation as a multiple of num_generations, so that no "
                "group straddles processes"
            )
        if unknown := [key for key in firsts if key not in self._row_of]:
            raise InputError(f"the prompt {unknown[0][:80]!r} is not among the rows that PrunedRollout was given")
        return [self._row_of[key] for key in firsts]

    def _check_size(self, size: int) -> None:
        if size != self.config.survivors:
            raise InputError(
                f"num_generations is {size}, but {self.config.survivors} of {self.config.group} rollouts survive: "
                f"set num_generations={self.config.survivors}"
            )

    def _check_logprobs(self, groups: Sequence[Group], policy: TrainedPolicy) -> None:
        """Compare log-probabilities of a few rollouts with the trainer's own forward pass."""
        for group in groups:
            if self.config.correct_mismatch and any(rollout.logprobs is None for rollout in group.survivors):
                raise InputError("the engine returns no log-probabilities: set correct_mismatch to false")
        for group in groups[:CHECKED_ROLLOUTS]:
            rollout = group.survivors[0]
            if rollout.logprobs is None or self.config.truncates:
                return
            token_ids = rollout.token_ids[:CHECKED_TOKENS]
            own = policy.logprobs(group.prompt_ids, token_ids, self.config.temperature)
            difference = float(np.abs(own - rollout.logprobs[: len(token_ids)]).mean())
            if not difference < MISMATCH:
                raise EngineMismatchError(
                    f"the engine's log-probabilities differ from the trainer's by {difference:.3f} nats a token: "
                    "the engine does not hold the weights that are trained, or samples with other settings"
                )

    def _learn(self, groups: list[Group], step: int) -> None:
        """Every process learns from the groups of all processes, in the same order."""
        everyones: list[Group] = gather_object(groups)
        self.metrics = summary(everyones) | {"rollout/failed_rewards": float(self.grade.failures)}
        if self.learner is not None:
            self.metrics |= self.learner.learn(everyones, step)


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def _index(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    index: dict[str, int] = {}
    for i, row in enumerate(rows):
        if not row.get("prompt"):
            raise InputError(f"row {i} has no prompt: give PrunedRollout the rows of TRL's dataset")
        first = index.setdefault(_key(row["prompt"]), i)
        if rows[first].get("answer") != row.get("answer"):
            raise InputError(f"rows {first} and {i} have the same prompt and different answers: keep one of them")
    if not index:
        raise InputError("there are no rows: PrunedRollout needs the rows of TRL's dataset")
    return index
