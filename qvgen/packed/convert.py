"""From the fake-quantized form of a finished model to its packed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from qvgen.api import frozen_layers, module_names, put_
from qvgen.config import QuantConfig
from qvgen.hadamard import Hadamard
from qvgen.layer_table import header_tables
from qvgen.linear import FrozenQuantLinear
from qvgen.packed.backends import Backend
from qvgen.packed.linear import PackedLinear
from qvgen.transformed import TransformedQuantLinear


@torch.no_grad()
def pack_(model: nn.Module, backend: Backend | str = Backend.AUTO, *, fuse: bool = True) -> nn.Module:
    """Replace every finished layer of ``model`` by its packed form, in place, one at a time.

    Args:
        model: what ``convert_``, a method or ``load_quantized`` gave.
        backend: how the layers are executed.
        fuse: whether blocks of diffusers' models that are known take norms and GELU into the reads.

    Returns:
        The same ``model``. Integer codes are the same bit for bit.

    Raises:
        ValueError: no finished layer (training layers need ``convert_`` first), an unknown backend, or
            one that cannot execute a layer, which is named.
    """
    backend = as_backend(backend)
    names = [name for name, _ in frozen_layers(model)]
    if not names:
        packed = next(packed_layers(model), None)
        raise ValueError(
            "pack_ found no finished layer: "
            + (f"{packed[0]} is packed already" if packed else "call convert_ on a quantized model first")
        )
    places = module_names(model)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, FrozenQuantLinear)
        try:
            replacement = PackedLinear.from_frozen(layer, backend)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from None
        put_(model, places.pop(layer), replacement)
    return join_reads_(model, fuse=fuse)


def join_reads_(model: nn.Module, *, fuse: bool = True) -> nn.Module:
    """Let packed linears of one input share its read, where the model is one of diffusers'; in place.

    Outputs stay the same bit for bit. With ``fuse`` norms, modulation and GELU go into these reads, and
    kernels then leave out roundings in between; see ``qvgen.integrations.attention`` and ``.blocks``.

    Returns:
        The same ``model``.
    """
    processors = (type(getattr(module, "processor", None)).__module__ for module in model.modules())
    if not any(name.startswith("diffusers.") for name in processors):
        return model
    from qvgen.integrations import attention, blocks  # diffusers is loaded already

    attention.share_reads_(model)
    return blocks.fuse_(model) if fuse else model


def packed_layers(model: nn.Module) -> Iterator[tuple[str, PackedLinear]]:
    """Name and module of each packed layer."""
    return ((n, m) for n, m in model.named_modules() if isinstance(m, PackedLinear))


def as_backend(value: Backend | str) -> Backend:
    """A backend from its name.

    Raises:
        ValueError: an unknown one, with those there are.
    """
    try:
        return Backend(value)
    except ValueError:
        known = ", ".join(one.value for one in Backend)
        raise ValueError(f"backend is {value!r}; choose one of {known}") from None


def described(model: nn.Module, config: QuantConfig) -> dict[str, Any]:
    """``layers``, ``transforms``, ``layer_configs`` of a packed model, as ``qvgen.layer_table`` has them."""
    layers = dict(packed_layers(model))
    shapes = {name: [layer.out_features, layer.in_features] for name, layer in layers.items()}
    return {"layers": shapes, **header_tables(model, layers, config)}


def empty_packed_(model: nn.Module, backend: Backend) -> None:
    """Turn the finished layers of a model on the meta device into packed ones that await their tensors."""
    places = module_names(model)
    for _, layer in list(frozen_layers(model)):
        shape = (layer.out_features, layer.in_features)
        device = layer.codes.device
        packed = PackedLinear(shape, layer.bias, layer.config, layer.context, device=device, backend=backend)
        put_(model, places.pop(layer), packed)


@torch.no_grad()
def prepare_(model: nn.Module) -> nn.Module:
    """Derive what packed layers keep beside their state, after a change of the state; returns ``model``.

    A backend that needs a GPU is no error on a host that has one: the layers may be on their way to it.
    """
    for _, layer in packed_layers(model):
        layer.prepare_(passing=True)
    for module in model.modules():
        if isinstance(module, TransformedQuantLinear) and module.rotation is not None:
            device = module.inner.codes.device
            if module.rotation.get_buffer("factor_0").device != device:
                module.rotation = Hadamard(module.in_features, device, paired=module.transform.paired)
    return model
