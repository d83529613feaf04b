"""The packed layout against NumPy's bit order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvgen.packed.layout import centre, pack_rows, row_bytes, unpack_rows


@given(
    bits=st.integers(2, 8), rows=st.integers(1, 5), columns=st.integers(1, 100), seed=st.integers(0, 2**31)
)
@settings(max_examples=100, deadline=None)
def test_rows_are_little_endian_bit_streams(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns), dtype=np.uint8)
    packed = pack_rows(torch.from_numpy(codes), bits)
    padded = np.zeros((rows, -(-columns // 32) * 32), dtype=np.uint8)
    padded[:, :columns] = codes
    plain = np.unpackbits(padded[..., None], axis=2, count=bits, bitorder="little").reshape(rows, -1)
    assert np.array_equal(packed.numpy(), np.packbits(plain, axis=1, bitorder="little"))
    assert np.array_equal(unpack_rows(packed, bits, columns).numpy(), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_thirty_two_codes_are_as_many_words_as_bits(bits: int) -> None:
    assert row_bytes(32, bits) == 4 * bits and row_bytes(33, bits) == 8 * bits
    codes = torch.arange(64, dtype=torch.uint8).bitwise_and(2**bits - 1)[None]
    words = pack_rows(codes, bits).view(torch.int32).view(2, bits)
    assert bits == 8 or torch.equal(words[0], words[1])  # the period of the codes is at most 32
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes[0, :32]))
    assert [int(w) & 0xFFFFFFFF for w in words[0]] == [number >> (32 * i) & 0xFFFFFFFF for i in range(bits)]


def test_a_matrix_larger_than_a_chunk() -> None:
    codes = torch.randint(0, 8, (700, 8192), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack_rows(codes, 3)
    assert packed.shape == (700, 3072)
    assert torch.equal(unpack_rows(packed, 3, 8192), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_centred_codes(bits: int) -> None:
    codes = torch.arange(2**bits, dtype=torch.uint8)
    assert centre(codes, bits).tolist() == list(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"expected \[rows, columns\]"):
        pack_rows(torch.zeros(4, dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match=r"codes span 0\.\.16; 4 bits hold 0\.\.15"):
        pack_rows(torch.full((1, 4), 16), 4)
    with pytest.raises(ValueError, match=r"need uint8 \[rows, 16\]"):
        unpack_rows(torch.zeros(2, 15, dtype=torch.uint8), 4, 32)
    with pytest.raises(ValueError, match="bits is 9"):
        unpack_rows(torch.zeros(2, 15, dtype=torch.uint8), 9, 32)
