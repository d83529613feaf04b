"""Where the teacher lies: whole on every device, sharded over them, or on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qvgen.training.parallel import world_size
from qvgen.training.pinned import HostMemory
from qvgen.training.recipe import TrainRecipe
from qvgen.training.sharding import blocks, device_mesh
from qvgen.training.visiting import VisitingBlock


def place_teacher_(teacher: nn.Module, recipe: TrainRecipe, device: torch.device) -> nn.Module:
    """Bring the frozen ``teacher`` to where ``recipe.teacher`` says, in place; it answers as before.

    ``sharded``: over the processes, in its own dtype; a block is gathered while it works. ``host``: its
    blocks rest in pinned memory of the host (with several processes each keeps its share) and come to
    the device one by one; what is in no block stays on the device. Where ``device`` is the host, or a
    single process is to share, nothing changes.
    """
    if recipe.teacher == "whole":
        return teacher
    rests = recipe.teacher == "host" and device.type != "cpu"
    if world_size() > 1 or rests:
        teacher.places_itself = True  # type: ignore[assignment]  # who moves models about leaves it alone
    if world_size() > 1:
        _shard(teacher, device, rests)
    elif rests:
        host = HostMemory()
        for block in blocks(teacher):
            HostBlock(block, device, host)
    return teacher


def _shard(teacher: nn.Module, device: torch.device, rests: bool) -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    options: dict[str, Any] = {"mesh": device_mesh(device), "reshard_after_forward": True}
    if rests:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=True)
    teacher.requires_grad_(False)  # then a block may have parameters of several dtypes, as diffusers' have
    for unit in (*blocks(teacher), teacher):
        fully_shard(unit, **options)


class HostBlock(VisitingBlock):
    """Its parameters rest on the host, pinned for CUDA, and come to the device while it works."""

    def __init__(self, block: nn.Module, device: torch.device, host: HostMemory) -> None:
        for parameter in block.parameters():
            parameter.data = host.like(parameter.data, pinned=device.type == "cuda").copy_(parameter.data)
        super().__init__(block, lambda value: value.to(device, non_blocking=True))
