"""The int8 product of Hopper with warps that have a job each, in Gluon; results are those of ``int8_gemm``.

One warp moves tiles of both operands by the copy engine. Two groups of four warps multiply in turns: each
has every other tile of its program for itself, and while it scales, corrects and writes one, the other keeps
the tensor cores busy with the next. Two barriers keep the turns: who has waited for the last step of a tile
lets the other group begin.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

STORED = gl.constexpr(64)  # columns that are stored at a time


@gluon.jit
def _origin(tile, tiles_m, tiles_n, BM: gl.constexpr, BN: gl.constexpr, GROUP_M: gl.constexpr):
    """First row and column of a tile: ``GROUP_M`` tiles of rows share what they read of the weights."""
    group = tile // (GROUP_M * tiles_n)
    first = group * GROUP_M
    size = gl.minimum(tiles_m - first, GROUP_M)
    inside = tile % (GROUP_M * tiles_n)
    return (first + inside % size) * BM, (inside // size) * BN


@gluon.jit
def _move(
    a, b, a_tiles, b_tiles, full, empty, tiles_m, tiles_n, steps, programs,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, GROUP_M: gl.constexpr,
):  # fmt: skip
    """The moving warp: every step of every tile of this program, as far ahead as there are stages."""
    stage = 0
    phase = 1  # nothing was read yet: the first waits are for a phase that counts as over
    for tile in range(gl.program_id(0), tiles_m * tiles_n, programs):
        row, column = _origin(tile, tiles_m, tiles_n, BM, BN, GROUP_M)
        for step in range(steps):
            mbarrier.wait(empty.index(stage), phase)
            ready = full.index(stage)
            mbarrier.expect(ready, (BM + BN) * BK)
            tma.async_copy_global_to_shared(a, [row, step * BK], ready, a_tiles.index(stage))
            tma.async_copy_global_to_shared(b, [column, step * BK], ready, b_tiles.index(stage))
            stage += 1
            if stage == STAGES:
                stage = 0
                phase ^= 1


@gluon.jit
def _gelu(x):
    """As ``triton_kernels.gelu``, to the bit."""
    power = x * gl.fma(x * x, -0.10294323957857691, -2.302208198144325)
    return gl.inline_asm_elementwise(
        "{.reg .f32 t; ex2.approx.ftz.f32 t, $2; add.rn.f32 t, t, 0f3F800000;"
        " rcp.approx.ftz.f32 t, t; mul.rn.f32 $0, $1, t;}",
        "=r,r,r", [x, power], dtype=gl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def _of_columns(
    column, columns, w_scale_ptr, w_zero_ptr, bias_ptr, HALF: gl.constexpr, BIAS: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """What belongs to each of ``STORED`` columns: scale, zero point, bias."""
    at_column = column + gl.arange(0, STORED, layout=gl.SliceLayout(0, layout))
    valid = at_column < columns
    scale = gl.load(w_scale_ptr + at_column, mask=valid, other=0.0)
    zero = HALF - gl.load(w_zero_ptr + at_column, mask=valid, other=0.0)
    bias = scale
    if BIAS:
        bias = gl.load(bias_ptr + at_column, mask=valid, other=0.0).to(gl.float32)
    return scale, zero, bias


@gluon.jit
def _finish(
    acc, scale, total, w_scale, w_zero, bias,
    BIAS: gl.constexpr, GELU: gl.constexpr, ROWS: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """Scale and correct ``STORED`` columns of sums, as ``triton_kernels._finish`` does."""
    acc = gl.convert_layout(acc, layout)
    zero, sums = gl.expand_dims(w_zero, 0), gl.expand_dims(total, 1)
    value = gl.fma(zero.broadcast_to(ROWS, STORED), sums.broadcast_to(ROWS, STORED), acc.to(gl.float32))
    value = value * gl.expand_dims(scale, 1)
    by_column = gl.expand_dims(w_scale, 0)
    if BIAS:
        shift = gl.expand_dims(bias, 0)
        value = gl.fma(value, by_column.broadcast_to(ROWS, STORED), shift.broadcast_to(ROWS, STORED))
    else:
        value = value * by_column
    if GELU:
        value = _gelu(value)
    return value


@gluon.jit
def _halves(acc, ROWS: gl.constexpr, WIDTH: gl.constexpr):
    return acc.reshape([ROWS, 2, WIDTH // 2]).permute(0, 2, 1).split()


@gluon.jit
def _multiply(
    part: gl.constexpr, y, a_tiles, b_tiles, stored, full, empty, turn,
    scale_ptr, sum_ptr, w_scale_ptr, w_zero_ptr, bias_ptr, tiles_m, tiles_n, steps, programs, rows, columns,
    HALF: gl.constexpr, BIAS: gl.constexpr, GELU: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, GROUP_M: gl.constexpr,
    BUFFERS: gl.constexpr,
):  # fmt: skip
    """Group ``part`` of the two that multiply: every other tile of this program from its ``part``-th on."""
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [4, 1], [16, 128, 32]
    )  # Triton takes no 256 of int8
    piece: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, STORED, 32])
    # Where in the ring of stages this group's first tile lies, and what its first wait for a turn waits for:
    # group 0 begins at once.
    stage = 0
    phase = 0
    mine = 1
    if part == 1:
        stage = steps % STAGES
        phase = (steps // STAGES) & 1
        mine = 0
    before = 0  # not `stage`: a name that enters a loop as another one is taken for constant in it
    for tile in range(gl.program_id(0) + part * programs, tiles_m * tiles_n, 2 * programs):
        acc = gl.zeros([BM, BN], gl.int32, layout)
        # A barrier tells odd from even rounds of the ring only: nobody may wait for a stage more than one
        # round ahead of what has come, and in its turn nobody does.
        mbarrier.wait(turn.index(part), mine)
        mine = mine ^ 1
        for step in range(steps):
            mbarrier.wait(full.index(stage), phase)
            right = b_tiles.index(stage).permute((1, 0))
            acc = warpgroup_mma(a_tiles.index(stage), right, acc, use_acc=step > 0, is_async=True)
            acc = warpgroup_mma_wait(num_outstanding=1, deps=(acc,))
            mbarrier.arrive(empty.index(before), count=1, pred=step > 0)
            before = stage
            stage += 1
            if stage == STAGES:
                stage = 0
                phase ^= 1
        mbarrier.arrive(turn.index(1 - part), count=1)
        # What the epilogue needs is on its way while the last products are summed, and for each piece while
        # the one before it is written.
        row, column = _origin(tile, tiles_m, tiles_n, BM, BN, GROUP_M)
        at_row = row + gl.arange(0, BM, layout=gl.SliceLayout(1, piece))
        row_valid = at_row < rows
        scale = gl.load(scale_ptr + at_row, mask=row_valid, other=0.0)
        total = gl.load(sum_ptr + at_row, mask=row_valid, other=0).to(gl.float32)
        w_scale, w_zero, bias = _of_columns(
            column, columns, w_scale_ptr, w_zero_ptr, bias_ptr, HALF, BIAS, piece
        )
        acc = warpgroup_mma_wait(num_outstanding=0, deps=(acc,))
        mbarrier.arrive(empty.index(before), count=1)
        parts = _halves(acc, BM, BN)
        for i in gl.static_range(2):
            next_scale, next_zero, next_bias = w_scale, w_zero, bias
            if i == 0:
                next_scale, next_zero, next_bias = _of_columns(
                    column + STORED, columns, w_scale_ptr, w_zero_ptr, bias_ptr, HALF, BIAS, piece
                )
            value = _finish(parts[i], scale, total, w_scale, w_zero, bias, BIAS, GELU, BM, piece)
            buffer = stored.index(part * BUFFERS + i % BUFFERS)
            tma.store_wait(pendings=BUFFERS - 1)
            buffer.store(value.to(y.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(y, [row, column + i * STORED], buffer)
            w_scale, w_zero, bias = next_scale, next_zero, next_bias
        passed = stage + steps  # the other group's tile
        phase ^= (passed // STAGES) & 1
        stage = passed % STAGES
    tma.store_wait(pendings=0)


@gluon.jit(do_not_specialize=["rows", "programs"])
def int8_gemm_by_jobs(
    a, b, y, scale_ptr, sum_ptr, w_scale_ptr, w_zero_ptr, bias_ptr, rows, columns, k_stride, programs,
    HALF: gl.constexpr, BIAS: gl.constexpr, GELU: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, GROUP_M: gl.constexpr,
    BUFFERS: gl.constexpr,
):  # fmt: skip
    """As ``triton_kernels.int8_gemm`` without offsets; ``a``, ``b`` and ``y`` are tensor descriptors.

    ``BN`` is 2 * ``STORED``; ``y`` is stored in boxes of BM rows and ``STORED`` columns.
    """
    gl.static_assert(BN == 2 * STORED)
    a_tiles = gl.allocate_shared_memory(gl.int8, [STAGES, BM, BK], a.layout)
    b_tiles = gl.allocate_shared_memory(gl.int8, [STAGES, BN, BK], b.layout)
    stored = gl.allocate_shared_memory(y.dtype, [2 * BUFFERS, BM, STORED], y.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    for part in gl.static_range(2):
        mbarrier.init(turn.index(part), count=1)
    fence_async_shared()
    tiles_m, tiles_n = gl.cdiv(rows, BM), gl.cdiv(columns, BN)
    steps = gl.cdiv(k_stride, BK)
    gl.warp_specialize(
        [
            (_multiply, (
                0, y, a_tiles, b_tiles, stored, full, empty, turn, scale_ptr, sum_ptr, w_scale_ptr,
                w_zero_ptr, bias_ptr, tiles_m, tiles_n, steps, programs, rows, columns, HALF, BIAS, GELU,
                BM, BN, STAGES, GROUP_M, BUFFERS,
            )),
            (_multiply, (
                1, y, a_tiles, b_tiles, stored, full, empty, turn, scale_ptr, sum_ptr, w_scale_ptr,
                w_zero_ptr, bias_ptr, tiles_m, tiles_n, steps, programs, rows, columns, HALF, BIAS, GELU,
                BM, BN, STAGES, GROUP_M, BUFFERS,
            )),
            (_move, (
                a, b, a_tiles, b_tiles, full, empty, tiles_m, tiles_n, steps, programs, BM, BN, BK, STAGES,
                GROUP_M,
            )),
        ],
        [4, 1],
        [232, 24],
    )  # fmt: skip
