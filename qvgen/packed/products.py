"""Products of integer matrices, exact, and what turns them into the output of a linear layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qvgen.packed.activations import Quantized

Product = Callable[[Tensor, Tensor], Tensor]


class Operand(NamedTuple):
    """``W = scale * (codes - zero)`` for W [N, K], each row in equal parts.

    Attributes:
        codes: whole numbers [N, K] of a dtype that the product takes.
        scale: [N, G].
        zero: [N, G]; None stands for 0.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


def float64_product(a: Tensor, w: Tensor) -> Tensor:
    """[M, K] times [N, K] transposed, in float64: sums of products of bytes are exact to K = 2^37."""
    return a.double() @ w.double().T


def int8_product(a: Tensor, w: Tensor) -> Tensor:
    """int8 by int8, int32 sums: exact to K = 131071."""
    return torch._int_mm(a, w.T)


def fp8_product(a: Tensor, w: Tensor) -> Tensor:
    """Codes as float8_e4m3fn, float32 sums; exact under the conditions of ``backends.fits``."""
    one = torch.ones((), device=a.device)
    fp8 = torch.float8_e4m3fn
    result: Tensor = torch._scaled_mm(
        a.to(fp8), w.T, scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=False
    )
    return result


@functools.cache
def int8_product_is_exact() -> bool:
    """Whether this CPU's product keeps the largest sums (without VNNI some saturate at 16 bits)."""
    for left, right in ((-128, -128), (127, -128), (127, 127), (-128, 127)):
        a = torch.full((32, 256), left, dtype=torch.int8)
        w = torch.full((32, 256), right, dtype=torch.int8)
        if not bool((int8_product(a, w) == 256 * left * right).all()):
            return False
    return True


def linear(a: Quantized, w: Operand, bias: Tensor | None, product: Product, dtype: torch.dtype) -> Tensor:
    """``s_a s_w (sum c_a c_w - z_a sum c_w - z_w sum c_a + K z_a z_w) + bias``, [M, N] in ``dtype``.

    Args:
        a: the input, in S_a parts a row.
        w: the weight, in S_w parts a row; the sums run over the parts common to both.
        bias: [N] or None.
        product: of int8 codes of ``a`` and codes of ``w``.
        dtype: of the arithmetic outside the integer sums.
    """
    parts = math.lcm(a.scale.shape[1], w.scale.shape[1])
    size = a.codes.shape[1] // parts
    total: Tensor | None = None
    for index in range(parts):
        left, right = index * a.scale.shape[1] // parts, index * w.scale.shape[1] // parts
        place = slice(index * size, (index + 1) * size)
        a_codes, w_codes = a.codes[:, place], w.codes[:, place]
        if parts > 1:
            a_codes, w_codes = a_codes.contiguous(), w_codes.contiguous()
        a_scale = a.scale[:, left, None].to(dtype)
        w_scale = w.scale[:, right].to(dtype)
        out = (product(a_codes, w_codes) * w_scale).mul_(a_scale)
        columns, rows = [], []
        if w.zero is not None:
            if parts == a.scale.shape[1]:
                sums = a.sums[:, left, None].to(dtype)
            else:
                sums = a_codes.sum(-1, keepdim=True, dtype=torch.int32).to(dtype)
            if a.zero is not None:
                sums = sums - size * a.zero[:, left, None].to(dtype)
            columns.append(sums * a_scale)
            rows.append(-w.zero[:, right].to(dtype) * w_scale)
        if a.zero is not None:
            columns.append(a.zero[:, left, None].to(dtype) * a_scale)
            rows.append(-w_codes.to(dtype).sum(-1) * w_scale)
        if bias is not None and index == 0:
            columns.append(torch.ones_like(a_scale))
            rows.append(bias.to(dtype))
        if columns:
            out = torch.addmm(out, torch.cat(columns, 1), torch.stack(rows))
        total = out if total is None else total.add_(out)
    assert total is not None
    return total
