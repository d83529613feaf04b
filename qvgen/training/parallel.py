"""Training on several processes: FSDP2 over whatever ``torchrun`` started.

Every process calls ``train_`` with the same arguments after ``init_process_group``. The passes of a
step (``recipe.accumulate``) are shared among them, so that one recipe gives the same steps on any
number of processes. Weights, gradients and Adam's moments are sharded; the teacher and, once, the
student before it is sharded lie whole in each process.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from qvgen.auxiliary import Phi
from qvgen.training.recipe import TrainRecipe


def world_size() -> int:
    """Processes that train together; 1 where torch.distributed is not running."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share(batches: Sequence[Any]) -> Sequence[Any]:
    """Of one step's batches, those that this process passes through the model."""
    return batches[rank() :: world_size()]


def shard(student: nn.Module, recipe: TrainRecipe) -> nn.Module:
    """``student`` itself on one process, else a copy sharded block by block.

    While the copy trains, ``student`` waits in the memory of the host; ``unshard_`` brings it back.

    Raises:
        ValueError: the passes of a step cannot be shared evenly, or a step is to be one CUDA graph.
    """
    if world_size() == 1:
        return student
    if recipe.accumulate % world_size():
        raise ValueError(
            f"accumulate is {recipe.accumulate}, but {world_size()} processes share the passes of a step; "
            f"set it to a multiple of {world_size()} (batch_size is that of one pass)"
        )
    if recipe.compile == "graph":
        raise ValueError("compile: graph works on one process; use compile: off or default")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(student.parameters()).device
    copied = copy.deepcopy(student)
    student.to("cpu")
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in list(_blocks(copied)):
        fully_shard(block, mesh=mesh)
    # Else a validation, which has no backward pass, would leave the root's parameters gathered.
    fully_shard(copied, mesh=mesh, reshard_after_forward=True)
    return copied


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists; lists within a block (``attn.to_out``) are parts of it."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


@torch.no_grad()
def unshard_(trained: nn.Module, student: nn.Module, device: torch.device) -> None:
    """Bring what was trained back into ``student``, on ``device``."""
    if trained is student:
        return
    student.to(device)
    into = dict(student.named_parameters()) | dict(student.named_buffers())
    for name, tensor in (*trained.named_parameters(), *trained.named_buffers()):
        into[name].copy_(whole(tensor))


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor; every process must ask. Others come back as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign_(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole ``value``, the same in each process, into a tensor that may be sharded."""
    value = value.to(tensor.device)
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
    tensor.copy_(value)


@torch.no_grad()
def whole_phis(phis: Sequence[Phi]) -> list[Phi]:
    """The same modules where nothing is sharded, else copies with all rows and columns."""
    if not any(isinstance(phi.L, DTensor) for phi in phis):
        return list(phis)
    copies = []
    for phi in phis:
        copies.append(Phi(whole(phi.L), whole(phi.R)))
        copies[-1].gamma.copy_(phi.gamma)
    return copies


def assign_phis_(phis: Sequence[Phi], values: Sequence[Phi]) -> None:
    """Write what ``whole_phis`` gave back into the modules that it came from."""
    for phi, value in zip(phis, values, strict=True):
        if phi is not value:
            assign_(phi.L, value.L)
            assign_(phi.R, value.R)


def mean_over_processes(value: Tensor) -> Tensor:
    """In place; ``value`` itself on one process."""
    if world_size() > 1:
        distributed.all_reduce(value)
        value /= world_size()
    return value


def agreed(decision: bool, device: torch.device) -> bool:
    """What the first process decided; a wait for the device where there are others."""
    if world_size() == 1:
        return decision
    flag = torch.tensor([decision], dtype=torch.uint8, device=device)
    distributed.broadcast(flag, 0)
    return bool(flag.item())
