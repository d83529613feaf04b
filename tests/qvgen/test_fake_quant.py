"""Forward and backward of the two operators against hand-worked numbers and plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from qvgen.fake_quant import (
    dequantize,
    token_fake_quant,
    token_range,
    token_scale,
    weight_codes,
    weight_fake_quant,
)
from tests.qvgen.autograd import assert_like_autograd

ONE = torch.ones(1)
rows = arrays(np.float32, (3, 6), elements=st.floats(-100, 100, width=32))


def ste_round(x: Tensor) -> Tensor:
    return x + (torch.round(x) - x).detach()


def plain_weight(w: Tensor, s: Tensor, z: Tensor, q_max: int) -> Tensor:
    return s * (torch.clamp(ste_round(w / s + z), 0, q_max) - z)


def plain_token(x: Tensor, lower: Tensor, upper: Tensor, q_max: int) -> Tensor:
    low = x.amin(-1, keepdim=True).clamp(max=0) * lower
    high = x.amax(-1, keepdim=True).clamp(min=0) * upper
    s = ((high - low) / q_max).clamp(min=1e-9)
    z = torch.round(-low / s).clamp(0, q_max).detach()
    return s * (torch.clamp(ste_round(x / s) + z, 0, q_max) - z)


def test_weight_forward_by_hand() -> None:
    # s = 0.5, z = 1.5, codes 0..3: w/s + z = -0.5, 1.5, 2.1, 5.5 -> rounded 0 (even), 2, 2, 3 (clamped)
    w = torch.tensor([[-1.0, 0.0, 0.3, 2.0]])
    s, z = torch.tensor([[0.5]]), torch.tensor([[1.5]])
    assert weight_codes(w, s, z, 3).tolist() == [[0, 2, 2, 3]]
    assert weight_fake_quant(w, s, z, 3).tolist() == [[-0.75, 0.25, 0.25, 0.75]]


def test_weight_gradients_by_hand() -> None:
    # Same numbers as above; the last element is clamped.
    w = torch.tensor([[-1.0, 0.0, 0.3, 2.0]], requires_grad=True)
    s = torch.tensor([[0.5]], requires_grad=True)
    z = torch.tensor([[1.5]], requires_grad=True)
    weight_fake_quant(w, s, z, 3, grad_scale=0.1).backward(torch.tensor([[1.0, 2.0, 4.0, 8.0]]))
    assert w.grad is not None and s.grad is not None and z.grad is not None
    assert w.grad.tolist() == [[1, 2, 4, 0]]
    # inside: round(v) - v = 0.5, 0.5, -0.1; clamped: c - z = 1.5
    assert s.grad.item() == pytest.approx(0.1 * (0.5 * 1 + 0.5 * 2 - 0.1 * 4 + 1.5 * 8), rel=1e-5)
    assert z.grad.item() == pytest.approx(0.1 * (-0.5 * 8))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weight_equals_plain_autograd(bits: int) -> None:
    g = torch.Generator().manual_seed(bits)
    q_max = 2**bits - 1
    leaves = [
        torch.randn(7, 33, generator=g),
        torch.rand(7, 1, generator=g) * 2.5 / q_max + 0.1 / q_max,
        torch.rand(7, 1, generator=g) * q_max,
    ]
    upstream = torch.randn(7, 33, generator=g)
    assert_like_autograd(
        leaves, upstream, lambda t: weight_fake_quant(*t, q_max), lambda t: plain_weight(*t, q_max)
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("clip", [1.0, 0.6])
def test_token_equals_plain_autograd(bits: int, clip: float) -> None:
    g = torch.Generator().manual_seed(bits)
    q_max = 2**bits - 1
    x = torch.randn(3, 5, 24, generator=g)
    x[0, 0] = x[0, 0].abs()  # one-sided tokens
    x[0, 1] = -x[0, 1].abs()
    upstream = torch.randn(3, 5, 24, generator=g)
    leaves = [x, torch.tensor([clip]), torch.tensor([clip * 0.9])]
    assert_like_autograd(
        leaves, upstream, lambda t: token_fake_quant(*t, q_max), lambda t: plain_token(*t, q_max)
    )


def test_token_by_hand() -> None:
    # range [-1, 2], 2 bits: s = 1, z = 1, codes 0..3
    x = torch.tensor([[-1.0, 0.2, 0.7, 2.0]])
    assert token_fake_quant(x, ONE, ONE, 3).tolist() == [[-1, 0, 1, 2]]
    # upper end clipped to half: range [-1, 1], s = 2/3, z = round(1.5) = 2, codes - z in -2..1
    half = token_fake_quant(x, ONE, torch.tensor([0.5]), 3)
    torch.testing.assert_close(half, torch.tensor([[-2 / 1.5, 0.0, 1 / 1.5, 1 / 1.5]]))


@pytest.mark.parametrize("sign", [1, -1])
def test_one_sided_rows_survive(sign: int) -> None:
    # The official code turns inputs in [3, 4] into about 0.9; the range must include zero.
    x = sign * torch.linspace(3, 4, 16)[None]
    error = (token_fake_quant(x, ONE, ONE, 15) - x).abs().max()
    assert error <= 4 / 15 / 2 + 1e-6


def test_zero_row_stays_zero_with_finite_gradient() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    out = token_fake_quant(x, ONE, ONE, 7)
    out.sum().backward()
    assert out.eq(0).all() and x.grad is not None and x.grad.isfinite().all()


def test_codes_are_float32_exact_in_bfloat16() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    in_bf16 = token_fake_quant(x, ONE, ONE, 15)
    assert in_bf16.dtype == torch.bfloat16
    assert torch.equal(in_bf16, token_fake_quant(x.float(), ONE, ONE, 15).bfloat16())


@given(rows, st.integers(2, 8), st.floats(0.1, 1.0))
@settings(max_examples=150, deadline=None)
def test_token_properties(values: np.ndarray, bits: int, clip: float) -> None:
    q_max, x, ratio = 2**bits - 1, torch.from_numpy(values), torch.tensor([clip], dtype=torch.float32)
    out = token_fake_quant(x, ratio, ratio, q_max)
    low, high = token_range(x)
    scale, zero_point = token_scale(low * ratio, high * ratio, q_max)
    codes = (out.double() / scale.double()).round() + zero_point
    assert ((codes >= 0) & (codes <= q_max)).all()
    torch.testing.assert_close(out.double(), scale.double() * (codes - zero_point), rtol=1e-6, atol=1e-12)
    assert (out[x == 0] == 0).all()
    order = x.argsort(-1)
    assert (out.gather(-1, order).diff(dim=-1) >= 0).all()
    if clip == 1.0:
        assert ((out - x).abs() <= scale * 0.5 * (1 + 1e-4) + 1e-9 + (scale * 0.5)).all()


@given(rows, st.integers(2, 8), st.floats(0.01, 10), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_weight_properties(values: np.ndarray, bits: int, step: float, zero: int) -> None:
    q_max, w = 2**bits - 1, torch.from_numpy(values)
    s = torch.full((3, 1), step)
    z = torch.full((3, 1), float(min(zero, q_max)))
    codes = weight_codes(w, s, z, q_max)
    assert torch.equal(codes, codes.round()) and ((codes >= 0) & (codes <= q_max)).all()
    expected = np.clip(np.rint(values / np.float32(step) + np.float32(z[0, 0])), 0, q_max)
    assert np.array_equal(codes.numpy(), expected)
    once = weight_fake_quant(w, s, z, q_max)
    assert torch.equal(weight_fake_quant(once, s, z, q_max), once)
    assert (once[w == 0] == 0).all()
    assert (once.gather(-1, w.argsort(-1)).diff(dim=-1) >= 0).all()
    assert torch.equal(once, dequantize(codes, s, z))
    assert math.isfinite(float(once.sum()))
