"""Scorers of STEP (arXiv 2601.09093) as heads: weights, the tokens that end a step, how their model is asked.

STEP scores the last-layer state at every token that has an empty line in it, ``"\\n\\n"``, by Linear(width, 512),
ReLU, Linear and a sigmoid; a trace's score is the mean of its steps' so far, and votes weigh by it. Its repository
(Supercomputing-System-AI-Lab/STEP, Apache-2.0) has scorers for three models, as files of torch: a state dict, or a
checkpoint with one in ``model_state_dict``.
"""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from arrol_tts.engine.base import hidden_size_of
from arrol_tts.errors import HeadError
from arrol_tts.files import file_sha256, write_atomic
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.prompts import Prompt
from arrol_tts.revision import model_revision

CARD_FILE = "README.md"
STEP_END = "\n\n"
PROMPT = Prompt(
    (("system", "Please reason step by step, and put your final answer within \\boxed{}"), ("user", "{question}"))
)
"""How the scorers' models were asked."""
SAMPLING: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 65536}
"""How they were sampled, but for those of `OTHER_SAMPLING`."""
OTHER_SAMPLING: dict[str, dict[str, Any]] = {
    "phi-4-reasoning-plus": {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "max_tokens": 32768},
}
_LAYERS = ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias")


def import_step_scorer(
    file: str | os.PathLike[str], base_model: str, *, prompt: Prompt | None = None, at: int = 4096
) -> QualityHead:
    """A head that scores as a scorer of STEP does.

    The file is read as numbers alone: whatever else it holds is refused, and nothing in it is executed.

    Args:
        file: that torch wrote.
        base_model: folder or hub id of the scorer's model.
        prompt: how the model is asked, by default as in STEP.
        at: where `solve` prunes when it is told to, in generated tokens. By default nothing is pruned.

    Raises:
        HeadError: when the file is no such scorer, or one for a model of another width.
    """
    from transformers import AutoTokenizer

    weights = read_scorer(file)
    inner_size, hidden_size = weights["net.0.weight"].shape
    model = str(Path(base_model).resolve()) if Path(base_model).is_dir() else base_model
    name = Path(base_model).name.lower()
    config = QualityHeadConfig(
        base_model=model,
        hidden_size=hidden_size,
        inner_size=inner_size,
        activation="relu",
        pooling="steps",
        pool_after=step_ends(AutoTokenizer.from_pretrained(base_model)),
        positions=[at],
        keep=1.0,
        sampling=dict(OTHER_SAMPLING.get(name, SAMPLING)),
        prompt=(prompt or PROMPT).to_messages(),
        base_revision=model_revision(base_model),
    )
    config.check_model(hidden_size=hidden_size_of(base_model), model=base_model)
    head = QualityHead(config)
    names = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
    head.load_state_dict(
        {name: weights[layer] for name, layer in zip(names, _LAYERS, strict=True)}, strict=False
    )  # mean and scale stay at 0 and 1: the scorer does not standardise
    return head.eval()


def read_scorer(file: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The four tensors of a scorer, float32, by their names there.

    Raises:
        HeadError: when the file cannot be read, or is something else.
    """
    # A checkpoint has figures of its training beside the weights, some of them numbers of numpy.
    scalar: Any = np.float64(0).__reduce__()[0]
    numbers: list[Any] = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float64DType]
    try:
        with torch.serialization.safe_globals(numbers):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise HeadError(f"{file} cannot be read as a torch file of numbers alone: {reason}") from None
    weights = content.get("model_state_dict", content) if isinstance(content, dict) else None
    tensors = isinstance(weights, dict) and all(isinstance(value, torch.Tensor) for value in weights.values())
    if not tensors or set(weights or ()) != set(_LAYERS):
        raise HeadError(f"{file} is no scorer of STEP: it must hold the tensors {', '.join(_LAYERS)}")
    assert isinstance(weights, dict)
    found = {name: weights[name].float() for name in _LAYERS}
    first = found["net.0.weight"]
    shapes = [tuple(found[name].shape) for name in _LAYERS]
    inner = first.shape[0] if first.ndim == 2 else 0
    if not inner or shapes != [tuple(first.shape), (inner,), (1, inner), (1,)]:
        raise HeadError(f"{file} is no scorer of STEP: its layers {', '.join(_LAYERS)} have shapes {shapes}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise HeadError(f"{file} holds numbers that are not finite")
    return found


def step_ends(tokenizer: Any) -> list[int]:
    """The tokens of a vocabulary whose text has an empty line in it, in ascending order.

    Raises:
        HeadError: when there are none.
    """
    texts = tokenizer.batch_decode([[token] for token in range(tokenizer.vocab_size)])
    found = [token for token, text in enumerate(texts) if STEP_END in text]
    if not found:
        raise HeadError("no token of this model has an empty line in it: a scorer of steps has nothing to read")
    return found


def save_imported(head: QualityHead, file: str | os.PathLike[str], out: Path) -> None:
    """Write the head and its card into a folder."""
    head.save_pretrained(out)
    config = head.config
    lines = [
        "---",
        "library_name: arrol",
        f"base_model: {config.base_model}",
        "license: apache-2.0",
        "---",
        "",
        f"# Step scorer of STEP for {Path(config.base_model).name}",
        "",
        "Weights of a step scorer of STEP (arXiv 2601.09093, github.com/Supercomputing-System-AI-Lab/STEP, "
        "Apache-2.0), read by `arrol-train import`. A trace's score is the mean of the probabilities at the ends "
        "of its steps.",
        "",
        f"- language model: `{config.base_model}`, revision `{config.base_revision}`",
        f"- from `{Path(file).name}`, SHA-256 `{file_sha256(Path(file))}`",
        f"- {len(config.pool_after)} tokens end a step",
        "",
        "Neither calibrated nor measured here.",
        "",
    ]
    write_atomic(out / CARD_FILE, "\n".join(lines).encode())
