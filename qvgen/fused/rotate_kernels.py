"""Triton kernel of a balanced, rotated and quantized token: one pass over the activations.

A row of A * B numbers is held as a table [A, B]; the Hadamard matrix is the product of one of order A
and one of order B, so the rotation is two small products on tensor cores. Tables are padded to powers
of two with zeros, which no product and no range that includes zero can see.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qvgen.fused.token_kernels import bounded, round_half_even, row_scale


@triton.jit
def rotate_forward(
    x_ptr, balance_ptr, first_ptr, second_ptr, out_ptr, rows, row_stride,
    FIRST: tl.constexpr, SECOND: tl.constexpr, FIRST_TILE: tl.constexpr, SECOND_TILE: tl.constexpr,
    FIRST_NORM: tl.constexpr, SECOND_NORM: tl.constexpr,
    Q_MAX: tl.constexpr, LEVELS: tl.constexpr, FLOOR: tl.constexpr, SYMMETRIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, LIBDEVICE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows ``ROWS * program_id(0)`` and those after it; both matrices are loaded once for all of them.

    Operands of the products are in the dtype of ``x``, sums in float32. The table is scaled to the
    length of the row between the products, so that float16 does not overflow.
    """
    kind: tl.constexpr = x_ptr.dtype.element_ty
    # The interpreter's products know no bfloat16: the same rounding, held in float32.
    factor: tl.constexpr = kind if LIBDEVICE else tl.float32
    a = tl.arange(0, FIRST_TILE)
    b = tl.arange(0, SECOND_TILE)
    in_a = a < FIRST
    in_b = b < SECOND
    place = a[:, None] * SECOND + b[None, :]
    valid = in_a[:, None] & in_b[None, :]
    # Read transposed: out[i, j] = sum over k of first[k, i] * table[k, j].
    first = tl.load(
        first_ptr + a[None, :] * FIRST + a[:, None], mask=in_a[:, None] & in_a[None, :], other=0.0
    )
    second = tl.load(
        second_ptr + b[:, None] * SECOND + b[None, :], mask=in_b[:, None] & in_b[None, :], other=0.0
    )
    first = first.to(factor)
    second = second.to(factor)
    balance = tl.load(balance_ptr + place, mask=valid, other=0.0)
    begin = tl.program_id(0).to(tl.int64) * ROWS
    for step in range(ROWS):
        row = begin + step
        inside = valid & (row < rows)
        x = tl.load(x_ptr + row * row_stride + place, mask=inside, other=0.0)
        table = (x.to(tl.float32) * balance).to(kind).to(factor)
        half = tl.dot(first, table, input_precision="tf32x3") * FIRST_NORM
        turned = tl.dot(half.to(kind).to(factor), second, input_precision="tf32x3") * SECOND_NORM
        low = tl.minimum(tl.min(tl.min(turned, 1), 0), 0.0)
        high = tl.maximum(tl.max(tl.max(turned, 1), 0), 0.0)
        scale, zero = row_scale(low, high, Q_MAX, LEVELS, FLOOR, SYMMETRIC, RECIPROCAL, LIBDEVICE)
        whole = round_half_even(tl.div_rn(turned, scale), LIBDEVICE)
        out = bounded(whole, -zero, Q_MAX - zero) * scale
        tl.store(out_ptr + row * (FIRST * SECOND) + place, out.to(kind), mask=inside)
