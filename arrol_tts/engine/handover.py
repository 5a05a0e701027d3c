"""Weights and heads on their way to an engine's workers, which may run in other processes: as files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from arrol_tts.head_config import read_head_config

if TYPE_CHECKING:
    import torch

    from arrol_tts.head import QualityHead


@contextmanager
def weights_file(
    weights: Iterable[tuple[str, torch.Tensor]] | str | Path, folder: Path | None = None
) -> Iterator[str]:
    """A safetensors file of a model's weights, as long as the context lasts.

    Args:
        weights: names, as in the checkpoint, and tensors; or a safetensors file of them, used as it is.
        folder: where to write; by default in memory, for readers on this machine.
    """
    if isinstance(weights, (str, Path)):
        yield str(Path(weights).resolve())
        return
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=folder or _in_memory()) as temporary:
        path = f"{temporary}/weights.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights}, path)
        yield path


@contextmanager
def head_folder(
    head: QualityHead | str | Path, *, hidden_size: int, model: str, folder: Path | None = None
) -> Iterator[str]:
    """A quality head's folder, as long as the context lasts.

    Raises:
        HeadError: when the head is for another hidden size, or cannot be read.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        if not isinstance(head, (str, Path)):
            head.save_pretrained(temporary)
            head = temporary
        path = Path(head).resolve()
        read_head_config(path).check_model(hidden_size=hidden_size, model=model)
        yield str(path)


def _in_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
