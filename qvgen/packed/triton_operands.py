"""What the kernels of ``triton_int8`` are given: a packed layer, quantized tokens, and facts of a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qvgen.fused.switch import capability, shared_memory
from qvgen.packed.layout import LANE
from qvgen.packed.triton_table import SHARED_LIMIT


@dataclass(frozen=True)
class Int8Weight:
    """One packed linear layer.

    Attributes:
        codes: uint8 [N, row_bytes(K, bits)], contiguous: in each row the codes one after the other,
            least significant bit first, padded with zeros to a multiple of 32 codes.
        bits: of a weight code, 2 to 8.
        shape: (N, K).
        scale: float32 [N, 1].
        zero_point: float32 [N, 1], real-valued.
        row_sums: int32 [N], sums of the codes 0..2^bits-1 of each row; if None, made where they are needed,
            which is where activation codes are 8-bit and asymmetric.
        bias: [N] or None, any float dtype.
        lower, upper: shares of the tokens' ranges that are kept, float32; one number, or one a sample.
        q_max: largest activation code, 2^b - 1.
        symmetric: whether activations are quantized symmetrically.
        gelu: whether GELU, by its tanh formula, follows.
    """

    codes: Tensor
    bits: int
    shape: tuple[int, int]
    scale: Tensor
    zero_point: Tensor
    row_sums: Tensor | None
    bias: Tensor | None
    lower: Tensor
    upper: Tensor
    q_max: int
    symmetric: bool
    gelu: bool = False


@dataclass(frozen=True)
class Tokens:
    """Quantized tokens: ``scale * (codes - zero_point)``.

    Attributes:
        codes: int8 [M, K rounded up to 32], zeros behind column K. They are q - z, or q - 128 where
            ``zero_point`` is given.
        scale: float32 [M].
        zero_point: int32 [M], z - 128, of asymmetric 8-bit codes; None otherwise.
        sums: int32 [M], of q - z.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    sums: Tensor


def padded_columns(columns: int) -> int:
    """Codes of a packed row."""
    return -(-columns // LANE) * LANE


def copy_engine(device: torch.device) -> bool:
    """Whether tiles are moved through tensor descriptors: Hopper and later, with Hopper's shared memory.

    What is measured for descriptors takes up to 227 KiB. GPUs of capability 12 have the engine, but 99 KiB.
    """
    return device.type == "cuda" and capability(device) >= (9, 0) and shared_memory(device) >= SHARED_LIMIT
