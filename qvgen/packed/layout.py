"""Where every bit of a packed weight stands, and the signature that integer kernels have.

The K codes of an output row are followed by zero codes up to a multiple of 32; each row is then one
dense bit stream in the order of ``qvgen.packed.bits`` (code i in bits [i*b, (i+1)*b), least
significant bit first). So 32 codes take exactly b little-endian 32-bit words at any width b, and a row
takes ``ceil(K / 32) * 4 * b`` bytes: 3 bits cost 3 bits. Rows follow each other without gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from qvgen.config import MAX_BITS, MIN_BITS, check_int
from qvgen.packed.bits import pack, unpack

if TYPE_CHECKING:
    from qvgen.config import QuantConfig
    from qvgen.hadamard import Hadamard
    from qvgen.packed.sources import Source
    from qvgen.packed.triton_linear import Tokens

LANE = 32
_CHUNK = 1 << 22  # codes unpacked at a time: what is in flight stays small beside the matrix


def row_bytes(columns: int, bits: int) -> int:
    """Bytes of one packed row of ``columns`` codes."""
    return -(-columns // LANE) * 4 * bits


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Pack a code matrix [N, K] of any integer dtype into uint8 [N, row_bytes(K, bits)].

    Raises:
        ValueError: no matrix, bits not in 2..8, codes not integer or out of range.
    """
    check_int("bits", bits, MIN_BITS, MAX_BITS)
    if codes.dim() != 2:
        raise ValueError(f"codes to pack have shape {tuple(codes.shape)}; expected [rows, columns]")
    rows, columns = codes.shape
    padded = functional.pad(codes, (0, -columns % LANE))
    step = _rows_at_a_time(columns)
    parts = [pack(part, bits).view(len(part), -1) for part in padded.split(step)] if rows else []
    return torch.cat(parts) if parts else codes.new_zeros(0, row_bytes(columns, bits), dtype=torch.uint8)


def unpack_rows(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Inverse of ``pack_rows``: uint8 codes [N, columns].

    Raises:
        ValueError: bits not in 2..8, or ``packed`` of another dtype or shape.
    """
    check_int("bits", bits, MIN_BITS, MAX_BITS)
    wanted = row_bytes(columns, bits)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != wanted:
        raise ValueError(
            f"packed rows are {packed.dtype} {tuple(packed.shape)}; {columns} codes of {bits} bits a row "
            f"need uint8 [rows, {wanted}]"
        )
    padded = columns + -columns % LANE
    parts = [
        unpack(part.reshape(-1), bits, (len(part), padded))[:, :columns]
        for part in packed.split(_rows_at_a_time(columns))
    ]
    return torch.cat(parts)


def _rows_at_a_time(columns: int) -> int:
    return max(1, _CHUNK // max(1, columns))


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """An integer weight matrix [N, K] that stands for ``scale * (code - zero_point)``.

    Attributes:
        codes: uint8 [N, row_bytes(K, bits)], contiguous.
        scale: float32 [N, 1], or [N, G] for G groups of K/G neighbours in each row.
        zero_point: float32, shape of ``scale``; real-valued for LSQ+, 2^(bits-1) where symmetric.
        bits: of a code.
        shape: (N, K).
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    shape: tuple[int, int]

    def unpacked(self) -> Tensor:
        """uint8 codes [N, K], 0..2^bits-1."""
        return unpack_rows(self.codes, self.bits, self.shape[1])

    def centred(self) -> Tensor:
        """Codes less 2^(bits-1), int8 [N, K]: any width fits, and they are smallest in size."""
        return centre(self.unpacked(), self.bits)


@dataclass(frozen=True, slots=True)
class ActivationSpec:
    """How the input of a packed linear becomes integers.

    ``first`` and ``second`` are the two numbers of each sample: float32 [1], or [B, 1, ..., 1] with the
    number of dimensions of x [B, ..., K]. Dynamic: the lower and upper share of the range kept, and
    ``code = clamp(round(x / s) + z, 0, 2^bits - 1)`` with s, z as in ``fake_quant.token_scale`` (z is
    whole, 2^(bits-1) where symmetric). Static: step and zero point themselves (not whole), and
    ``code = clamp(round(x / s + z), 0, 2^bits - 1)``.

    Attributes:
        bits: of a code, 2..8.
        granularity: what shares a dynamic range: ``token`` (a row), ``group`` (``group_size``
            neighbours in it) or ``tensor`` (a sample, x[b]).
        group_size: for ``group``.
        symmetric: whether the range is the same on both sides of zero.
        static: whether step and zero point are given.
        first: lower share, or step.
        second: upper share, or zero point.
    """

    bits: int
    granularity: str
    group_size: int
    symmetric: bool
    static: bool
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, config: QuantConfig, first: Tensor, second: Tensor) -> ActivationSpec:
        """What ``config`` says of activations, with the numbers for one call."""
        return cls(
            bits=config.a_bits, granularity=config.a_granularity, group_size=config.a_group_size,
            symmetric=config.a_symmetric, static=config.a_range == "static", first=first, second=second,
        )  # fmt: skip


class Int8Linear(Protocol):
    """What a kernel module offers: ``qvgen.packed.triton_int8`` has functions of these names."""

    def fits(self, weight: PackedWeight, activation: ActivationSpec, device: torch.device) -> bool:
        """Whether it executes this kind of layer there, exactly."""
        ...

    def hides_epilogue(self, weight: PackedWeight, activation: ActivationSpec, device: torch.device) -> bool:
        """Whether GELU behind a product of 16-bit results costs less there than in the next read."""
        ...

    def int8_linear(
        self, x: Tensor, weight: PackedWeight, activation: ActivationSpec, bias: Tensor | None, gelu: bool
    ) -> Tensor:
        """Quantize x [B, ..., K], multiply, correct and scale: [B, ..., N] in the dtype of ``x``.

        With integer codes c_a, c_w and their zero points the result is ``s_a s_w (sum c_a c_w
        - z_a sum c_w - z_w sum c_a + K z_a z_w) + bias``, the sums exact, rounded to the dtype of
        ``x`` once. ``bias`` is [N] of any float dtype. With ``gelu`` GELU, by its tanh formula, comes before
        the rounding.
        """
        ...

    def read_tokens(
        self, source: Source, specs: Sequence[ActivationSpec], own: Sequence[bool]
    ) -> list[Tokens]:
        """Integers of one source for several layers; it is read once for each number of bits.

        Args:
            source: what the layers read.
            specs: of each layer.
            own: of each layer, whether the two numbers of its spec are its own; those of all others
                are the same, and so are their integers.
        """
        ...

    def multiply_tokens(
        self, tokens: Tokens, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype, gelu: bool
    ) -> Tensor:
        """``int8_linear`` of an input that is quantized already: [M, N] of ``dtype``."""
        ...

    def rotate_tokens(
        self, x: Tensor, input_scale: Tensor, rotation: Hadamard, spec: ActivationSpec
    ) -> Tokens | None:
        """Integers of ``rotation(x * input_scale)`` from one read of ``x``; None where no kernel does that.

        Args:
            x: [..., K].
            input_scale: float32 [K].
            rotation: of K.
            spec: a dynamic range for each token, all of it.
        """
        ...

    def scale_tokens(
        self, x: Tensor, input_scale: Tensor, shift: float, spec: ActivationSpec, keep: bool
    ) -> tuple[Tokens, Tensor | None] | None:
        """Integers of ``y = (x + shift) * input_scale`` from one read of ``x``; None where no kernel is.

        Args:
            x: [..., K].
            input_scale: float32 [K].
            shift: added before; 0 adds nothing.
            spec: a dynamic range for each token, all of it.
            keep: whether ``y`` [..., K] is wanted, too.
        """
        ...


class Kernels(NamedTuple):
    """The functions of an ``Int8Linear``; unlike the module, layers that hold them can be copied."""

    int8_linear: Callable[[Tensor, PackedWeight, ActivationSpec, Tensor | None, bool], Tensor]
    read_tokens: Callable[[Source, Sequence[ActivationSpec], Sequence[bool]], list[Tokens]]
    multiply_tokens: Callable[[Tokens, PackedWeight, Tensor | None, torch.dtype, bool], Tensor]
    rotate_tokens: Callable[[Tensor, Tensor, Hadamard, ActivationSpec], Tokens | None]
    scale_tokens: Callable[[Tensor, Tensor, float, ActivationSpec, bool], tuple[Tokens, Tensor | None] | None]

    @classmethod
    def of(cls, module: Int8Linear) -> Kernels:
        """Those of ``module``."""
        return cls(
            module.int8_linear, module.read_tokens, module.multiply_tokens, module.rotate_tokens,
            module.scale_tokens,
        )  # fmt: skip


def centre(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes less 2^(bits-1), as int8: what an 8-bit product takes at any width up to 8."""
    # uint8 arithmetic wraps round as two's complement does.
    shifted: Tensor = codes - torch.tensor(2 ** (bits - 1), dtype=torch.uint8, device=codes.device)
    return shifted.view(torch.int8)
