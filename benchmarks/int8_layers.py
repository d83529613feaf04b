"""The linear layers of one block of each model, packed and plain, with drawn weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qvgen.packed.layout import centre, pack_rows
from qvgen.packed.triton_linear import Int8Weight, Tokens, expand_codes

BF16 = torch.bfloat16
SMALL_ROWS = 96  # of each layer whose outputs are checked


@dataclass(frozen=True)
class Group:
    """Layers of ``columns`` inputs that read one input of so many ``tokens``; the outputs of each."""

    name: str
    tokens: int
    columns: int
    rows: tuple[int, ...]


def _block(tokens: int, width: int, hidden: int, text: int | None) -> list[Group]:
    groups = [Group("qkv", tokens, width, (width,) * 3), Group("out", tokens, width, (width,))]
    if text is not None:
        groups += [
            Group("cross_q", tokens, width, (width,)),
            Group("cross_kv", text, width, (width,) * 2),
            Group("cross_out", tokens, width, (width,)),
        ]
    return [*groups, Group("ff1", tokens, width, (hidden,)), Group("ff2", tokens, hidden, (width,))]


BLOCKS = {
    "cog_2b": _block(17776, 1920, 7680, None),
    "wan_1_3b": _block(32760, 1536, 8960, 512),
    "wan_14b": _block(32760, 5120, 13824, 512),
}
TINY_BLOCKS = {"cog_2b": _block(6, 64, 128, None), "wan_1_3b": _block(5, 32, 96, 2)}


def shapes(groups: list[Group]) -> list[tuple[int, int, int]]:
    """(tokens, rows, columns) of the different products."""
    return list(dict.fromkeys((g.tokens, rows, g.columns) for g in groups for rows in g.rows))


def drawn_codes(rows: int, columns: int, bits: int, device: torch.device, uniform: bool) -> Tensor:
    """uint8 codes [rows, columns]: of normal numbers rounded to a range of +-3.25 sigma, or uniform.

    What power a multiplier draws, and so the clock, depends on its operands: codes of normal weights are what
    stands beside normal bfloat16 weights, uniform ones are the worst.
    """
    if uniform:
        return torch.randint(0, 2**bits, (rows, columns), device=device, dtype=torch.uint8)
    top = 2**bits - 1
    parts = [
        (torch.randn(len(part), columns, device=device) * (top / 6.5) + top / 2)
        .round_()
        .clamp_(0, top)
        .byte()
        for part in torch.arange(rows).split(2048)
    ]
    return torch.cat(parts)


def packed_group(
    group: Group, bits: int, device: torch.device, own_clips: bool = True, uniform: bool = False
) -> list[Int8Weight]:
    """Each layer clips activations of the same number of bits by its own shares."""
    count = len(group.rows)
    lower, upper = (
        torch.linspace(start, 1.0, count, device=device)
        if own_clips
        else torch.ones(1, device=device).expand(count)
        for start in (0.9, 0.95)
    )
    return [
        packed_layer(rows, group.columns, bits, device, lower[i : i + 1], upper[i : i + 1], uniform)
        for i, rows in enumerate(group.rows)
    ]


def packed_layer(
    rows: int, columns: int, bits: int, device: torch.device, lower: Tensor, upper: Tensor,
    uniform: bool = False,
) -> Int8Weight:  # fmt: skip
    """A layer of ``bits`` bits on both sides."""
    codes = pack_rows(drawn_codes(rows, columns, bits, device, uniform), bits)
    sums = expand_codes(codes, bits, (rows, columns)).sum(1, dtype=torch.int32) + columns * (1 << (bits - 1))
    scale = torch.rand(rows, 1, device=device) * 0.01 + 0.01
    zero = (torch.rand(rows, 1, device=device) * 0.2 + 0.4) * (2**bits - 1)
    bias = torch.randn(rows, device=device, dtype=BF16)
    q_max = 2**bits - 1
    return Int8Weight(
        codes, bits, (rows, columns), scale, zero, sums.to(torch.int32), bias, lower, upper, q_max, False
    )


def drawn_tokens(rows: int, columns: int, bits: int, device: torch.device, uniform: bool = False) -> Tokens:
    """Codes q - z of ``rows`` tokens, z in the middle."""
    codes = centre(drawn_codes(rows, columns, bits, device, uniform), bits)
    scale = torch.rand(rows, device=device) + 0.5
    return Tokens(codes, scale, None, codes.sum(1, dtype=torch.int32))


def plain_group(group: Group, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases in bfloat16."""
    return [
        (
            torch.randn(rows, group.columns, device=device, dtype=BF16),
            torch.randn(rows, device=device, dtype=BF16),
        )
        for rows in group.rows
    ]


def worst_error(x: Tensor, weight: Int8Weight, y: Tensor) -> float:
    """Largest error of ``y``, bfloat16, on some of its rows, in units of what rounding once allows.

    The reference takes the codes of ``qvgen.fake_quant``'s formulas and float64; 1 is right.
    """
    from qvgen.fake_quant import token_range, token_scale

    rows = x.reshape(-1, x.shape[-1])
    pick = torch.linspace(0, len(rows) - 1, min(len(rows), SMALL_ROWS), device=x.device).long()
    rows = rows[pick]
    low, high = token_range(rows)
    scale, zero = token_scale(low * weight.lower, high * weight.upper, weight.q_max)
    a = (rows.float() / scale).round().maximum(-zero).minimum(weight.q_max - zero).double()
    half = 1 << (weight.bits - 1)
    codes = expand_codes(weight.codes, weight.bits, weight.shape)[:, : weight.shape[1]].double() + half
    product, total = a @ codes.T, a.sum(1, keepdim=True)
    step, w_zero = scale.double() * weight.scale.double().T, weight.zero_point.double().T
    exact = (product - total * w_zero) * step
    size = (product.abs() + (total * w_zero).abs() + total.abs() * half) * step
    if weight.bias is not None:
        exact = exact + weight.bias.double()
        size = size + weight.bias.double().abs()
    allowed = exact.abs() * 2.0**-8 + size * 2.0**-21
    got = y.reshape(-1, y.shape[-1])[pick].double()
    return float(((got - exact).abs() / allowed.clamp(min=1e-300)).max())
