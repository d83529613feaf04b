"""Fake quantization as two operators with hand-written backward passes.

Both compute their codes in float32 whatever the dtype of the model (float64 for float64, so that
tests can check gradients), so that the function that is trained and the integers that are exported
agree bit for bit. The straight-through estimator treats ``round`` as the identity; ``clamp`` stops
the gradient of values outside the range.

Codes are unsigned, 0..q_max with ``q_max = 2^b - 1``. Symmetric quantization is the same with the
constant zero point 2^(b-1): the levels are -2^(b-1)..2^(b-1)-1 times the scale. The lowest level
has no counterpart above; leaving it out would cost a quarter of the codes at 2 bits, while with it
the stored integers are ordinary two's complement plus an offset.

The functions here are the definition. On CUDA ``token_fake_quant`` and ``weight_fake_quant`` run
as the fused operators of ``qvgen.fused``, on a CPU tile by tile as in ``qvgen.tiled``; both give
the same codes, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qvgen import tiled
from qvgen.fused import switch
from qvgen.fused import token as fused_token
from qvgen.fused import weight as fused_weight
from qvgen.levels import SCALE_FLOOR, positive_levels


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in the dtype that codes are computed in."""
    return x if x.dtype == torch.float64 else x.float()


def weight_codes(weight: Tensor, scale: Tensor, zero_point: Tensor, q_max: int) -> Tensor:
    """``clamp(round(w / s + z), 0, q_max)``, float32 integers of the shape of ``weight``.

    ``scale`` and ``zero_point`` are as in ``weight_fake_quant``.
    """
    blocks, scale, zero_point = _in_blocks(weight, scale, zero_point)
    codes = at_least_float32(blocks).div(scale).add_(zero_point).round_().clamp_(0, q_max)
    return codes.view(weight.shape)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``s * (c - z)`` in float32, of the shape of ``codes``."""
    blocks, scale, zero_point = _in_blocks(codes, scale, zero_point)
    return ((at_least_float32(blocks) - zero_point) * scale).view(codes.shape)


def _in_blocks(weight: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views in which each block is a row of the last dimension, and scale and zero point fit it.

    Rows of [..., out, in] with a scale [..., out, 1] are blocks already. Otherwise scale is [R, G]
    and block (i, j) is the j-th part of the i-th of R equal slices of ``weight``.
    """
    if scale.shape[-1] == 1 and scale.shape[-2] == weight.shape[-2]:
        return weight, scale, zero_point
    return weight.reshape(*scale.shape, -1), scale.unsqueeze(-1), zero_point.unsqueeze(-1)


class _WeightFakeQuant(torch.autograd.Function):
    """LSQ / LSQ+ with gradients of scale and zero point multiplied by ``grad_scale``."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        q_max: int,
        grad_scale: float,
        clip_first: bool,
    ) -> Tensor:
        ctx.save_for_backward(weight, scale, zero_point)
        ctx.q_max, ctx.grad_scale, ctx.clip_first = q_max, grad_scale, clip_first
        codes = at_least_float32(weight).div(scale).add_(zero_point).round_().clamp_(0, q_max)
        return codes.sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        weight, scale, zero_point = ctx.saved_tensors
        ratio = at_least_float32(weight) / scale
        shifted = ratio + zero_point
        rounded = torch.round(shifted)
        codes = rounded.clamp(0, ctx.q_max)
        inside = (shifted > 0) & (shifted < ctx.q_max) if ctx.clip_first else rounded == codes
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
            None,
        )


def weight_fake_quant(
    weight: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    q_max: int,
    grad_scale: float = 1.0,
    *,
    phi: tuple[Tensor, Tensor, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    clip_first: bool = False,
) -> Tensor:
    """Quantize and dequantize a weight matrix block by block: ``s * (clamp(round(w/s + z)) - z)``.

    Args:
        weight: [out, in], any float dtype.
        scale: float32, positive; [out, 1] per channel, [out, G] for G groups of neighbours in
            each row, [1, 1] for the whole matrix.
        zero_point: float32, shape of ``scale``; real-valued for LSQ+, whole for LSQ, 2^(b-1) for
            symmetric quantization.
        q_max: largest code, 2^b - 1.
        grad_scale: factor on the gradients of scale and zero point (LSQ, section 2.2).
        phi: L [out, r], gamma [r] and R [r, in], float32; ``(L * gamma) R`` is added. gamma gets
            no gradient from the fused operator.
        dtype: of the result, rounded once; that of the arithmetic if left out.
        clip_first: whether a value up to half a step beyond the outermost code, which rounds to it,
            gets the gradients of a clamped one, as in LSQ's equation 3. The result is the same.
            Never fused.

    Returns:
        [out, in], float32 (float64 for float64). With v = w/s + z, gradients are: to w, 1 where the
        code was not clamped; to s, ``round(v) - v`` there and ``c - z`` elsewhere; to z, ``-s`` where
        clamped.
    """
    if not clip_first and _weight_fits(weight, scale, zero_point) and fused_weight.phi_fits(weight, phi):
        wanted = torch.float32 if dtype is None else dtype
        return fused_weight.weight_fake_quant(weight, scale, zero_point, phi, q_max, grad_scale, wanted)
    out = block_fake_quant(weight, scale, zero_point, q_max, grad_scale, phi=phi, clip_first=clip_first)
    return out if dtype is None else out.to(dtype)


def block_fake_quant(
    weight: Tensor, scale: Tensor, zero_point: Tensor, q_max: int, grad_scale: float = 1.0,
    *, phi: tuple[Tensor, Tensor, Tensor] | None = None, clip_first: bool = False,
) -> Tensor:  # fmt: skip
    """``weight_fake_quant`` in the dtype of the arithmetic and never fused: tiled, else by its definition."""
    # A gradient of gamma only the definition has.
    tiles = tiled.fits(weight, scale, zero_point, *(phi or ())) and not (phi and phi[1].requires_grad)
    if tiles:
        blocks, scale, zero_point = _in_blocks(weight, scale, zero_point)
        out = tiled.weight_fake_quant(blocks, scale, zero_point, phi, q_max, grad_scale, clip_first)
        return out.view(weight.shape)
    out = plain_fake_quant(weight, scale, zero_point, q_max, grad_scale, clip_first=clip_first)
    if phi is None:
        return out
    left, gamma, right = phi
    with torch.autocast(weight.device.type, enabled=False):
        return out + (left * gamma) @ right


def plain_fake_quant(
    weight: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    q_max: int,
    grad_scale: float = 1.0,
    *,
    clip_first: bool = False,
) -> Tensor:
    """``weight_fake_quant`` without Phi, by its definition: no other path."""
    blocks, scale, zero_point = _in_blocks(weight, scale, zero_point)
    out: Tensor = _WeightFakeQuant.apply(  # type: ignore[no-untyped-call]
        blocks, scale, zero_point, q_max, grad_scale, clip_first
    )
    return out.view(weight.shape)


def _weight_fits(weight: Tensor, scale: Tensor, zero_point: Tensor) -> bool:
    """Whether the fused operator takes this: a matrix with a scale per output channel."""
    per_channel = (*weight.shape[:1], 1)
    return (
        weight.dim() == 2
        and scale.shape == zero_point.shape == per_channel
        and scale.is_contiguous()
        and zero_point.is_contiguous()
        and switch.fits(weight, scale, zero_point)
    )


def token_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row minimum and maximum [..., 1] in float32, widened to include zero."""
    # Two reductions: on a CPU each is vectorised, torch.aminmax over a dimension is not.
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return at_least_float32(low).clamp(max=0), at_least_float32(high).clamp(min=0)


def token_scale(low: Tensor, high: Tensor, q_max: int, *, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """Scale and integer zero point of ranges [low, high] that contain zero."""
    if symmetric:
        half = positive_levels(q_max, symmetric)
        scale = (torch.maximum(high, -low) / half).clamp(min=SCALE_FLOOR)
        return scale, torch.full_like(scale, half + 1)
    scale = ((high - low) / q_max).clamp(min=SCALE_FLOOR)
    return scale, (-low / scale).round_().clamp_(0, q_max)


def _bounded_(whole: Tensor, zero_point: Tensor, q_max: int) -> Tensor:
    """``clamp(whole + z, 0, q_max) - z`` in place and, for whole numbers, without rounding error."""
    torch.maximum(whole, -zero_point, out=whole)
    return torch.minimum(whole, q_max - zero_point, out=whole)


class _TokenFakeQuant(torch.autograd.Function):
    """Dynamic per-token fake quantization; saves its input and the rows' ranges, nothing else."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lower: Tensor, upper: Tensor, q_max: int, symmetric: bool, dtype: torch.dtype
    ) -> Tensor:
        low, high = token_range(x)
        scale, zero_point = token_scale(low * lower, high * upper, q_max, symmetric=symmetric)
        ctx.save_for_backward(x, low, high, scale, zero_point, lower, upper)
        ctx.q_max, ctx.symmetric = q_max, symmetric
        codes = _bounded_(torch.div(at_least_float32(x), scale).round_(), zero_point, q_max)
        return codes.mul_(scale).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, high, scale, zero_point, lower, upper = ctx.saved_tensors
        x_float, grad = at_least_float32(x), at_least_float32(grad)
        ratio = x_float / scale
        rounded = ratio.round()
        codes = _bounded_(rounded.clone(), zero_point, ctx.q_max)
        grad_x = rounded.eq_(codes).mul_(grad)
        grad_scale = codes.mul_(grad).addcmul_(grad_x, ratio, value=-1).sum(-1, keepdim=True)
        grad_range = grad_scale * (scale > SCALE_FLOOR) / positive_levels(ctx.q_max, ctx.symmetric)
        at_high = at_low = grad_range
        if ctx.symmetric:  # the larger side made the scale; equal ones share, as in torch.maximum
            at_high = grad_range * (1 + torch.sign(high * upper + low * lower)) / 2
            at_low = grad_range - at_high
        # The range is no constant: its ends are elements of the row (equal ones share, as in amax).
        for end, share in ((high, at_high * upper * (high > 0)), (low, -at_low * lower * (low < 0))):
            extreme = torch.sub(x_float, end).eq_(0)
            grad_x.addcmul_(extreme, share / extreme.sum(-1, keepdim=True).clamp(min=1))
        grad_lower = (-at_low * low).sum_to_size(lower.shape) if ctx.needs_input_grad[1] else None
        grad_upper = (at_high * high).sum_to_size(upper.shape) if ctx.needs_input_grad[2] else None
        return grad_x.to(x.dtype), grad_lower, grad_upper, None, None, None


def token_fake_quant(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    q_max: int,
    *,
    symmetric: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Quantize and dequantize each token (last-dimension row) over its own clipped range.

    With m = min(row, 0) and M = max(row, 0): ``s = (upper*M - lower*m) / q_max``,
    ``z = clamp(round(-lower*m / s), 0, q_max)``, ``c = clamp(round(x/s) + z, 0, q_max)`` and the
    result is ``s * (c - z)``. Symmetric: ``s = max(upper*M, -lower*m) / (2^(b-1) - 1)`` and
    ``z = 2^(b-1)``. No gradient passes the rounding of z; the range's ends get theirs.

    Args:
        x: [..., C], any float dtype.
        lower: share of the negative range kept, float32, broadcastable to [..., 1].
        upper: share of the positive range kept, likewise.
        q_max: largest code, 2^b - 1.
        symmetric: whether zero stands in the middle of the codes.
        dtype: of the result, rounded once; that of ``x`` if left out.

    Returns:
        Shape of ``x``.
    """
    dtype = x.dtype if dtype is None else dtype
    same = lower.shape == upper.shape
    if same and switch.fits(x, lower, upper) and all(fused_token.clip_fits(x, c) for c in (lower, upper)):
        return fused_token.token_fake_quant(x, lower, upper, q_max, symmetric, dtype)
    if tiled.fits(x):
        with torch.no_grad():
            low, high = token_range(x)
            scale, zero_point = token_scale(low * lower, high * upper, q_max, symmetric=symmetric)
        if scale.shape == low.shape and scale.dtype == low.dtype:
            return tiled.token_fake_quant(
                x, lower, upper, low, high, scale, zero_point, q_max, symmetric, dtype
            )
    return plain_token_fake_quant(x, lower, upper, q_max, symmetric=symmetric, dtype=dtype)


def plain_token_fake_quant(
    x: Tensor, lower: Tensor, upper: Tensor, q_max: int, *, symmetric: bool, dtype: torch.dtype
) -> Tensor:
    """``token_fake_quant`` by its definition: no other path."""
    out: Tensor = _TokenFakeQuant.apply(x, lower, upper, q_max, symmetric, dtype)  # type: ignore[no-untyped-call]
    return out
