"""Triton kernels of LSQ+ weights per output channel, with Phi's product added tile by tile.

As in ``token_kernels``: float32, the reference's operations in the reference's order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qvgen.fused.token_kernels import bounded, round_half_even


@triton.jit
def weight_forward(
    w_ptr, scale_ptr, zero_ptr, left_ptr, gamma_ptr, right_ptr, out_ptr, rows, columns, rank,
    Q_MAX: tl.constexpr, LIBDEVICE: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tile of ``s * (clamp(round(w/s + z)) - z) + (L * gamma) R``; RANK is 0 without Phi."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_valid = row < rows
    column_valid = column < columns
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    valid = row_valid[:, None] & column_valid[None, :]
    w = tl.load(w_ptr + place, mask=valid, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + row, mask=row_valid, other=1.0)[:, None]
    zero = tl.load(zero_ptr + row, mask=row_valid, other=0.0)[:, None]
    code = bounded(round_half_even(tl.div_rn(w, scale) + zero, LIBDEVICE), 0.0, Q_MAX)
    out = (code - zero) * scale
    if RANK > 0:
        k = tl.arange(0, RANK)
        k_valid = k < rank
        gamma = tl.load(gamma_ptr + k, mask=k_valid, other=0.0)
        left_valid = row_valid[:, None] & k_valid[None, :]
        left = tl.load(left_ptr + row[:, None] * rank + k[None, :], mask=left_valid, other=0.0)
        right_valid = k_valid[:, None] & column_valid[None, :]
        right = tl.load(right_ptr + k[:, None] * columns + column[None, :], mask=right_valid, other=0.0)
        # Three TF32 products make one of float32.
        out += tl.dot(left * gamma[None, :], right, input_precision="tf32x3")
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=valid)


@triton.jit
def weight_backward(
    w_ptr, scale_ptr, zero_ptr, grad_ptr, grad_w_ptr, grad_scale_ptr, grad_zero_ptr,
    columns, grad_stride, grad_scale,
    Q_MAX: tl.constexpr, LIBDEVICE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of row ``program_id(0)``, of its scale and of its zero point."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    valid = column < columns
    w = tl.load(w_ptr + row * columns + column, mask=valid, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * grad_stride + column, mask=valid, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + row)
    zero = tl.load(zero_ptr + row)
    ratio = tl.div_rn(w, scale)
    whole = round_half_even(ratio + zero, LIBDEVICE)
    code = bounded(whole, 0.0, Q_MAX)
    grad_w = (whole == code).to(tl.float32) * grad
    tl.store(grad_w_ptr + row * columns + column, grad_w.to(grad_w_ptr.dtype.element_ty), mask=valid)
    tl.store(grad_scale_ptr + row, tl.sum(grad * (code - zero) - grad_w * ratio, 0) * grad_scale)
    tl.store(grad_zero_ptr + row, tl.sum((grad_w - grad) * scale, 0) * grad_scale)


@triton.jit
def split_rows(
    factor_ptr, gamma_ptr, parts_ptr, rank, columns, row_stride, column_stride, BLOCK: tl.constexpr
):  # fmt: skip
    """Row ``program_id(0)`` times its gamma as three bfloat16 rows, ``rank`` rows apart, largest first."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = column < columns
    rest = tl.load(factor_ptr + row * row_stride + column * column_stride, mask=valid, other=0.0)
    rest = rest * tl.load(gamma_ptr + row)
    for part in tl.static_range(3):
        rounded = rest.to(tl.bfloat16)
        tl.store(parts_ptr + (part * rank + row) * columns + column, rounded, mask=valid)
        rest = rest - rounded.to(tl.float32)
