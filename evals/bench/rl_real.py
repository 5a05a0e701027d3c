"""Reinforcement with pruned rollouts on a real model: ``python -m evals.bench.rl_real``.

SmolLM2-135M-Instruct (``python -m evals.smollm2``) with LoRA on word problems from templates (the questions are
synthetic, the model is not), which it answers right about once in twenty samples: 32 rollouts pruned to 8 beside 8
from the start and all 32, at equal steps and equal processor time. Every run is an ``arrol-train rl`` of its own
on one core, as in ``rl_runs.py``; a cut run goes on from its last checkpoint.
"""

from __future__ import annotations

import itertools
import json
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
from .rl_runs import ARMS, SURVIVORS, Regime, Runs

NAME = "word_problems"
SHOTS = 2
LARGEST = 20
TRAIN, TEST = 2000, 100


def regime(out: Path, model: Path) -> Regime:
    """The task, whose files are written into a folder, and the model to start with."""
    made = problems(0, (1,), LARGEST)
    shots = list(itertools.islice(made, SHOTS))
    for name, count in (("test", TEST), ("train", TRAIN)):  # one stream, of which no problem comes twice
        lines = (json.dumps(row) + "\n" for row in itertools.islice(made, count))
        write_atomic(out / f"{name}.jsonl", "".join(lines).encode())
    examples = "".join(f"Question: {shot['question']}\nAnswer: {shot['solution']}\n\n" for shot in shots)
    return Regime(
        NAME,
        rewarded=None,
        rare=None,
        group=32,
        detect=8,
        cold_start=2,
        steps=24,
        prompts=2,
        rollout={"max_tokens": 64, "stop": ["\n\n", "Question:"]},
        options={
            "model": str(model),
            "task": {
                "source": str(out / "train.jsonl"),
                "test_source": str(out / "test.jsonl"),
                "train": TRAIN,
                "test": TEST,
                "prompt": f"{examples}Question: {{question}}\nAnswer:",
            },
            "dtype": "bfloat16",
            "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
            "learning_rate": 1e-3,
            "micro_batch": 16,
            "engine": {"max_model_len": 512, "max_num_seqs": 64, "top_k": 5, "block_size": 32},
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
    of_words = regime(out, model)
    runs = Runs(out, {NAME: of_words})
    if not figures_only:
        runs.make([(NAME, arm, seed) for seed in range(seeds) for arm in ARMS])
    finished = runs.finished(NAME, ARMS, range(seeds))
    if not finished:
        raise typer.BadParameter(f"no seed of all arms has ended in {out}: run without --figures-only")
    figures = comparison(of_words, {arm.name: runs.logs(NAME, arm, finished) for arm in ARMS})
    figures["commits"] = runs.commits(NAME, ARMS, finished)
    figures |= {
        "survivors": SURVIVORS,
        "model": "SmolLM2-135M-Instruct (Q4_1 weights), LoRA",
        "questions": "one-step word problems (synthetic)",
    }
    write_result("rl_real", figures, finished)
    plot_curves({NAME: figures}, Path("docs/rl_real.png"), "synthetic questions, a real model")
    Console().print_json(
        data={name: found for name, found in figures.items() if not isinstance(found, (dict, list))}
    )


if __name__ == "__main__":
    typer.run(main)
