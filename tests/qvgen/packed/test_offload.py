"""Packed models whose layers come to the device one at a time: accelerate's and diffusers' offloading."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

from qvgen.packed.backends import Backend
from qvgen.packed.convert import pack_, packed_layers
from qvgen.packed.linear import PackedLinear
from tests.qvgen.packed.models import finished, inputs
from tests.qvgen.packed.test_reading import PLACES, transformed_

accelerate = pytest.importorskip("accelerate")


def called(model: nn.Module, name: str, device: str) -> Tensor:
    values = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs(name).items()}
    with torch.no_grad():
        out: Tensor = model(**values)[0]
    return out


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("kind", ["plain", "clips", "transformed"])
@pytest.mark.parametrize("name", ["cog", "wan"])
def test_leaf_by_leaf(name: str, kind: str, buffers: bool, backend: Backend, device: str) -> None:
    """Weights rest on ``meta`` between the calls of their layers: whoever reads them too early fails.

    On a CPU the bits are those of the model that stays, whose fused blocks compute what diffusers' do;
    kernels leave roundings out where reads are fused, and offloaded blocks fuse nothing.
    """
    options: dict[str, Any] = {"learn_clip": True} if kind == "clips" else {}
    model = finished(name, layers=1, **options)
    if kind == "transformed":
        model = transformed_(model, same=True)
    packed = pack_(model.to(device), backend, fuse=backend is not Backend.TRITON_INT8)
    wanted = called(packed, name, device)
    moved = copy.deepcopy(packed)
    accelerate.cpu_offload(moved, execution_device=torch.device(device), offload_buffers=buffers)
    assert any(t.device.type == "meta" for t in (*moved.parameters(), *moved.buffers()))
    for _ in range(2):
        assert torch.equal(called(moved, name, device), wanted)
    assert {layer.executed for _, layer in packed_layers(moved)} == {backend}


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_diffusers_groups(kind: str, device: str) -> None:
    """Packed linears are no leaves that diffusers knows: they come with the groups around them."""
    model = pack_(finished("wan", learn_clip=True).to(device))
    wanted = called(model, "wan", device)
    options: dict[str, Any] = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(
        model,
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type=kind,
        **options,
    )
    for _ in range(2):
        got = called(model, "wan", device)
        assert (
            torch.allclose(got, wanted, rtol=1e-2, atol=1e-2)
            if device == "cuda"
            else torch.equal(got, wanted)
        )


def test_a_layer_that_is_elsewhere_is_not_prepared_for_that_place() -> None:
    """Else it would be prepared anew, with its codes expanded, at every call."""
    model = pack_(finished("cog", layers=1), Backend.CPU)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    called(model, "cog", "cpu")
    counts: dict[int, int] = {}
    original = PackedLinear.prepare_

    def counting(self: PackedLinear, *, passing: bool = False) -> PackedLinear:
        counts[id(self)] = counts.get(id(self), 0) + 1
        return original(self, passing=passing)

    PackedLinear.prepare_ = counting  # type: ignore[method-assign]
    try:
        called(model, "cog", "cpu")
    finally:
        PackedLinear.prepare_ = original  # type: ignore[method-assign]
    assert not counts
