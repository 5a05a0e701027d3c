"""PrunedRollout: TRL's ``rollout_func`` with rollouts that are pruned while they are generated.

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
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from transformers import TrainerCallback

from arrol_train.positions import FINISH
from arrol_train.rewards import Grader, Reward, Row
from arrol_train.rl.buffer import ReplayBuffer
from arrol_train.rl.config import RolloutConfig, check_same
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.sampler import Group, GroupSampler, sampling_of
from arrol_train.rl.weights import policy_weights
from arrol_tts.engine.request import Question
from arrol_tts.errors import EngineError
from arrol_tts.files import write_json

if TYPE_CHECKING:
    from trl import GRPOTrainer

    from arrol_train.rl.sampler import TrainableEngine

CHECKPOINT_FOLDER = "arrol"
"""Inside TRL's checkpoint folders; there once a checkpoint is complete."""

CHECKED_ROLLOUTS = 2
CHECKED_CALLS = 3
CHECKED_TOKENS = 128
MISMATCH = 0.2
"""Mean difference in nats between the engine's and the trainer's log-probabilities that no rounding explains."""


class EngineMismatchError(EngineError):
    """The engine samples from another model than the one that is trained."""


@dataclass(frozen=True, slots=True)
class _Record:
    """What all ranks need to know of a group; every array has a row for each state of a labelled rollout."""

    group: int
    features: NDArray[np.float16]
    labels: list[float]
    positions: list[int]
    inclusion: list[float]
    scores: list[float]
    rewards: list[float]
    known: list[float]
    started: int
    early: int
    generated: int
    trained: int


class PhaseClock:
    """Seconds of each phase of a step, on the wall (``time/``) and of this process's processors (``cpu/``)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """Forget earlier phases; the first one begins."""
        self.seconds = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, phase: str) -> None:
        """A phase has ended; the next begins."""
        now = time.perf_counter(), time.process_time()
        self.seconds[f"time/{phase}"] = now[0] - self._last[0]
        self.seconds[f"cpu/{phase}"] = now[1] - self._last[1]
        self._last = now


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
        engine: samples; holds the head from the start when there is one. One for each rank, servers of its own
            too, since every rank pushes the weights.
        rows: the training questions, with ``prompt`` as in TRL's dataset, and whatever the reward wants.
        reward: grades a rollout, 0 or 1.
        config: how rollouts are generated and pruned.
        head: the quality head on the fly; None only where nothing is pruned, or at random.
        buffer_rows: rows of its replay buffer.
        head_updates: its optimiser steps in each step of the policy.
        seed: rollouts depend on it, the step and the row only.

    Attributes:
        metrics: of the last call; the reward function hands them to TRL's logs.
        clock: times the phases of a step; what follows TRL's call for rewards is the update.

    Raises:
        ValueError: when rows lack prompts, two rows of the same prompt differ in their answer, the policy needs a
            head, or the engine cannot take new weights.
    """

    def __init__(
        self,
        engine: TrainableEngine,
        rows: Iterable[Row],
        reward: Reward,
        config: RolloutConfig,
        head: OnlineHead | None = None,
        *,
        buffer_rows: int = 8192,
        head_updates: int = 8,
        seed: int = 0,
    ) -> None:
        if head is None and config.survivors < config.group and config.policy != "random":
            raise ValueError(f"policy {config.policy!r} needs a head: pass head=, or choose the policy 'random'")
        if not hasattr(engine, "load_weights"):
            raise ValueError(
                f"{type(engine).__name__} cannot take new weights while it runs, which training needs after every "
                "step: use VLLMEngine or ServerEngine"
            )
        self.engine = engine
        self.config = config
        self.head = head
        self.buffer = ReplayBuffer(buffer_rows, engine.hidden_size)
        self.metrics: dict[str, float] = {}
        self.grade = Grader(reward, config.reward_timeout)
        self._rows = list(rows)
        self._row_of = _index(self._rows)
        self._head_updates = head_updates
        self._seed = seed
        self._sampler: GroupSampler | None = None
        self._pushed = -1
        self._calls = 0
        self.clock = PhaseClock()

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """Roll out a batch.

        Args:
            prompts: each distinct prompt repeated ``num_generations`` times.
            trainer: whose model is sampled.

        Returns:
            ``prompt_ids``, ``completion_ids``, ``logprobs`` and ``rollout_reward``, aligned with the prompts.

        Raises:
            ValueError: when groups are not whole, or a prompt is not among the rows.
            EngineMismatchError: when the engine's log-probabilities are not the trainer's.
        """
        if self._calls == 0:
            self._attach(trainer)
        training = bool(trainer.model.training)
        size = trainer.num_generations if training else trainer.num_generations_eval
        rows = self._distinct(prompts, size)
        clock = self.clock
        clock.start()
        step = int(trainer.state.global_step)
        self._push(trainer, step)
        clock.lap("push")
        if not training:
            whole = [self._groups.roll(row, f"eval/{step}/{row}", size, ()) for row in rows]
            return _output(whole)
        if size != self.config.survivors:
            raise ValueError(
                f"num_generations is {size}, but {self.config.survivors} of {self.config.group} rollouts survive: "
                f"set num_generations={self.config.survivors}"
            )
        groups = self._roll(rows, step, trainer)
        clock.lap("rollout")
        if self._calls < CHECKED_CALLS:
            self._check(groups, trainer)
            clock.lap("check")
        self._calls += 1
        # Every rank learns from the groups of all ranks, in the same order.
        records = gather_object([self._record(group, step) for group in groups])
        self.metrics = self._learn(records, step)
        clock.lap("head")
        output = _output(groups)
        if output["logprobs"] is None and self.config.correct_mismatch:
            raise ValueError("the engine returns no log-probabilities: set correct_mismatch to false")
        return output

    def reward_func(self, completions: list[Any], **columns: Any) -> list[float]:
        """The reward function for TRL: rewards were known before, and metrics go to TRL's logs."""
        self.clock.lap("logprob")
        if log_metric := columns.get("log_metric"):
            for name, value in (self.metrics | self.clock.seconds).items():
                log_metric(name, value)
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
        """Bring the trainer's weights and the head into the engine."""
        self.engine.load_weights(policy_weights(trainer))
        if self.head is not None:
            self.engine.load_head(self.head.head)

    def save(self, folder: Path) -> None:
        """Write head, buffer and calibration; the folder appears whole or not at all."""
        temporary = folder.with_name(folder.name + ".tmp")
        temporary.mkdir(parents=True, exist_ok=True)
        if self.head is not None:
            self.head.save(temporary / "head.safetensors")
        self.buffer.save(temporary / "buffer.safetensors")
        write_json(temporary / "rollout.json", self.config.model_dump(mode="json"))
        temporary.rename(folder)

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            ConfigError: when it comes from another configuration.
        """
        check_same(json.loads((folder / "rollout.json").read_text()), self.config, str(folder.parent))
        if self.head is not None:
            self.head.load(folder / "head.safetensors")
        self.buffer = ReplayBuffer.load(folder / "buffer.safetensors")

    # --- with the trainer ---------------------------------------------------------------------------

    def _attach(self, trainer: GRPOTrainer) -> None:
        self._sampler = GroupSampler(
            self.engine, self._rows, self.grade, self.config, self.head, trainer.processing_class, self._seed
        )
        trainer.add_callback(_Checkpoints(self))
        step = trainer.state.global_step
        folder = Path(trainer.args.output_dir) / f"checkpoint-{step}" / CHECKPOINT_FOLDER
        if folder.is_dir():
            self.load(folder)
        elif step:
            warnings.warn(f"{folder} is missing: the head starts afresh at step {step}", stacklevel=3)
        if self.config.correct_mismatch:
            # What switches TRL's importance sampling correction on; its own vLLM stays unused.
            trainer.use_vllm = True
            trainer.vllm_generation = _NoSync()
            trainer._last_loaded_step = -1

    @property
    def _groups(self) -> GroupSampler:
        assert self._sampler is not None, "the first call makes it"
        return self._sampler

    def _push(self, trainer: GRPOTrainer, step: int) -> None:
        if step != self._pushed:
            self.push(trainer)
            self._pushed = step

    def _distinct(self, prompts: list[Any], size: int) -> list[int]:
        keys = [_key(prompt) for prompt in prompts]
        firsts = keys[::size]
        if keys != [key for key in firsts for _ in range(size)]:
            raise ValueError(
                f"this process got {len(keys)} prompts that are not groups of {size}: choose "
                "per_device_train_batch_size x steps_per_generation as a multiple of num_generations, so that no "
                "group straddles processes"
            )
        if unknown := [key for key in firsts if key not in self._row_of]:
            raise ValueError(f"the prompt {unknown[0][:80]!r} is not among the rows that PrunedRollout was given")
        return [self._row_of[key] for key in firsts]

    @torch.no_grad()
    def _check(self, groups: Sequence[Group], trainer: GRPOTrainer) -> None:
        """Compare log-probabilities of a few rollouts with the trainer's own forward pass."""
        model = trainer.model
        for group in groups[:CHECKED_ROLLOUTS]:
            rollout = group.survivors[0]
            if rollout.logprobs is None or self.config.top_p < 1:
                return
            completion = rollout.token_ids[:CHECKED_TOKENS]
            ids = torch.tensor([group.prompt_ids + completion], device=trainer.accelerator.device)
            logits = model(input_ids=ids, logits_to_keep=len(completion) + 1).logits[0, :-1].float()
            logprobs = (logits / self.config.temperature).log_softmax(-1)
            own = logprobs.gather(1, ids[0, -len(completion) :, None])[:, 0].cpu().numpy()
            difference = float(np.abs(own - rollout.logprobs[: len(completion)]).mean())
            if not difference < MISMATCH:
                raise EngineMismatchError(
                    f"the engine's log-probabilities differ from the trainer's by {difference:.3f} nats a token: "
                    "the engine does not hold the weights that are trained, or samples with other settings"
                )

    def _roll(self, rows: list[int], step: int, trainer: GRPOTrainer) -> list[Group]:
        """Groups of the rows; those without signal replaced while there are refills."""
        groups = self._roll_rows(rows, step, 0)
        others = np.random.default_rng((self._seed, step, trainer.accelerator.process_index)).permutation(
            len(self._rows)
        )
        further = iter([int(row) for row in others if int(row) not in set(rows)])
        for refill in range(1, self.config.refills + 1):
            dead = [i for i, group in enumerate(groups) if not group.has_signal]
            fresh = [row for _, row in zip(dead, further, strict=False)]
            if not fresh:
                break
            for i, group in zip(dead, self._roll_rows(fresh, step, refill), strict=False):
                if group.has_signal:
                    groups[i] = group
        return groups

    def _roll_rows(self, rows: list[int], step: int, refill: int) -> list[Group]:
        detect = self.config.detect if step >= self.config.cold_start else ()

        def roll(row: int) -> Group:
            name = f"{step}/{refill}/{row}"
            rng = np.random.default_rng((self._seed, step, refill, row))
            group = self._groups.roll(row, name, self.config.group, detect, rng)
            if not detect:
                self._groups.keep(group, self.config.survivors, FINISH, rng)
            return group

        with ThreadPoolExecutor(max_workers=len(rows)) as pool:
            return list(pool.map(roll, rows))

    # --- learning -----------------------------------------------------------------------------------

    def _record(self, group: Group, step: int) -> _Record:
        labelled = [rollout for rollout in group.rollouts if rollout.reward is not None]
        states = [(rollout, at, state) for rollout in labelled for at, state in rollout.states.items()]
        width = self.engine.hidden_size
        return _Record(
            group=step * len(self._rows) + group.row,
            features=np.array([s.features for *_, s in states], np.float16).reshape(-1, width),
            labels=[float(rollout.reward or 0.0) for rollout, *_ in states],
            positions=[at for _, at, _ in states],
            inclusion=[rollout.inclusion for rollout, *_ in states],
            scores=[state.score for *_, state in states],
            rewards=[float(rollout.reward or 0.0) for rollout in group.survivors],
            known=[float(rollout.reward or 0.0) for rollout in labelled],
            started=len(group.rollouts),
            early=group.early,
            generated=sum(len(rollout.token_ids) for rollout in group.rollouts),
            trained=sum(len(rollout.token_ids) for rollout in group.survivors),
        )

    def _learn(self, records: Sequence[_Record], step: int) -> dict[str, float]:
        """Track the head, let it learn, and say how the step went."""
        shares = np.array([np.mean(record.rewards) for record in records])
        metrics = {
            "rollout/started": float(sum(r.started for r in records)),
            "rollout/survivors": float(sum(len(r.rewards) for r in records)),
            "rollout/early": float(sum(r.early for r in records)),
            "rollout/generated_tokens": float(sum(r.generated for r in records)),
            "rollout/trained_tokens": float(sum(r.trained for r in records)),
            "rollout/balance": float(shares.mean()),
            "rollout/variance": float((shares * (1 - shares)).mean()),
            "rollout/no_signal": float(np.mean([len(set(r.rewards)) < 2 for r in records])),
            "rollout/labelled_reward": float(np.mean([np.mean(r.known) for r in records])),
            "rollout/failed_rewards": float(self.grade.failures),
        }
        if self.head is None:
            return metrics
        features = np.concatenate([r.features for r in records])
        labels, positions, inclusion, scores = (
            np.array([value for record in records for value in getattr(record, name)])
            for name in ("labels", "positions", "inclusion", "scores")
        )
        groups = np.repeat([r.group for r in records], [len(r.labels) for r in records])
        for position in np.unique(positions).tolist():
            rows = positions == position
            tracked = self.head.track(scores[rows], labels[rows], groups[rows], inclusion[rows], position)
            name = "finish" if position == FINISH else str(position)
            metrics |= {f"head/{name}/{key}": value for key, value in tracked.items()}
        self.buffer.append(features, labels, groups, positions, inclusion, scores, step)
        metrics |= {f"head/{k}": v for k, v in self.head.update(self.buffer, self._head_updates).items()}
        self.head.fit_posterior(self.buffer)
        return metrics


class _Checkpoints(TrainerCallback):
    """Completes TRL's checkpoints: called when all else is written."""

    def __init__(self, rollout: PrunedRollout) -> None:
        self._rollout = rollout

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._rollout.save(Path(args.output_dir) / f"checkpoint-{state.global_step}" / CHECKPOINT_FOLDER)


class _NoSync:
    """Stands where TRL would have its own vLLM: weights are pushed by PrunedRollout."""

    def sync_weights(self) -> None:
        """Nothing to do."""


def _output(groups: Sequence[Group]) -> dict[str, Any]:
    survivors = [(group, rollout) for group in groups for rollout in group.survivors]
    logprobs = [rollout.logprobs for _, rollout in survivors]
    return {
        "prompt_ids": [group.prompt_ids for group, _ in survivors],
        "completion_ids": [rollout.token_ids for _, rollout in survivors],
        "logprobs": None if any(row is None for row in logprobs) else logprobs,
        "rollout_reward": [float(rollout.reward or 0.0) for _, rollout in survivors],
    }


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def _index(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    index: dict[str, int] = {}
    for i, row in enumerate(rows):
        if not row.get("prompt"):
            raise ValueError(f"row {i} has no prompt: give PrunedRollout the rows of TRL's dataset")
        first = index.setdefault(_key(row["prompt"]), i)
        if rows[first].get("answer") != row.get("answer"):
            raise ValueError(f"rows {first} and {i} have the same prompt and different answers: keep one of them")
    if not index:
        raise ValueError("there are no rows: PrunedRollout needs the rows of TRL's dataset")
    return index
