"""A low-rank adapter that is quantized together with its weight: ``Q(W + B A)`` of EfficientDM."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qvgen.api import quant_layers
from qvgen.linear import QuantLinear


class Adapter(nn.Module):
    """Turns W into ``W + B A``; B is zero at the start, A uniform as Kaiming's.

    Scale-aware learning rate: EfficientDM gives A and B of a layer the rate ``eta * unit``, unit being
    the layer's mean weight step. Here the trained tensors are A / unit and B / unit, all at the rate
    eta, and their gradients are those of A and B. So AdamW's moments, its epsilon and the clipping of
    the gradient norm see what they see in EfficientDM, and one optimiser group serves all layers.

    Args:
        shape: [out, in] of the weight.
        rank: rows of A.
        unit: positive; 1 for no scale-awareness.
        generator: draws A, on the CPU.
        device: where the parameters go.
    """

    unit: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        unit: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(shape[1])
        a = (torch.rand(rank, shape[1], generator=generator) * 2 - 1) * bound
        self.A = nn.Parameter((a / unit).to(device))
        self.B = nn.Parameter(torch.zeros(shape[0], rank, device=device))
        self.register_buffer("unit", torch.tensor(unit, device=device))

    def forward(self, weight: Tensor) -> Tensor:
        """``W + B A``, [out, in], in the dtype of ``weight``; never under autocast, as in ``convert_``."""
        with torch.autocast(weight.device.type, enabled=False):
            low_rank = _in_units(self.B, self.unit) @ _in_units(self.A, self.unit)
        return weight + low_rank.to(weight.dtype)


class _InUnits(torch.autograd.Function):
    """``stored * unit``, whose gradient goes to ``stored`` as it is: that of A or B, not of A / unit."""

    @staticmethod
    def forward(ctx: Any, stored: Tensor, unit: Tensor) -> Tensor:
        return stored * unit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _in_units(stored: Tensor, unit: Tensor) -> Tensor:
    product: Tensor = _InUnits.apply(stored, unit)  # type: ignore[no-untyped-call]
    return product


def attach_adapters_(model: nn.Module, rank: int, seed: int, *, scale_aware: bool) -> None:
    """Give every layer of a model from ``quantize_`` an adapter, and leave only these to be trained.

    Beside A and B the weight steps and what quantizes activations stay trainable; weights, biases,
    norms and all else are frozen. A layer smaller than ``rank`` gets what it has.
    """
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for _, layer in quant_layers(model):
        unit = float(layer.wquantizer.scale().mean()) if scale_aware else 1.0
        shape = (layer.out_features, layer.in_features)
        adapter = Adapter(shape, min(rank, *shape), unit, generator, layer.weight.device)
        parametrize.register_parametrization(layer, "weight", adapter)
        for part in (adapter, layer.wquantizer, layer.aquantizer):
            part.requires_grad_(True)


def merge_adapters_(model: nn.Module) -> None:
    """Add each adapter's product into its layer's weight and remove it; the function stays the same."""
    for _, layer in quant_layers(model):
        if is_adapted(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def is_adapted(layer: QuantLinear) -> bool:
    """Whether the layer's weight has an adapter."""
    return parametrize.is_parametrized(layer, "weight")
