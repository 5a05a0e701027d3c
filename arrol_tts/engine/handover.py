"""Weights and heads on their way to an engine: what may be passed as a head, and files for who is elsewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from arrol_tts.head_config import read_head_config, resolve_head

if TYPE_CHECKING:
    import torch

    from arrol_tts.head import QualityHead

    HeadSource = str | os.PathLike[str] | QualityHead
    """A quality head: its folder or hub id, ``"pocket"``, or the head itself."""

    Heads = HeadSource | Mapping[str, HeadSource] | None
    """What engines take as ``head``: one, or several by name, of which "" is the default, or none."""


@overload
def named_heads(head: str | Mapping[str, str] | None) -> dict[str, str]: ...
@overload
def named_heads(head: Heads) -> dict[str, HeadSource]: ...
def named_heads(head: Any) -> dict[str, Any]:
    """The heads of an engine by name: a single one is the default, whose name is ""."""
    if isinstance(head, Mapping):
        return dict(head)
    return {} if head is None else {"": head}


@contextmanager
def head_folders(head: Heads, *, hidden_size: int, model: str) -> Iterator[dict[str, str]]:
    """The folders of an engine's heads by name, as long as the context lasts.

    Raises:
        HeadError: when one is for another hidden size, or cannot be read.
    """
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(head_folder(each, hidden_size=hidden_size, model=model))
            for name, each in named_heads(head).items()
        }


@contextmanager
def head_folder(
    head: HeadSource, *, hidden_size: int | None = None, model: str = "", folder: Path | None = None
) -> Iterator[str]:
    """A quality head's folder, as long as the context lasts.

    Args:
        head: see ``HeadSource``.
        hidden_size: of the states that it is to read, None where nobody knows.
        model: whose they are.
        folder: where to write a head that is none yet; by default among the temporary files.

    Raises:
        HeadError: when the head is for another hidden size, or cannot be read.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        if isinstance(head, (str, os.PathLike)):
            path = resolve_head(head).resolve()
        else:
            head.save_pretrained(temporary)
            path = Path(temporary).resolve()
        config = read_head_config(path)
        if hidden_size is not None:
            config.check_model(hidden_size=hidden_size, model=model)
        yield str(path)


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
        # Copies, on the CPU too: the trainer's own tensors may change as soon as the next ones are asked for.
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights}
        save_file(copies, path)
        yield path


def _in_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
