"""The fake quantizers of ``qvgen.fake_quant`` on a CPU: backward tile by tile, in three buffers.

The forward passes work in place on one tensor. A backward pass is some fifteen elementwise passes; as
operations on whole tensors most make a tensor of their own, and fresh memory costs a CPU more than
the arithmetic. Here a tile of rows goes through all of them before the next one does, in three
buffers that all tiles share and that stay in the cache.

Results are those of the reference bit for bit: the same operations in the same order. Gradients
differ from it by the rounding of sums over a row. Only for eager mode: ``torch.compile`` fuses the
reference itself, and loops over tiles would not fit a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qvgen.fused.switch import is_on
from qvgen.levels import SCALE_FLOOR, positive_levels

# Elements of a tile. Half or twice as many made a step slower: smaller tiles cost calls, larger ones
# leave the cache. Torch gives a thread no piece of work smaller than GRAIN.
TILE, GRAIN = 1 << 17, 1 << 15

LowRank = tuple[Tensor, Tensor, Tensor]


def fits(x: Tensor, *others: Tensor) -> bool:
    """Whether tiles of ``x`` can be computed with ``others`` of the dtype that codes are computed in."""
    if not is_on() or torch.compiler.is_compiling():
        return False
    wanted = _compute_dtype(x)
    return (
        x.device.type == "cpu"
        and x.is_floating_point()
        and x.dim() > 0
        and x.numel() > 0
        and all(t.dtype == wanted and t.device == x.device for t in others)
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Tile(NamedTuple):
    """A part of a matrix: its place, three buffers of its shape, and its number in its rows."""

    rows: slice
    place: tuple[slice, slice]
    buffers: tuple[Tensor, Tensor, Tensor]
    number: int


def _tile_size() -> int:
    return max(TILE, GRAIN * torch.get_num_threads())


def _tiles(matrix: Tensor, whole_rows: bool) -> Iterator[_Tile]:
    """Cover ``matrix`` [R, C]. The buffers, in the dtype of the codes, are the same for all tiles."""
    count, columns = matrix.shape
    size = _tile_size()
    width = columns if whole_rows else min(columns, size)
    height = min(count, max(1, size // width))
    memory = torch.empty(3, height * width, dtype=_compute_dtype(matrix))
    shape, buffers = (0, 0), (memory[0], memory[1], memory[2])
    for row in range(0, count, height):
        rows = slice(row, min(row + height, count))
        for number, column in enumerate(range(0, columns, width)):
            end = min(column + width, columns)
            if shape != (rows.stop - row, end - column):
                shape = (rows.stop - row, end - column)
                a, b, c = (m[: shape[0] * shape[1]].view(shape) for m in memory)
                buffers = a, b, c
            yield _Tile(rows, (rows, slice(column, end)), buffers, number)


def _pieces(matrix: Tensor) -> int:
    """Into how many tiles ``_tiles`` cuts a row."""
    return -(-matrix.shape[1] // _tile_size())


class _Token(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor, scale: Tensor,
        zero_point: Tensor, q_max: int, symmetric: bool, dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, lower, upper, low, high, scale, zero_point)
        ctx.q_max, ctx.symmetric = q_max, symmetric
        codes = torch.div(x.to(scale.dtype), scale).round_()
        return _bound(codes, -zero_point, q_max - zero_point, codes).mul_(scale).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lower, upper, low, high, scale, zero_point = ctx.saved_tensors
        # What a change of the range's ends does to the scale, for each row.
        by_high = by_low = (scale > SCALE_FLOOR) / positive_levels(ctx.q_max, ctx.symmetric)
        if ctx.symmetric:  # the larger side made the scale; equal ones share, as in torch.maximum
            by_high = by_high * (1 + torch.sign(high * upper + low * lower)) / 2
            by_low = by_low - by_high
        to_high, to_low = by_high * upper * (high > 0), -by_low * lower * (low < 0)
        grad_x, grad_scale = _token_backward(
            grad, x, low, high, scale, zero_point, ctx.q_max, to_low.to(scale.dtype), to_high.to(scale.dtype)
        )
        grad_scale = grad_scale.view(scale.shape)
        wanted = ctx.needs_input_grad
        grad_lower = (-grad_scale * by_low * low).sum_to_size(lower.shape) if wanted[1] else None
        grad_upper = (grad_scale * by_high * high).sum_to_size(upper.shape) if wanted[2] else None
        return grad_x, grad_lower, grad_upper, *(None,) * 7


def _bound(whole: Tensor, least: Tensor, most: Tensor, out: Tensor) -> Tensor:
    """``whole`` within [least, most], NaN as it is. Two passes: clamp with tensors is not vectorised."""
    torch.maximum(whole, least, out=out)
    return torch.minimum(out, most, out=out)


def _token_backward(
    grad: Tensor, x: Tensor, low: Tensor, high: Tensor, scale: Tensor, zero_point: Tensor, q_max: int,
    to_low: Tensor, to_high: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of ``x``, in its shape, and of each row's scale, [R, 1].

    ``to_low`` and ``to_high``: how the scale follows the row's least and largest element.
    """
    rows, grads = (t.reshape(-1, x.shape[-1]) for t in (x, grad))
    scale, zero_point, *ends = (t.reshape(-1, 1) for t in (scale, zero_point, low, to_low, high, to_high))
    grad_x = torch.empty(rows.shape, dtype=x.dtype)
    grad_scale = torch.empty_like(scale)
    least, most = -zero_point, q_max - zero_point
    for tile in _tiles(rows, whole_rows=True):
        here, part, (ratio, rounded, codes) = tile.rows, grad_x[tile.rows], tile.buffers
        rounded = part if x.dtype == scale.dtype else rounded
        values, upstream = rows[here].to(scale.dtype), grads[here].to(scale.dtype)
        torch.div(values, scale[here], out=ratio)
        torch.round(ratio, out=rounded)
        _bound(rounded, least[here], most[here], codes)
        passed = rounded.eq_(codes).mul_(upstream)
        by_scale = codes.mul_(upstream).addcmul_(passed, ratio, value=-1)
        torch.sum(by_scale, -1, keepdim=True, out=grad_scale[here])
        # The range is no constant: its ends are elements of the row (equal ones share, as in amax).
        for end, to_end in (ends[:2], ends[2:]):
            extreme = torch.eq(values, end[here], out=ratio)
            share = grad_scale[here] * to_end[here] / extreme.sum(-1, keepdim=True).clamp_(min=1)
            passed.addcmul_(extreme, share)
        if passed is not part:
            part.copy_(passed)
    return grad_x.view(x.shape), grad_scale


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, zero_point: Tensor, left: Tensor | None,
        gamma: Tensor | None, right: Tensor | None, q_max: int, grad_scale: float, clip_first: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(weight, scale, zero_point, left, gamma, right)
        ctx.q_max, ctx.grad_scale, ctx.clip_first = q_max, grad_scale, clip_first
        out = weight.to(scale.dtype).div(scale).add_(zero_point).round_().clamp_(0, q_max)
        out.sub_(zero_point).mul_(scale)
        if left is None or gamma is None or right is None:
            return out
        with torch.autocast("cpu", enabled=False):
            return out.add_(((left * gamma) @ right).view(out.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, zero_point, left, gamma, right = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad_weight, grad_scale, grad_zero = _weight_backward(
            grad, weight, scale, zero_point, ctx.q_max, ctx.clip_first, wanted[2]
        )
        grad_left = grad_right = None
        if left is not None:
            with torch.autocast("cpu", enabled=False):
                matrix = grad.reshape(len(left), right.shape[1])
                grad_left = (matrix @ right.mT).mul_(gamma) if wanted[3] else None
                grad_right = (left * gamma).mT @ matrix if wanted[5] else None
        return (
            grad_weight,
            grad_scale.view(scale.shape).mul_(ctx.grad_scale),
            grad_zero.view(scale.shape).mul_(ctx.grad_scale) if wanted[2] else None,
            *(grad_left, None, grad_right, None, None, None),
        )


def _weight_backward(
    grad: Tensor, weight: Tensor, scale: Tensor, zero_point: Tensor, q_max: int, clip_first: bool,
    needs_zero: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``weight``, in its shape, and of scale and zero point, [R, 1]."""
    rows, grads = (t.reshape(-1, weight.shape[-1]) for t in (weight, grad))
    scale, zero_point = scale.reshape(-1, 1), zero_point.reshape(-1, 1)
    grad_weight = torch.empty(rows.shape, dtype=weight.dtype)
    by_scale, by_zero = torch.zeros(2, len(rows), _pieces(rows), dtype=scale.dtype)
    for tile in _tiles(rows, whole_rows=False):
        part, (ratio, shifted, codes) = grad_weight[tile.place], tile.buffers
        shifted = part if weight.dtype == scale.dtype else shifted
        column = slice(tile.number, tile.number + 1)
        upstream, s, z = grads[tile.place], scale[tile.rows], zero_point[tile.rows]
        torch.div(rows[tile.place], s, out=ratio)
        torch.add(ratio, z, out=shifted)
        torch.round(shifted, out=codes)
        passed = _inside(shifted, codes, q_max, clip_first).mul_(upstream)
        # d(s*(c-z))/ds = (c - z) - [inside] * w/s;  d/dz = -s outside, 0 inside.
        codes.sub_(z).mul_(upstream).addcmul_(passed, ratio, value=-1)
        torch.sum(codes, -1, keepdim=True, out=by_scale[tile.rows, column])
        if needs_zero:
            clamped = torch.sub(passed, upstream, out=codes)
            torch.sum(clamped, -1, keepdim=True, out=by_zero[tile.rows, column])
        if passed is not part:
            part.copy_(passed)
    grad_scale, grad_zero = (t.sum(-1, keepdim=True) for t in (by_scale, by_zero))
    return grad_weight.view(weight.shape), grad_scale, grad_zero.mul_(scale)


def _inside(shifted: Tensor, rounded: Tensor, q_max: int, clip_first: bool) -> Tensor:
    """1 where the gradient passes, in place of ``shifted``; clamps ``rounded`` in place.

    Comparisons write floats: those that write truth values are not vectorised.
    """
    if clip_first:
        rounded.clamp_(0, q_max)
        below = torch.lt(shifted, q_max, out=torch.empty_like(shifted))
        return shifted.gt_(0).mul_(below)
    return shifted.round_().eq_(rounded.clamp_(0, q_max))


def token_fake_quant(
    x: Tensor, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor, scale: Tensor, zero_point: Tensor,
    q_max: int, symmetric: bool, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``qvgen.fake_quant.token_fake_quant`` with the rows' ranges given, [..., 1] without gradient.

    ``x`` must pass ``fits`` with ``scale`` and ``zero_point`` beside it.
    """
    out: Tensor = _Token.apply(  # type: ignore[no-untyped-call]
        x, lower, upper, low, high, scale, zero_point, q_max, symmetric, dtype
    )
    return out


def weight_fake_quant(
    blocks: Tensor, scale: Tensor, zero_point: Tensor, phi: LowRank | None, q_max: int, grad_scale: float,
    clip_first: bool,
) -> Tensor:  # fmt: skip
    """``qvgen.fake_quant.weight_fake_quant`` of blocks [..., C] with scale and zero point [..., 1].

    ``blocks`` must pass ``fits`` with ``scale`` and ``zero_point`` beside it, ``phi`` ``phi_fits``.
    Saves its inputs, nothing else.
    """
    left, gamma, right = phi if phi is not None else (None, None, None)
    out: Tensor = _Weight.apply(  # type: ignore[no-untyped-call]
        blocks, scale, zero_point, left, gamma, right, q_max, grad_scale, clip_first
    )
    return out
