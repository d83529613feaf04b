"""The two quantized forms of ``nn.Linear``: one that trains, one that is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from qvgen.static import StaticActivationQuantizer, static_fake_quant


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
        static = config.a_range == "static"
        kind = StaticActivationQuantizer if static else ActivationQuantizer
        self.aquantizer = kind(config, context, weight.device)
        self.phi: Phi | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: QuantConfig, context: ClipContext) -> Self:
        """Take over the parameters of ``linear`` (not copied)."""
        assert isinstance(linear.weight, nn.Parameter)
        assert linear.bias is None or isinstance(linear.bias, nn.Parameter)
        return cls(linear.weight, linear.bias, config, context)

    def effective_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Q(W) + Phi, [out, in], computed in float32 and rounded to ``dtype`` if given."""
        return self._effective(self.weight, dtype)

    def _effective(self, weight: Tensor, dtype: torch.dtype | None) -> Tensor:
        phi = None if self.phi is None else (self.phi.L, self.phi.gamma, self.phi.R)
        effective: Tensor = self.wquantizer(weight, phi, dtype)
        return effective

    def scales(self) -> Iterator[Tensor]:
        """All that must be positive: the weight's scales and, where they are static, the activations'."""
        yield self.wquantizer.scale()
        if isinstance(self.aquantizer, StaticActivationQuantizer):
            yield from self.aquantizer.factors()

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast the product runs in its dtype: rounded to it at once, both sides save a pass.
        kind = x.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        weight = self.weight  # once: an adapter computes it each time it is asked for
        effective = self._effective(weight, autocast or weight.dtype)
        return functional.linear(self.aquantizer(x, autocast), effective, self.bias)


class FrozenQuantLinear(nn.Module):
    """Inference form: integer weight codes, scale and zero point; activations quantized on the fly.

    ``weight`` caches ``s * (c - z)`` in the dtype the model computes in, so that a call costs one
    matrix product and the activation's fake quantization. Scale and zero point stay float32 when
    the model is cast, hence the codes always mean the same numbers. ``load_state_dict`` renews it.

    State: ``codes`` uint8 [out, in], ``scale`` and ``zero_point`` of ``quantizers.scale_shape``
    ([out, 1] per channel; 2^(b-1) is the zero point of symmetric codes), ``bias`` [out] or None,
    ``lower`` and ``upper`` clip ratios [G] (of length 1 and value 1 where nothing is clipped); with
    static activations ``a_scale`` and ``a_zero_point`` [G].
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    lower: Tensor
    upper: Tensor
    weight: Tensor
    a_scale: Tensor
    a_zero_point: Tensor

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
        static = config.a_range == "static"
        for name in ("a_scale", "a_zero_point"):
            self.register_buffer(name, torch.ones(config.buckets, device=device), persistent=static)
        self.register_buffer("weight", torch.zeros(shape, dtype=dtype, device=device), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_load_state_dict_post_hook(_refresh_loaded)  # type: ignore[no-untyped-call]

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
        if isinstance(layer.aquantizer, StaticActivationQuantizer):
            frozen.a_scale.copy_(layer.aquantizer.scale())
            frozen.a_zero_point.copy_(layer.aquantizer.zero_point())
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
        if self.config.a_range == "static":
            scale, zero_point = (self.context.pick(r, x) for r in (self.a_scale, self.a_zero_point))
            quantized = static_fake_quant(x, scale, zero_point, 2**self.config.a_bits - 1)
        else:
            lower, upper = (self.context.pick(r, x) for r in (self.lower, self.upper))
            quantized = activation_fake_quant(x, lower, upper, self.config)
        return functional.linear(quantized, self.weight, self.bias)

    def stored_bits(self) -> int:
        """Bits that a checkpoint keeps: packed codes, scales, zero points, what quantizes inputs; no bias."""
        numbers = self.scale.numel() + self.zero_point.numel()
        if self.config.learn_clip or self.config.a_range == "static":
            numbers += 2 * self.config.buckets
        return self.codes.numel() * self.config.w_bits + 32 * numbers

    def macs(self, tokens: int) -> Mapping[tuple[int, int], int]:
        """Multiply-accumulates for ``tokens`` rows of input, by bits of weights and activations."""
        return {(self.config.w_bits, self.config.a_bits): tokens * self.in_features * self.out_features}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        dtype = self.weight.dtype
        names = ("scale", "zero_point", "lower", "upper", "a_scale", "a_zero_point")
        exact = {name: getattr(self, name) for name in names}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in exact.items():
            moved = getattr(self, name)
            if moved.dtype != value.dtype:
                setattr(self, name, value.to(moved.device))
        if self.weight.dtype != dtype:
            self.refresh_()
        return self


def _refresh_loaded(layer: FrozenQuantLinear, _: object) -> None:
    """The cached weight is no part of the state: after ``load_state_dict`` it would be the old one."""
    layer.refresh_()
