"""QualityHead: a small network that reads a hidden state and says how likely the trace is to be right.

Section 3.2 of arXiv 2603.24840: a 2-layer MLP on the backbone's last-layer hidden state. Ours
standardises its input and scales its output to a calibrated probability; both are part of the head, so
that a score means the same wherever it is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from arrol_tts.errors import HeadError
from arrol_tts.files import write_atomic, write_json
from arrol_tts.head_config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    QualityHeadConfig,
    read_head_config,
    resolve_head,
)


class QualityHead(nn.Module):
    """The head: standardise, Linear, GELU, Linear, Platt scaling, sigmoid.

    Args:
        config: sizes and purpose.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: QualityHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.hidden_size))
        self.register_buffer("scale", torch.ones(config.hidden_size))
        self.inner = nn.Linear(config.hidden_size, config.inner_size)
        self.outer = nn.Linear(config.inner_size, 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-odds before calibration: float ``[..., hidden_size]`` to ``[...]``."""
        inner = self.inner((hidden - self.mean) * self.scale)
        logits: torch.Tensor = self.outer(nn.functional.gelu(inner)).squeeze(-1)
        return logits

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Calibrated probability of being right: float ``[..., hidden_size]`` to ``[...]`` in (0, 1)."""
        a, b = self.config.calibration
        return torch.sigmoid(a * self.logits(hidden) + b)

    @torch.no_grad()
    def scorer(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """``forward`` for engines that run it at every step: the same to rounding, in four operations.

        Standardisation and calibration are folded into the two layers; later changes of the head do not show.

        Returns:
            A function of float32 ``[rows, hidden_size]`` that gives float32 ``[rows]`` in (0, 1).
        """
        a, b = self.config.calibration
        weight = (self.inner.weight.double() * self.scale.double()).T
        bias = self.inner.bias.double() - self.mean.double() @ weight
        out_weight = (a * self.outer.weight.double())[0]
        out_bias = a * self.outer.bias.double() + b
        weight, bias, out_weight, out_bias = (
            tensor.float().contiguous() for tensor in (weight, bias, out_weight, out_bias)
        )

        def score(hidden: torch.Tensor) -> torch.Tensor:
            inner = nn.functional.gelu(torch.addmm(bias, hidden, weight))
            return torch.addmv(out_bias, inner, out_weight).sigmoid_()

        return score

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config and weights (safetensors) into a folder; each file appears whole or not at all."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().float().cpu().contiguous() for k, v in self.state_dict().items()}
        write_atomic(folder / WEIGHTS_FILE, save(tensors))
        write_json(folder / CONFIG_FILE, asdict(self.config))

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str], *, revision: str | None = None) -> QualityHead:
        """Load a head from a folder, the name of a built-in head (``"pocket"``) or a hub id.

        Args:
            path_or_id: where the head is.
            revision: commit, branch or tag on the hub.

        Raises:
            HeadError: when files are missing, corrupt, or do not fit each other.
        """
        folder = resolve_head(path_or_id, revision=revision)
        config = read_head_config(folder)
        head = cls(config)
        head.load_state_dict(_read_weights(folder / WEIGHTS_FILE, head))
        return head.eval()

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the head to the Hugging Face hub; returns the address of the commit."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Quality head"))


def _read_weights(path: Path, head: QualityHead) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise HeadError(f"{path} cannot be read as safetensors: {error}") from None
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        raise HeadError(f"{path} does not fit {CONFIG_FILE}: it holds {found}, the config wants {wanted}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise HeadError(f"{path} holds numbers that are not finite: train the head again")
    return tensors
