"""First static activation steps, as LSQ and as a range search have them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from baselines.inputs import InputStats
from qvgen.api import quant_layers
from qvgen.ranges import scale_and_zero_point, search_range
from qvgen.static import StaticActivationQuantizer

UNSEEN_STEP = 1.0  # for a layer that only ever saw zeros


def static_quantizers(model: nn.Module) -> dict[str, StaticActivationQuantizer]:
    """By name of the layer, for all layers of a quantized model that have one."""
    return {
        name: layer.aquantizer
        for name, layer in quant_layers(model)
        if isinstance(layer.aquantizer, StaticActivationQuantizer)
    }


def start_lsq_(model: nn.Module, stats: Mapping[str, InputStats]) -> None:
    """``s = 2 mean|x| / sqrt(Q_P)`` (LSQ, section 2.1); unsigned where no input is negative."""
    for name, quantizer in static_quantizers(model).items():
        q_max = quantizer.q_max
        unsigned = float(stats[name].low) >= 0
        levels = q_max if unsigned else q_max // 2
        step = 2 * stats[name].mean_abs() / math.sqrt(levels)
        quantizer.start_(step if step > 0 else UNSEEN_STEP, 0 if unsigned else q_max - levels)


def start_search_(model: nn.Module, stats: Mapping[str, InputStats]) -> None:
    """The range, of 80 shrunken ones, with the least sum of |error|^2.4 on the layer's inputs."""
    for name, quantizer in static_quantizers(model).items():
        found = stats[name]
        quantizer.start_(*_searched(found.sample(), found.low, found.high, quantizer.q_max))


def start_normalised_(model: nn.Module, stats: Mapping[str, InputStats], timestep_aware: set[str]) -> None:
    """As ``start_search_``, with one step for all timesteps of each layer.

    The inputs of the layers in ``timestep_aware`` are normalised first, by their mean and standard
    deviation at each timestep bucket.
    """
    for name, quantizer in static_quantizers(model).items():
        found = stats[name]
        shift, scale = found.moments()
        if name in timestep_aware:
            scale = torch.where(scale > 0, scale, 1.0)  # a constant input
            sample = found.sample(shift, scale)
            low, high = sample.min(), sample.max()
        else:
            shift, scale = torch.zeros_like(shift), torch.ones_like(scale)
            sample, low, high = found.sample(), found.low, found.high
        quantizer.start_(*_searched(sample, low, high, quantizer.q_max))
        quantizer.normalise_(shift, scale)


def _searched(sample: Tensor, low: Tensor, high: Tensor, q_max: int) -> tuple[float, float]:
    low, high = low.float().clamp(max=0).view(1, 1), high.float().clamp(min=0).view(1, 1)
    if float(high - low) == 0:
        return UNSEEN_STEP, 0.0
    ends = search_range(sample.view(1, -1), q_max, integer_zero=False, extremes=(low, high))
    scale, zero_point = scale_and_zero_point(*ends, q_max, integer_zero=False)
    return float(scale), float(zero_point)
