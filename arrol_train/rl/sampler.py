"""Groups of rollouts: generated, pruned at the detection positions, graded as they end.

Pruning is by requests: a group is generated up to a detection position, all its requests end there, and only the
survivors go on, as requests of their own whose beginning the engine has in its prefix cache. Engines also prune
by rules of their own while they generate (``arrol_tts.stopping``), but those choose the best by score, and a
training policy does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arrol_train.positions import FINISH
from arrol_train.rewards import Grader, Row
from arrol_train.rl.config import Detection, RolloutConfig
from arrol_train.rl.group import Group, Rollout
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.prompts import PromptTable
from arrol_train.rl.selection import select
from arrol_train.rl.whole_groups import expected_signal, select_groups
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.engine.stop_texts import before_stop
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import TraceSpec

if TYPE_CHECKING:
    from arrol_tts.engine.base import Engine


class GroupSampler:
    """Generates groups with an engine, and prunes them with the head and the policy of a configuration.

    Args:
        engine: samples.
        rows: the questions, with ``prompt`` and whatever the reward wants.
        grade: 0 or 1 for a rollout that has ended, None where it cannot say.
        config: how rollouts are generated and pruned.
        head: reads the rollouts; None only where nothing is pruned, or at random.
        tokenizer: the policy's.
        seed: rollouts depend on it, the step and the row only.
        prompts: what is known of the questions.
        auroc: of the head within groups at the detection position, as far as it is known.
    """

    def __init__(
        self,
        engine: Engine,
        rows: Sequence[Row],
        grade: Grader,
        config: RolloutConfig,
        head: OnlineHead | None,
        tokenizer: Any,
        seed: int,
        prompts: PromptTable | None = None,
        auroc: float = math.nan,
    ) -> None:
        self.engine, self.grade, self.config, self.head = engine, grade, config, head
        self._rows, self._tokenizer, self._seed = rows, tokenizer, seed
        self._stride = head.stride if head else 0
        self._prompts, self._auroc = prompts or PromptTable(), auroc

    def roll_step(self, rows: Sequence[int], step: int, process: int = 0) -> list[Group]:
        """The groups of a training step, side by side, in the order of their rows.

        Rows whose last groups had no signal may be left out for further ones. Of more that are started the best go
        on past the first detection position, and groups without signal are replaced by those of further rows while
        there are refills.

        Args:
            rows: of the questions.
            step: of the policy.
            process: which of those that train: each has further rows of its own.
        """
        chance = np.random.default_rng((self._seed, step, process))
        others, asked = chance.permutation(len(self._rows)), set(rows)

        def is_due(row: int) -> bool:
            return bool(chance.random() < self.config.revisit ** self._prompts.barren(row))

        further = ((row, 1 + process) for row in others.tolist() if row not in asked and is_due(row))
        starts = [(row, 0) if is_due(row) else next(further, (row, 0)) for row in rows]
        if self._detect(step):
            starts += itertools.islice(further, round((self.config.start_prompts - 1) * len(rows)))
        groups = self._roll_rows(starts, step, len(rows), chance)
        for _ in range(self.config.refills):
            dead = [i for i, group in enumerate(groups) if not group.has_signal]
            fresh = [start for _, start in zip(dead, further, strict=False)]
            if not fresh:
                break
            for i, group in zip(dead, self._roll_rows(fresh, step, len(fresh), chance), strict=False):
                if group.has_signal:
                    groups[i], group = group, groups[i]
                groups[i].give_up(group)
        return groups

    def roll_whole(self, row: int, step: int, size: int) -> Group:
        """A group of which nothing is pruned, outside training."""
        return self._roll(self._begin(row, step, size), f"eval/{step}/{row}", ())

    def _roll_rows(
        self, starts: Sequence[tuple[int, int]], step: int, wanted: int, chance: np.random.Generator
    ) -> list[Group]:
        """Groups of rows, ``wanted`` of them.

        Args:
            starts: rows, and for each 0 where the trainer asked for it, else 1 + the process that added it.
            step: of the policy.
            wanted: how many go on past the first detection position.
            chance: by which these are chosen.
        """
        detect, turns = self._detect(step), dict(starts)

        def begin(group: Group) -> None:
            self._extend(group, detect[0].at + 1, f"{step}/{turns[group.row]}/{group.row}/{detect[0].at}")

        def roll(group: Group) -> None:
            turn = turns[group.row]
            rng = np.random.default_rng((self._seed, step, turn, group.row))
            self._roll(group, f"{step}/{turn}/{group.row}", detect, rng)
            if not detect:
                self._prune(group, self.config.survivors, FINISH, rng)

        groups = [self._begin(row, step, size) for row, size in self._sizes([*turns], step).items()]
        with ThreadPoolExecutor(max_workers=len(groups)) as pool:
            if wanted < len(groups):
                list(pool.map(begin, groups))
                groups = self._best(groups, wanted, detect[0].at, chance)
            list(pool.map(roll, groups))
        return groups

    def _detect(self, step: int) -> Sequence[Detection]:
        """The detection positions in a step: none where all rollouts are finished."""
        is_early = self.config.prune == "early" and step >= self.config.cold_start
        return self.config.detect if is_early else ()

    def _sizes(self, rows: list[int], step: int) -> dict[int, int]:
        """How many rollouts are started for each row."""
        config = self.config
        if config.max_group is None or not self._detect(step) or math.isnan(self._auroc):
            return dict.fromkeys(rows, config.group)
        sizes = self._prompts.group_sizes(rows, config.group, config.survivors, config.max_group, self._auroc)
        return dict(zip(rows, sizes, strict=True))

    def _best(self, groups: list[Group], wanted: int, position: int, chance: np.random.Generator) -> list[Group]:
        """The groups that go on past a position, to which they were written."""
        assert self.head is not None
        signal = [expected_signal(group, self.head, self.config.survivors, position) for group in groups]
        chosen = select_groups(signal, wanted, chance, self.config.exploration)
        best = [groups[i] for i in chosen.kept]
        for group, inclusion in zip(best, chosen.inclusion[chosen.kept].tolist(), strict=True):
            group.inclusion = inclusion
            for rollout in group.rollouts:
                rollout.inclusion = inclusion
        for i in set(range(len(groups))) - set(chosen.kept.tolist()):
            best[0].give_up(groups[i])
        return best

    def _begin(self, row: int, step: int, size: int) -> Group:
        prompt_ids = encode_prompt(self._tokenizer, self._rows[row]["prompt"])
        return Group(step * len(self._rows) + row, row, prompt_ids, [Rollout() for _ in range(size)])

    def _roll(
        self, group: Group, name: str, detect: Sequence[Detection], rng: np.random.Generator | None = None
    ) -> Group:
        """Generate a group, pruning it at every detection position; ``name`` is what seeds are made of."""
        for point in detect:
            keep = round(point.keep * self.config.group)
            if keep >= len(group.survivors):
                continue  # read there in passing
            self._extend(group, point.at + 1, f"{name}/{point.at}")
            group.early = sum(rollout.ended for rollout in group.rollouts)
            assert rng is not None
            self._prune(group, keep, point.at, rng)
        self._extend(group, self.config.max_tokens, f"{name}/end")
        return group

    def _extend(self, group: Group, until: int, name: str) -> None:
        """Let the open survivors write on until they have ``until`` tokens, and grade those that end."""
        open_rollouts = [rollout for rollout in group.survivors if not rollout.ended]
        if not open_rollouts:
            return
        begun = len(open_rollouts[0].token_ids)
        if begun >= until:
            return
        marks = tuple(at - begun for at in sorted(self.config.positions) if begun < at < until)
        if begun:
            questions = [
                Question(f"{name}/{i}", token_ids=(*group.prompt_ids, *rollout.token_ids))
                for i, rollout in enumerate(open_rollouts)
            ]
        else:
            questions = [Question(name, token_ids=tuple(group.prompt_ids))]
        sampling = sampling_of(self.config, len(open_rollouts) // len(questions), until - begun, self._seed)
        order = {question.id: i for i, question in enumerate(questions)}
        for trace in self.engine.sample(questions, sampling, self._spec(marks, begun)):
            rollout = open_rollouts[order[trace.question_id] + trace.sample_id]
            rollout.append(trace, marks, self._stride)
            if trace.finish_reason == "stop":
                text = self._tokenizer.decode(rollout.token_ids, skip_special_tokens=True)
                text = before_stop(text, self.config.stop)
                rollout.end(self.grade(self._rows[group.row], text), trace)
            elif len(rollout.token_ids) >= self.config.max_tokens:
                rollout.cut_off = True
                rollout.end(0.0, trace)

    def _prune(self, group: Group, keep: int, position: int, rng: np.random.Generator) -> None:
        """Choose the survivors among those of before; a rollout that has ended has a known reward.

        The ungraded, of which nothing can be learned, are the first to go.
        """
        candidates = group.survivors
        for rollout in [rollout for rollout in candidates if rollout.ungraded][: len(candidates) - keep]:
            rollout.pruned_at = position
        candidates = group.survivors
        if keep == len(candidates):
            return
        known = np.array([rollout.reward is not None for rollout in candidates])
        scores = np.full(len(candidates), 0.5)
        tau = 0.0
        if self.head is not None and position != FINISH:
            scores = self.head.scores(candidates, position)
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
            exploration=0.0 if position == FINISH else self.config.exploration,
            tau=tau,
            **self.config.policy_options,
        )
        if position != FINISH:  # where all are graded
            group.at_random &= selection.at_random
        kept = set(selection.kept.tolist())
        for i, rollout in enumerate(candidates):
            if rollout.reward is None:  # a known reward is learned from whether it is kept or not
                rollout.inclusion *= float(selection.inclusion[i])
                rollout.posterior, rollout.tau = float(q[i]), tau
            if i not in kept:
                rollout.pruned_at = position
                if rollout.reward is None:
                    rollout.states = None  # nobody learns from it

    def _spec(self, marks: tuple[int, ...], begun: int) -> TraceSpec:
        """What a request is to record that goes on where its rollout had ``begun`` tokens.

        The head is run here and not in the engine, whose sums over a trace begin anew with every request.
        """
        if self.head is None:
            return TraceSpec(logprobs=True)
        stride = self._stride
        return TraceSpec(
            logprobs=True,
            features_at=marks,
            features_every=stride,
            features_from=-begun % stride if stride else 0,
            features_finish=True,
        )


def sampling_of(config: RolloutConfig, n: int, max_tokens: int, seed: int) -> Sampling:
    """How ``n`` rollouts of a prompt are sampled."""
    return replace(config.sampling, n=n, max_tokens=max_tokens, seed=seed)
