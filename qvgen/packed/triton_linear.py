"""Linear layers on packed weights in exact integer arithmetic: what the backend ``triton_int8`` runs.

For CUDA devices of compute capability 8.0 and later. A call quantizes the tokens, expands the
packed weight into an int8 scratch and multiplies; scale, zero points, bias and GELU are applied to
the int32 sums in the same kernel, before the one rounding to the output's dtype. Linears that read
the same input read it once.

Run as they are, the functions launch the kernels. Under a tracer they are the custom operators
``qvgen::int8_linear`` and ``qvgen::int8_linears``. Nothing waits for the device, so that CUDA
graphs record them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qvgen.fused.switch import AVAILABLE, INTERPRETED, capability, traced
from qvgen.levels import SCALE_FLOOR, positive_levels
from qvgen.packed.triton_launch import launch
from qvgen.packed.triton_operands import Int8Weight, Tokens, copy_engine, padded_columns
from qvgen.packed.triton_product import multiply, product_call
from qvgen.packed.triton_rows import Kind, Row
from qvgen.packed.triton_table import row_for

__all__ = [
    "Codes",
    "Int8Weight",
    "RowCall",
    "Tokens",
    "code_constants",
    "copy_engine",
    "empty_codes",
    "expand_codes",
    "has_pairs",
    "int8_linear",
    "int8_linears",
    "multiply",
    "padded_columns",
    "product_call",
    "quantize_call",
    "quantize_groups",
    "quantize_tokens",
    "runs_on",
    "split_tokens",
    "stacked",
]

EXPAND_BLOCK = 1024


def runs_on(device: torch.device) -> bool:
    """Whether ``device`` has what the kernels need; a CPU, in Triton's interpreter, has."""
    if not AVAILABLE:
        return False
    return INTERPRETED if device.type == "cpu" else device.type == "cuda" and capability(device) >= (8, 0)


def quantize_tokens(
    x: Tensor, lower: Tensor, upper: Tensor, q_max: int, symmetric: bool, row: Row | None = None
) -> Tokens:
    """Codes of ``qvgen.fake_quant.token_fake_quant``, with the sums that a product needs, in one pass.

    Args as there; ``x`` is [..., K] with M rows. ``row`` instead of the table's, for tuning and tests.
    """
    return split_tokens(*quantize_groups(x, lower, upper, 1, q_max, symmetric, row=row))[0]


Codes = tuple[Tensor, Tensor, Tensor]  # int8 [G, M, W]; float32 [G, M]; int32 [1 or 2, G, M]: sums, zeros


def empty_codes(groups: int, rows: int, columns: int, q_max: int, symmetric: bool, like: Tensor) -> Codes:
    """What quantized tokens are written to: codes of M ``rows`` in G ``groups``, scales, sums and zeros."""
    offset = q_max > 127 and not symmetric
    return (
        torch.empty((groups, rows, padded_columns(columns)), dtype=torch.int8, device=like.device),
        torch.empty((groups, rows), dtype=torch.float32, device=like.device),
        torch.empty((2 if offset else 1, groups, rows), dtype=torch.int32, device=like.device),
    )


def code_constants(
    columns: int, row: Row, groups: int, q_max: int, symmetric: bool, on_cuda: bool
) -> dict[str, Any]:
    """Constants of every kernel that quantizes rows."""
    return {
        "Q_MAX": float(q_max), "LEVELS": float(positive_levels(q_max, symmetric)), "FLOOR": SCALE_FLOOR,
        "SYMMETRIC": symmetric, "RECIPROCAL": on_cuda, "INTERPRETED": INTERPRETED,
        "OFFSET": q_max > 127 and not symmetric, "GROUPS": groups, **row.sizes(columns), **row.options,
    }  # fmt: skip


def split_tokens(codes: Tensor, scale: Tensor, sums: Tensor) -> list[Tokens]:
    """One ``Tokens`` for each group."""
    if codes.shape[0] == 1:
        zero = sums[1, 0] if sums.shape[0] > 1 else None
        return [Tokens(codes[0], scale[0], zero, sums[0, 0])]
    zero = sums[1] if len(sums) > 1 else None
    zeros = [None] * len(codes) if zero is None else list(zero)
    return [Tokens(*each) for each in zip(codes, scale, zeros, sums[0], strict=True)]


class RowCall(NamedTuple):
    """A launch that quantizes rows: as ``triton_launch.launch`` takes it, and what it fills."""

    kernel: Any
    programs: int
    operands: tuple[Any, ...]
    facts: tuple[Any, ...]
    constants: Callable[[], dict[str, Any]]
    made: Codes


def quantize_groups(
    x: Tensor, lower: Tensor, upper: Tensor, groups: int, q_max: int, symmetric: bool, gelu: bool = False,
    row: Row | None = None,
) -> Codes:  # fmt: skip
    """For each of ``groups`` equal parts of the clips the codes of ``x``, or of its GELU, from one read."""
    *call, made = quantize_call(x, lower, upper, groups, q_max, symmetric, gelu, row)
    kernel, programs, operands, facts, constants = call
    launch(kernel, programs, operands, x, facts, constants)
    return made


def quantize_call(
    x: Tensor, lower: Tensor, upper: Tensor, groups: int, q_max: int, symmetric: bool, gelu: bool,
    row: Row | None,
) -> RowCall:  # fmt: skip
    """What ``quantize_groups`` launches."""
    columns = x.shape[-1]
    rows = x.reshape(-1, columns)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    count = rows.shape[0]
    codes, scale, sums = made = empty_codes(groups, count, columns, q_max, symmetric, x)
    first, last = (sums[0], sums[1]) if sums.shape[0] > 1 else (sums, sums)
    operands = (
        rows, lower, upper, codes, scale, last, first,
        count, columns, rows.stride(0), codes.shape[-1], count * groups // lower.numel(),
    )  # fmt: skip
    if row is None:
        kind: Kind = "gelu" if gelu else "plain" if groups == 1 else "plain_groups"
        row = row_for(columns, kind, has_pairs(rows))
    elif row.pairs and not has_pairs(rows):
        raise ValueError(f"rows {list(rows.shape)} of {rows.dtype} are no whole words, and are to be held so")
    facts = (columns, row, groups, q_max, symmetric, x.is_cuda)
    constants = partial(_quantize_constants, gelu, facts)
    return RowCall(_quantizer(row.pairs), count, operands, (*facts, gelu), constants, made)


def has_pairs(rows: Tensor) -> bool:
    """Whether rows [M, K] of a unit stride are whole 32-bit words of two 16-bit numbers."""
    count, columns = rows.shape
    return (
        rows.element_size() == 2
        and columns % 2 == 0
        and (rows.stride(0) % 2 == 0 or count == 1)
        and rows.data_ptr() % 4 == 0
    )


def _quantizer(pairs: bool) -> Any:
    if pairs:
        from qvgen.packed import pair_kernels

        return pair_kernels.quantize_pairs
    from qvgen.packed import triton_kernels

    return triton_kernels.quantize_tokens


def _quantize_constants(gelu: bool, facts: tuple[Any, ...]) -> dict[str, Any]:
    return {"GELU": gelu, **code_constants(*facts)}


def expand_codes(codes: Tensor, bits: int, shape: tuple[int, int]) -> Tensor:
    """int8 [N, K rounded up to 32] of q - 2^(bits-1) from packed ``codes``."""
    from qvgen.packed import triton_kernels

    rows, columns = shape
    out = torch.empty((rows, padded_columns(columns)), dtype=torch.int8, device=codes.device)
    words = out.numel() // 4
    launch(
        triton_kernels.expand_codes, -(-words // EXPAND_BLOCK), (codes, out, words), codes, (bits,),
        lambda: {"BITS": bits, "BLOCK": EXPAND_BLOCK, "num_warps": 4},
    )  # fmt: skip
    return out


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape


def stacked(clips: Sequence[Tensor]) -> Tensor:
    """All ``clips`` behind each other; no copy where they are so already."""
    first = clips[0]
    size = first.numel()
    if all(
        c.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and c.storage_offset() == first.storage_offset() + i * size
        for i, c in enumerate(clips)
    ):
        return first.as_strided((len(clips) * size,), (1,))
    return torch.stack([c.reshape(-1) for c in clips])


def _launch(x: Tensor, weights: Sequence[Int8Weight], out_dtype: torch.dtype) -> list[Tensor]:
    """All ``weights`` on one read of ``x``."""
    first = weights[0]
    alike = len(weights) == 1 or all(
        _same(w.lower, first.lower) and _same(w.upper, first.upper) for w in weights
    )
    if alike:
        tokens = [quantize_tokens(x, first.lower, first.upper, first.q_max, first.symmetric)] * len(weights)
    else:
        lower, upper = stacked([w.lower for w in weights]), stacked([w.upper for w in weights])
        tokens = split_tokens(*quantize_groups(x, lower, upper, len(weights), first.q_max, first.symmetric))
    outs = []
    for weight, quantized in zip(weights, tokens, strict=True):
        expanded = expand_codes(weight.codes, weight.bits, weight.shape)
        outs.append(multiply(quantized, expanded, weight, out_dtype).view(*x.shape[:-1], weight.shape[0]))
    return outs


def _check(weights: Sequence[Int8Weight]) -> None:
    first = weights[0]
    for weight in weights:
        if (weight.q_max, weight.symmetric) != (first.q_max, first.symmetric):
            raise ValueError(
                f"linears of one input quantize it with q_max {first.q_max} and {weight.q_max}, symmetric "
                f"{first.symmetric} and {weight.symmetric}; give those that differ in calls of their own"
            )
        if weight.lower.shape != first.lower.shape:
            raise ValueError(
                f"linears of one input have clips of the shapes {tuple(first.lower.shape)} and "
                f"{tuple(weight.lower.shape)}; expected one shape"
            )
        if weight.shape[1] != first.shape[1]:
            raise ValueError(f"linears of one input have {first.shape[1]} and {weight.shape[1]} columns")


def int8_linears(x: Tensor, weights: Sequence[Int8Weight]) -> list[Tensor]:
    """Several linear layers that read the same input, which is read once.

    Args:
        x: [..., K], float32, bfloat16 or float16.
        weights: layers of one K, q_max, symmetry and shape of the clips. Clips that are
            the same tensors are quantized with once.

    Returns:
        [..., N] of each layer, of the dtype of ``x``.

    Raises:
        ValueError: no layer, or layers that do not go together.
    """
    if not weights:
        raise ValueError("no linear layer is given; expected at least one")
    _check(weights)
    if not traced(x):
        return _launch(x, weights, x.dtype)
    outs: list[Tensor] = _linears(
        x, [w.codes for w in weights], [w.scale for w in weights], [w.zero_point for w in weights],
        [w.row_sums for w in weights], [w.bias for w in weights], [w.lower for w in weights],
        [w.upper for w in weights], [w.bits for w in weights], [w.gelu for w in weights],
        weights[0].shape[1], weights[0].q_max, weights[0].symmetric, x.dtype,
    )  # fmt: skip
    return outs


def int8_linear(
    x: Tensor, codes: Tensor, bits: int, shape: tuple[int, int], scale: Tensor, zero_point: Tensor,
    row_sums: Tensor | None, bias: Tensor | None, lower: Tensor, upper: Tensor, q_max: int, symmetric: bool,
    gelu: bool, out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``y = s_a s_w sum (q_a - z_a)(q_w - z_w) + bias``, then GELU if wanted; [..., N] from x [..., K].

    The sum is exact; the rest is float32, rounded once to ``out_dtype``. Arguments as in
    ``Int8Weight``.
    """
    run: Callable[..., Tensor] = _linear if traced(x) else _run_linear
    return run(
        x, codes, bits, list(shape), scale, zero_point, row_sums, bias, lower, upper, q_max, symmetric, gelu,
        out_dtype,
    )  # fmt: skip


def _run_linear(x: Tensor, codes: Tensor, bits: int, shape: list[int], *rest: Any) -> Tensor:
    *given, out_dtype = rest
    return _launch(x, [Int8Weight(codes, bits, (shape[0], shape[1]), *given)], out_dtype)[0]


def _linear_shape(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    return torch.empty((*x.shape[:-1], codes.shape[0]), dtype=rest[-1], device=x.device)


def _run_linears(
    x: Tensor, codes: Sequence[Tensor], scale: Sequence[Tensor], zero_point: Sequence[Tensor],
    row_sums: Sequence[Tensor | None], bias: Sequence[Tensor | None], lower: Sequence[Tensor],
    upper: Sequence[Tensor], bits: Sequence[int], gelu: Sequence[bool], columns: int, q_max: int,
    symmetric: bool, out_dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    weights = [
        Int8Weight(
            codes[i], bits[i], (len(codes[i]), columns), scale[i], zero_point[i], row_sums[i], bias[i],
            lower[i], upper[i], q_max, symmetric, gelu[i],
        )
        for i in range(len(codes))
    ]  # fmt: skip
    return _launch(x, weights, out_dtype)


def _linears_shapes(x: Tensor, codes: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    return [_linear_shape(x, c, *rest) for c in codes]


_linear = torch.library.custom_op(
    "qvgen::int8_linear",
    _run_linear,
    mutates_args=(),
    schema="(Tensor x, Tensor codes, int bits, int[] shape, Tensor scale, Tensor zero_point,"
    " Tensor? row_sums, Tensor? bias, Tensor lower, Tensor upper, int q_max, bool symmetric, bool gelu,"
    " ScalarType out_dtype) -> Tensor",
)
_linears = torch.library.custom_op(
    "qvgen::int8_linears",
    _run_linears,
    mutates_args=(),
    schema="(Tensor x, Tensor[] codes, Tensor[] scale, Tensor[] zero_point, Tensor?[] row_sums,"
    " Tensor?[] bias, Tensor[] lower, Tensor[] upper, int[] bits, bool[] gelu, int columns, int q_max,"
    " bool symmetric, ScalarType out_dtype) -> Tensor[]",
)
_linear.register_fake(_linear_shape)
_linears.register_fake(_linears_shapes)
