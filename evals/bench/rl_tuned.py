"""Where the runs of the reinforcement benchmark with a real model start: tuned on a few worked answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.nn.functional import cross_entropy

STEPS = 8
BATCH = 16
RATE = 1e-4


def tuned_policy(model: Path, texts: Iterable[tuple[str, str]], folder: Path) -> Path:
    """A model that has seen a few worked answers, so that it knows their form and seldom the result; made once.

    All weights are trained, in float32. Reinforcement could do without, but would then need worked examples in
    every prompt, which would be most of what it computes.

    Args:
        model: folder of the model.
        texts: `STEPS` times `BATCH` prompts, and what follows them.
        folder: of the tuned one, saved as bfloat16.

    Returns:
        The folder.
    """
    if (folder / "config.json").exists():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=RATE, weight_decay=0.0)
    batches = _batches(tokenizer, iter(texts))
    for step in track(range(STEPS), description="tuning the policy to start with"):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        ids, labels = next(batches)
        logits = lm(input_ids=ids).logits[:, :-1]
        cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    lm.bfloat16().save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(folder)
    return folder


def _batches(tokenizer: Any, texts: Iterator[tuple[str, str]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels, both int64 ``[BATCH, longest]``; padded on the right, where the label is -100."""
    while True:
        rows = []
        for _ in range(BATCH):
            prompt, answer = next(texts)
            asked = tokenizer(prompt)["input_ids"]
            said = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
            rows.append((asked + said, [-100] * len(asked) + said))
        longest = max(len(ids) for ids, _ in rows)
        yield (
            torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows]),
            torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows]),
        )
