"""Triton kernels of dynamic per-token fake quantization: a program holds one whole row.

Each line does in float32 what the reference in ``qvgen.fake_quant`` does, in its order, so that
codes are equal bit for bit: division is the IEEE one, ``round`` is half to even, and the launch
turns the contraction of a*b + c off (``enable_fp_fusion=False``).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice


@triton.jit
def round_half_even(x, LIBDEVICE: tl.constexpr):
    """The nearest whole number, of two equally near ones the even one."""
    if LIBDEVICE:
        return libdevice.rint(x)
    else:  # the interpreter has no libdevice; x - floor(x) is exact where it decides
        whole = tl.floor(x)
        rest = x - whole
        odd = whole - 2.0 * tl.floor(whole * 0.5)
        return whole + tl.where((rest > 0.5) | ((rest == 0.5) & (odd == 1.0)), 1.0, 0.0)


@triton.jit
def bounded(x, low, high):
    """``clamp`` that lets NaN through, so that a training that diverged shows it."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def loop_bound(number, INTERPRETED: tl.constexpr):
    """A scalar as a bound of ``range``, for which the interpreter takes Python's integers alone."""
    if INTERPRETED:
        return number.handle.data.item()
    else:
        return number


@triton.jit
def row_scale(
    low, high, Q_MAX: tl.constexpr, LEVELS: tl.constexpr, FLOOR: tl.constexpr,
    SYMMETRIC: tl.constexpr, RECIPROCAL: tl.constexpr, LIBDEVICE: tl.constexpr,
):  # fmt: skip
    """Scale and zero point of a clipped range, as ``fake_quant.token_scale``."""
    span = tl.maximum(high, -low) if SYMMETRIC else high - low
    if RECIPROCAL:  # what torch does on CUDA to divide a tensor by a Python number
        scale = span * tl.div_rn(1.0, LEVELS)
    else:
        scale = tl.div_rn(span, LEVELS)
    scale = tl.maximum(scale, FLOOR)
    if SYMMETRIC:
        zero = tl.full((), LEVELS + 1.0, tl.float32)
    else:
        zero = bounded(round_half_even(tl.div_rn(-low, scale), LIBDEVICE), 0.0, Q_MAX)
    return scale, zero


@triton.jit
def token_forward(
    x_ptr, lower_ptr, upper_ptr, out_ptr, low_ptr, high_ptr, columns, row_stride, rows_per_clip,
    Q_MAX: tl.constexpr, LEVELS: tl.constexpr, FLOOR: tl.constexpr, SYMMETRIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, LIBDEVICE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Quantize and dequantize row ``program_id(0)``; note its range for the backward pass."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    valid = column < columns
    # Padding with zeros changes no range: ranges include zero.
    x = tl.load(x_ptr + row * row_stride + column, mask=valid, other=0.0).to(tl.float32)
    low = tl.minimum(tl.min(x, 0), 0.0)
    high = tl.maximum(tl.max(x, 0), 0.0)
    tl.store(low_ptr + row, low)
    tl.store(high_ptr + row, high)
    lower = tl.load(lower_ptr + row // rows_per_clip)
    upper = tl.load(upper_ptr + row // rows_per_clip)
    scale, zero = row_scale(low * lower, high * upper, Q_MAX, LEVELS, FLOOR, SYMMETRIC, RECIPROCAL, LIBDEVICE)
    whole = round_half_even(tl.div_rn(x, scale), LIBDEVICE)
    out = bounded(whole, -zero, Q_MAX - zero) * scale
    tl.store(out_ptr + row * columns + column, out.to(out_ptr.dtype.element_ty), mask=valid)


@triton.jit
def token_backward(
    x_ptr, grad_ptr, lower_ptr, upper_ptr, low_ptr, high_ptr, grad_x_ptr, grad_lower_ptr, grad_upper_ptr,
    columns, row_stride, grad_stride, rows_per_clip,
    Q_MAX: tl.constexpr, LEVELS: tl.constexpr, FLOOR: tl.constexpr, SYMMETRIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, LIBDEVICE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of row ``program_id(0)``, and that row's share of the clips' gradients."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    valid = column < columns
    x = tl.load(x_ptr + row * row_stride + column, mask=valid, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * grad_stride + column, mask=valid, other=0.0).to(tl.float32)
    low = tl.load(low_ptr + row)
    high = tl.load(high_ptr + row)
    lower = tl.load(lower_ptr + row // rows_per_clip)
    upper = tl.load(upper_ptr + row // rows_per_clip)
    scale, zero = row_scale(low * lower, high * upper, Q_MAX, LEVELS, FLOOR, SYMMETRIC, RECIPROCAL, LIBDEVICE)
    ratio = tl.div_rn(x, scale)
    whole = round_half_even(ratio, LIBDEVICE)
    code = bounded(whole, -zero, Q_MAX - zero)
    grad_x = (whole == code).to(tl.float32) * grad
    grad_scale = tl.sum(code * grad - grad_x * ratio, 0)
    grad_range = tl.where(scale > FLOOR, grad_scale, 0.0) / LEVELS
    at_high = grad_range
    at_low = grad_range
    if SYMMETRIC:  # the larger side made the scale; equal ones share
        side = high * upper + low * lower
        sign = tl.where(side > 0, 1.0, tl.where(side < 0, -1.0, 0.0))
        at_high = grad_range * (1.0 + sign) * 0.5
        at_low = grad_range - at_high
    # The ends of the range are elements of the row; equal ones share.
    is_high = ((x == high) & valid).to(tl.float32)
    is_low = ((x == low) & valid).to(tl.float32)
    to_high = tl.where(high > 0, at_high * upper, 0.0) / tl.maximum(tl.sum(is_high, 0), 1.0)
    to_low = tl.where(low < 0, -at_low * lower, 0.0) / tl.maximum(tl.sum(is_low, 0), 1.0)
    grad_x = grad_x + is_high * to_high + is_low * to_low
    tl.store(grad_x_ptr + row * columns + column, grad_x.to(grad_x_ptr.dtype.element_ty), mask=valid)
    tl.store(grad_lower_ptr + row, -at_low * low)
    tl.store(grad_upper_ptr + row, at_high * high)
