"""The released fake-quantized linear layer; parameter names are those of the released files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvgen.official.arithmetic import quantize_activation, quantize_weight
from qvgen.official.config import OfficialConfig
from qvgen.ranges import scale_and_zero_point, search_range


class OfficialWeightQuantizer(nn.Module):
    """LSQ+ or LSQ per output channel; with ``rank`` also Phi, added to the quantized weight.

    State: ``scale`` and ``zero_point`` [out, 1]; ``L`` [out, rank] and ``R`` [rank, in] with Phi.
    """

    scale: Tensor
    zero_point: Tensor
    gamma: Tensor

    def __init__(self, weight: Tensor, config: OfficialConfig, rank: int = 0) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(weight.new_ones(weight.shape[0], 1))
        zero_point = weight.new_zeros(weight.shape[0], 1)
        if config.weights == "lsq+":
            self.zero_point = nn.Parameter(zero_point)
        else:
            self.register_buffer("zero_point", zero_point)
        self.rank = rank
        if rank:
            self.L = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
            self.R = nn.Parameter(weight.new_zeros(rank, weight.shape[1]))
            self.register_buffer("gamma", weight.new_ones(rank), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        q_max = 2**self.config.w_bits - 1
        quantized = quantize_weight(
            weight,
            self.scale,
            self.zero_point,
            q_max,
            zero_inside=self.config.weights == "lsq+",
            grad_scaling=self.config.grad_scaling,
        )
        return quantized + (self.L * self.gamma) @ self.R if self.rank else quantized


class OfficialTimestep:
    """The first timestep of the running batch; all others of the batch are not looked at."""

    def __init__(self) -> None:
        self.first: Tensor | None = None

    def follow(self, model: nn.Module) -> None:
        """Take the ``timestep`` keyword of every call of ``model`` from now on."""
        # Kept on the module, so that a deep copy of the model follows its own.
        model.official_timestep = self  # type: ignore[assignment]
        model.register_forward_pre_hook(_take_timestep, with_kwargs=True)


def _take_timestep(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    timestep = kwargs.get("timestep")
    kept = model.official_timestep
    assert isinstance(kept, OfficialTimestep)
    kept.first = timestep.reshape(-1)[0].long() if isinstance(timestep, Tensor) else None


class OfficialActivationQuantizer(nn.Module):
    """Dynamic, per token, over a range clipped twice; one of several learnt clips serves a call.

    State: ``upper`` and ``lower``, logits [clip_entries].
    """

    def __init__(self, config: OfficialConfig, timestep: OfficialTimestep, like: Tensor) -> None:
        super().__init__()
        self.config = config
        self.timestep = timestep
        logit = math.log(config.clip_ratio / (1 - config.clip_ratio)) if config.clip_ratio < 1 else math.inf
        start = torch.full((config.clip_entries,), logit, dtype=like.dtype, device=like.device)
        self.upper = nn.Parameter(start)
        self.lower = nn.Parameter(start.clone())
        self.calls = 0

    def entry(self) -> Tensor | int:
        """Index of the clip for the call that is about to run; counts that call.

        Raises:
            ValueError: chosen by timestep, and the model was called without one.
        """
        last = self.config.clip_entries - 1
        if self.config.clip_choice == "last":
            return last
        if self.config.clip_choice == "counter":
            self.calls += 1
            return max(last + 1 - self.calls, 0)
        if self.timestep.first is None:
            raise ValueError("clips are chosen by timestep: call the model with timestep=...")
        return self.timestep.first % self.config.clip_entries

    def forward(self, x: Tensor) -> Tensor:
        entry = self.entry()
        q_max = 2**self.config.a_bits - 1
        return quantize_activation(x, self.lower[entry], self.upper[entry], q_max, self.config.clip_ratio)


class OfficialQuantLinear(nn.Module):
    """``y = (Q(w) + Phi) Qa(x) + b`` in the released arithmetic; ``w`` is rounded again in every call.

    State: ``w`` [out, in], ``b`` [out] or absent, and that of ``wquantizer`` and ``aquantizer``.
    """

    def __init__(
        self, linear: nn.Linear, config: OfficialConfig, timestep: OfficialTimestep, rank: int = 0
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.out_features, linear.in_features
        self.w = linear.weight
        self.b = linear.bias
        self.wquantizer = OfficialWeightQuantizer(linear.weight, config, rank)
        self.aquantizer = OfficialActivationQuantizer(config, timestep, linear.weight)

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear, config: OfficialConfig, timestep: OfficialTimestep) -> Self:
        """A layer ready to train, without Phi: ranges from the grid search on the rows' own extremes.

        Takes over the parameters of ``linear``. The search runs in float32; scale and zero point
        are then rounded to the dtype of the weight.
        """
        layer = cls(linear, config, timestep)
        weight, q_max, integer = layer.w.float(), 2**config.w_bits - 1, config.weights == "lsq"
        extremes = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        low, high = search_range(weight, q_max, integer_zero=integer, extremes=extremes)
        scale, zero_point = scale_and_zero_point(low, high, q_max, integer_zero=integer)
        layer.wquantizer.scale.copy_(scale)
        layer.wquantizer.zero_point.copy_(zero_point)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.aquantizer(x), self.wquantizer(self.w), self.b)


def restart_clip_counters_(model: nn.Module) -> None:
    """Let ``clip_choice="counter"`` begin again at the last entry; call it before each generation."""
    for module in model.modules():
        if isinstance(module, OfficialActivationQuantizer):
            module.calls = 0
