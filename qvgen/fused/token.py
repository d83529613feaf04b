"""Per-token fake quantization in one kernel each way.

Run as it is, ``_TokenFakeQuant`` launches them. Under a tracer they are the custom operators
``qvgen::token_fake_quant`` and its backward, which cost the host some tenths of a millisecond a call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qvgen.fused.switch import INTERPRETED, block_of, traced
from qvgen.levels import SCALE_FLOOR, positive_levels


def clip_fits(x: Tensor, clip: Tensor) -> bool:
    """Whether ``clip`` is one number, or one for each entry of the first dimension of ``x``."""
    if not clip.is_contiguous():
        return False
    one_each = clip.dim() == x.dim() > 1 and clip.shape[0] == x.shape[0] == clip.numel()
    return one_each or (clip.numel() == 1 and clip.dim() <= x.dim())


def _rows(x: Tensor) -> Tensor:
    """View [rows, C] whose elements of a row are neighbours; a copy where there is none."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@functools.cache
def _constants(columns: int, q_max: int, symmetric: bool, on_cuda: bool) -> dict[str, Any]:
    block, warps = block_of(columns)
    return {
        "Q_MAX": float(q_max),
        "LEVELS": float(positive_levels(q_max, symmetric)),
        "FLOOR": SCALE_FLOOR,
        "SYMMETRIC": symmetric,
        "RECIPROCAL": on_cuda,
        "LIBDEVICE": not INTERPRETED,
        "BLOCK": block,
        "num_warps": warps,
        "enable_fp_fusion": False,
    }


def _launch_forward(
    x: Tensor, lower: Tensor, upper: Tensor, q_max: int, symmetric: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    from qvgen.fused.token_kernels import token_forward

    out, low, high = _forward_shapes(x, lower, upper, q_max, symmetric, dtype)
    rows = _rows(x)
    with torch.cuda.device_of(x):
        token_forward[(len(rows),)](
            rows, lower, upper, out, low, high, rows.shape[1], rows.stride(0), len(rows) // lower.numel(),
            **_constants(rows.shape[1], q_max, symmetric, x.is_cuda),
        )  # fmt: skip
    return out, low, high


def _forward_shapes(
    x: Tensor, lower: Tensor, upper: Tensor, q_max: int, symmetric: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    low = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    return torch.empty(x.shape, dtype=dtype, device=x.device), low, torch.empty_like(low)


def _launch_backward(
    grad: Tensor, x: Tensor, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor, q_max: int,
    symmetric: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from qvgen.fused.token_kernels import token_backward

    grad_x, grad_lower, grad_upper = _backward_shapes(grad, x, lower, upper, low, high, q_max, symmetric)
    rows, grads = _rows(x), _rows(grad)
    with torch.cuda.device_of(x):
        token_backward[(len(rows),)](
            rows, grads, lower, upper, low, high, grad_x, grad_lower, grad_upper,
            rows.shape[1], rows.stride(0), grads.stride(0), len(rows) // lower.numel(),
            **_constants(rows.shape[1], q_max, symmetric, x.is_cuda),
        )  # fmt: skip
    return grad_x, grad_lower, grad_upper


def _backward_shapes(
    grad: Tensor, x: Tensor, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor, q_max: int,
    symmetric: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(low), torch.empty_like(low)


_forward = torch.library.custom_op(
    "qvgen::token_fake_quant",
    _launch_forward,
    mutates_args=(),
    schema="(Tensor x, Tensor lower, Tensor upper, int q_max, bool symmetric, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)",
)
_backward = torch.library.custom_op(
    "qvgen::token_fake_quant_backward",
    _launch_backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor lower, Tensor upper, Tensor low, Tensor high, int q_max,"
    " bool symmetric) -> (Tensor, Tensor, Tensor)",
)
_forward.register_fake(_forward_shapes)
_backward.register_fake(_backward_shapes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, lower, upper, ctx.q_max, ctx.symmetric, _ = inputs
    _, low, high = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(low, high)
    ctx.save_for_backward(x, lower, upper, low, high)


def _gradients(
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]], ctx: Any, grad: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    x, lower, upper, low, high = ctx.saved_tensors
    grad_x, grad_lower, grad_upper = backward(grad, x, lower, upper, low, high, ctx.q_max, ctx.symmetric)
    # The second stage of a sum without atomics: the same bits in every run.
    sums = (
        rows.sum_to_size(clip.shape) if needed else None
        for rows, clip, needed in zip(
            (grad_lower, grad_upper), (lower, upper), ctx.needs_input_grad[1:3], strict=True
        )
    )
    return grad_x, *sums, None, None, None


_forward.register_autograd(partial(_gradients, _backward), setup_context=_setup_context)


class _TokenFakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = _launch_forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(_launch_backward, ctx, *grads)


def token_fake_quant(
    x: Tensor, lower: Tensor, upper: Tensor, q_max: int, symmetric: bool, dtype: torch.dtype
) -> Tensor:
    """``qvgen.fake_quant.token_fake_quant`` in one kernel; saves ``x`` and 8 bytes a token.

    ``x`` must pass ``switch.fits``, ``lower`` and ``upper`` ``clip_fits``, of one shape.
    """
    run: Callable[..., Any] = _forward if traced(x) else _TokenFakeQuant.apply
    out: Tensor = run(x, lower, upper, q_max, symmetric, dtype)[0]
    return out
