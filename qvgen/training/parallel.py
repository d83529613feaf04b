"""What several processes of one training tell each other.

Every process calls ``train_`` with the same arguments after ``init_process_group``. The passes of a
step (``recipe.accumulate``) are shared among them, so that one recipe gives the same steps on any
number of processes. What lies where is the matter of ``qvgen.training.sharding``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, distribute_tensor

from qvgen.auxiliary import Phi


def world_size() -> int:
    """Processes that train together; 1 where torch.distributed is not running."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share(batches: Sequence[Any]) -> Sequence[Any]:
    """Of one step's batches, those that this process passes through the model."""
    return batches[rank() :: world_size()]


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor; every process must ask. Others come back as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign_(tensor: Tensor, value: Tensor | None) -> None:
    """Copy a whole ``value`` into a tensor that may be sharded.

    Every process must call; the first one's ``value`` counts, the others may give None.
    """
    if world_size() == 1:
        assert value is not None
        tensor.copy_(value)
        return
    # A contiguous copy of its own: what is sent must not be a view, and what is received is written to.
    full = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    if value is not None:
        full.copy_(value)
    if isinstance(tensor, DTensor):
        full = distribute_tensor(full, tensor.device_mesh, tensor.placements)
    else:
        distributed.broadcast(full, 0)
    tensor.copy_(full)


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


def text_from_first(text: str, device: torch.device) -> str:
    """The first process' text in all of them."""
    if world_size() == 1:
        return text
    data = bytearray(text.encode())
    size = torch.tensor([len(data)], device=device)
    distributed.broadcast(size, 0)
    sent = torch.frombuffer(data, dtype=torch.uint8).to(device) if rank() == 0 and data else None
    got = torch.zeros(int(size.item()), dtype=torch.uint8, device=device) if sent is None else sent
    distributed.broadcast(got, 0)
    return bytes(got.cpu().numpy()).decode()
