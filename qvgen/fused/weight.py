"""Fake-quantized weights, Phi included, one kernel forward; custom operators as in ``qvgen.fused.token``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qvgen.fused.switch import INTERPRETED, MAX_RANK, block_of, traced

ROWS, COLUMNS = 64, 64
SPLIT = 1024
LowRank = tuple[Tensor, Tensor, Tensor]


def phi_fits(weight: Tensor, phi: LowRank | None) -> bool:
    """Whether Phi is absent, or its (L, gamma, R) can be folded into the weight's pass."""
    if phi is None:
        return True
    left, gamma, right = phi
    return (
        left.shape[1] <= MAX_RANK
        and left.shape[0] == weight.shape[0]
        and all(t.dtype == torch.float32 and t.is_contiguous() for t in (left, gamma, right))
    )


def _launch_forward(
    weight: Tensor, scale: Tensor, zero_point: Tensor, left: Tensor | None, gamma: Tensor | None,
    right: Tensor | None, q_max: int, grad_scale: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    from qvgen.fused.weight_kernels import weight_forward

    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    rows, columns = weight.shape
    rank = 0 if left is None else left.shape[1]
    grid = (-(-rows // ROWS), -(-columns // COLUMNS))
    with torch.cuda.device_of(weight):
        weight_forward[grid](
            weight.contiguous(), scale, zero_point, left, gamma, right, out, rows, columns, rank,
            Q_MAX=float(q_max), LIBDEVICE=not INTERPRETED,
            RANK=max(16, 1 << (rank - 1).bit_length()) if rank else 0,
            ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _forward_shape(
    weight: Tensor, scale: Tensor, zero_point: Tensor, left: Tensor | None, gamma: Tensor | None,
    right: Tensor | None, q_max: int, grad_scale: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


def _launch_backward(
    grad: Tensor, weight: Tensor, scale: Tensor, zero_point: Tensor, q_max: int, grad_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from qvgen.fused.weight_kernels import weight_backward

    grad_w, grad_s, grad_z = _backward_shapes(grad, weight, scale, zero_point, q_max, grad_scale)
    rows, columns = weight.shape
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    block, warps = block_of(columns)
    with torch.cuda.device_of(weight):
        weight_backward[(rows,)](
            weight.contiguous(), scale, zero_point, grad, grad_w, grad_s, grad_z,
            columns, grad.stride(0), grad_scale,
            Q_MAX=float(q_max), LIBDEVICE=not INTERPRETED, BLOCK=block,
            num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
    return grad_w, grad_s, grad_z


def _backward_shapes(
    grad: Tensor, weight: Tensor, scale: Tensor, zero_point: Tensor, q_max: int, grad_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_w = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    return grad_w, torch.empty_like(scale), torch.empty_like(zero_point)


def _phi_gradients(grad: Tensor, left: Tensor, gamma: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of L and R in float32; ``grad`` is read in its own dtype, by tensor cores if bfloat16."""
    with torch.autocast(grad.device.type, enabled=False):
        if grad.is_cuda and grad.dtype == torch.bfloat16:
            return _products_in_three(grad, left, gamma, right)
        grad = grad.float()
        return grad @ (right * gamma[:, None]).mT, (left * gamma).mT @ grad


def _products_in_three(grad: Tensor, left: Tensor, gamma: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """As ``_phi_gradients``: a float32 factor is three bfloat16 ones, whose products are exact in float32."""
    rank = len(gamma)
    by_right = torch.mm(grad, in_three(right, gamma).mT, out_dtype=torch.float32)
    by_left = torch.mm(in_three(left.mT, gamma), grad, out_dtype=torch.float32)
    return by_right.view(-1, 3, rank).sum(1), by_left.view(3, rank, -1).sum(0)


def in_three(factor: Tensor, gamma: Tensor) -> Tensor:
    """bfloat16 parts [3 r, n], largest first, that add up to ``factor * gamma[:, None]``, [r, n] float32."""
    from qvgen.fused.weight_kernels import split_rows

    rank, columns = factor.shape
    parts = torch.empty((3 * rank, columns), dtype=torch.bfloat16, device=factor.device)
    with torch.cuda.device_of(factor):
        split_rows[(rank, -(-columns // SPLIT))](
            factor, gamma, parts, rank, columns, *factor.stride(), BLOCK=SPLIT, num_warps=4
        )
    return parts


def _phi_shapes(grad: Tensor, left: Tensor, gamma: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(left), torch.empty_like(right)


_forward = torch.library.custom_op(
    "qvgen::weight_fake_quant",
    _launch_forward,
    mutates_args=(),
    schema="(Tensor weight, Tensor scale, Tensor zero_point, Tensor? left, Tensor? gamma, Tensor? right,"
    " int q_max, float grad_scale, ScalarType dtype) -> Tensor",
)
_backward = torch.library.custom_op(
    "qvgen::weight_fake_quant_backward",
    _launch_backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor weight, Tensor scale, Tensor zero_point, int q_max, float grad_scale)"
    " -> (Tensor, Tensor, Tensor)",
)
_phi_backward = torch.library.custom_op(
    "qvgen::phi_backward",
    _phi_gradients,
    mutates_args=(),
    schema="(Tensor grad, Tensor left, Tensor gamma, Tensor right) -> (Tensor, Tensor)",
)
_forward.register_fake(_forward_shape)
_backward.register_fake(_backward_shapes)
_phi_backward.register_fake(_phi_shapes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.q_max, ctx.grad_scale, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _gradients(
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    phi_backward: Callable[..., tuple[Tensor, Tensor]],
    ctx: Any,
    grad: Tensor | None,
) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    weight, scale, zero_point, left, gamma, right = ctx.saved_tensors
    grad_w, grad_s, grad_z = backward(grad, weight, scale, zero_point, ctx.q_max, ctx.grad_scale)
    grad_left = grad_right = None
    if left is not None and (ctx.needs_input_grad[3] or ctx.needs_input_grad[5]):
        grad_left, grad_right = phi_backward(grad, left, gamma, right)
    needs_zero = ctx.needs_input_grad[2]
    return grad_w, grad_s, grad_z if needs_zero else None, grad_left, None, grad_right, None, None, None


_forward.register_autograd(partial(_gradients, _backward, _phi_backward), setup_context=_setup_context)


class _WeightFakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _launch_forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(_launch_backward, _phi_gradients, ctx, *grads)


def weight_fake_quant(
    weight: Tensor, scale: Tensor, zero_point: Tensor, phi: LowRank | None, q_max: int, grad_scale: float,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``qvgen.fake_quant.weight_fake_quant`` per channel in one pass; saves its inputs, nothing else.

    ``weight`` [out, in] must pass ``switch.fits`` with ``scale`` and ``zero_point`` [out, 1] beside
    it, ``phi`` must pass ``phi_fits``.
    """
    left, gamma, right = phi if phi is not None else (None, None, None)
    run: Callable[..., Any] = _forward if traced(weight) else _WeightFakeQuant.apply
    out: Tensor = run(weight, scale, zero_point, left, gamma, right, q_max, grad_scale, dtype)
    return out
