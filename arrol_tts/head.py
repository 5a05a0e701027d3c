"""QualityHead: a small network that reads hidden states and says how likely the trace is to be right.

Section 3.2 of arXiv 2603.24840 reads the backbone's last-layer state at one position with a 2-layer MLP. Ours
reads a value from the state of every token and takes their mean over the trace so far: a number a token, and
a sum a trace. A gate that weighs the tokens can be read from the same state (gated linear token rewards:
arXiv 2505.12225); it did no better in ``make bench-candidates``. The head standardises its input and scales
its output to a calibrated probability; both are part of it, so that a score means the same wherever it is
read.
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

GATE_LIMIT = 8.0
"""Bound on a gate's logarithm: no token counts more than e^16 times as much as another."""


class QualityHead(nn.Module):
    """The head: standardise, one or two layers, pool over the trace, Platt scaling, sigmoid.

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
        self.inner = nn.Linear(config.hidden_size, config.inner_size) if config.inner_size else None
        # Per token: its value, and for gated pooling the logarithm of its gate.
        self.outer = nn.Linear(config.inner_size or config.hidden_size, 2 if config.pooling == "gated" else 1)

    @property
    def _activation(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return nn.functional.relu if self.config.activation == "relu" else nn.functional.gelu

    def read(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the head reads from each token alone: float ``[..., hidden_size]`` to two of ``[...]``.

        Returns:
            Weight (positive; 1 without a gate) and value (log-odds before calibration) of each token.
        """
        inner = (hidden - self.mean) * self.scale
        if self.inner is not None:
            inner = self._activation(self.inner(inner))
        outer: torch.Tensor = self.outer(inner)
        if self.config.pooling != "gated":
            return torch.ones_like(outer[..., 0]), outer[..., 0]
        return outer[..., 1].clamp(-GATE_LIMIT, GATE_LIMIT).exp(), outer[..., 0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-odds before calibration.

        Args:
            hidden: float ``[..., tokens, hidden_size]``, the states of a trace from the first on (with a stride,
                those that it leaves; of a head of steps, those at their ends). A head whose pooling is ``last``
                reads each on its own, so that any ``[..., hidden_size]`` will do.

        Returns:
            Float ``[..., tokens]``, of the trace up to each token.
        """
        weight, value = self.read(hidden)
        if self.config.pooling == "last":
            return value
        if self.config.pooling == "steps":
            return torch.logit(value.sigmoid().cumsum(-1) / weight.cumsum(-1))
        return (weight * value).cumsum(-1) / weight.cumsum(-1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Calibrated probability of being right, in (0, 1); shapes as in ``logits``.

        A head of steps calibrates each step's probability, not their mean.
        """
        a, b = self.config.calibration
        if self.config.pooling == "steps":
            weight, value = self.read(hidden)
            return torch.sigmoid(a * value + b).cumsum(-1) / weight.cumsum(-1)
        return torch.sigmoid(a * self.logits(hidden) + b)

    @torch.no_grad()
    def reader(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What engines run at every step, on one row a trace: `read` in as few operations as there can be.

        Standardisation and calibration are folded into the layers; later changes of the head do not show.

        Returns:
            A function of float32 ``[rows, hidden_size]``. Without pooling it gives float32 ``[1, rows]``, the
            probability; with pooling ``[2, rows]``: each row's weight and its value. The trace's probability is
            the sigmoid of the weighted mean of values, see `arrol_tts.stopping.log.TraceLog.pool`. A head of steps
            gives the probability too; the trace's is the steps' mean, see ``TraceLog.pool_steps``.
        """
        a, b = self.config.calibration
        scale, mean = self.scale.double(), self.mean.double()
        outer, out_bias = self.outer.weight.double(), self.outer.bias.double()
        inner = None
        if self.inner is None:
            outer = outer * scale
            out_bias = out_bias - outer @ mean
        else:
            weight = (self.inner.weight.double() * scale).T
            inner = (self.inner.bias.double() - mean @ weight).float(), weight.float().contiguous()
        # The value comes first, and a gate is no log-odds. Weights come first in what is given, all ones of a mean
        # from a row of the last layer that reads nothing: at every step it is the number of operations that costs.
        value, value_bias = a * outer[:1], a * out_bias[:1] + b
        pooling, activation = self.config.pooling, self._activation
        if pooling == "gated":
            outer, out_bias = torch.cat([outer[1:], value]), torch.cat([out_bias[1:], value_bias])
        elif pooling == "mean":
            outer = torch.cat([torch.zeros_like(value), value])
            out_bias = torch.cat([torch.ones_like(value_bias), value_bias])
        else:
            outer, out_bias = value, value_bias
        outer, out_bias = outer.float(), out_bias.float()[:, None]

        def read(hidden: torch.Tensor) -> torch.Tensor:
            if inner is not None:
                hidden = activation(torch.addmm(inner[0], hidden, inner[1]))
            numbers = torch.addmm(out_bias, outer, hidden.T)  # this way round several times as fast on a CPU
            if pooling in ("last", "steps"):
                return numbers.sigmoid_()
            if pooling == "gated":
                numbers[0].clamp_(-GATE_LIMIT, GATE_LIMIT).exp_()
            return numbers

        return read

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
