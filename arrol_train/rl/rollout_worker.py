"""RolloutWorker: everything that a trainer needs of pruned rollouts, and nothing of any trainer.

Rows go in; groups come out that were pruned while they were generated, graded, and annotated with token ids,
log-probabilities and inclusion probabilities. The trainer pushes its weights, computes the update, and gives the
groups back so that the head learns. `PrunedRollout` does that for TRL's GRPOTrainer; docs/trainers.md has others.

Every row gets G rollouts. At a detection position the quality head scores the group, a policy chooses exactly M
survivors, and only they go on. Groups run side by side: one may be at its end while another is still short of the
position.

Departures from arXiv 2603.24840: exactly M survivors instead of M on average, since trainers' shapes are static.
In the cold start all G are finished and labelled, but again M are trained on, chosen by the same policy, which
then knows every reward.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from arrol_train.rewards import Grader, Reward, Row
from arrol_train.rl.config import FEWEST_REWARDS, RolloutConfig, check_same
from arrol_train.rl.detection import EVERY, PositionChooser
from arrol_train.rl.group import Group, summary
from arrol_train.rl.learner import HeadLearner
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.prompts import PromptTable
from arrol_train.rl.sampler import GroupSampler, sampling_of
from arrol_tts.engine.request import Question
from arrol_tts.errors import EngineError, InputError
from arrol_tts.files import write_json
from arrol_tts.messages import Message

if TYPE_CHECKING:
    import torch

    from arrol_tts.engine.base import Engine

CONFIG_FILE = "rollout.json"
PROMPTS_FILE = "prompts.json"
POSITION_FILE = "position.json"
CHECKED_ROLLOUTS = 2
CHECKED_TOKENS = 128
MISMATCH = 0.2
"""Mean difference in nats between the engine's and the trainer's log-probabilities that no rounding explains."""

TokenLogprobs = Callable[[Sequence[int], Sequence[int], float], NDArray[np.float32]]
"""Takes the ids of a prompt, those that follow and a temperature; gives the trainer's own log-probability of each
that follows, float32 ``[tokens]``."""


class EngineMismatchError(EngineError):
    """The engine samples from another model than the one that is trained."""


class FailedRewardsError(InputError):
    """The reward function fails on so many rollouts that what is left says little."""


class RolloutWorker:
    """Rolls out groups that are pruned while they are generated, for any trainer.

    A step of a trainer, on each of its processes::

        worker.push(weights)                            # names as in the checkpoint, and tensors
        groups = worker.roll(rows, step, process)       # exactly M survivors of each
        ...                                             # the update, with what `Group` and `Rollout` carry
        worker.learn(groups_of_all_processes, step)     # the head; then worker.metrics

    Args:
        engine: samples; it needs no head. One for each process, servers of its own too, since every process
            pushes the weights.
        rows: the training questions, with ``prompt`` and whatever the reward wants.
        reward: grades a rollout, 0 or 1.
        config: how rollouts are generated and pruned.
        head: the quality head on the fly; None only where nothing is pruned, or at random.
        tokenizer: the policy's; it may be set later, before anything is rolled out.
        buffer_rows: rows of the head's replay buffer.
        buffer_mib: MiB that whole rollouts' states may take, for a head that pools.
        head_updates: its optimiser steps in each step of the policy.
        seed: rollouts depend on it, the step and the row only.

    Attributes:
        rows: the training questions.
        learner: the head on the fly and its buffer, None without a head.
        prompts: what is known of the questions that were rolled out.
        position: chooses among candidates for the detection position, None where there are none.
        metrics: of the step that was last learned from: counts, tokens, rewards, how good the head is.

    Raises:
        InputError: when there are no rows or one has no prompt, or the policy needs a head.
    """

    def __init__(
        self,
        engine: Engine,
        rows: Iterable[Row],
        reward: Reward,
        config: RolloutConfig,
        head: OnlineHead | None = None,
        *,
        tokenizer: Any = None,
        buffer_rows: int = 8192,
        buffer_mib: int = 1024,
        head_updates: int = 8,
        seed: int = 0,
    ) -> None:
        if head is None and config.chooses:
            raise InputError(f"policy {config.policy!r} needs a head: pass head=, or choose the policy 'random'")
        if head is None:
            config.check_headless()
        self.engine = engine
        self.config = config
        self.rows = list(rows)
        self.learner = (
            HeadLearner(head, buffer_rows=buffer_rows, buffer_mib=buffer_mib, updates=head_updates)
            if head
            else None
        )
        self.tokenizer = tokenizer
        self.metrics: dict[str, float] = {}
        self.prompts = PromptTable()
        self.position: PositionChooser | None = None
        if len(config.positions) > len(config.detect):
            (point,) = config.detect
            self.position = PositionChooser(point.candidates, point.at, config.group, config.survivors)
        self._grade = Grader(reward, config.reward_timeout)
        self._asked = self._failed = 0
        self._seed = seed
        for i, row in enumerate(self.rows):
            if not row.get("prompt"):
                raise InputError(f"row {i} has no prompt: every row needs the prompt that is rolled out")
        if not self.rows:
            raise InputError("there are no rows: rollouts need the training questions")

    def push(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Bring the policy's weights into the engine, which must be idle.

        Args:
            weights: all of them: names, as in the checkpoint, and tensors.

        Raises:
            InputError: when they are not this model's.
            EngineError: while the engine samples.
        """
        self.engine.load_weights(weights)

    def roll(self, rows: Sequence[int], step: int, process: int = 0) -> list[Group]:
        """The groups of a training step, each with exactly ``config.survivors`` survivors.

        Args:
            rows: indices of the training questions, distinct.
            step: of the policy, from 0; below ``config.cold_start`` nothing is pruned early.
            process: which of those that train: refills differ between them.

        Returns:
            As many groups as rows, in their order. With ``config.refills`` a group without signal may have been
            replaced by that of another row, with ``config.start_prompts`` one of which less was expected, with
            ``config.revisit`` one whose row had no signal lately: ``Group.row`` says which it is.

        Raises:
            InputError: when there is no tokenizer, a row is asked for twice, or a reward is anything but 0 and 1.
        """
        if len(set(rows)) < len(rows):
            twice = next(row for row in rows if list(rows).count(row) > 1)
            raise InputError(
                f"row {twice} is asked for twice in step {step}, and both groups would be the same: where two "
                "questions have its prompt, keep one of them"
            )
        return self._sampler().roll_step(rows, step, process)

    def roll_whole(self, rows: Sequence[int], step: int, size: int) -> list[Group]:
        """Groups of ``size`` rollouts of which nothing is pruned and from which nothing is learned."""
        sampler = self._sampler()
        return [sampler.roll_whole(row, step, size) for row in rows]

    def check(self, groups: Sequence[Group], logprobs: TokenLogprobs) -> None:
        """Compare log-probabilities of a few rollouts with the trainer's own forward pass.

        Worth it in the first steps: an engine that lost a push samples well and trains badly. Nothing is compared
        where the engine gives no log-probabilities.

        Raises:
            EngineMismatchError: when they differ by more than rounding explains.
        """
        for group in groups[:CHECKED_ROLLOUTS]:
            rollout = group.survivors[0]
            if rollout.logprobs is None:
                return
            token_ids = rollout.token_ids[:CHECKED_TOKENS]
            own = logprobs(group.prompt_ids, token_ids, self.config.temperature)
            difference = float(np.abs(own - rollout.logprobs[: len(token_ids)]).mean())
            if not difference < MISMATCH:
                raise EngineMismatchError(
                    f"the engine's log-probabilities differ from the trainer's by {difference:.3f} nats a token: "
                    "the engine does not hold the weights that are trained, or samples with other settings"
                )

    def learn(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Teach the head on a step's graded rollouts, and note the step's ``metrics``.

        Args:
            groups: of all processes, in the same order on each: their heads stay the same.
            step: of the policy.

        Returns:
            The metrics: ``rollout/...`` of the groups, ``head/...`` of the head on rollouts that were new to it.

        Raises:
            FailedRewardsError: when more than ``config.max_failed_rewards`` of the rollouts could not be graded.
        """
        self._judge_rewards(groups)
        self.prompts.note(groups, posteriors=self.learner is not None)
        self.metrics = summary(groups) | {"rollout/barren": self.prompts.barren_share}
        if self.learner is not None:
            self.metrics |= self.learner.learn(groups, step)
            if self.position is not None:
                self.metrics["rollout/position"] = float(self.position.at)
                self._choose_position(self.learner, self.position, step)
        return self.metrics

    def evaluate(self, rows: Sequence[Row], samples: int, seed: int) -> list[list[float | None]]:
        """Rewards of whole rollouts, ``samples`` for each row, with the weights that the engine has.

        None is that of a rollout that could not be graded. The rows need not be training questions; their prompts
        are distinct. A row's rollouts do not depend on the other rows.
        """
        sampling = sampling_of(self.config, samples, self.config.max_tokens, seed)
        row_of = {prompt_key(row["prompt"]): row for row in rows}
        rewards: dict[str, list[float | None]] = {key: [] for key in row_of}
        for trace in self.engine.sample([Question(key, row["prompt"]) for key, row in row_of.items()], sampling):
            ended = trace.finish_reason == "stop"
            row = row_of[trace.question_id]
            rewards[trace.question_id].append(self._grade(row, trace.text) if ended else 0.0)
        return list(rewards.values())

    def save(self, folder: Path) -> None:
        """Write head, buffer and calibration; the folder appears whole or not at all, in place of an older one."""
        temporary, before = (folder.with_name(folder.name + ending) for ending in (".tmp", ".old"))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if self.learner is not None:
            self.learner.save(temporary)
        if self.position is not None:
            write_json(temporary / POSITION_FILE, self.position.state_dict())
        write_json(temporary / PROMPTS_FILE, self.prompts.state_dict())
        write_json(temporary / CONFIG_FILE, self.config.model_dump(mode="json"))
        if folder.exists():
            shutil.rmtree(before, ignore_errors=True)
            folder.rename(before)
        temporary.rename(folder)
        shutil.rmtree(before, ignore_errors=True)

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            ConfigError: when it comes from another configuration.
        """
        check_same(json.loads((folder / CONFIG_FILE).read_text()), self.config, str(folder.parent))
        if (prompts := folder / PROMPTS_FILE).exists():  # older checkpoints have none
            self.prompts.load_state_dict(json.loads(prompts.read_text()))
        if self.learner is not None:
            self.learner.load(folder)
            if self.position is not None:
                self.position.load_state_dict(json.loads((folder / POSITION_FILE).read_text()))
                self.learner.put_first(self.position.at)

    def _choose_position(self, learner: HeadLearner, position: PositionChooser, step: int) -> None:
        position.note(self.metrics)
        if step + 1 < self.config.cold_start:
            return
        # Batches and not steps, of which a trainer may take several on a batch.
        if position.learned % EVERY == 0:
            position.choose({at: learner.auroc_within(at) for at in position.candidates})
            learner.put_first(position.at)
        position.learned += 1

    def _judge_rewards(self, groups: Sequence[Group]) -> None:
        """Stop where the reward function failed too often, over this step or over as many as make a judgement."""
        asked = [r for group in groups for r in group.rollouts if r.ended and not r.cut_off]
        self._asked += len(asked)
        self._failed += sum(rollout.ungraded for rollout in asked)
        if self._asked < FEWEST_REWARDS:
            return
        asked_of, failed, self._asked, self._failed = self._asked, self._failed, 0, 0
        if failed > self.config.max_failed_rewards * asked_of:
            reasons = "; ".join(self._grade.reasons) or "on other processes, which say why"
            raise FailedRewardsError(
                f"the reward function failed on {failed} of {asked_of} rollouts, more than max_failed_rewards = "
                f"{self.config.max_failed_rewards:g} of them: it {reasons}. Mend it, or raise the share"
            )

    def _sampler(self) -> GroupSampler:
        if self.tokenizer is None:
            raise InputError("there is no tokenizer to encode prompts with: pass tokenizer=, that of the policy")
        config, head, auroc = self.config, None, math.nan
        if self.position is not None:
            point = config.detect[0].model_copy(update={"at": self.position.at})
            config = config.model_copy(update={"detect": (point,)})
        if self.learner is not None:
            head = self.learner.head
            if config.detect:
                auroc = self.learner.hoped_auroc(config.detect[0].at, config.group * config.survivors)
        return GroupSampler(
            self.engine, self.rows, self._grade, config, head, self.tokenizer, self._seed, self.prompts, auroc
        )


def prompt_key(prompt: str | Sequence[Message]) -> str:
    """What a prompt, a text or a conversation, is known by."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
