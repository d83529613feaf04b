"""Tensors between host and device, without the modules they belong to being told."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["HOST", "move_", "places_itself", "units"]

HOST = torch.device("cpu")


def move_(module: nn.Module, device: torch.device) -> None:
    """Bring all parameters and buffers to ``device``; unlike ``.to`` no layer does anything of its own.

    They can be trained on, also where a sampler's inference mode is on: tensors made in it could not.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.device != device:
                tensor.data = tensor.data.to(device)


def places_itself(module: nn.Module) -> bool:
    """Whether a training has said where it lies: spread over processes, or by blocks on the host."""
    from torch.distributed.tensor import DTensor

    is_sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
    return is_sharded or bool(getattr(module, "places_itself", False))


def units(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that together hold all but ``module``'s own tensors: members of lists one by one."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) or any(
            isinstance(part, nn.ModuleList) for part in child.children()
        ):
            yield from units(child)
        else:
            yield child
