"""The start of a joint training: ``quantize_`` layer by layer, the work shared among the processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

from qvgen.api import make_clip_context, module_names, put_, quantizable_names
from qvgen.auxiliary import Phi
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.linear import QuantLinear
from qvgen.phi_init import attach_phis_
from qvgen.quantizers import ClipContext
from qvgen.training.agreement import all_or_none
from qvgen.training.parallel import rank, world_size


def quantize_by_layers_(
    model: nn.Module, config: QuantConfig | QVGenConfig, skip: Collection[str], device: torch.device
) -> nn.Module:
    """``quantize_`` of a model that need not be float32, nor on ``device``, nor fit it as such.

    Its weights stay in the dtype and place they are in; one layer at a time is float32 on ``device``,
    where ranges and Phi stay. Ranges and Phi are those of ``quantize_(model.float(), ...)``: each
    process finds those of every n-th layer and sends them to the others. A Phi that is drawn at random
    is drawn by all, from torch's global generator as ``quantize_`` does.

    Raises:
        ValueError: as ``quantize_``.
    """
    quant, phi = (config.quant, config) if isinstance(config, QVGenConfig) else (config, None)
    divided = phi is None or phi.phi_init == "error"
    layers: list[QuantLinear] = []
    with all_or_none():  # a layer may be bad for the one process that looks at it
        names = quantizable_names(model, skip)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.data.float()
        context, places = make_clip_context(model, quant), module_names(model)
        for number, name in enumerate(names):
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            mine = not divided or number % world_size() == rank()
            try:
                with _float32_on(device, linear):
                    layer = (_found if mine else _empty)(linear, quant, phi, context)
            except ValueError as error:
                raise ValueError(f"layer {name}: {error}") from None
            put_(model, places.pop(linear), layer)
            layers.append(layer)
    if world_size() > 1:  # also of what all have found: each will keep but a shard of it
        for number, layer in enumerate(layers):
            for tensor in _start_of(layer):
                distributed.broadcast(tensor, number % world_size() if divided else 0)
    return model.requires_grad_(True)


@contextmanager
def _float32_on(device: torch.device, linear: nn.Linear) -> Iterator[None]:
    rest = [(p, p.data) for p in linear.parameters()]
    for parameter, value in rest:
        parameter.data = value.to(device, torch.float32)
    try:
        yield
    finally:
        for parameter, value in rest:
            parameter.data = value


def _found(
    linear: nn.Linear, quant: QuantConfig, phi: QVGenConfig | None, context: ClipContext
) -> QuantLinear:
    layer = QuantLinear.from_linear(linear, quant, context)
    if phi is not None:
        attach_phis_([layer], phi.rank, phi.phi_init)
    return layer


def _empty(
    linear: nn.Linear, quant: QuantConfig, phi: QVGenConfig | None, context: ClipContext
) -> QuantLinear:
    """Of the right shapes; another process has what belongs there."""
    layer = QuantLinear.from_linear(linear, dataclasses.replace(quant, range_init="minmax"), context)
    layer.config = quant
    if phi is not None:
        (out, columns), device = layer.weight.shape, layer.weight.device
        r = min(phi.rank, out, columns)
        layer.phi = Phi(torch.empty(out, r, device=device), torch.empty(r, columns, device=device))
    return layer


def _start_of(layer: QuantLinear) -> Iterator[Tensor]:
    for tensor in (*layer.wquantizer.parameters(), *layer.wquantizer.buffers()):
        yield tensor.data
    if layer.phi is not None:
        yield from (layer.phi.L.data, layer.phi.R.data)
