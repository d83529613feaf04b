"""Fake quantization as two operators with hand-written backward passes.

Both compute their codes in float32 whatever the dtype of the model, so that the function that is
trained and the integers that are exported agree bit for bit. The straight-through estimator
treats ``round`` as the identity; ``clamp`` stops the gradient of values outside the range.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCALE_FLOOR = 1e-9


def weight_codes(weight: Tensor, scale: Tensor, zero_point: Tensor, q_max: int) -> Tensor:
    """``clamp(round(w / s + z), 0, q_max)``, float32 integers of the shape of ``weight``."""
    return weight.float().div(scale).add_(zero_point).round_().clamp_(0, q_max)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``s * (c - z)`` in float32."""
    return (codes.float() - zero_point) * scale


class _WeightFakeQuant(torch.autograd.Function):
    """LSQ / LSQ+ with gradients of scale and zero point multiplied by ``grad_scale``."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, zero_point: Tensor, q_max: int, grad_scale: float
    ) -> Tensor:
        ctx.save_for_backward(weight, scale, zero_point)
        ctx.q_max, ctx.grad_scale = q_max, grad_scale
        return dequantize(weight_codes(weight, scale, zero_point, q_max), scale, zero_point)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        weight, scale, zero_point = ctx.saved_tensors
        ratio = weight.float() / scale
        rounded = torch.round(ratio + zero_point)
        codes = rounded.clamp(0, ctx.q_max)
        inside = rounded == codes
        grad_weight = grad * inside
        # d(s*(c-z))/ds = (c - z) - [inside] * w/s;  d/dz = -s outside, 0 inside.
        grad_scale = (grad * (codes - zero_point) - grad_weight * ratio).sum(-1, keepdim=True)
        grad_zero = ((grad_weight - grad) * scale).sum(-1, keepdim=True)
        return (
            grad_weight.to(weight.dtype),
            grad_scale * ctx.grad_scale,
            grad_zero * ctx.grad_scale,
            None,
            None,
        )


def weight_fake_quant(
    weight: Tensor, scale: Tensor, zero_point: Tensor, q_max: int, grad_scale: float = 1.0
) -> Tensor:
    """Quantize and dequantize a weight matrix row by row: ``s * (clamp(round(w/s + z)) - z)``.

    Args:
        weight: [out, in], any float dtype.
        scale: [out, 1] float32, positive.
        zero_point: [out, 1] float32; real-valued for LSQ+, whole for LSQ.
        q_max: largest code, 2^b - 1.
        grad_scale: factor on the gradients of scale and zero point (LSQ, section 2.2).

    Returns:
        [out, in] float32. With v = w/s + z, gradients are: to w, 1 where the code was not
        clamped; to s, ``round(v) - v`` there and ``c - z`` elsewhere; to z, ``-s`` where clamped.
    """
    out: Tensor = _WeightFakeQuant.apply(weight, scale, zero_point, q_max, grad_scale)  # type: ignore[no-untyped-call]
    return out


def token_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row minimum and maximum [..., 1] in float32, widened to include zero."""
    # Two reductions: on a CPU each is vectorised, torch.aminmax over a dimension is not.
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return low.float().clamp(max=0), high.float().clamp(min=0)


def token_scale(low: Tensor, high: Tensor, q_max: int) -> tuple[Tensor, Tensor]:
    """Scale and integer zero point of ranges [low, high] that contain zero."""
    scale = ((high - low) / q_max).clamp(min=SCALE_FLOOR)
    return scale, (-low / scale).round_().clamp_(0, q_max)


def _bounded_(whole: Tensor, zero_point: Tensor, q_max: int) -> Tensor:
    """``clamp(whole + z, 0, q_max) - z`` in place and, for whole numbers, without rounding error."""
    torch.maximum(whole, -zero_point, out=whole)
    return torch.minimum(whole, q_max - zero_point, out=whole)


class _TokenFakeQuant(torch.autograd.Function):
    """Dynamic per-token fake quantization; saves its input and the rows' ranges, nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: Tensor, upper: Tensor, q_max: int) -> Tensor:
        low, high = token_range(x)
        scale, zero_point = token_scale(low * lower, high * upper, q_max)
        ctx.save_for_backward(x, low, high, scale, zero_point, lower, upper)
        ctx.q_max = q_max
        codes = _bounded_(torch.div(x.float(), scale).round_(), zero_point, q_max)
        return codes.mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, low, high, scale, zero_point, lower, upper = ctx.saved_tensors
        x_float, grad = x.float(), grad.float()
        ratio = x_float / scale
        rounded = ratio.round()
        codes = _bounded_(rounded.clone(), zero_point, ctx.q_max)
        grad_x = rounded.eq_(codes).mul_(grad)
        grad_scale = codes.mul_(grad).addcmul_(grad_x, ratio, value=-1).sum(-1, keepdim=True)
        grad_range = grad_scale * (scale > SCALE_FLOOR) / ctx.q_max
        # The range is no constant: its ends are elements of the row (equal ones share, as in amax).
        for end, share in ((high, grad_range * upper * (high > 0)), (low, -grad_range * lower * (low < 0))):
            extreme = torch.sub(x_float, end).eq_(0)
            grad_x.addcmul_(extreme, share / extreme.sum(-1, keepdim=True).clamp(min=1))
        grad_lower = (-grad_range * low).sum_to_size(lower.shape) if ctx.needs_input_grad[1] else None
        grad_upper = (grad_range * high).sum_to_size(upper.shape) if ctx.needs_input_grad[2] else None
        return grad_x.to(x.dtype), grad_lower, grad_upper, None


def token_fake_quant(x: Tensor, lower: Tensor, upper: Tensor, q_max: int) -> Tensor:
    """Quantize and dequantize each token (last-dimension row) over its own clipped range.

    With m = min(row, 0) and M = max(row, 0): ``s = (upper*M - lower*m) / q_max``,
    ``z = clamp(round(-lower*m / s), 0, q_max)``, ``c = clamp(round(x/s) + z, 0, q_max)`` and the
    result is ``s * (c - z)``. No gradient passes the rounding of z; the range's ends get theirs.

    Args:
        x: [..., C], any float dtype.
        lower: share of the negative range kept, float32, broadcastable to [..., 1].
        upper: share of the positive range kept, likewise.
        q_max: largest code, 2^b - 1.

    Returns:
        Shape and dtype of ``x``.
    """
    out: Tensor = _TokenFakeQuant.apply(x, lower, upper, q_max)  # type: ignore[no-untyped-call]
    return out
