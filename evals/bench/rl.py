"""Reinforcement with pruned rollouts, on the pocket model (synthetic): ``python -m evals.bench.rl``.

Runs of ``arrol-train rl`` in pairs: the two runs of a pair have the same seed and go side by side, each on a
core of its own. Times are processor seconds, which on one core are those of the clock on a machine that does
nothing else (``speedup_wall_clock`` is the clock as it was). Each finished run stays in its folder, and the same
command goes on where a cut one stopped. Test questions are disjoint from those trained on; intervals are
Student's over seeds, and ratios of times leave out the cold start, in which nothing is pruned.

Two tasks. ``pocket`` is the built-in one. ``basic_arithmetic`` is reasoning-gym's, without brackets and in the
characters that the pocket model knows; its reference answers are worked out strictly from left to right, so
that the strategy that is wrong in the first task is right in the second. Only a full score counts as right.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from numpy.typing import NDArray
from rich.console import Console

from arrol_tts.head_config import read_head_config
from arrol_tts.metrics import bootstrap_interval
from arrol_tts.pocket import POCKET_HEAD
from arrol_tts.voter import WeightedVoter

from ..benchmarks import pocket
from ..reporting.figures import rows_of
from ..sampling.seed_samples import sample_seed
from . import write_result

Floats = NDArray[np.float64]

GROUP = 16
PROMPTS = 8
SLOTS = 16
"""Engine slots: an eighth of a step's rollouts, so that freed slots are refilled as on a busy GPU."""
COLD_START = 4
DETECT = 16
"""A ninth of a trace's mean length."""
KEEP = 0.5
MAX_TOKENS = 256
LEARNING_RATE = 5e-4
VOTED_QUESTIONS = 400
"""Test questions voted on: heads that differ from majority by a point need many."""
SHORT_STEPS = 12
"""Steps of runs that only measure time."""
POLICIES = ("random", "published", "group_signed", "max_variance")
"""Those compared with ``tails``, which all other runs use."""
TASKS: dict[str, dict[str, Any]] = {
    "pocket": {"source": "pocket"},
    "basic_arithmetic": {
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


@dataclass(frozen=True, slots=True)
class Arm:
    """One kind of run.

    Attributes:
        name: of the arm, and of its folder.
        rollout: what differs from the standard pruned run, in the ``rollout`` section.
        head: whether a head is trained.
        task: of `TASKS`.
        slots: of the engine.
        short: whether the run only measures time.
    """

    name: str
    rollout: tuple[tuple[str, Any], ...] = ()
    head: bool = True
    task: str = "pocket"
    slots: int = SLOTS
    short: bool = False

    @property
    def cold_start(self) -> int:
        """Steps in which nothing is pruned."""
        return 2 if self.short else COLD_START

    def config(self, seed: int, steps: int, questions: int) -> dict[str, Any]:
        """The run's configuration, as ``arrol-train rl`` reads it."""
        rollout = {
            "group": GROUP,
            "detect": [{"at": DETECT, "keep": KEEP}],
            "policy": "tails",
            "cold_start": self.cold_start,
            "max_tokens": MAX_TOKENS,
        }
        return {
            "model": "pocket",
            "task": {**TASKS[self.task], "train": 4000, "test": 8 if self.short else questions},
            "steps": SHORT_STEPS if self.short else steps,
            "prompts": PROMPTS,
            "micro_batch": 32,
            "learning_rate": LEARNING_RATE,
            "dtype": "float32",
            "rollout": rollout | dict(self.rollout),
            "head": {"updates": 8, "buffer_rows": 8192} if self.head else None,
            # Blocks as small as the CPU allows: what survivors share with their first part is cached by the block.
            "engine": {"max_model_len": 320, "max_num_seqs": self.slots, "top_k": 5, "block_size": 32},
            "trl": {"gradient_checkpointing": False},
            "save_every": 1_000_000,
            "eval_every": 0 if self.short else max(1, steps // 2),
            "eval_samples": 2,
            "tensorboard": False,
            "seed": seed,
        }


def _detect(*points: tuple[int, float]) -> tuple[tuple[str, Any], ...]:
    return (("detect", [{"at": at, "keep": keep} for at, keep in points]),)


def _pair(pruned: Arm, **options: Any) -> tuple[Arm, Arm]:
    return Arm(f"unpruned{options.pop('suffix', '')}", _detect(), head=False, **options), pruned


STANDARD = _pair(Arm("pruned"))
SECOND_TASK = _pair(Arm("pruned-second", task="basic_arithmetic"), task="basic_arithmetic", suffix="-second")
ALL_SLOTS = _pair(
    Arm("pruned-slots", slots=GROUP * PROMPTS, short=True), slots=GROUP * PROMPTS, short=True, suffix="-slots"
)
BY_POLICY = [Arm(f"policy-{policy}", (("policy", policy),)) for policy in POLICIES]
BY_KEEP = [Arm(f"keep-{keep:g}", _detect((DETECT, keep))) for keep in (0.25, 0.75)]
BY_POSITION = [Arm("late", _detect((32, 0.5))), Arm("several", _detect((16, 0.5), (48, 0.25)))]


# --- running --------------------------------------------------------------------------------------


def main(
    seeds: Annotated[int, typer.Option(help="pairs of the main comparison")] = 5,
    more_seeds: Annotated[int, typer.Option(help="seeds of every other comparison; 0: main one only")] = 3,
    steps: Annotated[int, typer.Option(help="optimiser steps of a run")] = 24,
    questions: Annotated[int, typer.Option(help="test questions")] = 256,
    out: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs/rl"),
) -> None:
    """Run what is missing; write evals/results/rl.json and docs/rl_*.png, first after the main comparison."""
    runner = _Runner(out, steps, questions)
    pairs = [runner.pair(*STANDARD, seed) for seed in range(seeds)]
    figures = main_figures(pairs)
    figures["voting"] = voting([runner.folder(STANDARD[1], seed) for seed in range(seeds)], VOTED_QUESTIONS)
    write_result("rl", figures, list(range(seeds)))
    plot_curves(pairs, Path("docs/rl_curves.png"))
    if more_seeds:
        others = range(more_seeds)
        slots = [runner.pair(*ALL_SLOTS, seed) for seed in others]
        second = [runner.pair(*SECOND_TASK, seed) for seed in others]
        ablation: dict[str, list[Log]] = {}
        for first, other in (BY_POLICY[:2], BY_POLICY[2:], BY_KEEP, BY_POSITION):
            for seed in others:
                for arm, log in zip((first, other), runner.pair(first, other, seed), strict=True):
                    ablation.setdefault(arm.name, []).append(log)
        figures |= other_figures(pairs[:more_seeds], slots, second, ablation)
        write_result("rl", figures, list(range(seeds)))
        plot_policies(figures["policies"], Path("docs/rl_policies.png"))
    Console().print_json(data={k: v for k, v in figures.items() if not isinstance(v, (dict, list))})


class _Runner:
    def __init__(self, out: Path, steps: int, questions: int) -> None:
        self._out, self._steps, self._questions = out, steps, questions
        self._cores = sorted(os.sched_getaffinity(0))[:2]

    def folder(self, arm: Arm, seed: int) -> Path:
        return self._out / f"{arm.name}-{seed}"

    def pair(self, first: Arm, second: Arm, seed: int) -> tuple[Log, Log]:
        """The logs of two runs, made side by side where they are not there yet."""
        folders = [self.folder(arm, seed) for arm in (first, second)]
        running = {}
        for arm, folder, core in zip((first, second), folders, itertools.cycle(self._cores), strict=False):
            if not (folder / "policy").is_dir():
                print(f"{folder}", flush=True)
                running[folder] = self._start(arm, folder, seed, core)
        codes = {folder: process.wait() for folder, process in running.items()}
        for folder, code in codes.items():
            if code:
                raise RuntimeError(f"the run {folder} failed, see {folder}.txt")
        logs = [Log.read(folder, arm) for folder, arm in zip(folders, (first, second), strict=True)]
        return logs[0], logs[1]

    def _start(self, arm: Arm, folder: Path, seed: int, core: int) -> subprocess.Popen[bytes]:
        self._out.mkdir(parents=True, exist_ok=True)
        config = folder.with_name(f"{folder.name}.yaml")
        config.write_text(yaml.safe_dump(arm.config(seed, self._steps, self._questions)))
        program = Path(sys.executable).with_name("arrol-train")
        command = ["taskset", "-c", str(core), str(program), "rl", "--config", str(config), "--out", str(folder)]
        with open(folder.with_name(f"{folder.name}.txt"), "wb") as output:
            return subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )


@dataclass(frozen=True, slots=True)
class Log:
    """What a run wrote into its log.

    Attributes:
        lines: one an optimiser step, and one before the first.
        cold_start: steps in which nothing is pruned.
    """

    lines: list[dict[str, Any]]
    cold_start: int

    @classmethod
    def read(cls, folder: Path, arm: Arm) -> Log:
        """Read ``log.jsonl``."""
        lines = (folder / "log.jsonl").read_text().splitlines()
        return cls([json.loads(line) for line in lines], arm.cold_start)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines after the cold start."""
        return [line for line in self.lines if line["step"] > self.cold_start]

    @property
    def tests(self) -> list[dict[str, Any]]:
        """The lines with a test of the policy."""
        return [line for line in self.lines if "eval/accuracy" in line]

    @property
    def accuracy(self) -> float:
        """Of the last test."""
        return float(self.tests[-1]["eval/accuracy"])

    def mean(self, name: str) -> float:
        """Mean of a field over the steps that have it; nan when none has."""
        values = [line[name] for line in self.steps if name in line]
        return float(np.mean(values)) if values else math.nan

    def seconds(self, phase: str, clock: str = "cpu") -> float:
        """Mean seconds of a phase of a step."""
        return float(np.mean([_seconds(line, phase, clock) for line in self.steps]))

    def curve(self) -> Floats:
        """Tests as ``[tests, 3]``: step, processor seconds of training so far, accuracy."""
        points, spent = [], 0.0
        for line in self.lines:
            spent += _seconds(line, "total", "cpu")
            if "eval/accuracy" in line:
                points.append((line["step"], spent, line["eval/accuracy"]))
        return np.array(points, dtype=np.float64)

    def accuracy_at(self, seconds: float) -> float:
        """Accuracy after so many seconds of training, between two tests on the line that joins them."""
        _, spent, accuracy = self.curve().T
        return float(np.interp(seconds, spent, accuracy))


PHASES = {
    "rollout": ("rollout",),
    "update": ("logprob", "update"),
    "total": ("step",),
}
"""What the log's phases are summed up to; ``update`` is log-probabilities plus update."""


def _seconds(line: dict[str, Any], phase: str, clock: str) -> float:
    return float(sum(line.get(f"{clock}/{name}", 0.0) for name in PHASES[phase]))


# --- figures --------------------------------------------------------------------------------------


def main_figures(pairs: Sequence[tuple[Log, Log]]) -> dict[str, Any]:
    """The main comparison and its settings."""
    pruned = pairs[0][1]
    return {
        "synthetic": True,
        "group": GROUP,
        "prompts": PROMPTS,
        "keep": KEEP,
        "detection_position": DETECT,
        "slots": SLOTS,
        "learning_rate": LEARNING_RATE,
        "steps": int(pruned.steps[-1]["step"]),
        "cold_start": COLD_START,
        "test_questions": len(pruned.tests[-1]["eval/right"]),
        "test_samples_per_question": int(pruned.tests[-1]["eval/samples"]),
        **_comparison(pairs),
    }


def other_figures(
    pairs: Sequence[tuple[Log, Log]],
    slots: Sequence[tuple[Log, Log]],
    second: Sequence[tuple[Log, Log]],
    ablation: dict[str, list[Log]],
) -> dict[str, Any]:
    """Everything beside the main comparison; ``pairs`` are its runs of the same seeds."""
    unpruned, pruned = ([logs[i] for logs in pairs] for i in (0, 1))
    rows = {
        name: _row(logs, unpruned) for name, logs in {"unpruned": unpruned, "tails": pruned, **ablation}.items()
    }
    return {
        "second_task": {"task": TASKS["basic_arithmetic"], **_comparison(second)},
        "as_many_slots_as_rollouts": _speedups(slots),
        "policies": {
            "none": rows["unpruned"],
            "tails": rows["tails"],
            **{policy: rows[f"policy-{policy}"] for policy in POLICIES},
        },
        "keep_ratios": {
            "0.25": rows["keep-0.25"],
            "0.5": rows["tails"],
            "0.75": rows["keep-0.75"],
            "1": rows["unpruned"],
        },
        "positions": {
            "16 keeps 0.5": rows["tails"],
            "32 keeps 0.5": rows["late"],
            "16 keeps 0.5, 48 keeps 0.25": rows["several"],
        },
        "seeds_of_tables": len(pairs),
    }


def _comparison(pairs: Sequence[tuple[Log, Log]]) -> dict[str, Any]:
    """Speed and accuracy of pruned against unpruned runs."""
    unpruned, pruned = ([logs[i] for logs in pairs] for i in (0, 1))
    times = [min(a.curve()[-1, 1], b.curve()[-1, 1]) for a, b in pairs]
    figures = {
        **_speedups(pairs),
        **_figure("accuracy_before", [log.tests[0]["eval/accuracy"] for log in unpruned]),
        **_figure("accuracy_unpruned", [log.accuracy for log in unpruned]),
        **_figure("accuracy_pruned", [log.accuracy for log in pruned]),
        **_figure("accuracy_gain", [b.accuracy - a.accuracy for a, b in pairs]),
        **_figure(
            "accuracy_gain_at_equal_time",
            [b.accuracy_at(time) - a.accuracy_at(time) for (a, b), time in zip(pairs, times, strict=True)],
        ),
        "accuracy_intervals_over_questions": {
            name: list(bootstrap_interval(_per_question(logs)))
            for name, logs in (("unpruned", unpruned), ("pruned", pruned))
        },
    }
    for name in ("auroc", "auroc_within", "accuracy", "ece"):
        figures |= _figure(f"head_{name}", [log.mean(f"head/{DETECT}/{name}") for log in pruned])
    return figures


def _speedups(pairs: Sequence[tuple[Log, Log]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for phase in PHASES:
        figures |= _figure(f"speedup_{phase}", [a.seconds(phase) / b.seconds(phase) for a, b in pairs])
        figures[f"seconds_{phase}"] = {
            arm: [log.seconds(phase) for log in logs]
            for arm, logs in zip(("unpruned", "pruned"), zip(*pairs, strict=True), strict=True)
        }
    tokens = [a.mean("rollout/generated_tokens") / b.mean("rollout/generated_tokens") for a, b in pairs]
    wall = [a.seconds("total", "time") / b.seconds("total", "time") for a, b in pairs]
    return figures | _figure("tokens_ratio", tokens) | _figure("speedup_wall_clock", wall)


def _row(logs: Sequence[Log], unpruned: Sequence[Log]) -> dict[str, Any]:
    """One line of an ablation table; ``speedup`` is against the unpruned run of the seed."""
    row: dict[str, Any] = {}
    for name, field in (("variance", "variance"), ("no_signal", "no_signal"), ("balance", "balance")):
        row |= _figure(name, [log.mean(f"rollout/{field}") for log in logs])
    row |= _figure("accuracy", [log.accuracy for log in logs])
    row |= _figure("seconds_step", [log.seconds("total") for log in logs])
    row |= _figure(
        "speedup", [a.seconds("total") / b.seconds("total") for a, b in zip(unpruned, logs, strict=False)]
    )
    return row


def _figure(name: str, values: Sequence[float]) -> dict[str, Any]:
    """A mean over seeds, Student's 95% interval of it (null with one seed), and the values."""
    from scipy.stats import t

    interval = None
    if len(values) > 1:
        margin = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
        interval = [float(np.mean(values)) - margin, float(np.mean(values)) + margin]
    return {
        name: float(np.mean(values)),
        f"{name}_interval": interval,
        f"{name}_per_seed": [float(v) for v in values],
    }


def _per_question(logs: Sequence[Log]) -> Floats:
    tests = [log.tests[-1] for log in logs]
    shares: Floats = np.mean([np.array(test["eval/right"]) / test["eval/samples"] for test in tests], axis=0)
    return shares


def voting(runs: Sequence[Path], questions: int, n: int = GROUP) -> dict[str, Any]:
    """Votes with the head that came out of each pruned run, on test questions, sampled with its policy."""
    votes = [_votes(run, seed, questions, n) for seed, run in enumerate(runs)]
    right = {name: np.array([vote[name]["right"] for vote in votes]) for name in votes[0]}
    means = {name: values.mean(axis=0) for name, values in right.items()}
    return {
        "questions": questions,
        "traces_per_question": n,
        "accuracy": {name: float(values.mean()) for name, values in means.items()},
        "accuracy_per_seed": {name: values.mean(axis=1).tolist() for name, values in right.items()},
        "intervals": {name: list(bootstrap_interval(values)) for name, values in means.items()},
        **{
            f"above_{rival}_intervals": {
                name: list(bootstrap_interval(means[name] - means[rival]))
                for name in ("quality", "quality_pruned")
            }
            for rival in ("majority", "deepconf")
        },
        "tokens_per_question": {name: float(np.mean([vote[name]["tokens"] for vote in votes])) for name in means},
    }


def _votes(run: Path, seed: int, questions: int, n: int) -> dict[str, Any]:
    """By method, whether each question's vote is right, and mean tokens; kept in the run's folder."""
    path = run / f"votes-{questions}x{n}.json"
    if not path.exists():
        print(f"votes with the head of {run}", flush=True)
        voter = WeightedVoter.from_pretrained(run / "head", engine="vllm")
        assert voter.config is not None
        # DeepConf keeps the windows that were chosen for it on training questions.
        chosen = read_head_config(POCKET_HEAD).voting
        voter.config.voting = {name: options for name, options in chosen.items() if name.startswith("deepconf")}
        with tempfile.TemporaryDirectory() as folder:
            sampled = sample_seed(pocket.load(questions), voter, n=n, seed=seed, keep=KEEP, out=Path(folder))
        votes = {
            row.name: {"right": row.right.astype(int).tolist(), "tokens": float(row.tokens.mean())}
            for row in rows_of(sampled, voter)
        }
        voter.close()
        path.write_text(json.dumps(votes))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


# --- pictures -------------------------------------------------------------------------------------


def plot_curves(pairs: Sequence[tuple[Log, Log]], path: Path) -> None:
    """Draw test accuracy against steps and against seconds of training; thin lines are seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for i, (name, color) in enumerate((("all 16 finished", "tab:gray"), ("8 of 16 pruned", "tab:blue"))):
        logs = [pair[i] for pair in pairs]
        curves = np.array([log.curve() for log in logs])
        for panel, x in ((by_step, 0), (by_time, 1)):
            for curve in curves:
                panel.plot(curve[:, x], curve[:, 2], color=color, alpha=0.3, linewidth=1)
            mean = curves.mean(axis=0)
            panel.plot(mean[:, x], mean[:, 2], color=color, marker="o", label=name)
    by_step.set(xlabel="optimiser steps", ylabel="test accuracy (synthetic)")
    by_time.set(xlabel="processor seconds of training")
    by_step.legend()
    figure.savefig(path, dpi=150)


def plot_policies(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the reward variance that survives under each policy, and the groups without signal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for panel, name, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("variance", "no_signal"),
        ("variance of the survivors' rewards", "groups without signal"),
        strict=True,
    ):
        bars = panel.barh(list(rows), [row[name] for row in rows.values()], color="tab:blue")
        panel.bar_label(bars, fmt="%.3f", padding=2, fontsize=8)
        panel.set_title(title + " (synthetic)", fontsize=9)
        panel.margins(x=0.15)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    typer.run(main)
