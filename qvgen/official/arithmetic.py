"""The released quantizers as plain tensor functions, each step rounded to the tensors' own dtype.

Numbers agree with the authors' code only if every intermediate result is rounded where theirs is:
in bfloat16 a quotient, a sum and a product are three roundings. So nothing here is fused, nothing
is widened to float32, and gradients come from autograd. Source: the authors' public code; see
``docs/methods/qvgen.md`` for what is right about it and what is not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qvgen.levels import SCALE_FLOOR


def straight_through_round(x: Tensor) -> Tensor:
    """``round`` (half to even) with the gradient of the identity; exact in every float dtype."""
    return x + (x.round() - x).detach()


def with_gradient_factor(x: Tensor, factor: float) -> Tensor:
    """``x`` with its gradient times ``factor``, as the sum of ``x * factor`` and the rest of ``x``.

    In low precision the two parts do not add up to ``x`` exactly. The release uses the sum, in
    inference too.
    """
    part = x * factor
    return part + (x - part).detach()


def lsq_gradient_factor(inputs: int, q_max: int) -> float:
    """``1 / sqrt(inputs * q_max)``."""
    return 1.0 / math.sqrt(inputs * q_max)


def quantize_weight(
    weight: Tensor, scale: Tensor, zero_point: Tensor, q_max: int, *, zero_inside: bool, grad_scaling: bool
) -> Tensor:
    """Fake-quantize a weight per output channel.

    Args:
        weight: [out, in].
        scale: [out, 1].
        zero_point: [out, 1]; anything real, also negative or above q_max: it is not clamped.
        q_max: 2^b - 1.
        zero_inside: LSQ+: ``clamp(round(w/s + z))``; else LSQ: ``clamp(round(w/s) + z)``.
        grad_scaling: see ``with_gradient_factor``; applied to scale and zero point.

    Returns:
        ``s * (c - z)``, [out, in], in the dtype that the inputs promote to.
    """
    if grad_scaling:
        factor = lsq_gradient_factor(weight.shape[1], q_max)
        scale, zero_point = (with_gradient_factor(t, factor) for t in (scale, zero_point))
    ratio = weight / scale
    if zero_inside:
        codes = straight_through_round(ratio + zero_point)
    else:
        codes = straight_through_round(ratio) + zero_point
    return scale * (codes.clamp(0, q_max) - zero_point)


def quantize_activation(
    x: Tensor, lower_logit: Tensor, upper_logit: Tensor, q_max: int, clip_ratio: float
) -> Tensor:
    """Fake-quantize each token over its own range, clipped twice.

    The extremes are multiplied by ``clip_ratio`` and then by the sigmoid of the logit, so at the
    start by 0.95 * 0.95. They are not widened to include zero: a token of one sign comes out
    wrong, since its zero point is clamped to an end of the codes.

    Args:
        x: [..., C].
        lower_logit: scalar; cast to the dtype of ``x`` before the sigmoid.
        upper_logit: scalar, likewise.
        q_max: 2^b - 1.
        clip_ratio: the constant one of the two factors.

    Returns:
        Shape and dtype of ``x``.
    """
    high = torch.sigmoid(upper_logit.to(x.dtype)) * (x.amax(-1, keepdim=True) * clip_ratio)
    low = torch.sigmoid(lower_logit.to(x.dtype)) * (x.amin(-1, keepdim=True) * clip_ratio)
    scale = ((high - low) / q_max).clamp(min=SCALE_FLOOR)
    zero_point = (-torch.round(low / scale)).clamp(0, q_max)
    codes = (straight_through_round(x / scale) + zero_point).clamp(0, q_max)
    return scale * (codes - zero_point)
