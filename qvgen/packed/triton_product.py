"""The integer product with its epilogue: which kernel multiplies, on which tiles, and with what operands."""

from __future__ import annotations

import os
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qvgen.fused.switch import AVAILABLE, INTERPRETED, capability, multiprocessors
from qvgen.packed.triton_operands import Int8Weight, Tokens, copy_engine, padded_columns
from qvgen.packed.triton_table import STORED, Tiles, tiles_for


def multiply(
    tokens: Tokens, expanded: Tensor, weight: Int8Weight, out_dtype: torch.dtype, tiles: Tiles | None = None,
    descriptors: bool | None = None,
) -> Tensor:  # fmt: skip
    """[M, N] of ``out_dtype`` from quantized tokens and the expanded codes of ``weight``.

    ``tiles`` instead of the table's, and whether tiles move through tensor ``descriptors`` instead
    of what the device prefers, are for tuning and tests.
    """
    out = torch.empty((len(tokens.codes), weight.shape[0]), dtype=out_dtype, device=expanded.device)
    call = product_call(tokens, expanded, weight, out, tiles, descriptors)
    with torch.cuda.device_of(expanded):
        call.kernel[(call.programs,)](*call.operands, **call.constants)
    return out


class ProductCall(NamedTuple):
    """The kernel that ``multiply`` launches, and how."""

    kernel: Any
    programs: int
    operands: tuple[Any, ...]
    constants: dict[str, Any]


@cache
def has_jobs() -> bool:
    """Whether this Triton has what ``gluon_kernels`` is written in, and ``QVGEN_JOBS`` is not 0."""
    if not AVAILABLE or INTERPRETED or os.environ.get("QVGEN_JOBS") == "0":
        return False
    try:
        from qvgen.packed import gluon_kernels
    except (ImportError, AttributeError):  # older Tritons have other names
        return False
    return bool(gluon_kernels.STORED.value == STORED)


def product_call(
    tokens: Tokens, expanded: Tensor, weight: Int8Weight, out: Tensor, tiles: Tiles | None = None,
    descriptors: bool | None = None,
) -> ProductCall:  # fmt: skip
    """What ``multiply`` launches.

    A way with ``jobs`` that does not fit the operands becomes one of equal warps.
    """
    from qvgen.packed import triton_kernels

    rows, (columns, k_columns) = len(tokens.codes), weight.shape
    tma = copy_engine(expanded.device) if descriptors is None else descriptors
    tiles = tiles_for(rows, columns, k_columns, tma) if tiles is None else tiles
    if tiles.jobs:
        hopper = tma and capability(expanded.device)[0] == 9
        fit = columns * out.element_size() % 16 == 0 and out.element_size() == 2
        if hopper and fit and tokens.zero_point is None and has_jobs():
            return _call_by_jobs(tokens, expanded, weight, out, tiles)
        tiles = tiles.without_jobs()
    # The copy engine moves rows of whole 16 bytes.
    tma_store = tma and columns * out.element_size() % 16 == 0
    count = -(-rows // tiles.bm) * -(-columns // tiles.bn)
    programs = min(count, tiles.per_sm * multiprocessors(expanded.device)) if tiles.per_sm else count
    a: Any = tokens.codes
    b: Any = expanded
    y: Any = out
    if tma:
        a, b = _described(a, tiles.bm, tiles.bk), _described(b, tiles.bn, tiles.bk)
        y = _described(out, tiles.bm, tiles.bn // (2 if tiles.split else 1)) if tma_store else out
    zero = tokens.zero_point
    operands = (
        a, b, y, tokens.scale, tokens.sums if zero is None else zero, tokens.sums,
        weight.scale, weight.zero_point, tokens.sums if zero is None else _row_sums(expanded, weight),
        weight.scale if weight.bias is None else weight.bias,
        rows, columns, k_columns, padded_columns(k_columns), programs,
    )  # fmt: skip
    return ProductCall(
        triton_kernels.int8_gemm,
        programs,
        operands,
        {
            "HALF": 1 << (weight.bits - 1),
            "OFFSET": zero is not None,
            "BIAS": weight.bias is not None,
            "GELU": weight.gelu,
            "OUT": _triton_dtype(out.dtype),
            "TMA": tma,
            "TMA_STORE": tma_store,
            "BM": tiles.bm,
            "BN": tiles.bn,
            "BK": tiles.bk,
            "GROUP_M": tiles.group,
            "SPLIT": tiles.split,
            "WHOLE": tiles.split and tiles.whole,
            "FLATTEN": tiles.flatten,
            "INTERPRETED": INTERPRETED,
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        },
    )


def _call_by_jobs(
    tokens: Tokens, expanded: Tensor, weight: Int8Weight, out: Tensor, tiles: Tiles
) -> ProductCall:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from qvgen.packed import gluon_kernels

    def described(matrix: Tensor, dtype: Any, *box: int) -> Any:
        return TensorDescriptor.from_tensor(matrix, list(box), _layout(box, dtype))

    rows, (columns, k_columns) = len(tokens.codes), weight.shape
    count = -(-rows // tiles.bm) * -(-columns // tiles.bn)
    programs = min(count, multiprocessors(expanded.device))
    operands = (
        described(tokens.codes, gl.int8, tiles.bm, tiles.bk),
        described(expanded, gl.int8, tiles.bn, tiles.bk),
        described(out, gl.float16 if out.dtype == torch.float16 else gl.bfloat16, tiles.bm // 2, STORED),
        tokens.scale, tokens.sums, weight.scale, weight.zero_point,
        weight.scale if weight.bias is None else weight.bias,
        rows, columns, padded_columns(k_columns), programs,
    )  # fmt: skip
    constants = {
        "HALF": 1 << (weight.bits - 1), "BIAS": weight.bias is not None, "GELU": weight.gelu,
        "BM": tiles.bm, "BN": tiles.bn, "BK": tiles.bk, "STAGES": tiles.stages, "GROUP_M": tiles.group,
        "BUFFERS": tiles.buffers, "num_warps": 4,
    }  # fmt: skip
    return ProductCall(gluon_kernels.int8_gemm_by_jobs, programs, operands, constants)


@cache
def _layout(box: tuple[int, ...], dtype: Any) -> Any:
    from triton.experimental.gluon import language as gl

    return gl.NVMMASharedLayout.get_default_for(list(box), dtype)


def _row_sums(expanded: Tensor, weight: Int8Weight) -> Tensor:
    if weight.row_sums is not None:
        return weight.row_sums
    columns = weight.shape[1]
    return expanded[:, :columns].sum(1, dtype=torch.int32) + (columns << (weight.bits - 1))


def _described(matrix: Tensor, rows: int, columns: int) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])


@cache
def _triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
