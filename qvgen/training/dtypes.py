"""The dtypes of a model's tensors, by name: they may differ within one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from qvgen.api import frozen_layers


def dtypes_of(model: nn.Module) -> dict[str, torch.dtype]:
    """Of all parameters and buffers, under every name that a shared one has."""
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name: tensor.dtype for name, tensor in named}


def restore_dtypes_(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> nn.Module:
    """Cast a converted ``model``, in place, to what ``dtypes_of`` said before it was quantized.

    A finished layer computes in the dtype of the weight that it replaced. What is new stays as it is.
    """
    layers = dict(frozen_layers(model))
    for name, layer in layers.items():
        nn.Module.to(layer, dtypes[f"{name}.weight"])
    own = {tensor for layer in layers.values() for tensor in (*layer.parameters(), *layer.buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor not in own and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes.get(name, tensor.dtype))
    return model
