"""Triton kernels of the int8 backend: quantize tokens, expand packed weights, multiply.

Activations are held as ``a = q - z`` where that fits int8, which is always but for asymmetric 8-bit
codes: those are held as ``q - 128``, and ``z - 128`` beside them. Weights are held as
``q - 2^(b-1)``. Every product and sum of these is exact in int32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qvgen.fused.token_kernels import loop_bound, row_scale

# Added to a float32 of magnitude under 2^22, it leaves the nearest whole number, of two equally near
# ones the even one, in the low bits.
ROUNDER = tl.constexpr(12582912.0)
ROUNDER_BITS = tl.constexpr(0x4B400000)


@triton.jit
def smaller(a, b):
    """The smaller one; NaN if either is."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def larger(a, b):
    """The larger one; NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def row_ends(x, INTERPRETED: tl.constexpr):
    """Least and largest element; NaN if one is."""
    if INTERPRETED:
        nan = tl.sum(tl.where(x != x, x, 0.0), 0)
        return tl.min(x, 0) + nan, tl.max(x, 0) + nan
    else:
        return tl.reduce(x, 0, smaller), tl.reduce(x, 0, larger)


@triton.jit
def code_bits(x, scale, inverse, low, high, EXACT: tl.constexpr, INTERPRETED: tl.constexpr):
    """``clamp(round(x / scale), low, high)`` for whole ``low`` and ``high``, as int32 plus ``ROUNDER_BITS``.

    The low byte is the code's, since that of ``ROUNDER_BITS`` is 0. Without ``EXACT`` quotients within
    2^-23 of themselves of the middle of two codes may become either.
    """
    if EXACT or INTERPRETED:
        if INTERPRETED:  # has no fused multiply-add
            ratio = tl.div_rn(x, scale)
        else:
            # Rounded as the division is, since ``inverse`` is the rounded reciprocal: Markstein's theorem.
            # A sign in front of anything but the row's own scale would be one more subtraction.
            ratio = x * inverse
            ratio = tl.fma(tl.fma(ratio, -scale, x), inverse, ratio)
        whole = tl.minimum(tl.maximum(ratio, low), high) + ROUNDER
    else:
        whole = tl.fma(x, inverse, ROUNDER)
        whole = tl.minimum(tl.maximum(whole, low + ROUNDER), high + ROUNDER)
    return whole.to(tl.int32, bitcast=True)


@triton.jit
def _bytes(bits, INTERPRETED: tl.constexpr):
    """The low bytes as int8."""
    if INTERPRETED:
        return bits.to(tl.int8)
    else:  # four of them make a register
        return tl.inline_asm_elementwise(
            "{.reg .b32 a, b; prmt.b32 a, $1, $2, 0x0040; prmt.b32 b, $3, $4, 0x0040;"
            " prmt.b32 $0, a, b, 0x5410;}",
            "=r,r,r,r,r", [bits], dtype=tl.int8, is_pure=True, pack=4,
        )  # fmt: skip


@triton.jit
def sum_of_codes(bits, COUNT: tl.constexpr, INTERPRETED: tl.constexpr):
    """Exact sum of the codes of ``COUNT`` results of ``code_bits``, or of ``COUNT`` in sums of these."""
    if INTERPRETED:  # its sums do not wrap, as those of rows with NaN do
        return tl.sum((bits - ROUNDER_BITS).to(tl.int64), 0).to(tl.int32)
    else:  # int32 wraps: one subtraction for all; nothing for whole 1024
        WRAPPED: tl.constexpr = (COUNT * ROUNDER_BITS + 0x80000000) % 0x100000000 - 0x80000000
        return tl.sum(bits, 0) - WRAPPED


@triton.jit
def gelu(x, INTERPRETED: tl.constexpr):
    """GELU by its tanh formula: x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u))."""
    if INTERPRETED:
        return x / (1.0 + tl.exp(-x * (1.5957691216057308 + 0.07135481627159756 * x * x)))
    else:
        # The same constants times log2(e): four instructions in place of the eight of exp and a division.
        # Roundings are named so that nobody fuses them; ``gluon_kernels`` must get the same bits.
        power = x * tl.fma(x * x, -0.10294323957857691, -2.302208198144325)
        return tl.inline_asm_elementwise(
            "{.reg .f32 t; ex2.approx.ftz.f32 t, $2; add.rn.f32 t, t, 0f3F800000;"
            " rcp.approx.ftz.f32 t, t; mul.rn.f32 $0, $1, t;}",
            "=r,r,r", [x, power], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def range_with_zero(low, high):
    """Ends of a range that includes 0, and its extent, NaN if an end is.

    A row with NaN gets any codes and a scale of NaN, so that its outputs show it.
    """
    span = high - low
    low = tl.where(span == span, tl.minimum(low, 0.0), 0.0)
    high = tl.where(span == span, tl.maximum(high, 0.0), 0.0)
    return low, high, span


@triton.jit
def clipped_scale(
    low, high, lower_ptr, upper_ptr, clip,
    Q_MAX: tl.constexpr, LEVELS: tl.constexpr, FLOOR: tl.constexpr, SYMMETRIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Scale, its reciprocal and zero point of a range cut by the shares number ``clip``."""
    clipped_low = low * tl.load(lower_ptr + clip)
    clipped_high = high * tl.load(upper_ptr + clip)
    scale, zero = row_scale(
        clipped_low, clipped_high, Q_MAX, LEVELS, FLOOR, SYMMETRIC, RECIPROCAL, not INTERPRETED
    )
    return scale, tl.div_rn(1.0, scale), zero


@triton.jit
def store_row(scale_ptr, zero_ptr, sum_ptr, out, scale, span, total, offset, OFFSET: tl.constexpr):
    """What a product needs of row ``out`` beside its codes."""
    tl.store(scale_ptr + out, tl.where(span == span, scale, span))
    tl.store(sum_ptr + out, total)
    if OFFSET:
        tl.store(zero_ptr + out, offset)


@triton.jit
def _store_piece(
    x, column, columns, code_stride, target, scale, inverse, low, high, offset,
    OFFSET: tl.constexpr, EXACT: tl.constexpr, COUNT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Store the codes of ``COUNT`` elements; gives their sum without ``offset``."""
    bits = code_bits(x, scale, inverse, low, high, EXACT, INTERPRETED)
    total = sum_of_codes(bits, COUNT, INTERPRETED)
    if OFFSET:
        bits = tl.where(column < columns, bits + offset, 0)
    tl.store(target + column, _bytes(bits, INTERPRETED), mask=column < code_stride)
    return total


@triton.jit
def _store_codes(
    x, tail, lower_ptr, upper_ptr, code_ptr, scale_ptr, zero_ptr, sum_ptr,
    unit, units, units_per_clip, row, rows, columns, code_stride,
    Q_MAX: tl.constexpr, LEVELS: tl.constexpr, FLOOR: tl.constexpr, SYMMETRIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, INTERPRETED: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr,
    EXACT: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Codes of one row, float32 ``x`` and ``tail``, as row ``row`` of ``rows``, for each pair of clips.

    Each pair belongs to ``units_per_clip`` of the ``units`` (rows or samples) that this row is ``unit`` of.
    """
    column = tl.arange(0, HEAD)
    # Padding with zeros changes no range, since ranges include zero, and its codes q - z are 0.
    low, high = row_ends(x, INTERPRETED)
    if TAIL > 0:
        tail_column = HEAD + tl.arange(0, TAIL)
        tail_low, tail_high = row_ends(tail, INTERPRETED)
        low = smaller(low, tail_low)
        high = larger(high, tail_high)
    low, high, span = range_with_zero(low, high)
    for group in tl.static_range(GROUPS):
        out = group * rows + row.to(tl.int64)  # of one row, `rows` is no tensor but the number 1
        clip = (group * units + unit) // units_per_clip  # 32 bits: a 64-bit division is long
        scale, inverse, zero = clipped_scale(
            low, high, lower_ptr, upper_ptr, clip, Q_MAX, LEVELS, FLOOR, SYMMETRIC, RECIPROCAL, INTERPRETED
        )
        offset = zero.to(tl.int32) - 128
        target = code_ptr + out * code_stride
        total = _store_piece(
            x, column, columns, code_stride, target, scale, inverse, -zero, Q_MAX - zero, offset,
            OFFSET, EXACT, HEAD, INTERPRETED,
        )  # fmt: skip
        if TAIL > 0:
            total += _store_piece(
                tail, tail_column, columns, code_stride, target, scale, inverse, -zero, Q_MAX - zero, offset,
                OFFSET, EXACT, TAIL, INTERPRETED,
            )  # fmt: skip
        store_row(scale_ptr, zero_ptr, sum_ptr, out, scale, span, total, offset, OFFSET)


@triton.jit
def _loaded(pointer, column, columns, FULL: tl.constexpr):
    """Part of a row as float32; zeros behind ``columns``, where the part is not ``FULL``."""
    if FULL:
        return tl.load(pointer + column).to(tl.float32)
    else:
        return tl.load(pointer + column, mask=column < columns, other=0.0).to(tl.float32)


@triton.jit
def quantize_tokens(
    x_ptr, lower_ptr, upper_ptr, code_ptr, scale_ptr, zero_ptr, sum_ptr,
    rows, columns, row_stride, code_stride, rows_per_clip,
    Q_MAX: tl.constexpr, LEVELS: tl.constexpr, FLOOR: tl.constexpr, SYMMETRIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, INTERPRETED: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr,
    GELU: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Quantize row ``program_id(0)``, or the GELU of it, with each of ``GROUPS`` pairs of clips.

    The row is held as ``HEAD`` and ``TAIL`` elements, two powers of two that waste fewer lanes than
    one; all of the first are in use, and all of both if ``FULL``. ``sum_ptr`` gets the sum of q - z.
    Columns from ``columns`` to ``code_stride`` become 0.
    """
    row = tl.program_id(0).to(tl.int64)
    source = x_ptr + row * row_stride
    column = tl.arange(0, HEAD)
    x = _loaded(source, column, columns, FULL or TAIL > 0)
    tail = x
    if TAIL > 0:
        tail_column = HEAD + tl.arange(0, TAIL)
        tail = _loaded(source, tail_column, columns, FULL)
    if GELU:
        x = gelu(x, INTERPRETED)
        if TAIL > 0:
            tail = gelu(tail, INTERPRETED)
    _store_codes(
        x, tail, lower_ptr, upper_ptr, code_ptr, scale_ptr, zero_ptr, sum_ptr,
        tl.program_id(0), rows, rows_per_clip, row, rows, columns, code_stride,
        Q_MAX, LEVELS, FLOOR, SYMMETRIC, RECIPROCAL, INTERPRETED, OFFSET, GROUPS, not GELU, HEAD, TAIL,
    )  # fmt: skip


@triton.jit
def _times_plus(x, factor, term, INTERPRETED: tl.constexpr):
    """``x * factor + term``, rounded once on a GPU."""
    if INTERPRETED:
        return x * factor + term
    else:
        return tl.fma(x, factor, term)


@triton.jit
def _modulated(
    x, column, columns, sample, weight_ptr, bias_ptr, scale_ptr, shift_ptr, modulation_stride,
    AFFINE: tl.constexpr, MODULATED: tl.constexpr, FULL: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Weight and bias of the norm, then ``x (1 + scale) + shift`` of the sample; 0 stays 0 behind the row."""
    if AFFINE:
        weight = _loaded(weight_ptr, column, columns, FULL)
        bias = _loaded(bias_ptr, column, columns, FULL)
        x = _times_plus(x, weight, bias, INTERPRETED)
    if MODULATED:
        first = sample * modulation_stride
        scale = _loaded(scale_ptr + first, column, columns, FULL)
        shift = _loaded(shift_ptr + first, column, columns, FULL)
        x = _times_plus(x, 1.0 + scale, shift, INTERPRETED)
    return x


@triton.jit
def norm_quantize_tokens(
    x_ptr, weight_ptr, bias_ptr, m_scale_ptr, m_shift_ptr,
    lower_ptr, upper_ptr, code_ptr, scale_ptr, zero_ptr, sum_ptr,
    tokens, columns, sample_stride, row_stride, modulation_stride, eps,
    samples, samples_per_clip, out_tokens, out_first, code_stride,
    AFFINE: tl.constexpr, MODULATED: tl.constexpr,
    Q_MAX: tl.constexpr, LEVELS: tl.constexpr, FLOOR: tl.constexpr, SYMMETRIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, INTERPRETED: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr,
    HEAD: tl.constexpr, TAIL: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """LayerNorm, modulation and quantization of one of ``tokens`` rows of each sample, all in float32.

    They become the rows from ``out_first`` of the ``out_tokens`` rows that a sample has in the result,
    so that parts of a sequence come to stand behind each other without a copy.
    """
    sample = tl.program_id(0) // tokens
    token = tl.program_id(0) % tokens
    source = x_ptr + sample.to(tl.int64) * sample_stride + token.to(tl.int64) * row_stride
    column = tl.arange(0, HEAD)
    x = _loaded(source, column, columns, FULL or TAIL > 0)
    tail = x
    mean = tl.sum(x, 0)
    if TAIL > 0:
        tail_column = HEAD + tl.arange(0, TAIL)
        tail = _loaded(source, tail_column, columns, FULL)
        mean += tl.sum(tail, 0)
    mean = mean / columns
    x -= mean
    if not FULL and TAIL == 0:
        x = tl.where(column < columns, x, 0.0)
    variance = tl.sum(x * x, 0)
    if TAIL > 0:
        tail -= mean
        if not FULL:
            tail = tl.where(tail_column < columns, tail, 0.0)
        variance += tl.sum(tail * tail, 0)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(variance / columns + eps))
    x = _modulated(
        x * inverse, column, columns, sample, weight_ptr, bias_ptr, m_scale_ptr, m_shift_ptr,
        modulation_stride, AFFINE, MODULATED, FULL or TAIL > 0, INTERPRETED,
    )  # fmt: skip
    if TAIL > 0:
        tail = _modulated(
            tail * inverse, tail_column, columns, sample, weight_ptr, bias_ptr, m_scale_ptr, m_shift_ptr,
            modulation_stride, AFFINE, MODULATED, FULL, INTERPRETED,
        )  # fmt: skip
    row = sample.to(tl.int64) * out_tokens + out_first + token
    _store_codes(
        x, tail, lower_ptr, upper_ptr, code_ptr, scale_ptr, zero_ptr, sum_ptr,
        sample, samples, samples_per_clip, row, samples * out_tokens, columns, code_stride,
        Q_MAX, LEVELS, FLOOR, SYMMETRIC, RECIPROCAL, INTERPRETED, OFFSET, GROUPS, False, HEAD, TAIL,
    )  # fmt: skip


@triton.jit
def expand_codes(packed_ptr, out_ptr, words, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Four codes a 32-bit word of the result: 4 * ``BITS`` neighbouring bits, one code a byte.

    Rows of the packed matrix are whole groups of 32 codes, so rows need no telling apart.
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < words
    packed = packed_ptr.to(tl.pointer_type(tl.uint32))
    bit = index * (4 * BITS)
    word = bit >> 5
    shift = (bit & 31).to(tl.uint32)
    stream = tl.load(packed + word, mask=valid, other=0) >> shift
    if 32 % (4 * BITS) != 0:  # the four codes may lie across two words
        across = shift + 4 * BITS > 32
        above = tl.load(packed + word + 1, mask=valid & across, other=0)
        stream = stream | tl.where(across, above << ((32 - shift) & 31), 0)
    mask: tl.constexpr = (1 << BITS) - 1
    codes = stream & mask
    codes = codes | ((stream >> BITS) & mask) << 8
    codes = codes | ((stream >> (2 * BITS)) & mask) << 16
    codes = codes | ((stream >> (3 * BITS)) & mask) << 24
    # In each byte q - 2^(b-1), without a carry from one to the next: add 128 - 2^(b-1), flip the sign.
    codes = codes + (128 - (1 << (BITS - 1))) * 0x01010101
    codes = (codes ^ 0x80808080).to(tl.uint32)
    tl.store(out_ptr.to(tl.pointer_type(tl.uint32)) + index, codes, mask=valid)


@triton.jit
def _origin(tile, tiles_m, tiles_n, BM: tl.constexpr, BN: tl.constexpr, GROUP_M: tl.constexpr):
    """First row and column of a tile: ``GROUP_M`` tiles of rows share what they read of the weights."""
    group = tile // (GROUP_M * tiles_n)
    first = group * GROUP_M
    size = tl.minimum(tiles_m - first, GROUP_M)
    inside = tile % (GROUP_M * tiles_n)
    return (first + inside % size) * BM, (inside // size) * BN


@triton.jit
def _load(operand, row, k, rows, stride, TMA: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr):
    """int8 [BLOCK, BK] of a row-major matrix of ``stride`` columns; zeros outside of it."""
    if TMA:
        return operand.load([row, k])
    else:
        at_row = row + tl.arange(0, BLOCK)
        at_k = k + tl.arange(0, BK)
        valid = (at_row < rows)[:, None] & (at_k < stride)[None, :]
        return tl.load(operand + at_row.to(tl.int64)[:, None] * stride + at_k[None, :], mask=valid, other=0)


@triton.jit
def _of_columns(
    column, columns, k_columns, w_scale_ptr, w_zero_ptr, w_sum_ptr, bias_ptr,
    HALF: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What belongs to each column of a tile: scale, zero point, sum of centred codes, bias."""
    at_column = column + tl.arange(0, BN)
    valid = at_column < columns
    scale = tl.load(w_scale_ptr + at_column, mask=valid, other=0.0)
    zero = HALF - tl.load(w_zero_ptr + at_column, mask=valid, other=0.0)
    total = tl.zeros((BN,), tl.int32)
    bias = tl.zeros((BN,), tl.float32)
    if OFFSET:
        total = tl.load(w_sum_ptr + at_column, mask=valid, other=0) - HALF * k_columns
    if BIAS:
        bias = tl.load(bias_ptr + at_column, mask=valid, other=0.0).to(tl.float32)
    return scale, zero, total, bias


@triton.jit
def _halves(x, WIDTH: tl.constexpr):
    """First and second half of a vector of 2 * ``WIDTH``."""
    return tl.split(tl.permute(tl.reshape(x, (2, WIDTH)), (1, 0)))


@triton.jit
def _finish(
    acc, y, row, column, rows, columns, scale_ptr, zero_ptr, sum_ptr, w_scale, w_zero, w_sum, bias,
    OFFSET: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, TMA_STORE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, OUT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Scale, correct and store one tile of sums: ``s_a s_w (sum a w - z_w sum a) + bias``."""
    at_row = row + tl.arange(0, BM)
    row_valid = at_row < rows
    scale = tl.load(scale_ptr + at_row, mask=row_valid, other=0.0)
    total = tl.load(sum_ptr + at_row, mask=row_valid, other=0).to(tl.float32)
    if OFFSET:
        zero = tl.load(zero_ptr + at_row, mask=row_valid, other=0)
        acc = acc - zero[:, None] * w_sum[None, :]
    # One rounding: both terms can be large beside their difference.
    value = tl.fma(w_zero[None, :], total[:, None], acc.to(tl.float32)) * scale[:, None]
    if BIAS:
        value = tl.fma(value, w_scale[None, :], bias[None, :])
    else:
        value = value * w_scale[None, :]
    if GELU:
        value = gelu(value, INTERPRETED)
    if TMA_STORE:
        y.store([row, column], value.to(OUT))
    else:
        at_column = column + tl.arange(0, BN)
        target = y + at_row.to(tl.int64)[:, None] * columns + at_column[None, :]
        tl.store(target, value.to(OUT), mask=row_valid[:, None] & (at_column < columns)[None, :])


@triton.jit(do_not_specialize=["rows", "programs"])
def int8_gemm(
    a, b, y, scale_ptr, zero_ptr, sum_ptr, w_scale_ptr, w_zero_ptr, w_sum_ptr, bias_ptr,
    rows, columns, k_columns, k_stride, programs,
    HALF: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, OUT: tl.constexpr,
    TMA: tl.constexpr, TMA_STORE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP_M: tl.constexpr, SPLIT: tl.constexpr, WHOLE: tl.constexpr,
    FLATTEN: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Product [rows, columns] ``y`` of codes ``a`` [rows, k_stride] and ``b`` [columns, k_stride].

    Each of ``programs`` programs takes every ``programs``-th tile. ``a``, ``b`` and ``y`` are tensor
    descriptors where ``TMA`` and ``TMA_STORE`` say so, else pointers; ``SPLIT`` stores a tile as two
    halves, which takes half the shared memory. ``WHOLE``, with ``SPLIT``, loads what belongs to columns
    for both at once: a vector shorter than there are threads is loaded element by element.
    """
    WIDTH: tl.constexpr = BN // 2 if SPLIT else BN
    tiles_m = tl.cdiv(rows, BM)
    tiles_n = tl.cdiv(columns, BN)
    steps = tl.cdiv(k_stride, BK)
    tiles = tiles_m * tiles_n
    first = tl.program_id(0)
    # The epilogue counts its own tiles: what it needs is not carried through the pipelined loop.
    done = first - programs
    for tile in tl.range(
        loop_bound(first, INTERPRETED),
        loop_bound(tiles, INTERPRETED),
        loop_bound(programs, INTERPRETED),
        flatten=FLATTEN,
    ):
        row, column = _origin(tile, tiles_m, tiles_n, BM, BN, GROUP_M)
        acc = tl.zeros((BM, BN), dtype=tl.int32)
        for step in range(loop_bound(steps, INTERPRETED)):
            left = _load(a, row, step * BK, rows, k_stride, TMA, BM, BK)
            right = _load(b, column, step * BK, columns, k_stride, TMA, BN, BK)
            acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)
        done += programs
        row, column = _origin(done, tiles_m, tiles_n, BM, BN, GROUP_M)
        acc_0 = acc
        if SPLIT:
            acc_0, acc_1 = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1)))
        if WHOLE:
            w_scale, w_zero, w_sum, bias = _of_columns(
                column, columns, k_columns, w_scale_ptr, w_zero_ptr, w_sum_ptr, bias_ptr, HALF, OFFSET, BIAS,
                2 * WIDTH,
            )  # fmt: skip
            scale_0, scale_1 = _halves(w_scale, WIDTH)
            zero_0, zero_1 = _halves(w_zero, WIDTH)
            sum_0, sum_1 = _halves(w_sum, WIDTH)
            bias_0, bias_1 = _halves(bias, WIDTH)
        else:
            scale_0, zero_0, sum_0, bias_0 = _of_columns(
                column, columns, k_columns, w_scale_ptr, w_zero_ptr, w_sum_ptr, bias_ptr, HALF, OFFSET, BIAS,
                WIDTH,
            )  # fmt: skip
        _finish(
            acc_0, y, row, column, rows, columns, scale_ptr, zero_ptr, sum_ptr,
            scale_0, zero_0, sum_0, bias_0, OFFSET, BIAS, GELU, TMA_STORE, BM, WIDTH, OUT, INTERPRETED,
        )  # fmt: skip
        if SPLIT:
            if not WHOLE:
                scale_1, zero_1, sum_1, bias_1 = _of_columns(
                    column + WIDTH, columns, k_columns, w_scale_ptr, w_zero_ptr, w_sum_ptr, bias_ptr,
                    HALF, OFFSET, BIAS, WIDTH,
                )  # fmt: skip
            _finish(
                acc_1, y, row, column + WIDTH, rows, columns, scale_ptr, zero_ptr, sum_ptr,
                scale_1, zero_1, sum_1, bias_1, OFFSET, BIAS, GELU, TMA_STORE, BM, WIDTH, OUT, INTERPRETED,
            )  # fmt: skip
