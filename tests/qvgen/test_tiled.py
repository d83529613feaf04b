"""The tiled operators against the plain reference: same bits forward, same gradients to rounding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from qvgen import fused, tiled
from qvgen.api import quantize_
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.fake_quant import token_fake_quant, weight_fake_quant
from qvgen.quantizers import activation_fake_quant
from qvgen.static import static_fake_quant

Make = Callable[..., Tensor]
ONE = torch.ones(1)


@contextmanager
def tiles_of(size: int) -> Iterator[tuple[mock.Mock, mock.Mock]]:
    """Tiles of ``size`` elements, so that small tensors have many; what is called is recorded."""
    token = mock.patch.object(tiled, "token_fake_quant", wraps=tiled.token_fake_quant)
    weight = mock.patch.object(tiled, "weight_fake_quant", wraps=tiled.weight_fake_quant)
    with mock.patch.multiple(tiled, TILE=size, GRAIN=1), token as t, weight as w:
        yield t, w


def gradients(make: Make, leaves: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Result and gradients; leaves that ask for none keep none."""
    inputs = [t.detach().requires_grad_(t.requires_grad) for t in leaves]
    out = make(*inputs)
    wanted = [t for t in inputs if t.requires_grad]
    return out, list(torch.autograd.grad(out, wanted, upstream.to(out.dtype)))


def compare(make: Make, leaves: tuple[Tensor, ...], size: int, rtol: float = 1e-4) -> None:
    """Tiled and reference: bits of the result, gradients relative to the largest of their tensor.

    A gradient that is a sum may cancel: what is left is good to a rounding of the terms, not of itself.
    """
    shape = make(*leaves).shape
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    terms = 2.0**-20 * float(upstream.abs().sum())
    with tiles_of(size) as calls:
        out, found = gradients(make, leaves, upstream)
        assert sum(c.call_count for c in calls) == 1, "the tiled operator was not taken"
    with fused.disabled(), tiles_of(size) as calls:
        reference, expected = gradients(make, leaves, upstream)
        assert sum(c.call_count for c in calls) == 0
    assert out.dtype == reference.dtype and torch.equal(out, reference)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        size_of_it = float(b.abs().max()) if b.numel() else 0.0
        assert_close(a, b, rtol=rtol, atol=rtol * size_of_it + terms)


def random(*shape: int, seed: int = 0, grad: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).requires_grad_(grad)


sizes = st.integers(1, 40)


@given(
    rows=st.integers(1, 9), columns=sizes, batch=st.integers(1, 3), bits=st.integers(2, 8),
    symmetric=st.booleans(), per_sample=st.booleans(), tile=st.integers(1, 90), whole=st.booleans(),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_tokens_equal_the_reference(
    rows: int, columns: int, batch: int, bits: int, symmetric: bool, per_sample: bool, tile: int,
    whole: bool, seed: int,
) -> None:  # fmt: skip
    x = random(batch, rows, columns, seed=seed, grad=False)
    # Whole numbers tie within a row, and make rows of one sign and of zeros only.
    x = ((x * 2).round() if whole else x).requires_grad_()
    shape = (batch, 1, 1) if per_sample else (1,)
    lower, upper = (torch.linspace(a, 0.9, math.prod(shape)).view(shape).requires_grad_() for a in (0.5, 0.7))

    def make(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        return token_fake_quant(x, lower, upper, 2**bits - 1, symmetric=symmetric)

    compare(make, (x, lower, upper), tile)


@given(
    rows=sizes, groups=st.integers(1, 4), width=sizes, bits=st.integers(2, 8), tile=st.integers(1, 90),
    granularity=st.sampled_from(["channel", "group", "tensor"]), learnt_zero=st.booleans(),
    clip_first=st.booleans(), rank=st.integers(0, 5), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_weights_equal_the_reference(
    rows: int, groups: int, width: int, bits: int, tile: int, granularity: str, learnt_zero: bool,
    clip_first: bool, rank: int, seed: int,
) -> None:  # fmt: skip
    columns, q_max = groups * width, 2**bits - 1
    shape = {"channel": (rows, 1), "group": (rows, groups), "tensor": (1, 1)}[granularity]
    generator = torch.Generator().manual_seed(seed)
    scale = (torch.rand(shape, generator=generator) * 2.5 + 0.1) / q_max
    zero = (torch.rand(shape, generator=generator) * q_max).requires_grad_(learnt_zero)
    leaves: tuple[Tensor, ...] = (random(rows, columns, seed=seed), scale.requires_grad_(), zero)
    if rank:
        gamma = torch.linspace(1, 0, rank)
        leaves = (*leaves, random(rows, rank), gamma, random(rank, columns, seed=3))

    def make(weight: Tensor, scale: Tensor, zero: Tensor, *factors: Tensor) -> Tensor:
        phi = (factors[0], factors[1], factors[2]) if factors else None
        return weight_fake_quant(weight, scale, zero, q_max, 0.3, phi=phi, clip_first=clip_first)

    compare(make, leaves, tile)


@pytest.mark.parametrize("granularity", ["token", "group", "tensor"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_all_granularities_of_activations(granularity: str, symmetric: bool) -> None:
    config = QuantConfig(
        w_bits=4, a_bits=3, a_granularity=granularity, a_group_size=8, a_symmetric=symmetric  # type: ignore[arg-type]
    )  # fmt: skip

    def make(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        return activation_fake_quant(x, lower, upper, config)

    clips = [torch.tensor([0.9, 0.8]).view(2, 1, 1).requires_grad_() for _ in range(2)]
    compare(make, (random(2, 5, 24), *clips), 50)


@pytest.mark.parametrize("clip_first", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
def test_static_steps_are_cut_within_their_long_rows(samples: int, clip_first: bool) -> None:
    def make(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return static_fake_quant(x, scale, zero, 7, 0.1, clip_first=clip_first)

    shape = (samples, 1, 1) if samples > 1 else (1,)
    scale, zero = torch.full(shape, 0.4), torch.full(shape, 3.3)
    compare(make, (random(3, 7, 11), scale.requires_grad_(), zero.requires_grad_()), 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_and_results(dtype: torch.dtype) -> None:
    clip = torch.tensor([0.9], requires_grad=True)
    x = random(5, 33, dtype=dtype)
    compare(lambda x, c: token_fake_quant(x, c, c, 7), (x, clip), 70)
    compare(lambda x, c: token_fake_quant(x, c, c, 7, dtype=torch.float32), (x, clip), 70)
    compare(lambda x, c: token_fake_quant(x, c, c, 7, dtype=dtype), (random(5, 33), clip), 70)
    leaves = (random(4, 30, dtype=dtype), torch.full((4, 1), 0.2), torch.full((4, 1), 3.0))
    compare(lambda w, s, z: weight_fake_quant(w, s, z, 7, dtype=dtype), leaves, 70)


def test_strides_of_input_and_gradient() -> None:
    def make(x: Tensor) -> Tensor:
        return token_fake_quant(x, ONE, ONE, 7)

    base = random(6, 5, 20, grad=False)
    for x in (base.transpose(0, 1), base.mT, base[:, ::2, 1::3], base[0].expand(4, 5, 20), base[..., :1]):
        with tiles_of(16):
            leaf = x.detach().requires_grad_()
            out = make(leaf)
            torch.autograd.backward([out.sum()])  # the gradient is one number with strides of zero
        copied = x.contiguous().requires_grad_()
        with fused.disabled():
            reference = make(copied)
            torch.autograd.backward([reference.sum()])
        assert torch.equal(out, reference)
        assert_close(leaf.grad, copied.grad, rtol=1e-4, atol=1e-4)


def test_nan_and_infinity_pass_as_in_the_reference() -> None:
    x = random(4, 12, grad=False)
    x[1, 3], x[2, 0], x[3, 5] = math.nan, math.inf, -math.inf
    scale, zero = torch.full((4, 1), 0.3), torch.full((4, 1), 2.0)
    makes: tuple[Callable[[], Tensor], ...] = (
        lambda: token_fake_quant(x, ONE, ONE, 7),
        lambda: weight_fake_quant(x, scale, zero, 7),
    )
    for make in makes:
        out = make()
        with fused.disabled():
            reference = make()
        assert torch.equal(out.isnan(), reference.isnan()) and out[1].isnan().any()
        assert torch.equal(out.nan_to_num(7.0), reference.nan_to_num(7.0))


def test_gradcheck_of_clamped_weights_and_phi() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-2, 10, (5, 12), generator=generator).double()
    zero = torch.tensor([[3.2], [1.7], [4.0], [2.9], [3.5]], dtype=torch.float64, requires_grad=True)
    scale = torch.full((5, 1), 0.5, dtype=torch.float64, requires_grad=True)
    weight = ((codes - zero) * scale).detach()
    weight_clamped = torch.where((codes < 0) | (codes > 7), weight, torch.zeros(()).double())
    left = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    right = torch.randn(2, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    gamma = torch.tensor([1.0, 0.5], dtype=torch.float64)

    def outside(scale: Tensor, zero: Tensor, left: Tensor, right: Tensor) -> Tensor:
        # Only clamped elements: inside, a straight-through gradient is not that of the function.
        out = weight_fake_quant(weight_clamped, scale, zero, 7, phi=(left, gamma, right))
        return out * (weight_clamped != 0)

    with tiles_of(16) as (_, weights):
        assert torch.autograd.gradcheck(outside, (scale, zero, left, right))
        assert weights.call_count > 1


def test_what_it_does_not_serve_takes_the_reference() -> None:
    gamma = torch.ones(2, requires_grad=True)
    weight, scale, zero = random(4, 6), torch.full((4, 1), 0.2), torch.full((4, 1), 3.0)
    with tiles_of(16) as calls:
        assert token_fake_quant(torch.empty(0, 6), ONE, ONE, 7).shape == (0, 6)
        assert weight_fake_quant(torch.empty(0, 6), scale[:0], zero[:0], 7).shape == (0, 6)
        # scales of more digits than the codes are computed in, clips of more rows than the input
        assert token_fake_quant(weight, ONE.double(), ONE.double(), 7).shape == (4, 6)
        assert weight_fake_quant(weight, scale.double(), zero.double(), 7).dtype == torch.float64
        assert token_fake_quant(random(6), torch.ones(3, 1), torch.ones(3, 1), 7).shape == (3, 6)
        out = weight_fake_quant(weight, scale, zero, 7, phi=(random(4, 2), gamma, random(2, 6)))
        assert [c.call_count for c in calls] == [0, 0]
    torch.autograd.backward(out.sum())
    assert gamma.grad is not None and gamma.grad.abs().sum() > 0


def test_a_second_derivative_is_refused() -> None:
    x = random(3, 8)
    (first,) = torch.autograd.grad(token_fake_quant(x, ONE, ONE, 7).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(first.sum())


def test_the_number_of_threads_changes_no_bit() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            x, clip = random(700, 240), torch.tensor([0.9], requires_grad=True)
            out = token_fake_quant(x, clip, clip, 7)
            results.append((out, *torch.autograd.grad(out, (x, clip), random(700, 240, seed=2))))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_compiled_layer_has_one_graph_without_tiles() -> None:
    model = nn.Sequential(nn.Linear(12, 8))
    quantize_(model, QVGenConfig(quant=QuantConfig(w_bits=3, a_bits=3, learn_clip=True), rank=4))
    x = random(5, 12)
    expected = model(x)
    with tiles_of(16) as calls:
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert_close(compiled(x), expected)
        assert [c.call_count for c in calls] == [0, 0]
        model(x)
        assert [c.call_count for c in calls] == [1, 1]


def test_saves_its_inputs_and_row_ranges_only() -> None:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x, clip = random(50, 24), torch.ones(1, requires_grad=True)
    weight, scale, zero = random(50, 24), torch.ones(50, 1).requires_grad_(), torch.ones(50, 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        token_fake_quant(x, clip, clip, 7)
        weight_fake_quant(weight, scale, zero, 7, phi=(random(50, 2), torch.ones(2), random(2, 24)))
    inputs = {t.data_ptr() for t in (x, weight)}
    large = [t for t in saved if t.numel() >= x.numel()]
    assert {t.data_ptr() for t in large} == inputs
    assert all(t.numel() <= 100 for t in saved if t.data_ptr() not in inputs)


def test_tiles_cover_a_matrix_once() -> None:
    for rows, columns, size, whole in itertools.product((1, 7), (1, 10, 33), (1, 8, 70), (True, False)):
        matrix = torch.zeros(rows, columns)
        with tiles_of(size):
            tiles = list(tiled._tiles(matrix, whole))
            assert all(t.number < tiled._pieces(matrix) for t in tiles)
        for tile in tiles:
            assert all(b.shape == matrix[tile.place].shape for b in tile.buffers) or tile is not tiles[-1]
            matrix[tile.place] += 1
        assert matrix.eq(1).all()
