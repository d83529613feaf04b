"""A scaled, rotated, quantized token in one kernel; inference only.

Under a tracer it is the custom operator ``qvgen::rotate_fake_quant``, else the kernel is launched directly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvgen.fused.switch import INTERPRETED, capability, fits, multiprocessors, traced
from qvgen.hadamard import Hadamard, tile_width
from qvgen.levels import SCALE_FLOOR, positive_levels

_LARGEST_ORDER = 128
_SMALL_TABLE = 4096
_LARGE_TABLE = 8192  # more needs the shared memory and the registers of Hopper
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is launched.

    Attributes:
        rows: of a program.
        warps: of a program.
        stages: of its loop.
        chained: ``rotate_kernels.rotate_chained`` in place of ``rotate_forward``.
        resident: with ``chained``, if not 0: programs that a multiprocessor runs at a time; rows are shared
            out so that all programs run at once, and ``rows`` is not looked at.
        turned: with ``chained``, the argument of that name.
        registers: most that a thread may have; 0: no such bound.
    """

    rows: int
    warps: int
    stages: int
    chained: bool = False
    resident: int = 0
    turned: bool = False
    registers: int = 0


def usual_launch(table: int, chained: bool = False, codes: bool = False) -> Launch:
    """For a padded table of so many numbers; ``codes``: to integers, as packed layers read them.

    The fastest on an H100 (``docs/benchmarks.md``) for tables of 2048 and 8192 and where not ``chained``;
    the others are chosen by what the compiler makes of them: instructions, registers and shared memory.
    """
    if not chained:
        return (
            Launch(rows=4, warps=4, stages=3) if table <= _SMALL_TABLE else Launch(rows=1, warps=8, stages=1)
        )
    if table <= _SMALL_TABLE // 2:
        large = table > _SMALL_TABLE // 4
        if large and not codes:
            return Launch(0, warps=4, stages=3, chained=True, resident=5)
        return Launch(0, warps=1, stages=2, chained=True, resident=8 if large else 14, turned=True)
    if table <= _SMALL_TABLE:
        return Launch(0, warps=4, stages=2, chained=True, resident=3)
    if table <= _LARGE_TABLE:
        return Launch(0, warps=4, stages=3, chained=True, resident=2, turned=True)
    return Launch(0, warps=8, stages=1, chained=True, resident=1)


def chains(x: Tensor, factors: tuple[int, ...]) -> bool:
    """Whether ``rotate_chained`` serves inputs ``x`` of a rotation with these two factors."""
    small = table_of(factors) <= _LARGE_TABLE
    return x.dtype in HALVES and (small or not x.is_cuda or capability(x.device) >= (9, 0))


def table_of(orders: tuple[int, ...]) -> int:
    """Numbers of a row's table, padded; ``orders`` are two."""
    return tile_width(orders[0]) * tile_width(orders[1])  # no math.prod: torch.compile sees this


def rotation_fits(x: Tensor, input_scale: Tensor, rotation: Hadamard) -> bool:
    """Whether the operator can do the work for inputs ``x``; it has no backward pass.

    A large table of float32 takes more shared memory than there is.
    """
    return (
        len(rotation.factors) == 2
        and max(rotation.factors) <= _LARGEST_ORDER
        and (x.dtype != torch.float32 or table_of(rotation.factors) <= _SMALL_TABLE)
        and fits(x, input_scale)
        and not (torch.is_grad_enabled() and x.requires_grad)
    )


def _launch(
    x: Tensor, input_scale: Tensor, first: Tensor, second: Tensor, q_max: int, symmetric: bool
) -> Tensor:
    factors = len(first), len(second)
    how = usual_launch(table_of(factors), chains(x, factors))
    return launched(x, input_scale, first, second, q_max, symmetric, how)


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
    if how.chained:
        launch_chained(x, input_scale, first, second, q_max, symmetric, how, out)
        return out
    rows, orders = _rows_of(x), (len(first), len(second))
    with torch.cuda.device_of(x):
        rotate_forward[(-(-len(rows) // how.rows),)](
            rows, input_scale, first, second, out, len(rows), rows.stride(0),
            FIRST_NORM=1 / math.sqrt(orders[0]), SECOND_NORM=1 / math.sqrt(orders[1]), ROWS=how.rows,
            **constants_of(orders, q_max, symmetric, on_cuda=x.is_cuda), **_options(how),
        )  # fmt: skip
    return out


def launch_chained(
    x: Tensor, input_scale: Tensor, first: Tensor, second: Tensor, q_max: int, symmetric: bool, how: Launch,
    out: Tensor, scale: Tensor | None = None, sums: Tensor | None = None, zero: Tensor | None = None,
) -> None:  # fmt: skip
    """``rotate_kernels.rotate_chained``; for integers with ``scale``, ``sums`` and, offset, ``zero``.

    Args:
        x: [..., C], 16-bit.
        input_scale: float32 [C].
        first: factor of the rotation on a row's table [A, B] from the left.
        second: the one from the right.
        q_max: largest code.
        symmetric: whether the zero point is in the middle.
        how: a ``chained`` launch.
        out: what is filled: of the shape of ``x``, of its dtype or int8.
        scale: float32, a number a row.
        sums: int32 likewise, of q - z.
        zero: int32 likewise, z - 128.
    """
    from qvgen.fused.rotate_kernels import rotate_chained

    rows, orders = _rows_of(x), (len(first), len(second))
    programs = multiprocessors(x.device) * how.resident
    share = -(-len(rows) // programs) if how.resident else how.rows
    units = [2.0 ** -math.ceil(math.log2(order) / 2) for order in orders]
    with torch.cuda.device_of(x):
        rotate_chained[(-(-len(rows) // share),)](
            rows, input_scale, first, second, out, *(out if t is None else t for t in (scale, zero, sums)),
            len(rows), rows.stride(0), share, FIRST_UNIT=units[0], SECOND_UNIT=units[1],
            NORM=1 / (math.sqrt(math.prod(orders)) * math.prod(units)), TURNED=how.turned,
            CODES=scale is not None, OFFSET=zero is not None,
            **constants_of(orders, q_max, symmetric, on_cuda=x.is_cuda), **_options(how),
        )  # fmt: skip


def _rows_of(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def constants_of(
    orders: tuple[int, int], q_max: int, symmetric: bool, *, on_cuda: bool, interpreted: bool = INTERPRETED
) -> dict[str, Any]:
    """Constants that both kernels have."""
    return {
        "FIRST": orders[0], "SECOND": orders[1],
        "FIRST_TILE": tile_width(orders[0]), "SECOND_TILE": tile_width(orders[1]), "Q_MAX": float(q_max),
        "LEVELS": float(positive_levels(q_max, symmetric)), "FLOOR": SCALE_FLOOR, "SYMMETRIC": symmetric,
        "RECIPROCAL": on_cuda, "LIBDEVICE": not interpreted,
    }  # fmt: skip


def _options(how: Launch) -> dict[str, Any]:
    bound = {"maxnreg": how.registers} if how.registers else {}
    return {"num_warps": how.warps, "num_stages": how.stages, "enable_fp_fusion": False, **bound}


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
