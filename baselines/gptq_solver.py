"""GPTQ: rounding a weight column by column, each error made good by the columns that follow.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv 2210.17323, algorithm 1, with the column order by diag(H) of the authors' code (act-order).
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
DAMPING = 0.01
_TRIES = 250


@torch.no_grad()
def gptq_codes(
    weight: Tensor,
    hessian: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    q_max: int,
    *,
    act_order: bool = True,
    damping: float = DAMPING,
    block: int = BLOCK,
) -> Tensor:
    """Integer codes that make the layer's output error small, for scales that are fixed beforehand.

    Minimises ``tr((W - W_hat) H (W - W_hat)^T)`` greedily. Inputs that calibration never saw (zero on
    the diagonal of H) are rounded to nearest.

    Args:
        weight: [out, in].
        hessian: [in, in], x x^T summed or averaged over inputs; any positive factor will do.
        scale: float32 [out, 1], [out, G] or [1, 1], as ``qvgen.quantizers.scale_shape``.
        zero_point: of the shape of ``scale``.
        q_max: largest code, 2^b - 1.
        act_order: whether columns with a large diagonal are rounded first.
        damping: share of the mean diagonal, over the inputs that were seen, that is added to it.
        block: columns whose error is spread to the rest in one matrix product.

    Returns:
        float32 codes [out, in], whole numbers in [0, q_max].

    Raises:
        ValueError: a Hessian that holds NaN, or stays singular however much is added.
    """
    rows, columns = weight.shape
    scales, zeros = (_per_column(t, rows, columns) for t in (scale, zero_point))
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(columns)
    order = order.to(weight.device)
    inverse = _inverse_factor(hessian[order][:, order], damping).to(torch.float32)
    work = weight.detach().float()[:, order].clone()
    scales, zeros = scales[:, order].contiguous(), zeros[:, order].contiguous()
    codes = torch.empty_like(work)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = torch.zeros(rows, end - start, device=work.device)
        for column in range(start, end):
            w, s, z = work[:, column], scales[:, column], zeros[:, column]
            code = torch.round(w / s + z).clamp_(0, q_max)
            codes[:, column] = code
            error = (w - (code - z) * s) / inverse[column, column]
            work[:, column:end] -= torch.outer(error, inverse[column, column:end])
            errors[:, column - start] = error
        work[:, end:] -= errors @ inverse[start:end, end:]
    result = torch.empty_like(codes)
    result[:, order] = codes
    return result


def _per_column(value: Tensor, rows: int, columns: int) -> Tensor:
    """A scale for each weight, [out, in] (expanded where it can be)."""
    if value.shape[1] == 1:
        return value.expand(rows, columns)
    return value.repeat_interleave(columns // value.shape[1], dim=1)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of (H + d I)^-1, float64; d grows by a tenth with each failure."""
    exact = hessian.double().clone()
    if not torch.isfinite(exact).all():
        raise ValueError("the Hessian of the calibration data holds NaN or infinity")
    diagonal = exact.diagonal()
    dead = diagonal == 0
    # The mean of the others, not the public code's 1: the damping must not depend on the unit of H.
    diagonal[dead] = diagonal[~dead].mean() if bool((~dead).any()) else 1.0
    step = damping * float(diagonal.mean())
    for attempt in range(_TRIES):
        damped = exact + torch.eye(len(exact), device=exact.device, dtype=exact.dtype) * (
            step * (1 + attempt / 10)
        )
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            upper: Tensor
            upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if int(info) == 0:
                return upper
    raise ValueError("the Hessian of the calibration data is singular; raise damping or use more prompts")
