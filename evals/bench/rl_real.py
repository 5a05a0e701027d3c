"""Reinforcement with pruned rollouts on a real model: ``python -m evals.bench.rl_real``.

SmolLM2-135M-Instruct (``python -m evals.smollm2``) on word problems from templates (the questions are synthetic,
the model is not). It is tuned on 128 worked answers first, after which about one sample in ten is right, and then
trained with LoRA: 16 rollouts pruned to 4 beside 4 from the start and all 16, at equal steps and equal processor
time. Every run is an ``arrol-train rl`` of its own on one core, as in ``rl_runs.py``; a cut run goes on from its
last checkpoint.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from arrol_tts.files import write_atomic

from ..smollm2 import FOLDER
from ..word_problems import problems
from . import write_result
from .rl_figures import comparison
from .rl_pictures import plot_curves
from .rl_runs import ARMS, Regime, Runs
from .rl_tuned import BATCH, STEPS, tuned_policy

NAME = "word_problems"
PROMPT = "Question: {question}\nAnswer:"
LARGEST = 20
TEST, TRAIN, TUNING = 100, 2000, BATCH * STEPS


def ask(out: Path) -> Iterator[tuple[str, str]]:
    """Write the questions into a folder; prompts and answers of others, to tune on."""
    rows = list(itertools.islice(problems(0, largest=LARGEST), TEST + TRAIN + TUNING))  # no problem comes twice
    for name, some in (("test", rows[:TEST]), ("train", rows[TEST : TEST + TRAIN])):
        write_atomic(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in some).encode())
    return ((PROMPT.format(question=row["question"]), f" {row['solution']}") for row in rows[TEST + TRAIN :])


def regime(out: Path, start: Path) -> Regime:
    """The task, of the questions in a folder, and the model to start with."""
    return Regime(
        NAME,
        rewarded=None,
        rare=None,
        group=16,
        detect=8,
        cold_start=2,
        steps=24,
        survivors=4,
        rollout={"max_tokens": 64},
        options={
            "model": str(start),
            "task": {
                "source": str(out / "train.jsonl"),
                "test_source": str(out / "test.jsonl"),
                "train": TRAIN,
                "test": TEST,
                "prompt": PROMPT,
            },
            "dtype": "bfloat16",
            "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
            "learning_rate": 3e-4,
            "engine": {"max_model_len": 256, "max_num_seqs": 64, "top_k": 5, "block_size": 32},
            "save_every": 4,
        },
    )


def main(
    seeds: Annotated[int, typer.Option(help="of every arm")] = 2,
    out: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs/rl-real"),
    model: Annotated[Path, typer.Option(help="the model's folder")] = FOLDER,
    figures_only: Annotated[bool, typer.Option(help="write what the finished runs say, and run nothing")] = False,
) -> None:
    """Run what is missing; write evals/results/rl_real.json and docs/rl_real.png."""
    out.mkdir(parents=True, exist_ok=True)
    of_words = regime(out, tuned_policy(model, ask(out), out / "start"))
    runs = Runs(out, {NAME: of_words})
    if not figures_only:
        runs.make([(NAME, arm, seed) for seed in range(seeds) for arm in ARMS])
    finished = runs.finished(NAME, ARMS, range(seeds))
    if not finished:
        raise typer.BadParameter(f"no seed of all arms has ended in {out}: run without --figures-only")
    figures = comparison(of_words, {arm.name: runs.logs(NAME, arm, finished) for arm in ARMS})
    figures["commits"] = runs.commits(NAME, ARMS, finished)
    figures |= {
        "model": "SmolLM2-135M-Instruct (Q4_1 weights), tuned on 128 worked answers, then trained with LoRA",
        "questions": "word problems of one or two steps (synthetic)",
    }
    write_result("rl_real", figures, finished)
    plot_curves({NAME: figures}, Path("docs/rl_real.png"), "synthetic questions, a real model")
    Console().print_json(
        data={name: found for name, found in figures.items() if not isinstance(found, (dict, list))}
    )


if __name__ == "__main__":
    typer.run(main)
