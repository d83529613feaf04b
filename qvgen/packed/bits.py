"""Integer codes of 2 to 8 bits as a dense byte stream: b bits cost b bits, bar the last byte.

Code i occupies bits [i*b, (i+1)*b) of the stream, least significant bit first, where bit k of the
stream is bit k % 8 of byte k // 8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qvgen.config import MAX_BITS, MIN_BITS, check_int


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes in 0..2^bits-1, of any integer dtype and shape, in row-major order.

    Returns:
        uint8 [packed_bytes(codes.numel(), bits)]; unused bits of the last byte are 0.

    Raises:
        ValueError: bits not in 2..8, codes not integer or out of range.
    """
    check_int("bits", bits, MIN_BITS, MAX_BITS)
    if codes.is_floating_point() or codes.is_complex():
        raise ValueError(f"codes to pack are {codes.dtype}; expected an integer dtype")
    flat = codes.reshape(-1)
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < 2**bits:
        raise ValueError(
            f"codes span {int(flat.min())}..{int(flat.max())}; {bits} bits hold 0..{2**bits - 1}"
        )
    group, group_bytes = _group(bits)
    word = _word(group_bytes)
    padded = _pad(flat.to(word), group).view(-1, group)
    words = (padded << _shifts(group, bits, padded)).sum(1, keepdim=True, dtype=word)
    stream = (words >> _shifts(group_bytes, 8, words)) & 0xFF
    return stream.to(torch.uint8).reshape(-1)[: packed_bytes(flat.numel(), bits)].clone()


def unpack(stream: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Inverse of ``pack``: uint8 codes of ``shape``.

    Raises:
        ValueError: bits not in 2..8, or a stream of the wrong dtype or length.
    """
    check_int("bits", bits, MIN_BITS, MAX_BITS)
    count = math.prod(shape)
    expected = packed_bytes(count, bits)
    if stream.dtype != torch.uint8 or tuple(stream.shape) != (expected,):
        raise ValueError(
            f"packed codes are {stream.dtype} {tuple(stream.shape)}; {count} codes of {bits} bits "
            f"need uint8 ({expected},)"
        )
    group, group_bytes = _group(bits)
    word = _word(group_bytes)
    padded = _pad(stream.to(word), group_bytes).view(-1, group_bytes)
    words = (padded << _shifts(group_bytes, 8, padded)).sum(1, keepdim=True, dtype=word)
    codes: Tensor = (words >> _shifts(group, bits, words)) & (2**bits - 1)
    return codes.to(torch.uint8).reshape(-1)[:count].reshape(shape)


def _group(bits: int) -> tuple[int, int]:
    """Codes and bytes of the smallest whole unit; at most 56 bits, so it fits an int64."""
    unit = math.lcm(bits, 8)
    return unit // bits, unit // 8


def _word(size: int) -> torch.dtype:
    """The narrowest integer that holds ``size`` bytes and whose shifts torch has."""
    return torch.uint8 if size == 1 else torch.int32 if size < 4 else torch.int64


def _shifts(count: int, bits: int, like: Tensor) -> Tensor:
    return (torch.arange(count, device=like.device) * bits).to(like.dtype)


def _pad(flat: Tensor, multiple: int) -> Tensor:
    return torch.cat([flat, torch.zeros(-flat.numel() % multiple, dtype=flat.dtype, device=flat.device)])
