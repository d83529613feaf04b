"""Activation checkpointing: a block's activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from qvgen.training.recipe import CheckpointingKeeps

# What torch's attention comes down to, on every kind of device. Its "math" form is plain products.
_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)
_CHECKPOINT = "_gradient_checkpointing_func"  # where diffusers' and transformers' modules keep it


def set_gradient_checkpointing(model: nn.Module, on: bool, keep: CheckpointingKeeps = "nothing") -> None:
    """Turn it on or off by the model's own method, as diffusers' and transformers' models have it.

    Args:
        model: whose blocks are checkpointed.
        on: or off.
        keep: ``attention``: what attention gave is kept, all else is computed again. Attention is most
            of the work of a video model and little of its memory: one hidden state a layer.

    Raises:
        ValueError: the model cannot do it.
    """
    change = getattr(model, f"{'enable' if on else 'disable'}_gradient_checkpointing", None)
    if change is None:
        raise ValueError(
            f"gradient_checkpointing: {type(model).__name__} has no enable_gradient_checkpointing(); "
            "turn it off, or lower batch_size and raise accumulate"
        )
    change()
    if not on or keep == "nothing":
        return
    owners = [m for m in model.modules() if callable(getattr(m, _CHECKPOINT, None))]
    if not owners:
        raise ValueError(
            f"checkpointing_keeps: attention: no module of {type(model).__name__} has a {_CHECKPOINT}, as "
            "those of diffusers have; use nothing"
        )
    for owner in owners:
        setattr(owner, _CHECKPOINT, keep_attention)


def keep_attention(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``function``, keeping of its activations only what attention gave."""
    kept = [getattr(torch.ops.aten, name).default for name in _ATTENTION if hasattr(torch.ops.aten, name)]
    contexts = partial(create_selective_checkpoint_contexts, kept)
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)
