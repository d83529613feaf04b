"""The Triton kernel that shifts, scales and quantizes tokens; imported where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl

from qvgen.packed.triton_kernels import _store_codes


@triton.jit
def _scaled(x, at, valid, factor_ptr, kept_ptr, shift, SHIFTED: tl.constexpr, KEPT: tl.constexpr):
    """``(x + shift) * factor``, each rounded to the dtype of x; written to ``kept_ptr`` if ``KEPT``."""
    if SHIFTED:
        x = (x.to(tl.float32) + shift).to(x.dtype)
    factor = tl.load(factor_ptr + at, mask=valid, other=0.0)
    x = (x.to(tl.float32) * factor).to(x.dtype)
    if KEPT:
        tl.store(kept_ptr + at, x, mask=valid)
    return x.to(tl.float32)


@triton.jit
def scale_quantize_tokens(
    x_ptr, factor_ptr, kept_ptr, lower_ptr, upper_ptr, code_ptr, scale_ptr, zero_ptr, sum_ptr,
    rows, columns, row_stride, code_stride, rows_per_clip, shift,
    SHIFTED: tl.constexpr, KEPT: tl.constexpr,
    Q_MAX: tl.constexpr, LEVELS: tl.constexpr, FLOOR: tl.constexpr, SYMMETRIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, INTERPRETED: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr,
    HEAD: tl.constexpr, TAIL: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """``triton_kernels.quantize_tokens`` of scaled tokens; ``factor_ptr`` has a float32 for each column."""
    row = tl.program_id(0).to(tl.int64)
    source = x_ptr + row * row_stride
    kept = kept_ptr + row * columns
    column = tl.arange(0, HEAD)
    x = tl.load(source + column, mask=column < columns, other=0.0)
    x = _scaled(x, column, column < columns, factor_ptr, kept, shift, SHIFTED, KEPT)
    tail = x
    if TAIL > 0:
        tail_column = HEAD + tl.arange(0, TAIL)
        tail = tl.load(source + tail_column, mask=tail_column < columns, other=0.0)
        tail = _scaled(tail, tail_column, tail_column < columns, factor_ptr, kept, shift, SHIFTED, KEPT)
    _store_codes(
        x, tail, lower_ptr, upper_ptr, code_ptr, scale_ptr, zero_ptr, sum_ptr,
        tl.program_id(0), rows, rows_per_clip, row, rows, columns, code_stride,
        Q_MAX, LEVELS, FLOOR, SYMMETRIC, RECIPROCAL, INTERPRETED, OFFSET, GROUPS, True, HEAD, TAIL,
    )  # fmt: skip
