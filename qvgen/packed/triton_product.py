"""The integer product with its epilogue: which kernel multiplies, on which tiles, and with what operands."""

from __future__ import annotations

import os
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qvgen.fused.switch import AVAILABLE, INTERPRETED, capability, multiprocessors
from qvgen.packed.triton_launch import Described, launch
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
    out = torch.empty((tokens.codes.shape[0], weight.shape[0]), dtype=out_dtype, device=expanded.device)
    way = _way(tokens, expanded, weight, out, tiles, descriptors)
    launch(
        way.kernel, way.programs, _operands(way, tokens, expanded, weight, out), out, way[1:], way.constants
    )
    return out


class ProductCall(NamedTuple):
    """The kernel that ``multiply`` launches, and how."""

    kernel: Any
    programs: int
    operands: tuple[Any, ...]
    constants: dict[str, Any]


class Way(NamedTuple):
    """How operands of certain sizes are multiplied.

    Attributes:
        kernel: one of the two.
        programs: of a launch.
        tiles: that the kernel works on.
        moved, stored: whether operands, and the result, are moved by the copy engine.
        offset: whether tokens have zero points.
        bias, gelu: of the layer.
        bits: of a weight.
        dtype: of the result.
    """

    kernel: Any
    programs: int
    tiles: Tiles
    moved: bool
    stored: bool
    offset: bool
    bias: bool
    gelu: bool
    bits: int
    dtype: torch.dtype

    def constants(self) -> dict[str, Any]:
        """By name, with Triton's options."""
        tiles = self.tiles
        shared = {
            "HALF": 1 << (self.bits - 1), "BIAS": self.bias, "GELU": self.gelu,
            "BM": tiles.bm, "BN": tiles.bn, "BK": tiles.bk, "GROUP_M": tiles.group,
        }  # fmt: skip
        if tiles.jobs:
            return {**shared, "STAGES": tiles.stages, "BUFFERS": tiles.buffers, "num_warps": 4}
        return {
            **shared, "OFFSET": self.offset, "OUT": _triton_dtype(self.dtype), "TMA": self.moved,
            "TMA_STORE": self.stored, "SPLIT": tiles.split, "WHOLE": tiles.split and tiles.whole,
            "FLATTEN": tiles.flatten, "INTERPRETED": INTERPRETED, "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        }  # fmt: skip


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


def takes_turns(device: torch.device) -> bool:
    """Whether large products run on warps with jobs there."""
    return copy_engine(device) and has_jobs() and capability(device)[0] == 9


def product_call(
    tokens: Tokens, expanded: Tensor, weight: Int8Weight, out: Tensor, tiles: Tiles | None = None,
    descriptors: bool | None = None,
) -> ProductCall:  # fmt: skip
    """What ``multiply`` launches.

    A way with ``jobs`` that does not fit the operands becomes one of equal warps.
    """
    way = _way(tokens, expanded, weight, out, tiles, descriptors)
    operands = _operands(way, tokens, expanded, weight, out)
    checked = tuple(each.checked() if isinstance(each, Described) else each for each in operands)
    return ProductCall(way.kernel, way.programs, checked, way.constants())


def _way(
    tokens: Tokens, expanded: Tensor, weight: Int8Weight, out: Tensor, tiles: Tiles | None,
    descriptors: bool | None,
) -> Way:  # fmt: skip
    return _chosen(
        out.shape[0], weight.shape, expanded.device, out.dtype, tokens.zero_point is not None,
        weight.bias is not None, weight.gelu, weight.bits, tiles, descriptors,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _chosen(
    rows: int, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, offset: bool, bias: bool,
    gelu: bool, bits: int, tiles: Tiles | None, descriptors: bool | None,
) -> Way:  # fmt: skip
    """Looked up once for each kind of product."""
    from qvgen.packed import triton_kernels

    columns, k_columns = shape
    tma = copy_engine(device) if descriptors is None else descriptors
    whole = columns * dtype.itemsize % 16 == 0  # the copy engine moves rows of whole 16 bytes
    fit = tma and whole and dtype.itemsize == 2 and not offset
    jobs = fit and takes_turns(device)
    if tiles is None:
        # A result of four bytes takes twice the shared memory of those that were measured.
        tiles = tiles_for(rows, columns, k_columns, tma, jobs or dtype.itemsize != 2)
    if not jobs:
        tiles = tiles.without_jobs()
    count = -(-rows // tiles.bm) * -(-columns // tiles.bn)
    per_sm = 1 if tiles.jobs else tiles.per_sm
    programs = min(count, per_sm * multiprocessors(device)) if per_sm else count
    kernel = triton_kernels.int8_gemm
    if tiles.jobs:
        from qvgen.packed import gluon_kernels

        kernel = gluon_kernels.int8_gemm_by_jobs
    return Way(kernel, programs, tiles, tma, tma and whole, offset, bias, gelu, bits, dtype)


def _operands(way: Way, tokens: Tokens, expanded: Tensor, weight: Int8Weight, out: Tensor) -> tuple[Any, ...]:
    tiles, rows, (columns, k_columns) = way.tiles, out.shape[0], weight.shape
    bias = weight.scale if weight.bias is None else weight.bias
    if tiles.jobs:
        return (
            Described(tokens.codes, *_box(tiles.bm, tiles.bk, torch.int8)),
            Described(expanded, *_box(tiles.bn, tiles.bk, torch.int8)),
            Described(out, *_box(tiles.bm, STORED, way.dtype)),
            tokens.scale, tokens.sums, weight.scale, weight.zero_point, bias,
            rows, columns, padded_columns(k_columns), way.programs,
        )  # fmt: skip
    zero = tokens.zero_point
    a: Any = tokens.codes
    b: Any = expanded
    y: Any = out
    if way.moved:
        a, b = Described(a, (tiles.bm, tiles.bk)), Described(b, (tiles.bn, tiles.bk))
    if way.stored:
        y = Described(out, (tiles.bm, tiles.bn // (2 if tiles.split else 1)))
    return (
        a, b, y, tokens.scale, tokens.sums if zero is None else zero, tokens.sums,
        weight.scale, weight.zero_point, tokens.sums if zero is None else _row_sums(expanded, weight), bias,
        rows, columns, k_columns, padded_columns(k_columns), way.programs,
    )  # fmt: skip


@cache
def _box(rows: int, columns: int, dtype: torch.dtype) -> tuple[tuple[int, int], Any]:
    """A tile and its layout in shared memory, for ``gluon_kernels``."""
    from triton.experimental.gluon import language as gl

    kinds = {torch.int8: gl.int8, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
    return (rows, columns), gl.NVMMASharedLayout.get_default_for([rows, columns], kinds[dtype])


def _row_sums(expanded: Tensor, weight: Int8Weight) -> Tensor:
    if weight.row_sums is not None:
        return weight.row_sums
    columns = weight.shape[1]
    return expanded[:, :columns].sum(1, dtype=torch.int32) + (columns << (weight.bits - 1))


@cache
def _triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
