"""PrunedRollout: TRL's ``rollout_func`` with rollouts that are pruned before they are finished.

TRL's client of `RolloutWorker`: it finds the rows of TRL's prompts, pushes the trainer's weights when they are
new, and hands over the survivors. TRL sees M rollouts per prompt (``num_generations = M``), so its log-probability
and update shrink too, and a pruned rollout is part of no mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from arrol_train.rewards import Reward, Row
from arrol_train.rl.config import RolloutConfig
from arrol_train.rl.group import Group
from arrol_train.rl.learner import HeadLearner
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.rollout_worker import RolloutWorker, prompt_key
from arrol_train.rl.run_log import StepClock
from arrol_train.rl.trl_bridge import Scoring, TrainedPolicy, log_metrics, trl_columns
from arrol_tts.errors import InputError

if TYPE_CHECKING:
    from trl import GRPOTrainer

    from arrol_tts.engine.base import Engine

CHECKED_CALLS = 3


class PrunedRollout:
    """A ``rollout_func`` for TRL's GRPOTrainer.

    Use::

        rollout = PrunedRollout(engine, rows, reward, config, head)
        trainer = GRPOTrainer(
            args=GRPOConfig(num_generations=config.survivors, ...),
            reward_funcs=rollout.reward_func,
            rollout_func=rollout,
            ...
        )
        rollout.attach(trainer)

    On its first call, or by `attach` before, it registers with the trainer for checkpoints: head, buffer and
    calibration are saved in TRL's checkpoint folders and come back when TRL resumes.

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
        worker: makes the rollouts, and has head and metrics.
        groups: that were returned last, in TRL's order: TRL's row i is survivor i % M of group i // M.
        clock: times the phases of a step; what follows TRL's call for rewards is the update.

    Raises:
        InputError: when rows lack prompts, two have the same, or the policy needs a head.
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
        self.worker = RolloutWorker(
            engine,
            rows,
            reward,
            config,
            head,
            buffer_rows=buffer_rows,
            buffer_mib=buffer_mib,
            head_updates=head_updates,
            seed=seed,
        )
        self.config = config
        self.groups: list[Group] = []
        self.clock = StepClock()
        self._row_of = _index(self.worker.rows)
        self._attached = False
        self._scoring: Scoring | None = None
        self._pushed = -1
        self._calls = 0

    @property
    def learner(self) -> HeadLearner | None:
        """The head on the fly and its buffer, None without a head."""
        return self.worker.learner

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last training call; the reward function hands them to TRL's logs."""
        return self.worker.metrics

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """Roll out a batch.

        Args:
            prompts: each distinct prompt repeated ``num_generations`` times.
            trainer: whose model is sampled.

        Returns:
            What `trl_columns` does, aligned with the prompts.

        Raises:
            InputError: when groups are not whole, a prompt is not among the rows, ``start_prompts`` adds none to
                them, or the baseline is ``all`` and `attach` was not called.
            FailedRewardsError: when too many rollouts could not be graded.
            EngineMismatchError: when the engine's log-probabilities are not the trainer's.
        """
        policy = TrainedPolicy(trainer)
        self._attach(trainer, policy)
        rows = self._distinct(prompts, policy.group_size)
        if policy.is_training:
            self.groups = self._train_step(rows, policy)
        else:
            self._push_once(policy)
            self.groups = self.worker.roll_whole(rows, policy.step, policy.group_size)
        return trl_columns(self.groups, self.worker.rows)

    def reward_func(self, completions: list[Any], **columns: Any) -> list[float | None]:
        """The reward function for TRL: the rewards are those that were known before, None of the ungraded."""
        self.clock.lap("logprob")  # TRL computes log-probabilities between the rollouts and the rewards
        log_metrics(columns, self.metrics | self.clock.seconds)
        return list(columns["rollout_reward"])

    def attach(self, trainer: GRPOTrainer) -> None:
        """Register with a trainer before it begins.

        Needed for the baseline ``all``, and where training may go on from a checkpoint after which no step is
        left: nothing is rolled out then, and the checkpoint's head would not be taken over.

        Raises:
            InputError: when the trainer has settings that cannot go with that baseline.
        """
        if self._scoring is None:
            every = (lambda: self.groups) if self.config.needs_posterior else None
            self._scoring = Scoring(trainer, every, self.reward_func)
            TrainedPolicy(trainer).complete_checkpoints(self.save, self._go_on)

    def push(self, trainer: GRPOTrainer) -> None:
        """Bring the trainer's weights into the engine."""
        self.worker.push(TrainedPolicy(trainer).weights())

    def evaluate(self, rows: Sequence[Row], samples: int, seed: int) -> list[list[float | None]]:
        """See `RolloutWorker.evaluate`."""
        return self.worker.evaluate(rows, samples, seed)

    def save(self, folder: Path) -> None:
        """See `RolloutWorker.save`."""
        self.worker.save(folder)

    def load(self, folder: Path) -> None:
        """See `RolloutWorker.load`."""
        self.worker.load(folder)

    def _attach(self, trainer: GRPOTrainer, policy: TrainedPolicy) -> None:
        """What can be done only once there is a trainer that has begun."""
        if self._attached:
            return
        if self._scoring is None:
            if self.config.needs_posterior:
                raise InputError(
                    "baseline 'all' replaces TRL's advantages: call rollout.attach(trainer) before it trains"
                )
            self.attach(trainer)
            self._go_on(policy.checkpoint, policy.step)
        self._attached = True
        if self.config.correct_mismatch:
            policy.correct_mismatch()
        self.worker.tokenizer = policy.tokenizer

    def _go_on(self, checkpoint: Path, step: int) -> None:
        """Take over what lies beside the checkpoint of the step that training goes on from."""
        if checkpoint.is_dir():
            self.load(checkpoint)
        elif step:
            warnings.warn(f"{checkpoint} is missing: the head starts afresh at step {step}", stacklevel=2)

    def _train_step(self, rows: list[int], policy: TrainedPolicy) -> list[Group]:
        """Push, roll out, check and learn, on the clock."""
        self._check_size(policy.group_size)
        self.config.check_prompts(len(rows))
        self.clock.begin(policy.step)
        self._push_once(policy)
        self.clock.lap("push")
        groups = self.worker.roll(rows, policy.step, policy.process)
        self.clock.lap("rollout")
        if self._calls < CHECKED_CALLS:
            self._check_logprobs(groups, policy)
            self.clock.lap("check")
        self._calls += 1
        everyones: list[Group] = gather_object(groups)
        self.worker.learn(everyones, policy.step)
        self.clock.lap("head")
        return groups

    def _push_once(self, policy: TrainedPolicy) -> None:
        if policy.step != self._pushed:
            self.worker.push(policy.weights())
            self._pushed = policy.step

    def _distinct(self, prompts: list[Any], size: int) -> list[int]:
        """The row of each group's prompt."""
        keys = [prompt_key(prompt) for prompt in prompts]
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
        for group in groups:
            if self.config.correct_mismatch and any(rollout.logprobs is None for rollout in group.survivors):
                raise InputError("the engine returns no log-probabilities: set correct_mismatch to false")
        self.worker.check(groups, policy.logprobs)


def _index(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The row of each prompt: TRL gives prompts, not rows."""
    index: dict[str, int] = {}
    for i, row in enumerate(rows):
        first = index.setdefault(prompt_key(row["prompt"]), i)
        if first != i:
            differ = rows[first].get("answer") != row.get("answer")
            raise InputError(
                f"rows {first} and {i} have the same prompt{' and different answers' if differ else ''}: keep one "
                "of them, in TRL's dataset too"
            )
    return index
