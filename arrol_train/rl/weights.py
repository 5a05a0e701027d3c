"""The weights of the policy that TRL trains, as its checkpoint names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from trl import GRPOTrainer


def policy_weights(trainer: GRPOTrainer) -> Iterator[tuple[str, torch.Tensor]]:
    """The policy's weights under the names of its checkpoint, adapters merged, shards gathered.

    Every rank must iterate to the end, since gathering is collective. Sharded models (FSDP, DeepSpeed ZeRO-3) are
    handled as their documentation says, but untested here.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    adapted = hasattr(model, "merge_adapter")
    if adapted:
        model.merge_adapter()
    try:
        for name, parameter in model.named_parameters():
            plain = _checkpoint_name(name)
            with _gathered(parameter):
                tensor = parameter.data
                tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
                if plain:
                    yield plain, tensor
    finally:
        if adapted:
            model.unmerge_adapter()


def _checkpoint_name(name: str) -> str:
    """A parameter's name without its wrappers; "" for an adapter's own."""
    if "lora_" in name or "original_module" in name:
        return ""
    for wrapper in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "base_model.model."):
        name = name.replace(wrapper, "")
    return name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def _gathered(parameter: torch.nn.Parameter) -> Any:
    """A context in which a parameter of DeepSpeed ZeRO-3 is whole; others are anyway."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])
