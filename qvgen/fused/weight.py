"""Fake-quantized weights, Phi included, as custom operators ``qvgen::weight_fake_quant`` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qvgen.fused.switch import INTERPRETED, MAX_RANK, block_of

ROWS, COLUMNS = 64, 64
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


@torch.library.custom_op(
    "qvgen::weight_fake_quant",
    mutates_args=(),
    schema="(Tensor weight, Tensor scale, Tensor zero_point, Tensor? left, Tensor? gamma, Tensor? right,"
    " int q_max, float grad_scale, ScalarType dtype) -> Tensor",
)
def _forward(
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


@_forward.register_fake
def _forward_shape(
    weight: Tensor, scale: Tensor, zero_point: Tensor, left: Tensor | None, gamma: Tensor | None,
    right: Tensor | None, q_max: int, grad_scale: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


@torch.library.custom_op(
    "qvgen::weight_fake_quant_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor weight, Tensor scale, Tensor zero_point, int q_max, float grad_scale)"
    " -> (Tensor, Tensor, Tensor)",
)
def _backward(
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


@_backward.register_fake
def _backward_shapes(
    grad: Tensor, weight: Tensor, scale: Tensor, zero_point: Tensor, q_max: int, grad_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_w = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    return grad_w, torch.empty_like(scale), torch.empty_like(zero_point)


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32, where one side is float32 and small and the other may be bfloat16 and large.

    A float32 number is the sum of three bfloat16 ones, whose products are exact in float32. So on
    CUDA the large side is read as it is, by tensor cores, and no float32 copy of it is made.

    Args:
        a: [m, k]; if float32, of few rows.
        b: [k, n]; if float32, of few columns.
    """
    if a.is_cuda and torch.bfloat16 in (a.dtype, b.dtype) and a.dtype != b.dtype:
        if a.dtype == torch.float32:
            thrice: Tensor = torch.mm(torch.cat(_in_three(a)), b, out_dtype=torch.float32)
            return thrice.view(3, len(a), -1).sum(0)
        thrice = torch.mm(a, torch.cat(_in_three(b), dim=1), out_dtype=torch.float32)
        return thrice.view(len(a), 3, -1).sum(1)
    return a.float() @ b.float()


def _in_three(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """bfloat16 parts that add up to float32 ``x``, largest first."""
    first = x.bfloat16()
    rest = x - first.float()
    second = rest.bfloat16()
    return first, second, (rest - second.float()).bfloat16()


@torch.library.custom_op(
    "qvgen::phi_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor left, Tensor gamma, Tensor right) -> (Tensor, Tensor)",
)
def _phi_backward(grad: Tensor, left: Tensor, gamma: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(grad.device.type, enabled=False):
        grad_left = exact_product(grad, right.mT) * gamma
        return grad_left, exact_product((left * gamma).mT, grad)


@_phi_backward.register_fake
def _phi_backward_shapes(grad: Tensor, left: Tensor, gamma: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(left), torch.empty_like(right)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.q_max, ctx.grad_scale, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    weight, scale, zero_point, left, gamma, right = ctx.saved_tensors
    grad_w, grad_s, grad_z = _backward(grad, weight, scale, zero_point, ctx.q_max, ctx.grad_scale)
    grad_left = grad_right = None
    if left is not None and (ctx.needs_input_grad[3] or ctx.needs_input_grad[5]):
        grad_left, grad_right = _phi_backward(grad, left, gamma, right)
    needs_zero = ctx.needs_input_grad[2]
    return grad_w, grad_s, grad_z if needs_zero else None, grad_left, None, grad_right, None, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)


def weight_fake_quant(
    weight: Tensor, scale: Tensor, zero_point: Tensor, phi: LowRank | None, q_max: int, grad_scale: float,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``qvgen.fake_quant.weight_fake_quant`` per channel in one pass; saves its inputs, nothing else.

    ``weight`` [out, in] must pass ``switch.fits`` with ``scale`` and ``zero_point`` [out, 1] beside
    it, ``phi`` must pass ``phi_fits``.
    """
    left, gamma, right = phi if phi is not None else (None, None, None)
    out: Tensor = _forward(weight, scale, zero_point, left, gamma, right, q_max, grad_scale, dtype)
    return out
