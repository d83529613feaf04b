"""Quantizing what several linears read, and multiplying it: ``triton_linear`` in its two halves.

Norm and modulation, or GELU, run in the same pass as quantizing, in float32, without the roundings to
the model's dtype that the plain path has in between. Under a tracer each function is a custom operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qvgen.fused.switch import traced
from qvgen.packed.layout import ActivationSpec
from qvgen.packed.sources import Gelu, Normed, Part, Source, first_tensor
from qvgen.packed.triton_launch import launch
from qvgen.packed.triton_linear import (
    Codes,
    Int8Weight,
    RowCall,
    Tokens,
    code_constants,
    empty_codes,
    expand_codes,
    multiply,
    quantize_groups,
    split_tokens,
    stacked,
)
from qvgen.packed.triton_rows import Row
from qvgen.packed.triton_table import row_for


def read_tokens(source: Source, specs: Sequence[ActivationSpec], own: Sequence[bool]) -> list[Tokens]:
    """As ``layout.Int8Linear.read_tokens``."""
    kinds: dict[tuple[int, bool, int], list[int]] = {}
    for i, spec in enumerate(specs):
        kinds.setdefault((spec.bits, spec.symmetric, spec.first.numel()), []).append(i)
    found: dict[int, Tokens] = {}
    for (bits, symmetric, _), members in kinds.items():
        slots: list[int] = []  # the layers whose clips are used
        place: dict[int, int] = {}
        for i in members:
            alike = [j for j in place if not own[i] and not own[j]]
            if not alike:
                slots.append(i)
            place[i] = place[alike[0]] if alike else len(slots) - 1
        lower = _together([specs[i].first for i in slots])
        upper = _together([specs[i].second for i in slots])
        tokens = split_tokens(*_quantized(source, lower, upper, len(slots), 2**bits - 1, symmetric))
        found |= {i: tokens[slot] for i, slot in place.items()}
    return [found[i] for i in range(len(specs))]


def _together(clips: Sequence[Tensor]) -> Tensor:
    flat = [clip.reshape(-1) for clip in clips]
    if len(flat) == 1:
        return flat[0]
    return torch.cat(flat) if torch.compiler.is_compiling() else stacked(flat)


def _quantized(
    source: Source, lower: Tensor, upper: Tensor, groups: int, q_max: int, symmetric: bool
) -> Codes:
    is_traced = traced(first_tensor(source))
    if isinstance(source, Normed):
        norm: Callable[..., Codes] = _norm if is_traced else norm_quantize
        return norm(
            [part.x for part in source.parts], [_by_sample(part, part.scale) for part in source.parts],
            [_by_sample(part, part.shift) for part in source.parts], source.weight, source.bias, source.eps,
            lower, upper, groups, q_max, symmetric,
        )  # fmt: skip
    run: Callable[..., Codes] = _quantize if is_traced else quantize_groups
    is_gelu = isinstance(source, Gelu)
    return run(first_tensor(source), lower, upper, groups, q_max, symmetric, is_gelu)


def _by_sample(part: Part, number: Tensor | None) -> Tensor | None:
    """A modulation as [B, K], a view."""
    if number is None:
        return None
    samples, _, columns = part.x.shape
    return number.reshape(-1, columns).expand(samples, columns)


def norm_quantize(
    x: Sequence[Tensor], scale: Sequence[Tensor | None], shift: Sequence[Tensor | None],
    weight: Tensor | None, bias: Tensor | None, eps: float, lower: Tensor, upper: Tensor, groups: int,
    q_max: int, symmetric: bool, row: Row | None = None,
) -> Codes:  # fmt: skip
    """Codes of ``sources.Normed`` parts [B, L, K], which come to stand behind each other.

    Args:
        x: the parts.
        scale: for each part [B, K], or None.
        shift: likewise.
        weight: [K] or None.
        bias: [K] or None.
        eps: of the norm.
        lower: shares of the range kept, ``groups`` times one number or one for each sample.
        upper: likewise.
        groups: how many pairs of clips.
        q_max: largest code.
        symmetric: whether ranges are symmetric.
        row: how rows are held instead of the table's way, for tuning and tests.
    """
    calls, made = norm_calls(x, scale, shift, weight, bias, eps, lower, upper, groups, q_max, symmetric, row)
    for call in calls:
        launch(call.kernel, call.programs, call.operands, x[0], call.facts, call.constants)
    return made


def norm_calls(
    x: Sequence[Tensor], scale: Sequence[Tensor | None], shift: Sequence[Tensor | None],
    weight: Tensor | None, bias: Tensor | None, eps: float, lower: Tensor, upper: Tensor, groups: int,
    q_max: int, symmetric: bool, row: Row | None,
) -> tuple[list[RowCall], Codes]:  # fmt: skip
    """What ``norm_quantize`` launches, one for each part that has rows, and what all of them fill."""
    samples, columns = x[0].shape[0], x[0].shape[2]
    total = sum(part.shape[1] for part in x)
    made = empty_codes(groups, samples * total, columns, q_max, symmetric, x[0])
    weight, bias = _affine(weight, bias, columns)
    row = row_for(columns, "norm" if groups == 1 else "norm_groups", False) if row is None else row
    calls, first = [], 0
    for part, m_scale, m_shift in zip(x, scale, shift, strict=True):
        constants = code_constants(columns, row, groups, q_max, symmetric, part.is_cuda)
        place = (first, total)
        if part.shape[1]:
            calls.append(
                _norm_call(part, m_scale, m_shift, weight, bias, eps, lower, upper, made, place, constants)
            )
        first += part.shape[1]
    return calls, made


def _affine(weight: Tensor | None, bias: Tensor | None, columns: int) -> tuple[Tensor | None, Tensor | None]:
    if weight is None:
        assert bias is None
        return None, None
    return weight, weight.new_zeros(columns) if bias is None else bias


def _norm_call(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    eps: float, lower: Tensor, upper: Tensor, made: Codes, place: tuple[int, int],
    constants: dict[str, Any],
) -> RowCall:  # fmt: skip
    from qvgen.packed import triton_kernels

    codes, code_scale, sums = made
    x = x if x.stride(-1) == 1 else x.contiguous()
    samples, tokens, columns = x.shape
    if scale is not None and shift is not None and not _alike(scale, shift):
        scale, shift = scale.contiguous(), shift.contiguous()
    assert (scale is None) == (shift is None)
    groups = constants["GROUPS"]
    operands = (
        x, x if weight is None else weight, x if bias is None else bias,
        x if scale is None else scale, x if shift is None else shift,
        lower, upper, codes, code_scale, sums[-1], sums[0],
        tokens, columns, x.stride(0), x.stride(1), 0 if scale is None else scale.stride(0), eps,
        samples, samples * groups // lower.numel(), place[1], place[0], codes.shape[-1],
    )  # fmt: skip
    named = {"AFFINE": weight is not None, "MODULATED": scale is not None, **constants}
    return RowCall(
        triton_kernels.norm_quantize_tokens, samples * tokens, operands, tuple(named.values()), lambda: named,
        made,
    )  # fmt: skip


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.stride() == b.stride() and a.stride(-1) == 1


def multiply_tokens(tokens: Tokens, weight: Int8Weight, dtype: torch.dtype) -> Tensor:
    """[M, N] of ``dtype`` from quantized tokens; clips of ``weight`` are not looked at."""
    if not traced(tokens.codes):
        return multiply(tokens, expand_codes(weight.codes, weight.bits, weight.shape), weight, dtype)
    out: Tensor = _product(
        tokens.codes, tokens.scale, tokens.zero_point, tokens.sums, weight.codes, weight.bits,
        weight.shape[1], weight.scale, weight.zero_point, weight.row_sums, weight.bias, weight.gelu, dtype,
    )  # fmt: skip
    return out


def _run_product(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, sums: Tensor, w_codes: Tensor, bits: int,
    columns: int, w_scale: Tensor, w_zero: Tensor, row_sums: Tensor | None, bias: Tensor | None, gelu: bool,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    shape = (len(w_codes), columns)
    # Quantizing is done: q_max, symmetry and clips of the weight's own are not looked at.
    weight = Int8Weight(
        w_codes, bits, shape, w_scale, w_zero, row_sums, bias, w_scale, w_scale, 0, False, gelu
    )
    return multiply(Tokens(codes, scale, zero_point, sums), expand_codes(w_codes, bits, shape), weight, dtype)


def _quantize_shapes(
    x: Tensor, lower: Tensor, upper: Tensor, groups: int, q_max: int, symmetric: bool, gelu: bool = False
) -> Codes:
    return empty_codes(groups, x.numel() // x.shape[-1], x.shape[-1], q_max, symmetric, x)


def _norm_shapes(x: Sequence[Tensor], *rest: Any) -> Codes:
    groups, q_max, symmetric = rest[-3:]
    rows = x[0].shape[0] * sum(part.shape[1] for part in x)
    return empty_codes(groups, rows, x[0].shape[2], q_max, symmetric, x[0])


def _product_shape(codes: Tensor, *rest: Any) -> Tensor:
    w_codes: Tensor = rest[3]
    return torch.empty((len(codes), len(w_codes)), dtype=rest[-1], device=codes.device)


_quantize = torch.library.custom_op(
    "qvgen::int8_tokens",
    quantize_groups,
    mutates_args=(),
    schema="(Tensor x, Tensor lower, Tensor upper, int groups, int q_max, bool symmetric, bool gelu)"
    " -> (Tensor, Tensor, Tensor)",
)
_norm = torch.library.custom_op(
    "qvgen::int8_norm_tokens",
    norm_quantize,
    mutates_args=(),
    schema="(Tensor[] x, Tensor?[] scale, Tensor?[] shift, Tensor? weight, Tensor? bias, float eps,"
    " Tensor lower, Tensor upper, int groups, int q_max, bool symmetric) -> (Tensor, Tensor, Tensor)",
)
_product = torch.library.custom_op(
    "qvgen::int8_product",
    _run_product,
    mutates_args=(),
    schema="(Tensor codes, Tensor scale, Tensor? zero_point, Tensor sums, Tensor w_codes, int bits,"
    " int columns, Tensor w_scale, Tensor w_zero, Tensor? row_sums, Tensor? bias, bool gelu,"
    " ScalarType dtype) -> Tensor",
)
_quantize.register_fake(_quantize_shapes)
_norm.register_fake(_norm_shapes)
_product.register_fake(_product_shape)
