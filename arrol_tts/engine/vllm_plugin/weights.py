"""New weights of the language model into a running worker, between two steps.

vLLM's ``reload_weights`` brings tensors in a checkpoint's names into the kernels' layout (packed, sharded,
quantised). It reloads one layer after another, and so misses what two layers share: a tied ``lm_head`` on the
CPU keeps a packed copy of the old embedding, and every logit would silently be wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from arrol_tts.errors import InputError

if TYPE_CHECKING:
    import torch


def load_weights(worker: Any, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Replace the language model's weights in place.

    The caller sees to it that no request is running, and resets the prefix cache afterwards: cached keys and
    values are the old weights'.

    Args:
        worker: vLLM's worker, of the CPU or a GPU.
        named_tensors: all weights of the model, under the names of its checkpoint; any float type, on any
            device. Each worker takes its own shard of them.

    Raises:
        InputError: when they are not this model's. The engine cannot be used afterwards.
    """
    runner = worker.model_runner
    try:
        runner.reload_weights(weights_iterator=iter(named_tensors))
    except Exception as error:  # each loader of vLLM refuses in its own way
        raise InputError(
            f"the weights do not fit the engine's model ({type(error).__name__}: {str(error)[:200]}): load the "
            "engine again, and push all weights of the same architecture under the names of its checkpoint"
        ) from error
    if worker.device.type == "cpu":
        _pack_tied_head(runner.get_model())


def _pack_tied_head(model: Any) -> None:
    """Pack a tied ``lm_head`` again: its weight is the embedding's, whose reload does not reach its packing."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
