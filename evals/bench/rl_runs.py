"""The runs of the reinforcement benchmark: what each is, making those that are missing, and reading their logs.

A *regime* is a task and a policy to start with. In each, arms have the same seeds and learning rate: ``pruned``
(G rollouts started, M kept), ``unpruned_m`` (M from the start, no head: what costs as little), ``unpruned_g`` (all
G finished and trained on) and, in one regime, ``unpruned_wide`` (M from the start, of so many more prompts that a
step starts as many rollouts as the pruned one). Every run is an ``arrol-train rl`` of its own on one core;
finished runs stay in their folders, and the same command goes on where a cut one stopped.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from arrol_tts.pocket.task import Strategy

from . import commit
from .rl_starts import asked_questions, rare_policy

Floats = NDArray[np.float64]

SEEDS = 5
SURVIVORS = 8
SLOTS = 256
MAX_TOKENS = 256
LEARNING_RATE = 5e-4
QUESTIONS = 200
SAMPLES = 8
"""Test rollouts of each of so many test questions."""
WIDER = 3
"""A step of the wide arm takes about three times as long as a pruned one."""
TESTS = 4
"""Tests of a run, beside the one before training, at equal distances."""
SECOND = "basic_arithmetic"
TASKS: dict[str, dict[str, Any]] = {
    "pocket": {"source": "pocket"},
    SECOND: {
        "source": "reasoning_gym:basic_arithmetic",
        "options": {
            "min_terms": 7,
            "max_terms": 9,
            "min_digits": 1,
            "max_digits": 1,
            "operators": ["+", "-", "+", "-", "*"],
            "allow_parentheses": False,
        },
        "rewrite": [["^Calculate ", ""], ["[ .]", ""]],
    },
}
"""``basic_arithmetic`` is reasoning-gym's, without brackets and in the characters that the pocket model knows; its
reference answers are worked out strictly from left to right. Those with numbers or results that the pocket model
was not trained on are not asked: it gets them wrong whatever its strategy, and learns nothing from them."""


@dataclass(frozen=True, slots=True)
class Regime:
    """A task, and the policy that its runs start with.

    Attributes:
        task: of `TASKS`, or one that ``options`` describes.
        rewarded: the strategy that is right there, for ``rare``.
        rare: share of texts with that strategy that the policy was tuned on; None: the pocket model as it is.
        group: G.
        detect: detection position of the standard pruned run.
        cold_start: its steps in which nothing is pruned.
        steps: optimiser steps of a run.
        prompts: of a step.
        survivors: M.
        rollout: what else its runs have, of the ``rollout`` section.
        options: what else, of the whole configuration.
    """

    task: str
    rewarded: Strategy | None
    rare: float | None
    group: int
    detect: int
    cold_start: int
    steps: int
    prompts: int = 4
    survivors: int = SURVIVORS
    rollout: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


REGIMES = {
    "pocket_rare": Regime("pocket", "precedence", 0.01, group=32, detect=16, cold_start=2, steps=24),
    "pocket": Regime("pocket", "precedence", None, group=16, detect=16, cold_start=2, steps=24),
    "second_rare": Regime(SECOND, "left_to_right", 0.05, group=32, detect=16, cold_start=2, steps=24),
    "second": Regime(SECOND, "left_to_right", None, group=16, detect=16, cold_start=2, steps=24),
}


@dataclass(frozen=True, slots=True)
class Arm:
    """One kind of run.

    Attributes:
        name: of the arm, and of its folders.
        pruned: whether G rollouts are pruned to M.
        group: G where it is not the regime's.
        few: whether no more than M are started.
        head: whether a head is trained.
        wide: whether a step has G / M times the prompts; then there are fewer steps, for about as much time.
        warm: whether the head is the one that the pruned run of the next seed left; then there is no cold start.
        rollout: what else differs, in the ``rollout`` section.
        options: what else differs, of the whole configuration.
    """

    name: str
    pruned: bool = True
    group: int | None = None
    few: bool = False
    head: bool = True
    wide: bool = False
    warm: bool = False
    rollout: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self, regime: Regime, seed: int, folder: Path, left: Path | None = None) -> dict[str, Any]:
        """The run's configuration, as ``arrol-train rl`` reads it.

        Args:
            regime: of the run.
            seed: of everything but the questions, which are the regime's.
            folder: for what the regime starts with, made where it is not there yet.
            left: the head that ``warm`` arms start with.
        """
        # Pilots were looked at on the test questions of seed 0.
        task = TASKS.get(regime.task, {}) | {"train": 4000, "test": QUESTIONS, "seed": 11}
        model = "pocket"
        if regime.rare is not None and regime.rewarded is not None:
            task = asked_questions(task, folder / f"{regime.task}-questions", differing=True)
            model = str(
                rare_policy(regime.rewarded, regime.rare, folder / f"{regime.task}-policy-{regime.rare:g}")
            )
        elif regime.task == SECOND:
            task = asked_questions(task, folder / f"{regime.task}-all-questions", differing=False)
        group = regime.survivors if self.few else self.group or regime.group
        prompts, steps = regime.prompts, regime.steps
        if self.wide:
            prompts, steps = prompts * regime.group // regime.survivors, steps // WIDER
        rollout: dict[str, Any] = {"group": group, "max_tokens": MAX_TOKENS, "cold_start": 0, "detect": []}
        if self.pruned:
            rollout |= {
                "detect": [{"at": regime.detect, "keep": regime.survivors / group}],
                "policy": "tails",
                "cold_start": 0 if self.warm else regime.cold_start,
            }
        head: dict[str, Any] = {"updates": 8, "buffer_rows": 8192}
        if self.warm:
            head["start_from"] = str(left)
        return {
            "model": model,
            "task": task,
            "steps": steps,
            "prompts": prompts,
            "micro_batch": regime.prompts * regime.survivors,
            "learning_rate": LEARNING_RATE,
            "dtype": "float32",
            "rollout": {**rollout, **regime.rollout, **self.rollout},
            "head": head if self.head else None,
            # Blocks as small as the CPU allows: what survivors share with their first part is cached by the block.
            "engine": {"max_model_len": 320, "max_num_seqs": SLOTS, "top_k": 5, "block_size": 32},
            "trl": {"gradient_checkpointing": False},
            "save_every": 1_000_000,
            "eval_every": steps // TESTS,
            "eval_samples": SAMPLES,
            "tensorboard": False,
            "seed": seed,
            **regime.options,
            **self.options,
        }


UNPRUNED_M = Arm("unpruned_m", pruned=False, few=True, head=False)
UNPRUNED_G = Arm("unpruned_g", pruned=False, head=False)
UNPRUNED_WIDE = Arm("unpruned_wide", pruned=False, few=True, head=False, wide=True)
PRUNED = Arm("pruned")
ARMS = (PRUNED, UNPRUNED_M, UNPRUNED_G)
"""Those that are compared."""
RATES: tuple[float, ...] = (1, 2, 4)
"""Multiples of `LEARNING_RATE` at which they are compared in one regime: is each at its best?"""
WITH_WIDE = "pocket_rare"
"""The regime in which the wide arm is compared too."""


def arms_of(regime: str) -> tuple[Arm, ...]:
    """Those that are compared in a regime."""
    return (*ARMS, UNPRUNED_WIDE) if regime == WITH_WIDE else ARMS


def at_rate(arm: Arm, times: float) -> Arm:
    """An arm at a multiple of the learning rate."""
    if times == 1:
        return arm
    return replace(arm, name=f"{arm.name}-rate-{times:g}x", options={"learning_rate": times * LEARNING_RATE})


@dataclass(frozen=True)
class Log:
    """What a run wrote into its log.

    Attributes:
        lines: one an optimiser step, and one before the first.
    """

    lines: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Log:
        """Read ``log.jsonl``."""
        return cls([json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()])

    @property
    def tests(self) -> list[dict[str, Any]]:
        """The lines with a test of the policy."""
        return [line for line in self.lines if "eval/accuracy" in line]

    @property
    def accuracy(self) -> float:
        """Of the last test."""
        return float(self.tests[-1]["eval/accuracy"])

    @cached_property
    def curve(self) -> Floats:
        """Tests as ``[tests, 3]``: step, processor seconds of training so far, accuracy."""
        points, spent = [], 0.0
        for line in self.lines:
            spent += seconds_of(line, "total")
            if "eval/accuracy" in line:
                points.append((line["step"], spent, line["eval/accuracy"]))
        return np.array(points, dtype=np.float64)

    def mean(self, name: str, after: int = 0) -> float:
        """Mean of a field over the steps after the cold start that have it; nan when none has."""
        values = [line[name] for line in self.lines if line["step"] > after and name in line]
        return float(np.mean(values)) if values else math.nan

    def seconds(self, phase: str, after: int, clock: str = "cpu") -> float:
        """Mean seconds of a phase of a step after the cold start."""
        return float(np.mean([seconds_of(line, phase, clock) for line in self.lines if line["step"] > after]))

    def accuracy_at(self, axis: int, until: float) -> float:
        """Accuracy after so many steps (axis 0) or seconds (1), between two tests on the line that joins them."""
        return float(np.interp(until, self.curve[:, axis], self.curve[:, 2]))

    def area(self, axis: int, until: float) -> float:
        """Mean accuracy up to so many steps (axis 0) or seconds (1): the area under the curve over its width."""
        x, y = self.curve[:, axis], self.curve[:, 2]
        inside = x < until
        x, y = np.append(x[inside], until), np.append(y[inside], self.accuracy_at(axis, until))
        return float(np.trapezoid(y, x) / until)


PHASES = {"rollout": ("rollout",), "update": ("logprob", "update"), "total": ("step",)}
"""What the log's phases are summed up to; ``update`` is log-probabilities plus update."""


def seconds_of(line: Mapping[str, Any], phase: str, clock: str = "cpu") -> float:
    """Seconds of a phase of one step."""
    return float(sum(line.get(f"{clock}/{name}", 0.0) for name in PHASES[phase]))


class Runs:
    """The runs in a folder; missing ones are made, one on each core that this process may use.

    Args:
        out: the folder.
        regimes: those that runs are of, by name.
    """

    def __init__(self, out: Path, regimes: Mapping[str, Regime] = REGIMES) -> None:
        self._out, self._regimes = out, regimes

    def folder(self, regime: str, arm: Arm, seed: int) -> Path:
        """Of a run."""
        return self._out / f"{regime}-{arm.name}-{seed}"

    def make(self, wanted: Sequence[tuple[str, Arm, int]]) -> None:
        """Make the runs that are missing, in this order.

        Raises:
            RuntimeError: when one failed; the others go on first.
        """
        missing = [run for run in wanted if not (self.folder(*run) / "policy").is_dir()]
        cores: queue.SimpleQueue[int] = queue.SimpleQueue()
        for core in sorted(os.sched_getaffinity(0)):
            cores.put(core)

        def make(run: tuple[str, Arm, int]) -> bool:
            core = cores.get()
            try:
                return self._run(*run, core)
            finally:
                cores.put(core)

        self._out.mkdir(parents=True, exist_ok=True)
        for regime, arm, seed in missing:  # what runs start with is made before several want it
            self._write(regime, arm, seed)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            done = list(pool.map(make, missing))
        if failed := [self.folder(*run) for run, fine in zip(missing, done, strict=True) if not fine]:
            raise RuntimeError(f"the run {failed[0]} failed, see {failed[0]}.txt")

    def logs(self, regime: str, arm: Arm, seeds: Sequence[int]) -> list[Log]:
        """Of runs that have ended."""
        return [Log.read(self.folder(regime, arm, seed)) for seed in seeds]

    def finished(self, regime: str, arms: Sequence[Arm], seeds: Sequence[int]) -> list[int]:
        """The seeds of which every arm has ended."""
        return [s for s in seeds if all((self.folder(regime, arm, s) / "policy").is_dir() for arm in arms)]

    def commits(self, regime: str, arms: Sequence[Arm], seeds: Sequence[int]) -> list[str]:
        """At which runs were made: they may come from several sessions of the benchmark."""
        paths = [self._commit_file(self.folder(regime, arm, seed)) for arm in arms for seed in seeds]
        return sorted({path.read_text() if path.exists() else "unknown" for path in paths})

    @staticmethod
    def _commit_file(folder: Path) -> Path:
        return folder.with_name(f"{folder.name}.commit")

    def _write(self, regime: str, arm: Arm, seed: int) -> Path:
        folder = self.folder(regime, arm, seed)
        path = folder.with_name(f"{folder.name}.yaml")
        left = self.folder(regime, PRUNED, (seed + 1) % SEEDS) / "head"
        path.write_text(yaml.safe_dump(arm.config(self._regimes[regime], seed, self._out, left)))
        return path

    def _run(self, regime: str, arm: Arm, seed: int, core: int) -> bool:
        folder = self.folder(regime, arm, seed)
        print(folder, flush=True)
        self._commit_file(folder).write_text(commit())
        command = ["taskset", "-c", str(core), sys.executable, "-m", "arrol_train.cli", "rl"]
        command += ["--config", str(self._write(regime, arm, seed)), "--out", str(folder)]
        with open(folder.with_name(f"{folder.name}.txt"), "wb") as output:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            return not subprocess.call(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
