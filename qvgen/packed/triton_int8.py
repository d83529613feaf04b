"""The backend ``triton_int8`` of packed linears; see ``qvgen.packed.triton_linear`` for how it works."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qvgen.config import MAX_BITS, MIN_BITS
from qvgen.fused.switch import DTYPES, MAX_COLUMNS, traced
from qvgen.hadamard import Hadamard
from qvgen.packed import triton_linear, triton_reading, triton_rotation, triton_scaling
from qvgen.packed.layout import ActivationSpec, PackedWeight
from qvgen.packed.sources import Source, first_tensor
from qvgen.packed.triton_linear import Int8Weight, Tokens
from qvgen.packed.triton_product import takes_turns

HIDING_COLUMNS = 4096


def fits(weight: PackedWeight, activation: ActivationSpec, device: torch.device) -> bool:
    """Whether it executes such a layer on ``device``: one scale a channel, a dynamic range a token."""
    return (
        triton_linear.runs_on(device)
        and MIN_BITS <= weight.bits <= MAX_BITS
        and weight.scale.shape[1] == 1
        and 0 < weight.shape[1] <= MAX_COLUMNS
        and activation.granularity == "token"
        and not activation.static
    )


def hides_epilogue(weight: PackedWeight, activation: ActivationSpec, device: torch.device) -> bool:
    """Whether GELU costs less in the epilogue of such a product, of 16-bit results, than in the next read.

    Where groups of warps take turns an epilogue is hidden by the products of another tile, if these take
    long enough: with GELU at 5120 columns, not at 1920 (measured on an H200).
    """
    offset = activation.bits == MAX_BITS and not activation.symmetric
    long = weight.shape[1] >= HIDING_COLUMNS
    return long and not offset and triton_linear.runs_on(device) and takes_turns(device)


def int8_linear(
    x: Tensor, weight: PackedWeight, activation: ActivationSpec, bias: Tensor | None, gelu: bool = False
) -> Tensor:
    """Quantize x [B, ..., K], multiply, correct and scale as in ``layout.Int8Linear``: [B, ..., N].

    Args:
        x: float32, bfloat16 or float16.
        weight: with ``activation`` one that ``fits``.
        activation: how x is quantized.
        bias: [N] or None, one of the dtypes of x.
        gelu: whether GELU, by its tanh formula, follows before the result is rounded.

    Raises:
        ValueError: another dtype.
    """
    _check_dtype(x)
    if not x.numel():
        return x.new_empty((*x.shape[:-1], weight.shape[0]))
    w = _joined(weight, activation, bias, gelu)
    if not traced(x):
        return triton_linear.int8_linears(x, [w])[0]
    return triton_linear.int8_linear(
        x, w.codes, w.bits, w.shape, w.scale, w.zero_point, w.row_sums, w.bias, w.lower, w.upper, w.q_max,
        w.symmetric, w.gelu, x.dtype,
    )  # fmt: skip


def int8_linears(
    x: Tensor, layers: Sequence[tuple[PackedWeight, ActivationSpec, Tensor | None]]
) -> list[Tensor]:
    """``int8_linear`` of several layers (weight, activation, bias) on one read of ``x``.

    Raises:
        ValueError: no layer, another dtype, or layers that differ in the bits, the symmetry or the shape
            of the clips of their activations.
    """
    _check_dtype(x)
    if not x.numel():
        return [x.new_empty((*x.shape[:-1], weight.shape[0])) for weight, _, _ in layers]
    return triton_linear.int8_linears(x, [_joined(*layer) for layer in layers])


def read_tokens(source: Source, specs: Sequence[ActivationSpec], own: Sequence[bool]) -> list[Tokens]:
    """Integers of one source for layers that ``fits``; see ``layout.Int8Linear.read_tokens``.

    Raises:
        ValueError: another dtype.
    """
    _check_dtype(first_tensor(source))
    return triton_reading.read_tokens(source, specs, own)


def multiply_tokens(
    tokens: Tokens, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype, gelu: bool = False
) -> Tensor:
    """[M, N] of ``dtype`` from quantized tokens; ``gelu`` as of ``int8_linear``."""
    w = Int8Weight(
        weight.codes, weight.bits, weight.shape, weight.scale, weight.zero_point, None, bias,
        weight.scale, weight.scale, 0, False, gelu,
    )  # fmt: skip
    return triton_reading.multiply_tokens(tokens, w, dtype)


def rotate_tokens(x: Tensor, input_scale: Tensor, rotation: Hadamard, spec: ActivationSpec) -> Tokens | None:
    """Integers of scaled and rotated tokens, or None; see ``layout.Int8Linear.rotate_tokens``."""
    if not triton_rotation.rotates(x, input_scale, rotation):
        return None
    return triton_rotation.rotate_tokens(x, input_scale, rotation, spec)


def scale_tokens(
    x: Tensor, input_scale: Tensor, shift: float, spec: ActivationSpec, keep: bool
) -> tuple[Tokens, Tensor | None] | None:
    """Integers of shifted and scaled tokens, or None; see ``layout.Int8Linear.scale_tokens``."""
    if not triton_scaling.scales(x, input_scale):
        return None
    return triton_scaling.scale_tokens(x, input_scale, shift, spec, keep=keep)


def _joined(
    weight: PackedWeight, activation: ActivationSpec, bias: Tensor | None, gelu: bool = False
) -> Int8Weight:
    return Int8Weight(
        weight.codes, weight.bits, weight.shape, weight.scale, weight.zero_point, None, bias,
        activation.first.contiguous(), activation.second.contiguous(), 2**activation.bits - 1,
        activation.symmetric, gelu,
    )  # fmt: skip


def _check_dtype(x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise ValueError(
            f"the input of an int8 linear is {x.dtype}; expected float32, bfloat16 or float16: convert it, "
            "or use backend reference"
        )
