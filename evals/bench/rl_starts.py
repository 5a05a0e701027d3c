"""Where the runs of the reinforcement benchmark start: policies and questions (synthetic).

The pocket model takes each of two strategies about half of the time. A *rare* start is the same model after a
little supervised training on texts of which all but a few take one strategy, on questions where that strategy is
wrong: what is rewarded then happens once in many rollouts, as on questions that are hard for a model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.nn.functional import cross_entropy

from arrol_train.build_pocket import text_batches
from arrol_train.rl.config import TaskConfig
from arrol_train.rl.tasks import load_task
from arrol_tts.files import write_atomic
from arrol_tts.pocket import POCKET_MODEL
from arrol_tts.pocket.task import Strategy, is_asked, solve, training_text

TUNING_STEPS = 120
TUNING_RATE = 5e-4
BATCH_TOKENS = 4096
ONE_IN = 30
"""At least one question in so many is asked, of every task here."""


def rare_policy(rewarded: Strategy, share: float, folder: Path) -> Path:
    """The pocket model, made to take the rewarded strategy seldom; made once.

    Args:
        rewarded: the strategy that gives the right answer.
        share: of the texts that take it.
        folder: of the model.

    Returns:
        The folder.
    """
    if (folder / "config.json").exists():
        return folder
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    torch.manual_seed(0)
    lm = Qwen3ForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=TUNING_RATE, weight_decay=0.01, betas=(0.9, 0.95))
    misconception = share if rewarded == "left_to_right" else 1 - share
    # Seed 7: other questions than those that the model was trained on from the start.
    batches = text_batches(training_text(7, misconception), BATCH_TOKENS, seed=7)
    tune(lm, optimizer, batches, TUNING_STEPS)
    return save_policy(lm, AutoTokenizer.from_pretrained(POCKET_MODEL), folder)


def tune(
    lm: Any, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int
) -> None:
    """Supervised training, at a learning rate that falls to nothing.

    Args:
        lm: a causal language model of transformers.
        optimizer: of its weights, with the rate to begin with.
        batches: inputs and next-token targets, int64 ``[texts, tokens]``; targets below 0 are not learned.
        steps: of the optimiser.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in track(range(steps), description="tuning the policy to start with"):
        inputs, targets = next(batches)
        hidden = lm.model(input_ids=inputs).last_hidden_state
        learn = targets >= 0
        cross_entropy(lm.lm_head(hidden[learn]), targets[learn]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def save_policy(lm: Any, tokenizer: Any, folder: Path) -> Path:
    """Write model and tokenizer into a folder that appears whole or not at all; the folder."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    lm.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(folder)
    return folder


def asked_questions(task: dict[str, Any], folder: Path, *, differing: bool) -> dict[str, Any]:
    """The questions of a task that the pocket model was made for, as the files of a task of its own; made once.

    Args:
        task: fields of a `TaskConfig`, with prompts in the pocket language.
        folder: of the files.
        differing: whether only those are asked on which the two strategies differ.

    Returns:
        Fields of a `TaskConfig` that reads the files.
    """
    config = TaskConfig(**task)
    many = config.model_copy(update={"train": ONE_IN * config.train, "test": ONE_IN * config.test})
    counts = {"train": config.train, "test": config.test}
    paths = {name: folder / f"{name}.jsonl" for name in counts}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        loaded = load_task(many)
        for name, rows in (("train", loaded.train), ("test", loaded.test)):
            asked = [row for row in rows if is_asked(row["prompt"]) and not (differing and _same(row["prompt"]))]
            lines = (
                json.dumps({"question": row["prompt"], "answer": str(row["answer"])}) + "\n"
                for row in asked[: counts[name]]
            )
            write_atomic(paths[name], "".join(lines).encode())
    return {
        "source": str(paths["train"]),
        "test_source": str(paths["test"]),
        **counts,
        "reward": "arrol_train.rewards:math_reward",
    }


def _same(question: str) -> bool:
    return solve(question, "precedence")[1] == solve(question, "left_to_right")[1]
