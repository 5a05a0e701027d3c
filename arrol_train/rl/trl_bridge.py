"""Everything that reaches into TRL's trainer (1.16): what is read from it, done to it, and handed to it.

TRL knows engines of its own only; for any other it has the experimental ``rollout_func``. What that leaves open is
done here by names that TRL does not promise to keep, so that a new version is looked through in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from transformers import TrainerCallback

from arrol_train.rewards import Row
from arrol_train.rl.advantages import GroupRewards, advantages
from arrol_train.rl.config import ConfigError
from arrol_train.rl.group import Group
from arrol_tts.errors import InputError

if TYPE_CHECKING:
    from trl import GRPOTrainer
    from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

    from arrol_train.rl.rollout_worker import RolloutWorker

CHECKPOINT_FOLDER = "arrol"
"""Inside TRL's checkpoint folders; there once a checkpoint is complete."""

TRLS_OWN = frozenset({"prompt", "prompts", "completions", "env_mask"})
"""Names under which TRL has something of its own for the reward functions or for itself."""

ROW_MEANS = frozenset({"grpo", "sapo", "dr_grpo", "luspo"})
"""TRL's losses that are divided by the number of rows; the others by that of tokens."""


class TrainedPolicy:
    """The policy as TRL's trainer holds it.

    Args:
        trainer: whose model is sampled and trained.
    """

    def __init__(self, trainer: GRPOTrainer) -> None:
        self._trainer = trainer

    @property
    def step(self) -> int:
        """Optimiser steps that were taken."""
        return int(self._trainer.state.global_step)

    @property
    def process(self) -> int:
        """Number of this process among those that train."""
        return int(self._trainer.accelerator.process_index)

    @property
    def is_training(self) -> bool:
        """Whether the rollouts that TRL asks for are trained on; otherwise it evaluates."""
        return bool(self._trainer.model.training)

    @property
    def group_size(self) -> int:
        """How often TRL repeats each prompt."""
        return int(self._trainer.num_generations if self.is_training else self._trainer.num_generations_eval)

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""
        return self._trainer.processing_class

    @property
    def checkpoint(self) -> Path:
        """Where what we keep beside TRL's checkpoint of this step lies, when there is one."""
        return beside_checkpoint(self._trainer.args, self.step)

    def complete_checkpoints(self, save: Callable[[Path], None], load: Callable[[Path, int], None]) -> None:
        """Have TRL's checkpoints completed.

        Args:
            save: called whenever TRL has written one, with a folder of its own in there.
            load: called when training begins, with that folder of the step it begins at, which need not be there,
                and the step.
        """
        self._trainer.add_callback(_Checkpoints(save, load))

    def correct_mismatch(self) -> None:
        """Let TRL weigh tokens by the ratio of its own to the engine's probabilities.

        It does so only where it believes to have vLLM itself. That stays unused: with a rollout function TRL asks
        it for nothing but ``sync_weights``, once a step.
        """
        trainer: Any = self._trainer
        trainer.use_vllm = True
        trainer.vllm_generation = _NoSync()
        trainer._last_loaded_step = -1

    @torch.no_grad()
    def logprobs(
        self, prompt_ids: Sequence[int], token_ids: Sequence[int], temperature: float
    ) -> NDArray[np.float32]:
        """The trainer's own log-probabilities of tokens after a prompt: float32 ``[len(token_ids)]``."""
        ids = torch.tensor([[*prompt_ids, *token_ids]], device=self._trainer.accelerator.device)
        logits = self._trainer.model(input_ids=ids, logits_to_keep=len(token_ids) + 1).logits[0, :-1].float()
        logprobs = (logits / temperature).log_softmax(-1)
        own: NDArray[np.float32] = logprobs.gather(1, ids[0, -len(token_ids) :, None])[:, 0].cpu().numpy()
        return own

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The policy's weights under the names of its checkpoint, adapters merged, shards gathered.

        Every process must iterate to the end, since gathering is collective. A tensor is whole until the next one
        is asked for. Adapters merge into whole tensors only: under DeepSpeed ZeRO-3 all are gathered for them.
        """
        model: Any = self._trainer.accelerator.unwrap_model(self._trainer.model)
        if not hasattr(model, "merge_adapter"):
            for name, parameter in model.named_parameters():
                with _gathered([parameter]):
                    yield _checkpoint_name(name), _whole(parameter)
            return
        with _gathered(list(model.parameters())):
            model.merge_adapter()
            try:
                for name, parameter in model.named_parameters():
                    if plain := _checkpoint_name(name):
                        yield plain, _whole(parameter)
            finally:
                model.unmerge_adapter()

    def save(self, folder: Path) -> None:
        """Write model and tokenizer, adapters merged. Every process must call; the main one writes."""
        accelerator = self._trainer.accelerator
        main, weights = accelerator.is_main_process, {}
        for name, tensor in self.weights():
            if main:
                weights[name] = tensor.detach().to("cpu", copy=True)
        if not main:
            return
        model: Any = accelerator.unwrap_model(self._trainer.model)
        saved = model.state_dict().keys()
        weights |= {_checkpoint_name(name): each.cpu() for name, each in model.named_buffers() if name in saved}
        plain = model.get_base_model() if hasattr(model, "merge_adapter") else model
        plain.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)


class Scoring:
    """What TRL's trainer makes of rewards, where it would be wrong for rollouts like ours.

    An ungraded rollout is None to TRL, which then leaves it out of its group's mean and standard deviation and
    gives it no advantage; `trl_columns` masks its tokens. Two things are left. Other reward functions, such as the
    punishment of length, would give it a reward after all: it is masked in every column. And losses that are a
    mean over rows would count it: their advantages are stretched by the share of the rows that are graded, so that
    the gradient is that of a batch without the ungraded.

    Args:
        trainer: two of its methods are wrapped.
        baseline: gives the groups whose survivors are the rows of the last training batch, for advantages from all
            that were started (`arrol_train.rl.advantages`); None leaves TRL's.
        reward_func: of the trainer's, the one that says right or wrong.

    Raises:
        InputError: when the trainer's settings cannot go with that baseline.
    """

    def __init__(
        self,
        trainer: GRPOTrainer,
        baseline: Callable[[], Sequence[Group]] | None = None,
        reward_func: Callable[..., Any] | None = None,
    ) -> None:
        trl: Any = trainer
        self._trainer = trl
        self._stretch = {True: 1.0, False: 1.0}  # in training, in evaluation
        self._calculate, self._loss = trl._calculate_rewards, trl._compute_loss
        trl._calculate_rewards, trl._compute_loss = self._masked_rewards, self._stretched_loss
        if baseline is not None:
            if trl.multi_objective_aggregation != "sum_then_normalize":
                raise InputError("baseline 'all' adds rewards up: set multi_objective_aggregation to its default")
            self._column = trl.reward_funcs.index(reward_func)
            self._weight = float(trl.reward_weights[self._column])
            if not self._weight > 0:
                raise InputError(f"the task's reward has the weight {self._weight:g}; baseline 'all' needs more")
            self._groups = baseline
            self._score = trl._generate_and_score_completions
            trl._generate_and_score_completions = self._scored

    def _masked_rewards(self, inputs: list[dict[str, Any]], *others: Any) -> torch.Tensor:
        """``[rows of all processes, functions]``, nan in the rows of the ungraded."""
        rewards: torch.Tensor = self._calculate(inputs, *others)
        flags = [int(row.get("rollout_reward", 0.0) is None) for row in inputs]
        ungraded = self._trainer.accelerator.gather(torch.tensor(flags, device=rewards.device)).bool()
        rewards[ungraded] = torch.nan
        self._stretch[self._trainer.model.training] = len(ungraded) / max(1, int((~ungraded).sum()))
        self._rewards = rewards
        return rewards

    def _stretched_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        stretch = self._stretch[self._trainer.model.training]
        if stretch != 1 and self._trainer.loss_type in ROW_MEANS:
            inputs = inputs | {"advantages": inputs["advantages"] * stretch}
        return self._loss(model, inputs)

    def _scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with our advantages."""
        batch: dict[str, Any] = self._score(inputs)
        trainer = self._trainer
        if not trainer.model.training:
            return batch
        first, size = trainer.accelerator.process_index * len(inputs), trainer.num_generations
        known: list[GroupRewards] = gather_object(
            [self._group_rewards(group, first + i * size) for i, group in enumerate(self._groups())]
        )
        every = np.concatenate(advantages(known, trainer.scale_rewards, self._weight))
        own = every[first : first + len(inputs)]
        batch["advantages"] = torch.tensor(own, dtype=torch.float32, device=batch["advantages"].device)
        logged = trainer._logs["advantages"]  # for the table of completions
        for _ in every:
            logged.pop()
        logged.extend(every.tolist())
        return batch

    def _group_rewards(self, group: Group, first: int) -> GroupRewards:
        """Of the group whose rows, among those of all processes, begin at ``first``."""
        rows = self._rewards[first : first + len(group.survivors)].double().cpu().numpy()
        weights = self._trainer.reward_weights.double().cpu().numpy()
        total = np.where(np.isnan(rows).all(axis=1), np.nan, np.nansum(rows * weights, axis=1))
        return GroupRewards(total, self._weight * rows[:, self._column], self._weight * group.expected_of_others())


def trl_columns(groups: Sequence[Group], rows: Sequence[Row]) -> dict[str, Any]:
    """What a ``rollout_func`` returns: the survivors, group by group.

    A group need not be of the row that TRL asked for, so the columns of its own go to the reward functions, in
    place of what TRL's dataset has under the same names. Only the prompt stays the one that was asked for.

    Args:
        groups: that have ended.
        rows: the training questions.

    Returns:
        ``prompt_ids``, ``completion_ids``, ``logprobs`` (None where the engine gives none) and ``rollout_reward``,
        which TRL passes on to the reward functions, None for the ungraded; where there are any, ``env_mask``,
        which keeps their tokens out of the loss and of what it is divided by; and the columns of the rows.
    """
    survivors = [(group, rollout) for group in groups for rollout in group.survivors]
    logprobs = [rollout.logprobs for _, rollout in survivors]
    names = dict.fromkeys(name for group in groups for name in rows[group.row] if name not in TRLS_OWN)
    columns: dict[str, Any] = {name: [rows[group.row].get(name) for group, _ in survivors] for name in names}
    columns |= {
        "prompt_ids": [group.prompt_ids for group, _ in survivors],
        "completion_ids": [rollout.token_ids for _, rollout in survivors],
        "logprobs": None if any(row is None for row in logprobs) else logprobs,
        "rollout_reward": [rollout.reward for _, rollout in survivors],
    }
    if any(rollout.reward is None for _, rollout in survivors):
        columns["env_mask"] = [
            [int(rollout.reward is not None)] * len(rollout.token_ids) for _, rollout in survivors
        ]
    return columns


def async_samples(groups: Sequence[Group], worker: RolloutWorker, version: int) -> list[RolloutSample]:
    """What asynchronous GRPO's queue takes: the survivors, group by group, without the ungraded.

    Args:
        groups: that have ended.
        worker: that rolled them out.
        version: of the policy that did.

    Raises:
        InputError: when the engine gave no log-probabilities, which the ratio of policies needs.
    """
    from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

    samples = []
    for group in groups:
        prompt = worker.rows[group.row]["prompt"]
        rewards = group.survivors_rewards
        deviation = float(np.nanstd(rewards)) if not np.isnan(rewards).all() else 0.0
        if worker.config.needs_posterior:
            (found,) = advantages([GroupRewards(rewards, rewards, group.expected_of_others())])
        else:
            found = (rewards - np.nanmean(rewards)) / (deviation + 1e-8)
        for rollout, advantage in zip(group.survivors, found, strict=True):
            if rollout.reward is None:
                continue
            if rollout.logprobs is None:
                raise InputError("the engine returns no log-probabilities, which asynchronous GRPO needs")
            text = worker.tokenizer.decode(rollout.token_ids, skip_special_tokens=True)
            before, after = len(group.prompt_ids), len(rollout.token_ids)
            samples.append(
                RolloutSample(
                    prompt=[{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt),
                    completion=[{"role": "assistant", "content": text}],
                    input_ids=np.array([*group.prompt_ids, *rollout.token_ids], np.int64),
                    completion_mask=np.repeat([0, 1], [before, after]),
                    old_log_probs=np.array([0.0] * before + rollout.logprobs, np.float32),
                    advantage=float(advantage),
                    model_version=version,
                    group_id=group.id,
                    metrics={"reward": rollout.reward, "reward_std": deviation},
                )
            )
    return samples


def log_metrics(columns: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Give metrics to TRL's log, from inside a reward function.

    A reward function's ``log_metric`` is the one public way into TRL's log, its history and whatever a script
    reports to: a callback is called after these.

    Args:
        columns: the keyword arguments that TRL calls a reward function with.
        metrics: the same on every process, since TRL takes the mean over these.
    """
    if log_metric := columns.get("log_metric"):
        for name, value in metrics.items():
            log_metric(name, value)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in TRL's output folder, None when there is none."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{CHECKPOINT_FOLDER}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def check_checkpoint(checkpoint: Path, trainer: GRPOTrainer) -> None:
    """Refuse a checkpoint that the trainer, started as it is, cannot go on from.

    One that is not sharded goes on with any number of processes, as does FSDP's; DeepSpeed's only with as many as
    wrote it.

    Raises:
        ConfigError: when it was sharded in another way, or by another number of DeepSpeed processes.
    """
    accelerator = trainer.accelerator
    now = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed"}.get(accelerator.distributed_type.value, "neither of both")
    wrote = "neither of both"
    if any(checkpoint.glob("pytorch_model_fsdp*")):
        wrote = "FSDP"
    elif (checkpoint / "latest").exists():
        wrote = "DeepSpeed"
    if wrote != now:
        raise ConfigError(
            f"of FSDP and DeepSpeed, {wrote} wrote {checkpoint} and {now} is to go on from it: start the run as "
            "it was started then, or choose another output folder to start afresh"
        )
    processes = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    if processes and processes != accelerator.num_processes:
        raise ConfigError(
            f"{processes} DeepSpeed processes wrote {checkpoint} and {accelerator.num_processes} are to go on "
            "from it: start as many as then, or choose another output folder to start afresh"
        )


def beside_checkpoint(args: Any, step: int) -> Path:
    """Where what we keep beside TRL's checkpoint of a step lies, when there is one."""
    return Path(args.output_dir) / f"checkpoint-{step}" / CHECKPOINT_FOLDER


def train(trainer: GRPOTrainer, checkpoint: Path | None) -> None:
    """Take the steps that are left after a checkpoint, all without one.

    Where there are none, the trainer has what the checkpoint holds. By itself it would take one step too many
    then, unless the last step ended an epoch: it looks at their number after a step only.
    """
    trainer.add_callback(_NoStepTooMany())
    with suppress(_NoStepLeftError):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


class _NoStepLeftError(Exception):
    """The checkpoint that training goes on from is that of the last step."""


class _NoStepTooMany(TrainerCallback):
    """Ends training before a batch is drawn, where all steps were taken before it began."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            raise _NoStepLeftError


class _Checkpoints(TrainerCallback):
    """Completes TRL's checkpoints: called when all else is written, and read."""

    def __init__(self, save: Callable[[Path], None], load: Callable[[Path, int], None]) -> None:
        self._save, self._load = save, load

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._load(beside_checkpoint(args, state.global_step), state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._save(beside_checkpoint(args, state.global_step))


class _NoSync:
    """Stands where TRL would have its own vLLM: weights are pushed by PrunedRollout."""

    def sync_weights(self) -> None:
        """Nothing to do."""


def _checkpoint_name(name: str) -> str:
    """A parameter's name without its wrappers; "" for an adapter's own."""
    if "lora_" in name or "original_module" in name:
        return ""
    for wrapper in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "base_model.model."):
        name = name.replace(wrapper, "")
    return name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def _gathered(parameters: list[torch.nn.Parameter]) -> Any:
    """A context in which parameters of DeepSpeed ZeRO-3 are whole; others are let be."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def _whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A parameter's tensor, gathered where FSDP2 shards it."""
    tensor: Any = parameter.data
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole
