"""Activations as integers: the codes of the fake-quantized model, bit for bit, in int8."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from qvgen.fake_quant import at_least_float32, token_range, token_scale
from qvgen.packed.layout import ActivationSpec
from qvgen.quantizers import group_count

_TILE = 1 << 15  # elements worked on at a time on a CPU: their float32 stays in the cache


class Quantized(NamedTuple):
    """``x ~ scale * (codes - zero)`` for x [M, K] in S equal parts of each row.

    Attributes:
        codes: int8 [M, K].
        scale: [M, S], float32 (float64 for float64).
        zero: [M, S] likewise; None stands for 0.
        sums: of the codes of each part, whole numbers, [M, S].
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    sums: Tensor


def quantize_activations(
    x: Tensor, spec: ActivationSpec, ends: tuple[Tensor, Tensor] | None = None
) -> Quantized:
    """Integers of x [B, ..., K], with M the product of all dimensions but the last.

    What is stored is ``code - z`` where that is whole and fits int8, else ``code - 2^(bits-1)``.

    Args:
        x: the input.
        spec: how it is quantized.
        ends: ``range_ends`` of ``x`` with this granularity, where they are known already.

    Raises:
        ValueError: groups that do not fill a row.
    """
    count = group_count("a_group_size", spec.group_size, x.shape[-1]) if spec.granularity == "group" else 1
    rows = x.reshape(-1, x.shape[-1] // count)
    if spec.static:
        scale, zero = (_by_row(number, x, count, len(rows)) for number in (spec.first, spec.second))
    else:
        scale, zero = _dynamic(x, rows, spec, count, range_ends(x, spec) if ends is None else ends)
    codes, sums, rest = _codes(rows, scale.expand(len(rows), 1), zero.expand(len(rows), 1), spec)
    return Quantized(
        codes.view(-1, x.shape[-1]),
        scale.expand(len(rows), 1).reshape(-1, count),
        None if rest is None else rest.reshape(-1, count),
        sums.view(-1, count),
    )


def range_ends(x: Tensor, spec: ActivationSpec) -> tuple[Tensor, Tensor]:
    """Least and largest element of whatever shares a range, zero included; of no interest if static."""
    count = group_count("a_group_size", spec.group_size, x.shape[-1]) if spec.granularity == "group" else 1
    return token_range(x.flatten(1) if spec.granularity == "tensor" else x.reshape(-1, x.shape[-1] // count))


def _dynamic(
    x: Tensor, rows: Tensor, spec: ActivationSpec, count: int, ends: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    q_max, (low, high) = 2**spec.bits - 1, ends
    if spec.granularity == "tensor":
        shares = (number.reshape(-1, 1) for number in (spec.first, spec.second))
    else:
        shares = (_by_row(number, x, count, len(rows)) for number in (spec.first, spec.second))
    lower, upper = shares
    scale, zero = token_scale(low * lower, high * upper, q_max, symmetric=spec.symmetric)
    if spec.granularity == "tensor" and len(scale) > 1:
        repeats = len(rows) // len(scale)
        scale, zero = (number.repeat_interleave(repeats, 0) for number in (scale, zero))
    return scale, zero


def _by_row(number: Tensor, x: Tensor, count: int, rows: int) -> Tensor:
    """A number for each sample as one for each row: [1, 1] or [rows, 1]."""
    if number.numel() == 1:
        return number.reshape(1, 1)
    spread: Tensor = number.expand(*x.shape[:-1], count).reshape(rows, 1)
    return spread


def _codes(
    rows: Tensor, scale: Tensor, zero: Tensor, spec: ActivationSpec
) -> tuple[Tensor, Tensor, Tensor | None]:
    """int8 codes, their sums [rows, 1], and what is left of the zero points."""
    half, q_max = 2 ** (spec.bits - 1), 2**spec.bits - 1
    if spec.static:
        low, high, rest = -half, q_max - half, zero - half
    elif spec.symmetric:
        low, high, rest = -half, q_max - half, None
    elif spec.bits < 8:
        low, high, rest = None, None, None
    else:
        low, high, rest = -half, q_max - half, zero - half
    codes = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    sums = torch.empty(len(rows), 1, dtype=scale.dtype, device=rows.device)
    for part in _tiles(rows):
        whole = torch.div(at_least_float32(rows[part]), scale[part])
        if spec.static:
            whole = whole.add_(zero[part]).round_().sub_(half).clamp_(low, high)
        elif low is None:
            whole = whole.round_().clamp_(-zero[part], q_max - zero[part])
        else:
            whole = whole.round_()
            whole = (whole if rest is None else whole.add_(rest[part])).clamp_(low, high)
        codes[part] = whole
        sums[part] = whole.sum(-1, keepdim=True)
    return codes, sums, rest


def _tiles(rows: Tensor) -> list[slice]:
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(0, len(rows))]
    step = max(1, math.ceil(_TILE / max(1, rows.shape[1])))
    return [slice(start, start + step) for start in range(0, len(rows), step)]
