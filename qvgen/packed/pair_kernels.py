"""The Triton kernel that quantizes rows of 16-bit numbers held as the 32-bit words that they come in.

Half the registers of a row in float32, so that a multiprocessor has more rows in flight; and fewer
instructions: the range is found two numbers at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qvgen.packed.triton_kernels import (
    clipped_scale,
    code_bits,
    gelu,
    larger,
    range_with_zero,
    row_ends,
    smaller,
    store_row,
    sum_of_codes,
)


@triton.jit
def _smaller_bf16(a, b):
    return tl.inline_asm_elementwise(
        "min.NaN.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _larger_bf16(a, b):
    return tl.inline_asm_elementwise(
        "max.NaN.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _smaller_fp16(a, b):
    return tl.inline_asm_elementwise(
        "min.NaN.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _larger_fp16(a, b):
    return tl.inline_asm_elementwise(
        "max.NaN.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _unpacked(word, KIND: tl.constexpr):
    """The two numbers of a word as float32: that of the lower address, and the other one."""
    if tl.bfloat16 == KIND:
        return (word << 16).to(tl.float32, bitcast=True), (word & -65536).to(tl.float32, bitcast=True)
    else:
        low = word.to(tl.int16).to(tl.float16, bitcast=True)
        high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True)
        return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def _held(
    source, at, words, FULL: tl.constexpr, KIND: tl.constexpr, GELU: tl.constexpr, INTERPRETED: tl.constexpr
):
    """A piece of a row as it stays in registers: its words, twice by name; or GELU of their numbers."""
    if FULL:
        word = tl.load(source + at)
    else:
        word = tl.load(source + at, mask=at < words, other=0)
    if GELU:
        even, odd = _unpacked(word, KIND)
        return gelu(even, INTERPRETED), gelu(odd, INTERPRETED)
    else:
        return word, word


@triton.jit
def _piece_ends(even, odd, KIND: tl.constexpr, GELU: tl.constexpr, INTERPRETED: tl.constexpr):
    """Least and largest number of what ``_held`` gave; NaN if one is."""
    if GELU or INTERPRETED:
        if not GELU:
            even, odd = _unpacked(even, KIND)
        even_low, even_high = row_ends(even, INTERPRETED)
        odd_low, odd_high = row_ends(odd, INTERPRETED)
        return smaller(even_low, odd_low), larger(even_high, odd_high)
    else:
        if tl.bfloat16 == KIND:
            low, low_odd = _unpacked(tl.reduce(even, 0, _smaller_bf16), KIND)
            high, high_odd = _unpacked(tl.reduce(even, 0, _larger_bf16), KIND)
        else:
            low, low_odd = _unpacked(tl.reduce(even, 0, _smaller_fp16), KIND)
            high, high_odd = _unpacked(tl.reduce(even, 0, _larger_fp16), KIND)
        return smaller(low, low_odd), larger(high, high_odd)


@triton.jit
def _packed(even, odd, INTERPRETED: tl.constexpr):
    """The low bytes of two int32 as int16."""
    if INTERPRETED:
        return ((even & 255) | (odd << 8)).to(tl.int16)
    else:  # two of them make a register
        return tl.inline_asm_elementwise(
            "{.reg .b32 a, b; prmt.b32 a, $1, $3, 0x0040; prmt.b32 b, $2, $4, 0x0040;"
            " prmt.b32 $0, a, b, 0x5410;}",
            "=r,r,r,r,r", [even, odd], dtype=tl.int16, is_pure=True, pack=2,
        )  # fmt: skip


@triton.jit
def _anew(word):
    """The same word, which the compiler does not know: else it keeps what it unpacked for the next group."""
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [word], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _store_pairs(
    even, odd, at, words, code_words, target, scale, inverse, low, high, offset,
    KIND: tl.constexpr, GELU: tl.constexpr, OFFSET: tl.constexpr, AGAIN: tl.constexpr, COUNT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Store the codes of ``COUNT`` pairs, ``AGAIN`` if they are of several groups; as ``_store_piece``."""
    if not GELU:
        if AGAIN and not INTERPRETED:
            even = _anew(even)
        even, odd = _unpacked(even, KIND)
    even = code_bits(even, scale, inverse, low, high, not GELU, INTERPRETED)
    odd = code_bits(odd, scale, inverse, low, high, not GELU, INTERPRETED)
    if INTERPRETED:
        total = sum_of_codes(even, COUNT, INTERPRETED) + sum_of_codes(odd, COUNT, INTERPRETED)
    else:
        total = sum_of_codes(even + odd, 2 * COUNT, INTERPRETED)
    if OFFSET:
        even = tl.where(at < words, even + offset, 0)
        odd = tl.where(at < words, odd + offset, 0)
    tl.store(target + at, _packed(even, odd, INTERPRETED), mask=at < code_words)
    return total


@triton.jit
def quantize_pairs(
    x_ptr, lower_ptr, upper_ptr, code_ptr, scale_ptr, zero_ptr, sum_ptr,
    rows, columns, row_stride, code_stride, rows_per_clip,
    Q_MAX: tl.constexpr, LEVELS: tl.constexpr, FLOOR: tl.constexpr, SYMMETRIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, INTERPRETED: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr,
    GELU: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """``triton_kernels.quantize_tokens`` of rows that are whole words, to the bit.

    The row is held in up to three pieces of ``FIRST``, ``SECOND`` and ``THIRD`` words, of which only the
    last may reach behind the row, and does not if ``FULL``.
    """
    kind: tl.constexpr = x_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    source = (x_ptr + row * row_stride).to(tl.pointer_type(tl.int32))
    words = columns // 2
    code_words = code_stride // 2
    at_0 = tl.arange(0, FIRST)
    even_0, odd_0 = _held(source, at_0, words, FULL or SECOND > 0, kind, GELU, INTERPRETED)
    if SECOND > 0:
        at_1 = FIRST + tl.arange(0, SECOND)
        even_1, odd_1 = _held(source, at_1, words, FULL or THIRD > 0, kind, GELU, INTERPRETED)
    if THIRD > 0:
        at_2 = FIRST + SECOND + tl.arange(0, THIRD)
        even_2, odd_2 = _held(source, at_2, words, FULL, kind, GELU, INTERPRETED)
    low, high = _piece_ends(even_0, odd_0, kind, GELU, INTERPRETED)
    if SECOND > 0:
        piece_low, piece_high = _piece_ends(even_1, odd_1, kind, GELU, INTERPRETED)
        low = smaller(low, piece_low)
        high = larger(high, piece_high)
    if THIRD > 0:
        piece_low, piece_high = _piece_ends(even_2, odd_2, kind, GELU, INTERPRETED)
        low = smaller(low, piece_low)
        high = larger(high, piece_high)
    low, high, span = range_with_zero(low, high)
    for group in tl.static_range(GROUPS):
        out = group * rows + row
        clip = (group * rows + tl.program_id(0)) // rows_per_clip
        scale, inverse, zero = clipped_scale(
            low, high, lower_ptr, upper_ptr, clip, Q_MAX, LEVELS, FLOOR, SYMMETRIC, RECIPROCAL, INTERPRETED
        )
        offset = zero.to(tl.int32) - 128
        target = (code_ptr + out * code_stride).to(tl.pointer_type(tl.int16))
        total = _store_pairs(
            even_0, odd_0, at_0, words, code_words, target, scale, inverse, -zero, Q_MAX - zero, offset,
            kind, GELU, OFFSET, GROUPS > 1, FIRST, INTERPRETED,
        )  # fmt: skip
        if SECOND > 0:
            total += _store_pairs(
                even_1, odd_1, at_1, words, code_words, target, scale, inverse, -zero, Q_MAX - zero, offset,
                kind, GELU, OFFSET, GROUPS > 1, SECOND, INTERPRETED,
            )  # fmt: skip
        if THIRD > 0:
            total += _store_pairs(
                even_2, odd_2, at_2, words, code_words, target, scale, inverse, -zero, Q_MAX - zero, offset,
                kind, GELU, OFFSET, GROUPS > 1, THIRD, INTERPRETED,
            )  # fmt: skip
        store_row(scale_ptr, zero_ptr, sum_ptr, out, scale, span, total, offset, OFFSET)
