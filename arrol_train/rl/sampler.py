"""Groups of rollouts: generated, pruned at the detection positions, graded as they end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from arrol_train.positions import FINISH
from arrol_train.rewards import Grader, Row
from arrol_train.rl.config import Detection, RolloutConfig
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.selection import select
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import TraceSpec

if TYPE_CHECKING:
    from arrol_tts.engine.base import Engine
    from arrol_tts.head import QualityHead
    from arrol_tts.trace import Trace

    class TrainableEngine(Engine, Protocol):
        """An engine whose weights can be replaced, and that several threads may sample from."""

        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None: ...
        def load_head(self, head: QualityHead) -> None: ...


@dataclass(slots=True)
class State:
    """The head's input at a position, and what the head made of it."""

    features: NDArray[np.float32]
    score: float


@dataclass(slots=True)
class Rollout:
    """One rollout of a group.

    Attributes:
        token_ids: generated so far.
        logprobs: of these tokens, None where the engine gives none.
        reward: 0 or 1 once it has ended, None before, and for the pruned for ever.
        inclusion: probability that it was to be kept so far.
        states: by detection position, and by `FINISH` for the last.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    reward: float | None = None
    inclusion: float = 1.0
    states: dict[int, State] = field(default_factory=dict)


@dataclass(slots=True)
class Group:
    """The rollouts of one prompt.

    Attributes:
        row: of the question.
        prompt_ids: its prompt.
        rollouts: all that were started.
        survivors: those that are trained on.
        early: rollouts that had ended at the last detection position.
    """

    row: int
    prompt_ids: list[int]
    rollouts: list[Rollout]
    survivors: list[Rollout] = field(default_factory=list)
    early: int = 0

    @property
    def has_signal(self) -> bool:
        """Whether the survivors' rewards differ."""
        return len({rollout.reward for rollout in self.survivors}) > 1


class GroupSampler:
    """Generates groups with an engine, and prunes them with the head and the policy of a configuration.

    Groups may be rolled out from several threads at once.

    Args:
        engine: samples.
        rows: the questions, with ``prompt`` and whatever the reward wants.
        grade: 0 or 1 for a rollout that has ended.
        config: how rollouts are generated and pruned.
        head: reads the rollouts; None only where nothing is pruned, or at random.
        tokenizer: the policy's.
        seed: of the sampling.
    """

    def __init__(
        self,
        engine: TrainableEngine,
        rows: Sequence[Row],
        grade: Grader,
        config: RolloutConfig,
        head: OnlineHead | None,
        tokenizer: Any,
        seed: int,
    ) -> None:
        self.engine, self.grade, self.config, self.head = engine, grade, config, head
        self._rows, self._tokenizer, self._seed = rows, tokenizer, seed

    def roll(
        self,
        row: int,
        name: str,
        size: int,
        detect: Sequence[Detection],
        rng: np.random.Generator | None = None,
    ) -> Group:
        """Generate a group, pruning it at every detection position."""
        group = Group(
            row, encode_prompt(self._tokenizer, self._rows[row]["prompt"]), [Rollout() for _ in range(size)]
        )
        group.survivors = list(group.rollouts)
        for point in detect:
            keep = round(point.keep * size)
            if keep == size:
                continue  # read there in passing
            self._extend(group, point.at + 1, f"{name}/{point.at}")
            group.early = sum(rollout.reward is not None for rollout in group.rollouts)
            assert rng is not None
            self.keep(group, keep, point.at, rng)
        self._extend(group, self.config.max_tokens, f"{name}/end")
        return group

    def _extend(self, group: Group, until: int, name: str) -> None:
        """Let the open survivors write on until they have ``until`` tokens, and grade those that end."""
        open_rollouts = [rollout for rollout in group.survivors if rollout.reward is None]
        if not open_rollouts:
            return
        begun = len(open_rollouts[0].token_ids)
        marks = tuple(p.at - begun for p in self.config.detect if begun < p.at < until)
        if begun:
            questions = [
                Question(f"{name}/{i}", token_ids=(*group.prompt_ids, *rollout.token_ids))
                for i, rollout in enumerate(open_rollouts)
            ]
        else:
            questions = [Question(name, token_ids=tuple(group.prompt_ids))]
        sampling = sampling_of(self.config, len(open_rollouts) // len(questions), until - begun, self._seed)
        order = {question.id: i for i, question in enumerate(questions)}
        for trace in self.engine.sample(questions, sampling, self._spec(marks)):
            rollout = open_rollouts[order[trace.question_id] + trace.sample_id]
            self._write(rollout, trace, begun, marks)
            if trace.finish_reason == "stop":
                text = self._tokenizer.decode(rollout.token_ids, skip_special_tokens=True)
                rollout.reward = self.grade(self._rows[group.row], text)
            elif len(rollout.token_ids) >= self.config.max_tokens:
                rollout.reward = 0.0  # cut off: it has no answer
            if rollout.reward is not None and trace.features:
                rollout.states[FINISH] = _state_at(trace, trace.num_tokens - 1)

    @staticmethod
    def _write(rollout: Rollout, trace: Trace, begun: int, marks: Iterable[int]) -> None:
        rollout.token_ids += trace.token_ids or []
        if trace.logprobs is None or rollout.logprobs is None:
            rollout.logprobs = None
        else:
            rollout.logprobs += trace.logprobs.tolist()
        for mark in marks:
            if mark in trace.features:
                rollout.states[begun + mark] = _state_at(trace, mark)

    def keep(self, group: Group, keep: int, position: int, rng: np.random.Generator) -> None:
        """Choose the survivors among those of before; a rollout that has ended has a known reward."""
        candidates = group.survivors
        if keep == len(candidates):
            return
        known = np.array([rollout.reward is not None for rollout in candidates])
        scores = np.full(len(candidates), 0.5)
        tau = 0.0
        if self.head is not None and position != FINISH:
            states = [rollout.states.get(position) for rollout in candidates]
            scores = np.array([state.score if state else 0.5 for state in states])
            tau = self.head.tau_at(position)
        q = self.head.posterior(scores, position) if self.head is not None else scores
        rewards = np.array([rollout.reward or 0.0 for rollout in candidates])
        selection = select(
            self.config.policy,
            np.where(known, rewards, q),
            keep,
            rng,
            known=known,
            scores=scores,
            exploration=self.config.exploration,
            tau=tau,
            **self.config.policy_options,
        )
        for rollout, share in zip(candidates, selection.inclusion, strict=True):
            if rollout.reward is None:  # a known reward is learned from whether it is kept or not
                rollout.inclusion *= float(share)
        group.survivors = [candidates[i] for i in selection.kept]

    def _spec(self, marks: tuple[int, ...]) -> TraceSpec:
        if self.head is None:
            return TraceSpec(logprobs=True)
        return TraceSpec(logprobs=True, score_at=marks, score_finish=True, features_at=marks, features_finish=True)


def sampling_of(config: RolloutConfig, n: int, max_tokens: int, seed: int) -> Sampling:
    """How ``n`` rollouts of a prompt are sampled."""
    return Sampling(n=n, temperature=config.temperature, top_p=config.top_p, max_tokens=max_tokens, seed=seed)


def _state_at(trace: Trace, position: int) -> State:
    return State(trace.features[position], trace.scores.get(position, 0.5))
