"""The layers that a method has quantized, for tests of what it did to which."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from qvgen.linear import FrozenQuantLinear
from qvgen.transformed import TransformedQuantLinear


def finished_layers(model: nn.Module) -> Iterator[tuple[str, FrozenQuantLinear | TransformedQuantLinear]]:
    """Name and module of each, with all that surrounds its codes."""
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        if isinstance(module, TransformedQuantLinear) or (
            isinstance(module, FrozenQuantLinear)
            and not isinstance(model.get_submodule(parent), TransformedQuantLinear)
        ):
            yield name, module
