"""First ranges of weights: extremes, or the best of a grid of shrunken extremes.

All functions work on rows: a row is whatever shares a scale (a channel, a group, a whole matrix).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qvgen.fake_quant import dequantize, token_range, token_scale, weight_codes
from qvgen.levels import SCALE_FLOOR

SHRINK_STEPS = 80
SHRINK_GRID = 100
ERROR_NORM = 2.4
_ELEMENTS_AT_ONCE = 1 << 22


def minmax_range(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each row of [rows, n], widened to include zero; [rows, 1] float32."""
    return token_range(weight)


def scale_and_zero_point(
    low: Tensor, high: Tensor, q_max: int, *, integer_zero: bool, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Scale (at least 1e-9) and zero point of ranges that contain zero.

    ``s = (high - low) / q_max`` and ``z = -low / s``, rounded if asked; symmetric:
    ``s = max(high, -low) / (2^(b-1) - 1)`` and ``z = 2^(b-1)``.
    """
    if symmetric:
        return token_scale(low, high, q_max, symmetric=True)
    scale = ((high - low) / q_max).clamp_(min=SCALE_FLOOR)
    zero_point = -low / scale
    if integer_zero:
        zero_point = zero_point.round_().clamp_(0, q_max)
    return scale, zero_point


@torch.no_grad()
def search_range(
    weight: Tensor,
    q_max: int,
    *,
    integer_zero: bool,
    symmetric: bool = False,
    extremes: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Best of 80 ranges: both ends of a row times 1.00, 0.99, ..., 0.21.

    The error of a candidate is ``sum |w_hat - w|^2.4`` over the row; of equal ones the widest
    wins. This is the grid of the QVGen code (``--w_cali mse``).

    Args:
        weight: [rows, n].
        q_max: largest code.
        integer_zero: whether the zero point is rounded, as it will be in use.
        symmetric: whether it is the constant 2^(b-1).
        extremes: the widest range, two of [rows, 1]; the rows' own, with zero, if left out.

    Returns:
        low and high, [rows, 1] float32, on the device of ``weight``.
    """
    weight = weight.float()
    low, high = minmax_range(weight) if extremes is None else extremes
    shrink = 1 - torch.arange(SHRINK_STEPS, device=weight.device, dtype=torch.float32) / SHRINK_GRID
    rows = max(1, _ELEMENTS_AT_ONCE // (SHRINK_STEPS * weight.shape[1]))
    best = []
    for part, lo, hi in zip(*(torch.split(t, rows) for t in (weight, low, high)), strict=True):
        factors = shrink.view(-1, 1, 1)
        scale, zero_point = scale_and_zero_point(
            lo * factors, hi * factors, q_max, integer_zero=integer_zero, symmetric=symmetric
        )
        best.append(shrink[_first_least(_errors(part, scale, zero_point, q_max))].unsqueeze(1))
    factor = torch.cat(best)
    return low * factor, high * factor


def _errors(weight: Tensor, scale: Tensor, zero_point: Tensor, q_max: int) -> Tensor:
    """Error of each candidate on each row, [candidates, rows], from scales [candidates, rows, 1]."""
    total = torch.zeros(scale.shape[:2], device=weight.device)
    # A row can be a whole matrix: pieces of it keep the work space small.
    for piece in torch.split(weight, _ELEMENTS_AT_ONCE // SHRINK_STEPS, dim=1):
        codes = weight_codes(piece.expand(len(scale), -1, -1), scale, zero_point, q_max)
        total += dequantize(codes, scale, zero_point).sub_(piece).abs_().pow_(ERROR_NORM).sum(-1)
    return total


def _first_least(error: Tensor) -> Tensor:
    """Index [rows] of the first smallest candidate of [candidates, rows]."""
    # argmin promises no order among equals, min over the index of the minimum does.
    index = torch.arange(len(error), device=error.device)[:, None]
    return torch.where(error == error.amin(0), index, 1 << 30).amin(0)
