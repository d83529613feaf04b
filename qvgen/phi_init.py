"""Gives every quantized layer its Phi: from the quantization error, from zero, or at random."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qvgen.auxiliary import Phi, leading_factors, refactor
from qvgen.config import PhiInit
from qvgen.linear import QuantLinear

_ELEMENTS_AT_ONCE = 1 << 27


@torch.no_grad()
def attach_phis_(layers: Sequence[QuantLinear], rank: int, init: PhiInit) -> None:
    """Attach a Phi of ``rank`` columns, at most min(out, in), to each layer, in place.

    ``error`` starts as the best approximation of W - Q(W), one batched decomposition for layers of
    one shape. ``zero`` has L = 0 and R normal with variance 1/in, so that the product is zero and
    L has a gradient. ``random`` is normal with the norm ``||W - Q(W)|| sqrt(r / min(out, in))`` that
    the error would have in r directions, were it spread evenly. The last two draw from torch's
    global generator of the CPU.
    """
    if init == "error":
        for group in _chunks(layers):
            errors = torch.stack([quantization_error(layer) for layer in group])
            for layer, left, right in zip(group, *leading_factors(errors, rank), strict=True):
                layer.phi = Phi(left, right)
        return
    for layer in layers:
        out, columns = layer.weight.shape
        r = min(rank, out, columns)
        device = layer.weight.device
        left = torch.randn(out, r).to(device) if init == "random" else torch.zeros(out, r, device=device)
        right = torch.randn(r, columns).to(device)
        if init == "zero":
            right /= math.sqrt(columns)
        else:
            share = math.sqrt(r / min(out, columns))
            size = share * quantization_error(layer).norm() / (left @ right).norm()
            # Columns by descending singular value, as every stage of the decay takes them to be.
            left, right = refactor(left * size.sqrt(), right * size.sqrt())
        layer.phi = Phi(left, right)


def quantization_error(layer: QuantLinear) -> Tensor:
    """W - Q(W), [out, in] float32."""
    error: Tensor = layer.weight.float() - layer.wquantizer(layer.weight)
    return error


def _chunks(layers: Sequence[QuantLinear]) -> Iterator[list[QuantLinear]]:
    """Layers of one shape, as many as make a batch of reasonable size."""
    groups: dict[torch.Size, list[QuantLinear]] = defaultdict(list)
    for layer in layers:
        groups[layer.weight.shape].append(layer)
    for shape, group in groups.items():
        size = max(1, _ELEMENTS_AT_ONCE // shape.numel())
        yield from (group[start : start + size] for start in range(0, len(group), size))
