"""A finished model beside its packed form, layer by layer on the same inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from qvgen.api import frozen_layers
from qvgen.packed.backends import Backend
from qvgen.packed.convert import pack_, packed_layers
from tests.finished import finished_layers


def compare(model: nn.Module, call: Callable[[nn.Module], object], tolerance: float = 1e-5) -> nn.Module:
    """Codes bit for bit, outputs of every layer to ``tolerance`` of the largest; returns the packed model."""
    fake = {name: layer.codes for name, layer in frozen_layers(model)}
    for backend in (Backend.REFERENCE, Backend.AUTO):
        packed = pack_(copy.deepcopy(model), backend)
        layers = dict(packed_layers(packed))
        assert layers.keys() == fake.keys() and layers
        for name, layer in layers.items():
            assert torch.equal(layer.packed_weight().unpacked(), fake[name]), name
        _same_outputs(model, packed, call, tolerance)
    return packed


def _same_outputs(
    model: nn.Module, packed: nn.Module, call: Callable[[nn.Module], object], tolerance: float
) -> None:
    seen: list[str] = []

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                got = packed.get_submodule(name)(*args)
            assert got.dtype == output.dtype and got.shape == output.shape
            # A fake-quantized bfloat16 layer rounds its operands too; float32 differs in the last bits.
            allowed = tolerance * float(output.float().abs().max())
            assert float((got.float() - output.float()).abs().max()) <= allowed, name
            seen.append(name)

        return hook

    hooks = [layer.register_forward_hook(hook_for(name)) for name, layer in finished_layers(model)]
    contexts = [m for m in (model, packed) if hasattr(m, "clip_context")]
    if contexts:  # the packed model's layers are called outside of its forward
        take = model.register_forward_pre_hook(
            lambda _, args, kwargs: packed.clip_context.set_timestep(kwargs["timestep"]),  # type: ignore[operator,union-attr]
            with_kwargs=True,
        )
        hooks.append(take)
    with torch.no_grad():
        call(model)
    for hook in hooks:
        hook.remove()
    assert {name for name, _ in finished_layers(model)} <= set(seen)
