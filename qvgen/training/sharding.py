"""What lies where: the student and the teacher of one training, by FSDP2, block by block.

Weights, gradients and Adam's moments are sharded over the processes that ``torchrun`` started. A
model is sharded unit by unit (a block, and at last what is in no block), so that no device ever holds
more of it than its shard and one block, beyond what was there already.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from qvgen.api import finish_, module_names, put_, quant_layers, refuse_active_phis, refuse_bad_scales
from qvgen.linear import FrozenQuantLinear
from qvgen.training.dtypes import restore_dtypes_
from qvgen.training.parallel import whole, world_size
from qvgen.training.recipe import TrainRecipe

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def check_shared(recipe: TrainRecipe) -> None:
    """Raise ValueError if several processes cannot share this training."""
    if world_size() == 1:
        return
    if recipe.accumulate % world_size():
        raise ValueError(
            f"accumulate is {recipe.accumulate}, but {world_size()} processes share the passes of a step; "
            f"set it to a multiple of {world_size()} (batch_size is that of one pass)"
        )
    if recipe.compile == "graph":
        raise ValueError("compile: graph works on one process; use compile: off or default")


def shard(student: nn.Module, device: torch.device) -> nn.Module:
    """``student`` itself on one process, else one that is sharded and takes its weights over.

    Float parameters become float32 on the way, so ``student`` may come in another dtype, and from the
    host. Until ``unshard_`` or ``convert_sharded_`` brings its weights back it is empty.
    """
    if world_size() == 1:
        return student
    # The copy has modules of its own and the same parameters, which sharding then replaces.
    trained = copy.deepcopy(student, {id(p): p for p in student.parameters()})
    mesh = device_mesh(device)
    for unit in (*blocks(trained), trained):
        _shard_unit(unit, mesh, device)
    return trained


def device_mesh(device: torch.device) -> DeviceMesh:
    """All processes in a row."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (world_size(),))


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists; lists within a block (``attn.to_out``) are parts of it."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


@torch.no_grad()
def _shard_unit(unit: nn.Module, mesh: DeviceMesh, device: torch.device) -> None:
    from torch.distributed.fsdp import fully_shard

    members = [p for p in unit.parameters() if not isinstance(p, DTensor)]
    for parameter in members:
        if parameter.is_floating_point() and parameter.dtype != torch.float64:
            parameter.data = parameter.data.to(device, torch.float32)
    # For the root: else a validation, which has no backward pass, would leave it gathered.
    fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    for parameter in members:
        parameter.data = parameter.data.new_empty(0)


@torch.no_grad()
def unshard_(trained: nn.Module, student: nn.Module, device: torch.device) -> None:
    """Bring what was trained back into ``student``, on ``device``; nothing is left of ``trained``."""
    if trained is student:
        return
    sources = _sources(trained, student)
    for tensor in (*student.parameters(), *student.buffers()):
        _fill(tensor, sources, device)


@torch.no_grad()
def convert_sharded_(
    trained: nn.Module, student: nn.Module, device: torch.device, dtypes: Mapping[str, torch.dtype]
) -> nn.Module:
    """``convert_`` of what was trained, in ``student``, one layer at a time; then ``restore_dtypes_``.

    Raises:
        ValueError: as ``convert_``.
    """
    layers = dict(quant_layers(trained))
    refuse_active_phis(layers)
    refuse_bad_scales(layers, whole)
    sources, places = _sources(trained, student), module_names(student)
    untrained = dict(quant_layers(student))
    for name in list(untrained):
        layer = untrained.pop(name)
        for tensor in (*layer.parameters(), *layer.buffers()):
            _fill(tensor, sources, device)
        frozen = nn.Module.to(FrozenQuantLinear.from_trained(layer), dtypes[f"{name}.weight"])
        put_(student, places.pop(layer), frozen)
    for tensor in (*student.parameters(), *student.buffers()):
        _fill(tensor, sources, device)
    config = next(iter(layers.values())).config
    return restore_dtypes_(finish_(student, config), dtypes)


def _sources(trained: nn.Module, student: nn.Module) -> dict[int, Tensor]:
    """By the identity of each parameter and buffer of ``student``: where its value is."""
    ours = (*student.named_parameters(), *student.named_buffers())
    theirs = (*trained.named_parameters(), *trained.named_buffers())
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    return {id(tensor): source for (_, tensor), (_, source) in zip(ours, theirs, strict=True)}


def _fill(tensor: Tensor, sources: dict[int, Tensor], device: torch.device) -> None:
    """Gather the value of ``tensor``, once, and give the shards of it free."""
    source = sources.pop(id(tensor), None)
    if source is None:
        return
    tensor.data = whole(source.detach()).to(device)
    if isinstance(source, DTensor):
        source.grad = None
        source.to_local().untyped_storage().resize_(0)
