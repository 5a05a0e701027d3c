"""Where the runs of the reinforcement benchmark with a real model start: tuned on a few worked answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from .rl_starts import save_policy, tune

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
    tune(lm, optimizer, _batches(tokenizer, iter(texts)), STEPS)
    return save_policy(lm.bfloat16(), tokenizer, folder)


def _batches(tokenizer: Any, texts: Iterator[tuple[str, str]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and next-token targets, as `tune` takes them, of `BATCH` texts each; padded on the right."""
    while True:
        rows = []
        for _ in range(BATCH):
            prompt, answer = next(texts)
            asked = tokenizer(prompt)["input_ids"]
            said = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
            rows.append((asked + said[:-1], [-1] * (len(asked) - 1) + said))
        longest = max(len(inputs) for inputs, _ in rows)
        yield (
            torch.tensor([inputs + [0] * (longest - len(inputs)) for inputs, _ in rows]),
            torch.tensor([targets + [-1] * (longest - len(targets)) for _, targets in rows]),
        )
