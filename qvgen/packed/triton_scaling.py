"""Integers of shifted and scaled tokens from one read of the input: SVDQuant's layers on ``triton_int8``.

Under a tracer it is the custom operator ``qvgen::scale_tokens``, else the kernel is launched directly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qvgen.fused.switch import DTYPES, MAX_COLUMNS, traced
from qvgen.packed.layout import ActivationSpec
from qvgen.packed.triton_launch import launch
from qvgen.packed.triton_linear import Tokens, code_constants, empty_codes, runs_on, split_tokens
from qvgen.packed.triton_table import row_for

Scaled = tuple[Tensor, Tensor, Tensor, Tensor]  # codes as ``triton_linear.Codes``; the scaled rows or nothing


def scales(x: Tensor, input_scale: Tensor) -> bool:
    """Whether ``scale_tokens`` can do the work for inputs ``x``; it has no backward pass."""
    return (
        runs_on(x.device)
        and x.dtype in DTYPES
        and x.numel() > 0
        and x.shape[-1] <= MAX_COLUMNS
        and input_scale.dtype == torch.float32
        and input_scale.device == x.device
        and input_scale.shape == x.shape[-1:]
        and not (torch.is_grad_enabled() and x.requires_grad)
    )


def scale_tokens(
    x: Tensor, input_scale: Tensor, shift: float, spec: ActivationSpec, *, keep: bool
) -> tuple[Tokens, Tensor | None]:
    """Tokens of ``y = (x + shift) * input_scale``, and ``y`` itself if it is to be kept.

    Both steps are rounded to the dtype of ``x``, as plain torch rounds them: ``y`` is the same bits, and
    its codes are those of ``y``.

    Args:
        x: [..., K] with M rows; must pass ``scales``.
        input_scale: float32 [K].
        shift: added before; 0 adds nothing.
        spec: a dynamic range for each token, all of it.
        keep: whether something else reads ``y`` [..., K], too.
    """
    run: Callable[..., Scaled] = _operator if traced(x) else _launch
    lower, upper = spec.first.reshape(-1), spec.second.reshape(-1)
    *made, kept = run(x, input_scale, shift, keep, lower, upper, 2**spec.bits - 1, spec.symmetric)
    return split_tokens(*made)[0], kept.view(x.shape) if keep else None


def _launch(
    x: Tensor, input_scale: Tensor, shift: float, keep: bool, lower: Tensor, upper: Tensor, q_max: int,
    symmetric: bool,
) -> Scaled:  # fmt: skip
    from qvgen.packed import scaling_kernels

    columns = x.shape[-1]
    rows = x.reshape(-1, columns)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    count = len(rows)
    codes, scale, sums, kept = made = _shape(x, input_scale, shift, keep, lower, upper, q_max, symmetric)
    operands = (
        rows, input_scale.contiguous(), kept, lower, upper, codes, scale, sums[-1], sums[0],
        count, columns, rows.stride(0), codes.shape[-1], count // lower.numel(), shift,
    )  # fmt: skip
    row = row_for(columns, "plain", False)
    constants = code_constants(columns, row, 1, q_max, symmetric, x.is_cuda)
    named = {"SHIFTED": shift != 0, "KEPT": keep, **constants}
    launch(scaling_kernels.scale_quantize_tokens, count, operands, x, tuple(named.values()), lambda: named)
    return made


def _shape(
    x: Tensor, input_scale: Tensor, shift: float, keep: bool, lower: Tensor, upper: Tensor, q_max: int,
    symmetric: bool,
) -> Scaled:  # fmt: skip
    columns = x.shape[-1]
    rows = x.numel() // columns
    return (*empty_codes(1, rows, columns, q_max, symmetric, x), x.new_empty((rows if keep else 0, columns)))


_operator = torch.library.custom_op(
    "qvgen::scale_tokens",
    _launch,
    mutates_args=(),
    schema="(Tensor x, Tensor input_scale, float shift, bool keep, Tensor lower, Tensor upper, int q_max,"
    " bool symmetric) -> (Tensor, Tensor, Tensor, Tensor)",
)
_operator.register_fake(_shape)
