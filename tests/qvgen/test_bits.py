"""Bit packing against NumPy's unpackbits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvgen.packed.bits import pack, packed_bytes, unpack


@given(st.integers(2, 8), st.integers(0, 100), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_round_trip_and_layout(bits: int, count: int, random: object) -> None:
    codes = np.array([random.randrange(2**bits) for _ in range(count)], dtype=np.uint8)  # type: ignore[attr-defined]
    stream = pack(torch.from_numpy(codes), bits)
    assert stream.shape == (-(-count * bits // 8),) and packed_bytes(count, bits) == len(stream)
    assert np.array_equal(unpack(stream, bits, (count,)).numpy(), codes)
    plain = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little").reshape(-1)
    assert np.array_equal(stream.numpy(), np.packbits(plain, bitorder="little"))


def test_three_bits_cost_three_bits() -> None:
    codes = torch.arange(8, dtype=torch.uint8).repeat(100).view(40, 20)
    stream = pack(codes, 3)
    assert stream.numel() == 300
    # 0..7 in three bits each, least significant first: 0x88, 0xC6, 0xFA
    assert stream[:3].tolist() == [0b10001000, 0b11000110, 0b11111010]
    assert torch.equal(unpack(stream, 3, (40, 20)), codes)


def test_errors() -> None:
    with pytest.raises(ValueError, match="bits is 1"):
        pack(torch.zeros(3, dtype=torch.uint8), 1)
    with pytest.raises(ValueError, match=r"codes span 0..8; 3 bits hold 0..7"):
        pack(torch.tensor([0, 8]), 3)
    with pytest.raises(ValueError, match="integer dtype"):
        pack(torch.zeros(3), 3)
    with pytest.raises(ValueError, match=r"need uint8 \(3,\)"):
        unpack(torch.zeros(4, dtype=torch.uint8), 3, (8,))
