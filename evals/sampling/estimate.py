"""What a run will take, before it starts: tokens, hours, memory and disk, from a few stated assumptions.

The model is the usual one for decoding on a GPU. A step reads the weights and the key-value cache of the running
traces once, so it takes ``bytes read / memory bandwidth``, or, when the batch is large, ``2 x parameters x batch /
compute``; of both the hardware's peaks are reached in part. What memory the weights leave is key-value cache, and
how many traces fit in it is how many run at once. Lengths are the largest unknown: measure a few and pass them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arrol_tts.errors import InputError

MEMORY_SHARE = 0.9
"""Of a GPU's memory that the engine takes: vLLM's default."""

BANDWIDTH_SHARE, COMPUTE_SHARE = 0.6, 0.4
"""Of the peaks that decoding reaches; assumed."""

MAX_RUNNING = 256
"""Traces at once: vLLM's default max_num_seqs."""

OVERHEAD_GB = 2.0
"""Activations, graphs and the quality head."""

BYTES_PER_TOKEN = 12
"""On disk: token id, confidence and text of a generated token after compression; assumed, and printed."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU's data sheet: memory in GB, bandwidth in GB/s, dense bfloat16 compute in TFLOP/s."""

    memory: float
    bandwidth: float
    compute: float


GPUS: Mapping[str, Gpu] = {
    "l4": Gpu(24, 300, 121),
    "rtx4090": Gpu(24, 1008, 165),
    "a100-40": Gpu(40, 1555, 312),
    "a100-80": Gpu(80, 2039, 312),
    "l40s": Gpu(48, 864, 362),
    "h100": Gpu(80, 3350, 989),
    "h200": Gpu(141, 4800, 989),
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model matters here.

    Attributes:
        parameters: of the model.
        layers, kv_heads, head_size: of the attention; the key-value cache follows from them.
        bytes_per_weight: 2 for bfloat16.
    """

    parameters: float
    layers: int
    kv_heads: int
    head_size: int
    bytes_per_weight: float = 2

    @property
    def kv_bytes(self) -> float:
        """Key-value cache of one token."""
        return 2 * self.layers * self.kv_heads * self.head_size * 2

    @property
    def weight_bytes(self) -> float:
        """Of all weights."""
        return self.parameters * self.bytes_per_weight


SHAPES: Mapping[str, ModelShape] = {
    "Qwen/Qwen3-1.7B": ModelShape(1.72e9, 28, 8, 128),
    "Qwen/Qwen3-4B": ModelShape(4.02e9, 36, 8, 128),
    "Qwen/Qwen3-8B": ModelShape(8.19e9, 36, 8, 128),
    "meta-llama/Llama-3.2-1B": ModelShape(1.24e9, 16, 8, 64),
}
"""Models of the recipes, whose plans need no download; -Base and -Instruct variants have the same shape."""


def shape_of(model: str) -> ModelShape:
    """A model's shape: from the table, else from its config, local or on the hub.

    Raises:
        InputError: when there is no such model.
    """
    for name, shape in SHAPES.items():
        if model.removesuffix("-Base").removesuffix("-Instruct") == name:
            return shape
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError) as error:
        raise InputError(f"the shape of {model!r} is not known, and its config cannot be read: {error}") from None
    return _shape(config)


def _shape(config: Any) -> ModelShape:
    """From a transformers config of a dense decoder: attention, gated MLP, embeddings."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    hidden = config.hidden_size
    attention = hidden * head_size * (2 * config.num_attention_heads + 2 * kv_heads)
    mlp = 3 * hidden * config.intermediate_size
    embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    parameters = config.num_hidden_layers * (attention + mlp) + embeddings
    return ModelShape(parameters, config.num_hidden_layers, kv_heads, head_size)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take.

    Attributes:
        tokens: to be generated, over all passes.
        hours: of one data-parallel group.
        running: traces that run at once.
        tokens_per_second: of one data-parallel group.
        memory_gb: of each GPU that weights and cache of the running traces need.
        disk_gb: of the results folder.
    """

    tokens: float
    hours: float
    running: int
    tokens_per_second: float
    memory_gb: float
    disk_gb: float


def estimate(
    shape: ModelShape,
    gpu: Gpu,
    *,
    traces: int,
    mean_tokens: float,
    max_tokens: int,
    prompt_tokens: float = 200,
    whole_passes: int = 1,
    kept_share: float | None = None,
    detection: int = 512,
    gpus: int = 1,
    replicas: int = 1,
) -> Estimate:
    """Tokens, hours, memory and disk of a run.

    Args:
        shape: of the model.
        gpu: that it runs on.
        traces: questions x n x seeds.
        mean_tokens: of a whole trace.
        max_tokens: limit on a trace; a trace that long must fit.
        prompt_tokens: of a prompt; prompts are shared between a question's traces.
        whole_passes: that stop nothing, or whose saving is not known.
        kept_share: of the traces in a further pass that prunes at ``detection``; None without one.
        detection: position in tokens.
        gpus: that share one copy of the model (tensor parallel); counted as ideal.
        replicas: copies of the model that share the questions.

    Raises:
        InputError: when the model, or a single trace, does not fit into the GPUs' memory.
    """
    tokens = whole_passes * traces * mean_tokens
    if kept_share is not None:
        stopped = min(detection, mean_tokens)
        tokens += traces * (kept_share * mean_tokens + (1 - kept_share) * stopped)
    budget = gpus * (gpu.memory * MEMORY_SHARE - OVERHEAD_GB) * 1e9 - shape.weight_bytes
    longest = (prompt_tokens + max_tokens) * shape.kv_bytes
    if budget < longest:
        raise InputError(
            f"weights take {shape.weight_bytes / 1e9:.0f} GB and one trace of {max_tokens} tokens "
            f"{longest / 1e9:.1f} GB: more than {gpus} GPU(s) of {gpu.memory:g} GB have; use more or larger ones"
        )
    # A running trace has on average half of its tokens.
    cached = (prompt_tokens + mean_tokens / 2) * shape.kv_bytes
    running = max(1, min(MAX_RUNNING, math.ceil(traces / replicas), int(budget / cached)))
    reading = (shape.weight_bytes + running * cached) / (gpus * gpu.bandwidth * 1e9 * BANDWIDTH_SHARE)
    computing = 2 * shape.parameters * running / (gpus * gpu.compute * 1e12 * COMPUTE_SHARE)
    rate = running / max(reading, computing)
    return Estimate(
        tokens=tokens,
        hours=tokens / replicas / rate / 3600,
        running=running,
        tokens_per_second=rate,
        memory_gb=((shape.weight_bytes + running * cached) / gpus / 1e9 + OVERHEAD_GB),
        disk_gb=tokens * BYTES_PER_TOKEN / 1e9,
    )
