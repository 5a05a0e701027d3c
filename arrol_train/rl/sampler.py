"""Groups of rollouts: generated, pruned at the detection positions, graded as they end.

A `KeepSubset` for every group and detection position says who survives, in one of two places. In the engine it is
a stopping rule: a group waits at the position until all have arrived, and the survivors go on as the requests that
they are. Beside the trainer it is asked when all requests have ended at the position, and the survivors go on as
requests of their own, whose beginning the engine has in its prefix cache.

Both choose the same, but for rounding: the engine's head reads the model's own states, the one beside the trainer
what the engine gave of them, in float16. A rollout that ended before the position has a reward, which decides
about its place and which no engine knows. The engine hands its group back, which goes on beside the trainer.
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
from arrol_train.rl.whole_groups import expected_signal, select_groups
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.engine.stop_texts import before_stop
from arrol_tts.errors import EngineError, InputError
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import KeepSubset, TraceSpec

if TYPE_CHECKING:
    from arrol_tts.engine.base import Engine


MOST_STEPS = 1 << 24
"""Of a run: more than any has, and few enough for the numbers of groups to be int64."""


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

    Attributes:
        in_engine: whether survivors are chosen in the engine.

    Raises:
        InputError: when they are to be, and the engine cannot score with the head.
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
        self.in_engine = _prunes_in_engine(engine, config, head)

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
        if self.in_engine and self._detect(step) and self.head is not None:
            self.engine.load_head(self.head.head)
        chance = np.random.default_rng((self._seed, step, process))
        others, asked = chance.permutation(len(self._rows)), set(rows)

        def is_due(row: int) -> bool:
            return bool(chance.random() < self.config.revisit ** self._prompts.barren(row))

        further = ((row, 1 + process) for row in others.tolist() if row not in asked and is_due(row))
        starts = [(row, 0) if is_due(row) else next(further, (row, 0)) for row in rows]
        if self._detect(step):
            starts += itertools.islice(further, self.config.further_prompts(len(rows)))
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
            seed = (self._seed, step, turn, group.row)
            self._roll(group, f"{step}/{turn}/{group.row}", self._rules(group, detect, seed))
            if not detect:
                self._prune(group, FINISH, self._rule(FINISH, self.config.survivors, seed))

        sizes = self._sizes([*turns], step)
        groups = [self._begin(row, step, size, turns[row]) for row, size in sizes.items()]
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
        sizes = self._prompts.group_sizes(
            rows, config.group, config.survivors, config.max_group, self._auroc, config.detect[0].at
        )
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

    def _begin(self, row: int, step: int, size: int, turn: int = 0) -> Group:
        prompt_ids = encode_prompt(self._tokenizer, self._rows[row]["prompt"])
        # Processes do not know of each other's further rows, which may be the same.
        number = (turn * MOST_STEPS + step) * len(self._rows) + row
        return Group(number, row, prompt_ids, [Rollout() for _ in range(size)])

    def _rules(self, group: Group, detect: Sequence[Detection], seed: Sequence[int]) -> list[KeepSubset]:
        """One for each position at which a group is pruned; at others the head is read in passing."""
        rules: list[KeepSubset] = []
        left = len(group.rollouts)
        for point in detect:
            keep = round(point.keep * self.config.group)
            if keep < left:
                rules.append(_within_bounds(self._rule(point.at, keep, seed), left))
                left = keep
        return rules

    def _rule(self, position: int, keep: int, seed: Sequence[int]) -> KeepSubset:
        """Who survives a detection position, or at `FINISH`, where all have ended."""
        config, head = self.config, self.head
        options: dict[str, Any] = dict(config.policy_options)
        if head is not None and position != FINISH:
            options |= {"posterior": head.posterior_corners(position), "tau": head.tau_at(position)}
        return KeepSubset(
            config.max_tokens if position == FINISH else position,
            keep,
            config.policy,
            exploration=0.0 if position == FINISH else config.exploration,
            seed=int(np.random.SeedSequence((*seed, position)).generate_state(1, np.uint64)[0]),
            **options,
        )

    def _roll(self, group: Group, name: str, rules: Sequence[KeepSubset]) -> Group:
        """Generate a group, pruning it by one rule after the other; ``name`` is what seeds are made of."""
        if rules and self.in_engine and not group.rollouts[0].token_ids:
            self._extend(group, self.config.max_tokens, f"{name}/{rules[0].at}", rules)
        for rule in rules:
            self._extend(group, rule.at + 1, f"{name}/{rule.at}")
            self._prune(group, rule.at, rule)
        self._extend(group, self.config.max_tokens, f"{name}/end")
        return group

    def _extend(self, group: Group, until: int, name: str, rules: Sequence[KeepSubset] = ()) -> None:
        """Let the open survivors write on until they have ``until`` tokens, and grade those that end.

        Args:
            group: whose open survivors are equally long. Those that are as long as that already stay as they are.
            until: tokens of a rollout.
            name: of the requests.
            rules: by which the engine prunes on the way, where nothing has been written yet.
        """
        open_rollouts = [r for r in group.survivors if not r.ended and len(r.token_ids) < until]
        if not open_rollouts:
            return
        begun = len(open_rollouts[0].token_ids)
        marks = tuple(at - begun for at in sorted(self.config.positions) if begun <= at < until)
        if begun:
            questions = [
                Question(f"{name}/{i}", token_ids=(*group.prompt_ids, *rollout.token_ids))
                for i, rollout in enumerate(open_rollouts)
            ]
        else:
            questions = [Question(name, token_ids=tuple(group.prompt_ids))]
        sampling = sampling_of(self.config, len(open_rollouts) // len(questions), until - begun, self._seed)
        order = {question.id: i for i, question in enumerate(questions)}
        for trace in self.engine.sample(questions, sampling, self._spec(marks, begun, rules)):
            rollout = open_rollouts[order[trace.question_id] + trace.sample_id]
            rollout.append(trace, marks, self._stride)
            if trace.finish_reason == "stop":
                text = self._tokenizer.decode(rollout.token_ids, skip_special_tokens=True)
                text = before_stop(text, self.config.stop)
                rollout.end(self.grade(self._rows[group.row], text), trace)
            elif len(rollout.token_ids) >= self.config.max_tokens:
                rollout.cut_off = True
                rollout.end(0.0, trace)

    def _prune(self, group: Group, position: int, rule: KeepSubset) -> None:
        """Note who of the survivors goes on, and how likely each was to.

        What the engine chose, when none had ended, is what the rule says of its scores. Beside the trainer those
        that have ended have a known reward; the ungraded, of which nothing can be learned, are the first to go.
        """
        survivors = group.survivors
        stopped = np.array([rollout.stopped_at == position for rollout in survivors])
        in_engine = bool(stopped.any())
        if position != FINISH:
            group.early = 0 if in_engine else sum(rollout.ended for rollout in group.rollouts)
        if not in_engine:
            for rollout in [r for r in survivors if r.ungraded][: len(survivors) - rule.keep]:
                rollout.pruned_at = position
            survivors = group.survivors
            if rule.keep == len(survivors):
                return
        rule = _within_bounds(rule, len(survivors))
        scores, rewards = np.full(len(survivors), 0.5), np.full(len(survivors), np.nan)
        if in_engine:
            scores = np.array([rollout.scores[position] for rollout in survivors])
        else:
            rewards = np.array([rollout.reward for rollout in survivors], np.float64)
            if self.head is not None and position != FINISH:
                scores = self.head.scores(survivors, position)
        selection = rule.select(scores, rewards)
        kept = np.isin(np.arange(len(survivors)), selection.kept)
        if in_engine:
            chosen, kept = kept, ~stopped
            if not np.array_equal(np.sort(scores[kept]), np.sort(scores[chosen]), equal_nan=True):
                raise EngineError(
                    f"the engine keeps other rollouts at token {position} than policy {rule.policy!r} does by "
                    "their scores: set rollout.choose_in to trainer"
                )
        if position != FINISH:  # where all are graded
            group.at_random &= selection.at_random
        known, q = ~np.isnan(rewards), rule.probabilities(scores)
        for i, rollout in enumerate(survivors):
            if not known[i]:  # a known reward is learned from whether it is kept or not
                rollout.inclusion *= float(selection.inclusion[i])
                rollout.posterior, rollout.tau = float(q[i]), rule.tau
            if not kept[i]:
                rollout.pruned_at = position
                if not known[i]:
                    rollout.states = None  # nobody learns from it

    def _spec(self, marks: tuple[int, ...], begun: int, rules: Sequence[KeepSubset]) -> TraceSpec:
        """What a request is to record that goes on where its rollout had ``begun`` tokens, and how it is pruned.

        Scores of requests that go on are read beside the trainer: the engine's sums over a trace begin anew there.
        """
        if self.head is None:
            return TraceSpec(logprobs=True)
        stride = self._stride
        return TraceSpec(
            logprobs=True,
            score_at=tuple(rule.at for rule in rules),
            features_at=marks,
            features_every=stride,
            features_from=-begun % stride if stride else 0,
            features_finish=True,
            rules=tuple(rules),
        )


def _within_bounds(rule: KeepSubset, size: int) -> KeepSubset:
    """The rule with bounds of the survival probability that let it keep its share of so many.

    The configuration's do for whole groups of G; others lack a reward, or have a size of their own.
    """
    share = rule.keep / size
    return replace(rule, p_min=min(rule.p_min, share), p_max=max(rule.p_max, share))


def sampling_of(config: RolloutConfig, n: int, max_tokens: int, seed: int) -> Sampling:
    """How ``n`` rollouts of a prompt are sampled."""
    return replace(config.sampling, n=n, max_tokens=max_tokens, seed=seed)


def _prunes_in_engine(engine: Engine, config: RolloutConfig, head: OnlineHead | None) -> bool:
    """Whether survivors are chosen in the engine.

    Raises:
        InputError: when they are to be, and cannot.
    """
    able = head is not None and engine.takes_head()
    if config.choose_in == "engine" and not able:
        if head is None:
            raise InputError("rollout.choose_in is 'engine', which chooses by a head: add one, or set it to auto")
        raise InputError(
            "rollout.choose_in is 'engine', and the server has no head in whose place the run's could score: "
            "start it with a head for this model, or set rollout.choose_in to auto"
        )
    return able and config.choose_in != "trainer"
