"""The configuration of a training run: a YAML file, checked before anything loads."""

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from arrol_train.rl.posterior import POSTERIORS
from arrol_tts.engine.request import Sampling
from arrol_tts.errors import InputError
from arrol_tts.files import differences
from arrol_tts.stopping import KeepSubset
from arrol_tts.stopping.selection import POLICIES

CONFIGS = Path(__file__).parents[1] / "configs"
"""Where the built-in configurations are."""


class ConfigError(InputError):
    """A configuration that cannot be run; the message says what to change."""


REFUSED: dict[str, float] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
}
"""Options of the sampling that rollouts for training cannot have, and the value at which each is off.

They draw tokens from another distribution than the policy's whole one. With ``top_p`` or ``top_k`` the policy's
log-probability of a token is renormalised over the tokens that were left, whose sum has a gradient of its own; TRL
computes neither, and no ratio of probabilities brings back tokens that could not be drawn.
"""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


BOUNDED = frozenset({"published", "group_signed"})
"""Policies that bound the survival probability."""

NO_POSTERIOR = "baseline 'all' asks the head what the pruned were worth: add one, or choose 'survivors'"

FEWEST_REWARDS = 32
"""Rollouts that a share of failed rewards is judged over, those of several steps where one has fewer."""


class Detection(_Section):
    """A position at which groups are pruned.

    Attributes:
        at: in generated tokens.
        keep: share of the *whole* group that goes on; 1 reads the head there and prunes nothing.
        candidates: positions among which ``at``, the first choice, is chosen anew as the head learns: where a
            group teaches most for its tokens; none: it stays.
    """

    at: int = Field(ge=1)
    keep: float = Field(gt=0, le=1)
    candidates: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _is_candidate(self) -> Detection:
        ascending = list(self.candidates) == sorted(set(self.candidates))
        if self.candidates and (not ascending or self.at not in self.candidates or self.candidates[0] < 1):
            raise ValueError(f"candidates must ascend from 1 or more, and the position {self.at} be one of them")
        return self


class RolloutConfig(_Section):
    """How rollouts are generated and pruned.

    Attributes:
        group: G, rollouts started for each prompt (paper: 16).
        detect: detection positions in ascending order, whose keep ratios fall; none: nothing is pruned.
        policy: which rollouts survive, one of `arrol_tts.stopping.selection.POLICIES`.
        policy_options: of the policy: ``rho``, ``strength``, ``p_min``, ``p_max``.
        exploration: probability that a group's survivors are a uniformly random subset.
        prune: when rollouts are pruned: ``early``, at the detection positions; or ``after`` all have ended, by
            their rewards, so that only the update is cheaper and no head is needed (as PODS, arXiv 2504.13818).
        choose_in: where the survivors of early pruning are chosen. ``engine``: inside it, by a stopping rule, and
            they go on as the requests that they are. ``trainer``: beside it; all requests end at the position, and
            the survivors go on as requests of their own. ``auto``: in the engine where it can run the run's head.
        cold_start: first steps in which all G rollouts are finished (paper: 20).
        max_tokens: limit on the generated tokens of a rollout.
        temperature: of the sampling.
        stop: texts that end a rollout, beside the end-of-sequence token. One that straddles a detection position
            goes unnoticed; what comes after it is not graded.
        stop_token_ids: tokens that end a rollout.
        max_group: most rollouts of a prompt where G is chosen for each: M, and as many more as pay for their
            tokens, by its success rate at earlier visits and by how well the head ranks; ``group`` on average at
            most; None: G for every prompt.
        revisit: a prompt whose last n groups had no signal is rolled out with the probability ``revisit ** n``,
            otherwise a further one in its place (as GRESO, arXiv 2506.02177); 1 is off.
        start_prompts: so many times the prompts of a step are started, after the cold start, and at the first
            detection position the groups go whole whose rewards are expected to vary least; 1 is off.
        refills: DAPO's dynamic sampling: how often groups without signal are replaced by those of further
            prompts; 0 is off.
        baseline: what a reward is compared with: the mean of the ``survivors``, or of ``all`` that were started,
            the pruned by the head's posterior (`arrol_train.rl.advantages`).
        reward_timeout: seconds after which a reward function is taken to hang on a rollout.
        max_failed_rewards: share of a step's rollouts on which the reward function may raise or hang before the
            run is stopped; below it these rollouts are left out. Judged over at least `FEWEST_REWARDS` rollouts.
        correct_mismatch: let TRL weigh tokens by the ratio of its own to the engine's probabilities; TRL
            computes its log-probabilities once more for it.
    """

    group: int = Field(default=16, ge=2)
    detect: tuple[Detection, ...] = ()
    policy: str = "tails"
    policy_options: dict[str, float] = {}
    exploration: float = Field(default=0.1, ge=0, le=1)
    prune: Literal["early", "after"] = "early"
    choose_in: Literal["auto", "engine", "trainer"] = "trainer"
    cold_start: int = Field(default=20, ge=0)
    max_tokens: int = Field(default=1024, ge=2)
    temperature: float = Field(default=1.0, gt=0, le=100)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_group: int | None = Field(default=None, ge=2)
    revisit: float = Field(default=1.0, gt=0, le=1)
    start_prompts: float = Field(default=1.0, ge=1)
    refills: int = Field(default=0, ge=0)
    baseline: Literal["survivors", "all"] = "survivors"
    reward_timeout: float = Field(default=30.0, gt=0)
    max_failed_rewards: float = Field(default=0.1, ge=0, le=1)
    correct_mismatch: bool = True

    @property
    def survivors(self) -> int:
        """M, the rollouts of a group that are trained on."""
        return round(self.group * self.detect[-1].keep) if self.detect else self.group

    @property
    def positions(self) -> tuple[int, ...]:
        """Where the head reads: the detection positions, then other candidates."""
        at = [point.at for point in self.detect]
        return (*at, *(other for point in self.detect for other in point.candidates if other not in at))

    @property
    def chooses(self) -> bool:
        """Whether rollouts are pruned by what a head says of them."""
        return self.survivors < self.group and self.policy != "random" and self.prune == "early"

    @property
    def needs_posterior(self) -> bool:
        """Whether the baseline counts rollouts that only a head can say something of."""
        return self.baseline == "all" and self.survivors < self.group

    def check_headless(self) -> None:
        """Refuse options, beside the policy, that go by what a head says.

        Raises:
            InputError: naming the option.
        """
        if self.needs_posterior:
            raise InputError(NO_POSTERIOR)
        if len(self.positions) > len(self.detect):
            raise InputError("candidates go by how well the head ranks: add one, or leave them out")
        if self.max_group:
            raise InputError("max_group goes by how well the head ranks: add one, or leave it out")
        if self.start_prompts > 1:
            raise InputError("start_prompts goes by what the head says: add one, or leave it out")

    def further_prompts(self, prompts: int) -> int:
        """How many prompts `start_prompts` adds to so many of a process, after the cold start."""
        return round((self.start_prompts - 1) * prompts)

    def check_prompts(self, prompts: int) -> None:
        """Refuse a `start_prompts` that adds nothing to so many prompts of a process.

        Raises:
            InputError: saying from which on it does.
        """
        if self.start_prompts > 1 and not self.further_prompts(prompts):
            raise InputError(
                f"start_prompts {self.start_prompts:g} adds none to {prompts} prompts on each process: make it "
                f"{1 + 1 / prompts:g} at least, or give a process more prompts"
            )

    @property
    def sampling(self) -> Sampling:
        """How whole rollouts are sampled, but for their number and seed."""
        return Sampling(
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
        )

    @model_validator(mode="before")
    @classmethod
    def _whole_distribution(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, off in REFUSED.items():
                if data.get(name, off) != off:
                    raise ValueError(
                        f"{name}: TRL computes the policy's log-probabilities without it, and so would learn from "
                        f"tokens of another distribution: leave it out ({off:g} is off)"
                    )
            data = {name: value for name, value in data.items() if name not in REFUSED}
        return data

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, policy: str) -> str:
        if policy not in POLICIES:
            raise ValueError(f"there is no policy {policy!r}; choose one of {', '.join(POLICIES)}")
        return policy

    @field_validator("policy_options")
    @classmethod
    def _known_options(cls, options: dict[str, float]) -> dict[str, float]:
        known = {"rho", "strength", "p_min", "p_max"}
        if unknown := sorted(set(options) - known):
            raise ValueError(f"a policy has no option {unknown[0]!r}; there are {', '.join(sorted(known))}")
        try:
            _bounds("published", options)
        except InputError as error:
            raise ValueError(str(error).removeprefix("keep_subset.")) from None
        return options

    @model_validator(mode="after")
    def _fits(self) -> RolloutConfig:
        before = Detection(at=1, keep=1.0)
        for i, point in enumerate(self.detect):
            survivors = point.keep * self.group
            if abs(survivors - round(survivors)) > 1e-6:
                raise ValueError(
                    f"keep {point.keep:g} of {self.group} rollouts is {survivors:g}, which is not whole: choose "
                    "keep as a multiple of 1 / group"
                )
            if round(survivors) < 2:
                raise ValueError(
                    f"keep {point.keep:g} of {self.group} leaves {survivors:g}: advantages need at least 2"
                )
            if point.at >= self.max_tokens:
                raise ValueError(
                    f"detection position {point.at} is beyond the completion length max_tokens={self.max_tokens}: "
                    "use a position below it, or raise max_tokens"
                )
            if i and (point.at <= before.at or point.keep > before.keep):
                raise ValueError(
                    "detection positions must ascend and their keep ratios must not: "
                    f"{before.at} keeps {before.keep:g}, then {point.at} keeps {point.keep:g}"
                )
            before = point
        self._check_bounds()
        try:
            _ = self.sampling
        except InputError as error:
            raise ValueError(str(error)) from None
        if len(self.positions) > len(self.detect):
            if len(self.detect) > 1 or not self.chooses:
                raise ValueError(
                    "candidates are for one detection position, at which rollouts are pruned by the head"
                )
            if max(self.positions) >= self.max_tokens:
                raise ValueError(
                    f"candidate position {max(self.positions)} is beyond the completion length "
                    f"max_tokens={self.max_tokens}: leave it out, or raise max_tokens"
                )
        if self.prune == "after" and (self.max_group or self.start_prompts > 1):
            raise ValueError("prune 'after' finishes every rollout: leave out max_group and start_prompts")
        if self.max_group and self.max_group < self.group:
            raise ValueError(f"max_group is {self.max_group}: make it at least the group of {self.group}")
        if self.max_group and (len(self.detect) != 1 or self.survivors == self.group):
            raise ValueError("max_group is for one detection position, at which rollouts are pruned")
        if self.max_group and self.policy == "random":
            raise ValueError("max_group gains nothing with the policy 'random': choose another, or leave it out")
        if self.start_prompts > 1 and not self.detect:
            raise ValueError(
                "start_prompts prunes groups at the first detection position: add one, of keep 1 where no rollout "
                "is to be pruned, or leave it at 1"
            )
        by_ranks = {"max_group": self.max_group, "candidates": len(self.positions) > len(self.detect)}
        for name in (name for name, is_set in by_ranks.items() if is_set and not self.exploration):
            raise ValueError(
                f"{name} goes by how well the head ranks, which is learned from groups that are pruned at random, "
                f"and exploration is 0: raise it, or leave {name} out"
            )
        if self.policy == "none" and self.survivors != self.group:
            raise ValueError("policy 'none' keeps everybody: leave detect out, or choose another policy")
        return self

    def _check_bounds(self) -> None:
        """Refuse shares that a policy with bounds of the survival probability cannot keep.

        Raises:
            ValueError: naming the first.
        """
        if self.policy not in BOUNDED:
            return
        rule = _bounds(self.policy, self.policy_options)
        kept = [self.survivors] if self.prune == "after" else [round(p.keep * self.group) for p in self.detect]
        stages = [*itertools.pairwise([self.group, *kept])]
        if self.max_group:
            stages.append((self.max_group, self.survivors))
        for size, keep in stages:
            if keep < size and not rule.p_min <= keep / size <= rule.p_max:
                raise ValueError(
                    f"policy {self.policy!r} keeps a share between p_min {rule.p_min:g} and p_max {rule.p_max:g}, "
                    f"and {keep} of {size} rollouts are to go on: keep others, change policy_options, or choose "
                    "another policy"
                )


def _bounds(policy: str, options: dict[str, Any]) -> KeepSubset:
    """A rule with a policy's options, for its checks and defaults."""
    return KeepSubset(1, 1, policy, **options)


class OnlineTraining(_Section):
    """How the head learns on the fly.

    Attributes:
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        ranking: weight of the within-group ranking term.
        groups_per_batch: groups that form a batch; 32 in the configuration of a head whose pooling is ``last``.
        positions: for a head that pools, random positions at which the rollouts of a group are compared, beside
            their ends.
        max_weight: bound of the inverse-propensity weight of a row.
        posterior: ``histogram`` (the paper) or ``isotonic``.
        posterior_rows: newest rows of a position that its posterior and group effect are fitted on.
    """

    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    ranking: float = Field(default=1.0, ge=0)
    groups_per_batch: int = Field(default=8, ge=1)
    positions: int = Field(default=4, ge=0)
    max_weight: float = Field(default=10.0, ge=1)
    posterior: str = "histogram"
    posterior_rows: int = Field(default=2048, ge=1)

    @field_validator("posterior")
    @classmethod
    def _known_posterior(cls, posterior: str) -> str:
        if posterior not in POSTERIORS:
            raise ValueError(f"there is no posterior {posterior!r}; choose one of {', '.join(POSTERIORS)}")
        return posterior


class HeadConfig(_Section):
    """The quality head that learns on the fly.

    Attributes:
        pooling: how the states of a rollout make one score (`arrol_tts.head_config.Pooling`); ``last`` reads the
            state at each detection position and at the end alone, and learns from these.
        stride: of the states that a pooling head reads, every stride-th token's; by default about 128 of a rollout
            of max_tokens, and 16 before the first detection position.
        inner_size: width of its MLP; 0 is linear, which only pooling heads can be. By default 128 for ``last``.
        updates: optimiser steps after each step of the policy.
        buffer_rows: rows of the replay buffer: states at the detection positions and the end.
        buffer_mib: MiB that whole rollouts' states may take, of which a pooling head learns.
        training: how it learns.
        start_from: folder or hub id of a head to start with instead of an untrained one.
        refit: train a head once more at the end of the run, on all that the buffer holds, and leave that one where
            it is better (`arrol_train.rl.refit`).
    """

    pooling: Literal["last", "mean", "gated"] = "mean"
    stride: int | None = Field(default=None, ge=1)
    inner_size: int = Field(default=32, ge=0)
    updates: int = Field(default=8, ge=0)
    buffer_rows: int = Field(default=8192, ge=1)
    buffer_mib: int = Field(default=1024, ge=1)
    training: OnlineTraining = OnlineTraining()
    start_from: str | None = None
    refit: bool = True

    @model_validator(mode="before")
    @classmethod
    def _as_before(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("pooling") == "last":
            training = data.get("training", {})
            if isinstance(training, dict):
                training = {"groups_per_batch": 32} | training
            data = {"inner_size": 128} | data | {"training": training}
        return data

    @model_validator(mode="after")
    def _fits(self) -> HeadConfig:
        if self.pooling == "last" and self.inner_size == 0:
            raise ValueError("inner_size 0 is for heads that pool: give a size, or another pooling than last")
        if self.pooling == "last" and self.stride not in (None, 1):
            raise ValueError(
                f"stride is {self.stride}, and a head whose pooling is last pools nothing: leave it out"
            )
        return self


class TaskConfig(_Section):
    """Which questions are trained and tested on.

    Attributes:
        source: ``pocket`` (synthetic), ``reasoning_gym:NAME``, ``hub:OWNER/NAME`` or the path of a file
            (JSON lines, JSON, CSV, Parquet).
        test_source: of the test questions, for ``hub:`` and files: the same forms. Without it, questions are
            split by ``test``.
        train, test: numbers of questions; the two are disjoint.
        question, answer: names of the columns of ``hub:`` and files.
        prompt: what is asked, with ``{question}`` in it.
        rewrite: regular expressions and replacements, applied to the question in order.
        options: of the reasoning-gym dataset.
        reward: ``module:function`` in place of the task's own reward.
        seed: of the questions.
    """

    source: str
    test_source: str | None = None
    train: int = Field(default=4000, ge=1)
    test: int = Field(default=256, ge=0)
    question: str = "question"
    answer: str = "answer"
    prompt: str = "{question}"
    rewrite: tuple[tuple[str, str], ...] = ()
    options: dict[str, Any] = {}
    reward: str | None = None
    seed: int = Field(default=0, ge=0)

    @field_validator("prompt")
    @classmethod
    def _asks(cls, prompt: str) -> str:
        if "{question}" not in prompt:
            raise ValueError("prompt must hold {question}, where the question goes")
        return prompt


class RunConfig(_Section):
    """A run of ``arrol-train rl``.

    Attributes:
        model: path or hub id of the policy, or ``pocket``.
        task: what to train on.
        algorithm: ``grpo`` or ``dapo``: clip-higher, token-level loss, soft overlong punishment, dynamic sampling.
        steps: optimiser steps.
        prompts: distinct prompts of a step, over all processes.
        micro_batch: rollouts of a forward and backward pass on one process; all of them by default.
        rollout: how rollouts are generated and pruned.
        head: the head on the fly; null trains none, which needs a rollout that prunes nothing, or by ``random``.
        learning_rate: peak.
        lr_schedule: ``linear``, ``constant``, ``cosine`` ...: transformers' names.
        warmup: share of the steps.
        beta: weight of the KL term against the initial policy.
        overlong_buffer: DAPO: last tokens before max_tokens in which the punishment grows from 0 to 1; a fifth by
            default.
        lora: options of PEFT's LoraConfig; null trains all weights.
        engine: options of the vLLM engine; with ``servers``, of their client (``shared_folder``, ``api_key``).
        servers: addresses of vLLM servers with the plug-in that generate instead, one for each process; see
            docs/serving.md.
        trl: more options of TRL's GRPOConfig, passed on as they are.
        dtype: of policy and engine.
        save_every, keep_checkpoints: steps between checkpoints, and how many are kept.
        eval_every: steps between evaluations on the test questions; 0: at the end only.
        eval_samples: rollouts per test question.
        tensorboard: write TensorBoard logs beside the JSONL.
        seed: of everything.
    """

    model: str
    task: TaskConfig
    algorithm: Literal["grpo", "dapo"] = "grpo"
    steps: Annotated[int, Field(ge=1)]
    prompts: int = Field(default=8, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    rollout: RolloutConfig = RolloutConfig()
    head: HeadConfig | None = HeadConfig()
    learning_rate: float = Field(default=1e-6, gt=0)
    lr_schedule: str = "linear"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    beta: float = Field(default=0.0, ge=0)
    overlong_buffer: int | None = Field(default=None, ge=1)
    lora: dict[str, Any] | None = None
    engine: dict[str, Any] = {}
    servers: list[str] = []
    trl: dict[str, Any] = {}
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    save_every: int = Field(default=50, ge=1)
    keep_checkpoints: int = Field(default=2, ge=2)
    eval_every: int = Field(default=0, ge=0)
    eval_samples: int = Field(default=4, ge=1)
    tensorboard: bool = True
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.head is None and self.rollout.chooses:
            raise ValueError(f"policy {self.rollout.policy!r} needs a head: add one, or choose 'random'")
        if self.head is None:
            self.rollout.check_headless()
        first = min(self.rollout.positions, default=math.inf)
        if self.head and self.head.stride and first < self.head.stride:
            raise ValueError(
                f"head.stride is {self.head.stride}: up to the detection position {first} the "
                "head would read the prompt's end alone; make it at most that"
            )
        return self

    @property
    def stride(self) -> int:
        """Of the states that the head reads, given or by default."""
        if self.head is None or self.head.pooling == "last":
            return 1
        if self.head.stride:
            return self.head.stride
        most = min([at // 16 for at in self.rollout.positions], default=self.rollout.max_tokens)
        return max(1, min(self.rollout.max_tokens // 128, most))


RESUMABLE = frozenset(
    {"servers", "save_every", "keep_checkpoints", "eval_every", "eval_samples", "tensorboard", "head.refit"}
)
"""Fields that may differ between a checkpoint's run and the one that resumes it."""


def load_config(path: str | Path, changes: dict[str, Any] | None = None) -> RunConfig:
    """Read a configuration file.

    Args:
        path: of a YAML file, or the name of a built-in configuration (``pocket``).
        changes: fields to set over the file's, dotted for sections: ``{"rollout.policy": "random"}``.

    Raises:
        ConfigError: when it is missing, malformed, or cannot work; naming every field that is wrong.
    """
    file = Path(path)
    if not file.is_file() and (CONFIGS / f"{path}.yaml").is_file():
        file = CONFIGS / f"{path}.yaml"
    try:
        data = yaml.safe_load(file.read_text())
    except OSError as error:
        known = ", ".join(sorted(config.stem for config in CONFIGS.glob("*.yaml")))
        raise ConfigError(f"{path} cannot be read ({error.strerror}); built-in configurations: {known}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file} must hold fields such as 'model:' and 'task:'")
    for name, value in (changes or {}).items():
        _set(data, name.split("."), value)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, e['loc'])) or 'the run'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise ConfigError(f"{file}:\n  " + "\n  ".join(wrong)) from None


def check_same(saved: dict[str, Any], config: BaseModel, where: str) -> None:
    """Refuse to go on from a checkpoint of another configuration.

    Args:
        saved: ``model_dump(mode="json")`` of the checkpoint's configuration.
        config: the present one.
        where: the checkpoint, for the message.

    Raises:
        ConfigError: naming the first field that differs.
    """
    if saved.get("head"):  # heads were so before there was a choice
        saved = saved | {"head": {"pooling": "last"} | saved["head"]}
    with suppress(ValidationError):  # fields that the checkpoint's version did not have yet are at their defaults
        saved = type(config).model_validate(saved).model_dump(mode="json")
    found = differences(saved, config.model_dump(mode="json"))
    # A head's pooling is named first: the defaults of other fields follow from it.
    for name, before, now in sorted(found, key=lambda each: each[0] != "head.pooling"):
        if name not in RESUMABLE:
            raise ConfigError(
                f"{where} comes from another run: {name} was {before!r} and is {now!r}. Set it back to go on, or "
                "choose another output folder to start afresh"
            )


def _set(data: dict[str, Any], path: list[str], value: Any) -> None:
    *sections, name = path
    for section in sections:
        if not isinstance(data.get(section), dict):
            data[section] = {}
        data = data[section]
    data[name] = value
