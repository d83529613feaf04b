"""First ranges of weight rows: extremes, or the best of a grid of shrunken extremes."""

from __future__ import annotations

import torch
from torch import Tensor

from qvgen.fake_quant import SCALE_FLOOR, dequantize, token_range, weight_codes

SHRINK_STEPS = 80
SHRINK_GRID = 100
ERROR_NORM = 2.4
_ELEMENTS_AT_ONCE = 1 << 22


def minmax_range(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each row of [out, in], widened to include zero; [out, 1] float32."""
    return token_range(weight)


def scale_and_zero_point(
    low: Tensor, high: Tensor, q_max: int, *, integer_zero: bool
) -> tuple[Tensor, Tensor]:
    """``s = (high - low) / q_max`` (at least 1e-9) and ``z = -low / s``, rounded if asked."""
    scale = ((high - low) / q_max).clamp_(min=SCALE_FLOOR)
    zero_point = -low / scale
    if integer_zero:
        zero_point = zero_point.round_().clamp_(0, q_max)
    return scale, zero_point


@torch.no_grad()
def search_range(weight: Tensor, q_max: int, *, integer_zero: bool) -> tuple[Tensor, Tensor]:
    """Best of 80 ranges: both ends of a row times 1.00, 0.99, ..., 0.21.

    The error of a candidate is ``sum |w_hat - w|^2.4`` over the row; of equal ones the widest
    wins. This is the grid of the QVGen code (``--w_cali mse``).

    Args:
        weight: [out, in].
        q_max: largest code.
        integer_zero: whether the zero point is rounded, as it will be in use.

    Returns:
        low and high, [out, 1] float32, on the device of ``weight``.
    """
    weight = weight.float()
    low, high = minmax_range(weight)
    shrink = 1 - torch.arange(SHRINK_STEPS, device=weight.device, dtype=torch.float32) / SHRINK_GRID
    rows = max(1, _ELEMENTS_AT_ONCE // (SHRINK_STEPS * weight.shape[1]))
    best = torch.cat(
        [
            _best_shrink(w, lo, hi, shrink, q_max, integer_zero)
            for w, lo, hi in zip(*(torch.split(t, rows) for t in (weight, low, high)), strict=True)
        ]
    )
    return low * best, high * best


def _best_shrink(
    weight: Tensor, low: Tensor, high: Tensor, shrink: Tensor, q_max: int, integer_zero: bool
) -> Tensor:
    """The winning factor of each row, [rows, 1]."""
    factors = shrink.view(-1, 1, 1)
    scale, zero_point = scale_and_zero_point(low * factors, high * factors, q_max, integer_zero=integer_zero)
    codes = weight_codes(weight.expand(len(shrink), -1, -1), scale, zero_point, q_max)
    error = dequantize(codes, scale, zero_point).sub_(weight).abs_().pow_(ERROR_NORM).sum(-1)
    # argmin promises no order among equals, min over the index of the minimum does.
    first = torch.where(
        error == error.amin(0), torch.arange(len(shrink), device=error.device)[:, None], 1 << 30
    )
    return shrink[first.amin(0)].unsqueeze(1)
