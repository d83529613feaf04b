"""From the fake-quantized form of a finished model to its packed form."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from qvgen.api import frozen_layers
from qvgen.packed.backends import Backend
from qvgen.packed.linear import PackedLinear


@torch.no_grad()
def pack_(model: nn.Module, backend: Backend | str = Backend.AUTO) -> nn.Module:
    """Replace every finished layer of ``model`` by its packed form, in place, one at a time.

    Args:
        model: what ``convert_``, a method or ``load_quantized`` gave.
        backend: how the layers are executed.

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
    for name in names:
        layer = dict(frozen_layers(model))[name]
        try:
            replacement = PackedLinear.from_frozen(layer, backend)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from None
        model.set_submodule(name, replacement)
    return model


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
