"""Triton kernels of a balanced, rotated and quantized token: one pass over the activations.

A row of A * B numbers is held as a table [A, B]; the Hadamard matrix is the product of one of order A
and one of order B, so the rotation is two small products on tensor cores. Tables are padded to powers
of two with zeros, which no product and no range that includes zero can see.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qvgen.fused.token_kernels import bounded, loop_bound, round_half_even, row_scale

# Added to a float32 of magnitude under 2^22, it leaves the nearest whole number, of two equally near
# ones the even one, in the low bits.
_ROUNDER = tl.constexpr(12582912.0)
_ROUNDER_BITS = tl.constexpr(0x4B400000)


@triton.jit
def _factor(pointer, along, across, ORDER: tl.constexpr, TILE: tl.constexpr):
    """A matrix of ``ORDER``, its entry [i, j] at ``i * along + j * across``, padded with zeros."""
    i = tl.arange(0, TILE)
    valid = (i < ORDER)[:, None] & (i < ORDER)[None, :]
    return tl.load(pointer + i[:, None] * along + i[None, :] * across, mask=valid, other=0.0)


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
    place = a[:, None] * SECOND + b[None, :]
    valid = (a < FIRST)[:, None] & (b < SECOND)[None, :]
    # Read transposed: out[i, j] = sum over k of first[k, i] * table[k, j].
    first = _factor(first_ptr, 1, FIRST, FIRST, FIRST_TILE).to(factor)
    second = _factor(second_ptr, SECOND, 1, SECOND, SECOND_TILE).to(factor)
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


@triton.jit(do_not_specialize=["share"])
def rotate_chained(
    x_ptr, balance_ptr, first_ptr, second_ptr, out_ptr, scale_ptr, zero_ptr, sum_ptr, rows, row_stride, share,
    FIRST: tl.constexpr, SECOND: tl.constexpr, FIRST_TILE: tl.constexpr, SECOND_TILE: tl.constexpr,
    FIRST_UNIT: tl.constexpr, SECOND_UNIT: tl.constexpr, NORM: tl.constexpr,
    Q_MAX: tl.constexpr, LEVELS: tl.constexpr, FLOOR: tl.constexpr, SYMMETRIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, LIBDEVICE: tl.constexpr, TURNED: tl.constexpr,
    CODES: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """As ``rotate_forward``, ``share`` rows a program, with half the instructions; for 16-bit ``x``.

    What a thread holds of the first product is what it needs of the second one's left operand, so
    nothing goes through shared memory between them; with one warp no thread waits for another. Entries of
    the matrices are the powers of two ``FIRST_UNIT`` and ``SECOND_UNIT``, and ``NORM`` (what they lack to
    an orthogonal transform) goes into the row's scale. A row is divided by its scale by a product with the
    reciprocal, so a code may be another one where the rotated number lies within one part in 2^22 of the
    middle of two. The least number and zero are rounded alike, so no code is below 0.

    With ``CODES`` the result is what ``packed.triton_linear.Tokens`` holds, else the quantized row.
    ``TURNED`` says which of the products is taken first: the one with ``second``, on the transposed table.
    """
    kind: tl.constexpr = x_ptr.dtype.element_ty
    # The interpreter's products know no bfloat16: the same rounding, held in float32.
    factor: tl.constexpr = kind if LIBDEVICE else tl.float32
    a = tl.arange(0, FIRST_TILE)
    b = tl.arange(0, SECOND_TILE)
    place = a[:, None] * SECOND + b[None, :]
    valid = (a < FIRST)[:, None] & (b < SECOND)[None, :]
    first = (_factor(first_ptr, FIRST, 1, FIRST, FIRST_TILE) * FIRST_UNIT).to(factor)
    second = (_factor(second_ptr, SECOND, 1, SECOND, SECOND_TILE) * SECOND_UNIT).to(factor)
    balance = tl.load(balance_ptr + place, mask=valid, other=0.0)
    begin = tl.program_id(0).to(tl.int64) * share
    for step in range(loop_bound(share, not LIBDEVICE)):
        row = begin + step
        inside = valid & (row < rows)
        x = tl.load(x_ptr + row * row_stride + place, mask=inside, other=0.0)
        table = (x.to(tl.float32) * balance).to(kind).to(factor)
        if TURNED:
            half = tl.dot(tl.trans(second), tl.trans(table), input_precision="tf32x3")
            turned = tl.dot(half.to(kind).to(factor), first, input_precision="tf32x3")
        else:
            half = tl.dot(tl.trans(first), table, input_precision="tf32x3")
            turned = tl.dot(half.to(kind).to(factor), second, input_precision="tf32x3")
        # A NaN of the input is in all that it is rotated to, so that the ends of such a row are NaN, too.
        low = tl.minimum(tl.min(tl.min(turned, 1), 0), 0.0, propagate_nan=tl.PropagateNan.ALL)
        high = tl.maximum(tl.max(tl.max(turned, 1), 0), 0.0, propagate_nan=tl.PropagateNan.ALL)
        scale, zero = row_scale(
            low * NORM, high * NORM, Q_MAX, LEVELS, FLOOR, SYMMETRIC, RECIPROCAL, LIBDEVICE
        )
        inverse = tl.div_rn(NORM, scale)
        if not SYMMETRIC:
            zero = -round_half_even(low * inverse, LIBDEVICE)
        if CODES:
            # A row with NaN gets any codes and a scale of NaN, so that its outputs show it.
            zero = tl.where(zero == zero, zero, 0.0)
            top = tl.minimum(turned * inverse, Q_MAX - zero) + _ROUNDER
            whole = top.to(tl.int32, bitcast=True) - _ROUNDER_BITS
            if not LIBDEVICE:  # the interpreter's sums do not wrap around
                whole = tl.where(top == top, whole, 0)
            span = high - low
            tl.store(scale_ptr + row, tl.where(span == span, scale, span), mask=row < rows)
            tl.store(sum_ptr + row, tl.sum(tl.sum(whole, 1), 0), mask=row < rows)
            if OFFSET:
                offset = zero.to(tl.int32) - 128
                whole += offset
                tl.store(zero_ptr + row, offset, mask=row < rows)
            out = whole.to(tl.int8)
        else:
            top = tl.minimum(turned * inverse, Q_MAX - zero, propagate_nan=tl.PropagateNan.ALL) + _ROUNDER
            out = ((top - _ROUNDER) * scale).to(kind)
        if TURNED:
            out = tl.trans(out)
        tl.store(out_ptr + row * (FIRST * SECOND) + place, out, mask=inside)
