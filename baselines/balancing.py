"""ViDiT-Q's static-dynamic channel balancing: a factor for each channel, then a rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from baselines.calibration import Statistics
from baselines.layerwise import Rounded, output_error, positive_scale, round_rows, round_weight
from qvgen.config import QuantConfig
from qvgen.fake_quant import weight_codes, weight_fake_quant
from qvgen.hadamard import Hadamard, hadamard_factors, paired_factors, random_signs
from qvgen.ranges import minmax_range, scale_and_zero_point

if TYPE_CHECKING:
    from baselines.viditq import BalanceOptions

_SIGN_SEED = 0


@dataclass(frozen=True, slots=True)
class Balanced:
    """A layer before rounding: ``H(x input_scale) weight^T`` equals the full-precision product.

    Attributes:
        weight: float32 [out, in], divided by the scale and rotated.
        input_scale: float32 [in]; carries the random signs of the rotation.
        rotation: None where no transform of that width is known or wanted.
    """

    weight: Tensor
    input_scale: Tensor
    rotation: Hadamard | None

    def rows(self, x: Tensor) -> Tensor:
        """Inputs [n, in] as they reach the quantizer."""
        scaled = x * self.input_scale
        if self.rotation is None:
            return scaled
        rotated: Tensor = self.rotation(scaled)
        return rotated

    def hessian(self, found: Statistics) -> Tensor:
        """Mean of x x^T of those inputs, [in, in]."""
        assert found.hessian is not None
        return self.rows(self.rows(found.hessian.double()).T).float()


def channel_mask(weight: Tensor, found: Statistics, options: BalanceOptions) -> Tensor:
    """``max|W_j|^alpha / max|X_j|^(1-alpha)`` [in], 1 for channels that are all zero on either side."""
    seen = found.absmax
    if options.over_time == "mean":
        visited = (seen > 0).sum(0).clamp(min=1)
        absmax_x = seen.sum(0) / visited
    else:
        absmax_x = seen.amax(0)
    absmax_w = weight.float().abs().amax(0)
    return positive_scale(absmax_w**options.alpha / absmax_x ** (1 - options.alpha))


@torch.no_grad()
def balance(weight: Tensor, found: Statistics, options: BalanceOptions) -> Balanced:
    """Scale and rotate a weight [out, in]; computed in float64, given in float32."""
    mask = channel_mask(weight, found, options).double()
    rotation = None
    if options.rotate and hadamard_factors(weight.shape[1]) is not None:
        paired = paired_factors(weight.shape[1]) is not None
        rotation = Hadamard(weight.shape[1], weight.device, paired=paired)
        mask = mask * random_signs(weight.shape[1], _SIGN_SEED).to(mask)
    divided = weight.double() / mask
    turned: Tensor = divided if rotation is None else rotation(divided)
    return Balanced(turned.float(), mask.float(), rotation)


def balanced_error(
    linear: nn.Module, found: Statistics, options: BalanceOptions, config: QuantConfig
) -> float:
    """Relative squared output error of a layer on its calibration rows when so balanced and rounded."""
    assert isinstance(linear, nn.Linear)
    x, weight = found.rows.float(), linear.weight.detach().float()
    balanced = balance(weight, found, options)
    rounded = round_weight(balanced.weight, config).weight()
    return output_error(round_rows(balanced.rows(x), config) @ rounded.T, x @ weight.T)


@torch.no_grad()
def rounded_twice(weight: Tensor, balanced: Balanced, config: QuantConfig) -> Rounded:
    """What the public code makes of a layer: W/m rounded, then rotated, then rounded again.

    Each time the range is the largest that the quantizer has seen so far: of W, of W/m, of the
    rotated matrix.
    """
    divided = weight.float() / balanced.input_scale.abs()
    q_max = 2**config.w_bits - 1
    low, high = _wider(minmax_range(weight), minmax_range(divided))
    scale, zero_point = scale_and_zero_point(low, high, q_max, integer_zero=True)
    once = weight_fake_quant(divided, scale, zero_point, q_max)
    turned: Tensor = once
    if balanced.rotation is not None:
        turned = balanced.rotation(once * balanced.input_scale.sign())
    low, high = _wider((low, high), minmax_range(turned))
    scale, zero_point = scale_and_zero_point(low, high, q_max, integer_zero=True)
    return Rounded(weight_codes(turned, scale, zero_point, q_max), scale, zero_point)


def _wider(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.minimum(one[0], other[0]), torch.maximum(one[1], other[1])
