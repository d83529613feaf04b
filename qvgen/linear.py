"""The two quantized forms of ``nn.Linear``: one that trains, one that is finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvgen.auxiliary import Phi
from qvgen.config import QuantConfig
from qvgen.fake_quant import dequantize
from qvgen.quantizers import (
    ActivationQuantizer,
    ClipContext,
    WeightQuantizer,
    activation_fake_quant,
    group_count,
    scale_shape,
)


class QuantLinear(nn.Module):
    """Fake-quantized training form: ``y = (Q(W) + Phi) Qa(x) + b``, one matrix product.

    ``weight`` and ``bias`` are the original layer's parameters. Build it with ``from_linear``.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, config: QuantConfig, context: ClipContext
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = bias
        self.config = config
        if config.a_granularity == "group":
            group_count("a_group_size", config.a_group_size, self.in_features)
        self.wquantizer = WeightQuantizer(weight, config)
        self.aquantizer = ActivationQuantizer(config, context, weight.device)
        self.phi: Phi | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: QuantConfig, context: ClipContext) -> Self:
        """Take over the parameters of ``linear`` (not copied)."""
        assert isinstance(linear.weight, nn.Parameter)
        assert linear.bias is None or isinstance(linear.bias, nn.Parameter)
        return cls(linear.weight, linear.bias, config, context)

    def effective_weight(self) -> Tensor:
        """Q(W) + Phi, [out, in] float32."""
        weight: Tensor = self.wquantizer(self.weight)
        return weight if self.phi is None else weight + self.phi()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective_weight()
        return functional.linear(self.aquantizer(x), weight.to(self.weight.dtype), self.bias)


class FrozenQuantLinear(nn.Module):
    """Inference form: integer weight codes, scale and zero point; activations quantized on the fly.

    ``weight`` caches ``s * (c - z)`` in the dtype the model computes in, so that a call costs one
    matrix product and the activation's fake quantization. Scale and zero point stay float32 when
    the model is cast, hence the codes always mean the same numbers.

    State: ``codes`` uint8 [out, in], ``scale`` and ``zero_point`` of ``quantizers.scale_shape``
    ([out, 1] per channel; 2^(b-1) is the zero point of symmetric codes), ``bias`` [out] or None,
    ``lower`` and ``upper`` clip ratios [G] (of length 1 and value 1 where nothing is clipped).
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    lower: Tensor
    upper: Tensor
    weight: Tensor

    def __init__(
        self, shape: tuple[int, int], bias: nn.Parameter | None, config: QuantConfig, context: ClipContext,
        *, device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__()
        self.out_features, self.in_features = shape
        self.config = config
        self.context = context
        buckets = config.clip_buckets if config.learn_clip else 1
        self.register_buffer("codes", torch.zeros(shape, dtype=torch.uint8, device=device))
        for name in ("scale", "zero_point"):
            self.register_buffer(name, torch.zeros(scale_shape(shape, config), device=device))
        for name in ("lower", "upper"):
            self.register_buffer(name, torch.ones(buckets, device=device), persistent=config.learn_clip)
        self.register_buffer("weight", torch.zeros(shape, dtype=dtype, device=device), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    @torch.no_grad()
    def from_trained(cls, layer: QuantLinear) -> Self:
        """Freeze a training layer; its Phi is not looked at."""
        frozen = cls(
            (layer.out_features, layer.in_features),
            layer.bias,
            layer.config,
            layer.aquantizer.context,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
        )
        frozen.codes.copy_(layer.wquantizer.codes(layer.weight))
        frozen.scale.copy_(layer.wquantizer.scale())
        frozen.zero_point.copy_(layer.wquantizer.zero_point)
        ratios = layer.aquantizer.ratios()
        if ratios is not None:
            frozen.lower.copy_(ratios[0])
            frozen.upper.copy_(ratios[1])
        frozen.refresh_()
        return frozen

    @torch.no_grad()
    def refresh_(self) -> None:
        """Recompute the cached ``weight`` after a change of codes, scale or zero point."""
        self.weight.copy_(dequantize(self.codes, self.scale, self.zero_point))

    def forward(self, x: Tensor) -> Tensor:
        lower, upper = (self.context.pick(r, x) for r in (self.lower, self.upper))
        return functional.linear(activation_fake_quant(x, lower, upper, self.config), self.weight, self.bias)

    def stored_bits(self) -> int:
        """Bits that a checkpoint keeps of the weight: packed codes, scales and zero points; no bias."""
        ratios = self.lower.numel() + self.upper.numel() if self.config.learn_clip else 0
        return self.codes.numel() * self.config.w_bits + 32 * (
            self.scale.numel() + self.zero_point.numel() + ratios
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        dtype = self.weight.dtype
        exact = {name: getattr(self, name) for name in ("scale", "zero_point", "lower", "upper")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in exact.items():
            moved = getattr(self, name)
            if moved.dtype != value.dtype:
                setattr(self, name, value.to(moved.device))
        if self.weight.dtype != dtype:
            self.refresh_()
        return self
