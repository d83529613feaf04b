"""Integers of scaled and rotated tokens from one read of the input: ViDiT-Q's layers on ``triton_int8``.

Under a tracer it is the custom operator ``qvgen::rotate_tokens``, else the kernel is launched directly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qvgen.fused import rotate
from qvgen.fused.switch import traced
from qvgen.hadamard import Hadamard
from qvgen.packed.layout import ActivationSpec
from qvgen.packed.triton_linear import Codes, Tokens, empty_codes, padded_columns, split_tokens


def rotates(x: Tensor, input_scale: Tensor, rotation: Hadamard) -> bool:
    """Whether ``rotate_tokens`` can do the work for inputs ``x``."""
    return (
        rotate.rotation_fits(x, input_scale, rotation)
        and rotate.chains(x, rotation.factors)
        and padded_columns(x.shape[-1]) == x.shape[-1]
    )


def rotate_tokens(x: Tensor, input_scale: Tensor, rotation: Hadamard, spec: ActivationSpec) -> Tokens:
    """Tokens of ``rotation(x * input_scale)``: codes of the values that ``fused.rotate`` gives.

    Args:
        x: [..., K] with M rows; must pass ``rotates``.
        input_scale: float32 [K].
        rotation: of K.
        spec: a dynamic range for each token, all of it.
    """
    first, second = (rotation.get_buffer(f"factor_{axis}") for axis in range(2))
    run: Callable[..., Codes] = _operator if traced(x) else _launch
    return split_tokens(*run(x, input_scale, first, second, 2**spec.bits - 1, spec.symmetric))[0]


def _launch(
    x: Tensor, input_scale: Tensor, first: Tensor, second: Tensor, q_max: int, symmetric: bool
) -> Codes:
    how = rotate.usual_launch(rotate.table_of((len(first), len(second))), chained=True, codes=True)
    return launched_codes(x, input_scale, first, second, q_max, symmetric, how)


def launched_codes(
    x: Tensor, input_scale: Tensor, first: Tensor, second: Tensor, q_max: int, symmetric: bool,
    how: rotate.Launch,
) -> Codes:  # fmt: skip
    """The kernel itself, launched as ``how`` says; arguments as ``rotate.launched``'s."""
    codes, scale, sums = made = _shape(x, input_scale, first, second, q_max, symmetric)
    zero = sums[1] if len(sums) > 1 else None
    rotate.launch_chained(x, input_scale, first, second, q_max, symmetric, how, codes, scale, sums[0], zero)
    return made


def _shape(
    x: Tensor, input_scale: Tensor, first: Tensor, second: Tensor, q_max: int, symmetric: bool
) -> Codes:
    columns = x.shape[-1]
    return empty_codes(1, x.numel() // columns, columns, q_max, symmetric, x)


_operator = torch.library.custom_op(
    "qvgen::rotate_tokens",
    _launch,
    mutates_args=(),
    schema="(Tensor x, Tensor input_scale, Tensor first, Tensor second, int q_max, bool symmetric)"
    " -> (Tensor, Tensor, Tensor)",
)
_operator.register_fake(_shape)
