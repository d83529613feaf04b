"""A scaled, rotated, quantized token in one kernel; inference only.

Under a tracer it is the custom operator ``qvgen::rotate_fake_quant``, else the kernel is launched directly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qvgen.fused.switch import INTERPRETED, fits, traced
from qvgen.hadamard import Hadamard, tile_width
from qvgen.levels import SCALE_FLOOR, positive_levels

_LARGEST_ORDER = 128
_SMALL_TABLE = 4096


@dataclass(frozen=True, slots=True)
class Launch:
    """How the kernel is launched: rows of a program, its warps, stages of its loop."""

    rows: int
    warps: int
    stages: int


def usual_launch(table: int) -> Launch:
    """For a padded table of so many numbers: the fastest on an H100, see ``docs/benchmarks.md``."""
    return Launch(rows=4, warps=4, stages=3) if table <= _SMALL_TABLE else Launch(rows=1, warps=8, stages=1)


def _table(orders: tuple[int, ...]) -> int:
    return math.prod(tile_width(order) for order in orders)


def rotation_fits(x: Tensor, input_scale: Tensor, rotation: Hadamard) -> bool:
    """Whether the operator can do the work for inputs ``x``; it has no backward pass.

    A large table of float32 takes more shared memory than there is.
    """
    return (
        len(rotation.factors) == 2
        and max(rotation.factors) <= _LARGEST_ORDER
        and (x.dtype != torch.float32 or _table(rotation.factors) <= _SMALL_TABLE)
        and fits(x, input_scale)
        and not (torch.is_grad_enabled() and x.requires_grad)
    )


def _launch(
    x: Tensor, input_scale: Tensor, first: Tensor, second: Tensor, q_max: int, symmetric: bool
) -> Tensor:
    launch = usual_launch(_table((len(first), len(second))))
    return launched(x, input_scale, first, second, q_max, symmetric, launch)


def _shape(
    x: Tensor, input_scale: Tensor, first: Tensor, second: Tensor, q_max: int, symmetric: bool
) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


_operator = torch.library.custom_op(
    "qvgen::rotate_fake_quant",
    _launch,
    mutates_args=(),
    schema="(Tensor x, Tensor input_scale, Tensor first, Tensor second, int q_max, bool symmetric) -> Tensor",
)
_operator.register_fake(_shape)


def launched(
    x: Tensor, input_scale: Tensor, first: Tensor, second: Tensor, q_max: int, symmetric: bool, how: Launch
) -> Tensor:
    """The kernel itself, launched as ``how`` says; arguments as ``rotate_fake_quant``'s."""
    from qvgen.fused.rotate_kernels import rotate_forward

    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    orders = len(first), len(second)
    with torch.cuda.device_of(x):
        rotate_forward[(-(-len(rows) // how.rows),)](
            rows, input_scale, first, second, out, len(rows), rows.stride(0),
            FIRST=orders[0], SECOND=orders[1],
            FIRST_TILE=tile_width(orders[0]), SECOND_TILE=tile_width(orders[1]),
            FIRST_NORM=1 / math.sqrt(orders[0]), SECOND_NORM=1 / math.sqrt(orders[1]),
            Q_MAX=float(q_max), LEVELS=float(positive_levels(q_max, symmetric)), FLOOR=SCALE_FLOOR,
            SYMMETRIC=symmetric, RECIPROCAL=x.is_cuda, LIBDEVICE=not INTERPRETED, ROWS=how.rows,
            num_warps=how.warps, num_stages=how.stages, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def rotate_fake_quant(
    x: Tensor, input_scale: Tensor, rotation: Hadamard, q_max: int, symmetric: bool
) -> Tensor:
    """``token_fake_quant(rotation(x * input_scale))`` of the whole range, in one kernel.

    Not the same bits: the plain form rounds to the dtype of ``x`` after each factor, this one between
    the two and at the end. ``x`` must pass ``rotation_fits``.

    Args:
        x: [..., C].
        input_scale: float32 [C].
        rotation: of C = A * B, in two factors.
        q_max: largest code.
        symmetric: whether the zero point is in the middle.

    Returns:
        Shape and dtype of ``x``.
    """
    first, second = (rotation.get_buffer(f"factor_{axis}") for axis in range(2))
    run = _operator if traced(x) else _launch
    out: Tensor = run(x, input_scale, first, second, q_max, symmetric)
    return out
