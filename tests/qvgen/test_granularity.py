"""Every granularity, symmetric and not, against plain NumPy in float64 and against autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from qvgen.api import convert_, frozen_layers, quant_layers, quantize_
from qvgen.checkpoint import load_quantized, save_quantized
from qvgen.config import QuantConfig
from qvgen.fake_quant import dequantize, token_fake_quant, weight_codes, weight_fake_quant
from qvgen.quantizers import (
    ActivationQuantizer,
    ClipContext,
    WeightQuantizer,
    activation_fake_quant,
    initial_scale,
    scale_shape,
)
from tests.qvgen.autograd import assert_like_autograd

WEIGHTS = [("tensor", 64), ("channel", 64), ("group", 4), ("group", 12)]
ACTIVATIONS = [("token", 64), ("tensor", 64), ("group", 4), ("group", 12)]
BITS = [2, 3, 4, 5, 8]
matrices = arrays(np.float32, (3, 12), elements=st.floats(-100, 100, width=32))


def config(bits: int, **options: Any) -> QuantConfig:
    return QuantConfig(w_bits=bits, a_bits=bits, **options)


def weight_blocks(shape: tuple[int, int], granularity: str, size: int) -> list[tuple[int, int, Any]]:
    """(row, column) of the scale and the part of the weight it serves."""
    rows, columns = shape
    if granularity == "tensor":
        return [(0, 0, np.s_[:, :])]
    size = columns if granularity == "channel" else size
    return [
        (i, j, np.s_[i, j * size : (j + 1) * size]) for i, j in product(range(rows), range(columns // size))
    ]


def reference_weight(
    w: np.ndarray, s: float, z: float, q_max: int, upstream: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Output and gradients to w, s and z of one block, element by element."""
    out, grad_w = np.zeros_like(w), np.zeros_like(w)
    grad_s = grad_z = 0.0
    for index, value in np.ndenumerate(w):
        v = value / s + z
        code = float(np.rint(v))
        if code < 0 or code > q_max:
            code = min(max(code, 0.0), float(q_max))
            grad_s += (code - z) * float(upstream[index])
            grad_z += -s * float(upstream[index])
        else:
            grad_w[index] = upstream[index]
            grad_s += (code - v) * float(upstream[index])
        out[index] = s * (code - z)
    return out, grad_w, grad_s, grad_z


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("granularity", "size"), WEIGHTS)
def test_weight_against_numpy(bits: int, symmetric: bool, granularity: Any, size: int) -> None:
    g = torch.Generator().manual_seed(bits)
    weight, upstream = torch.randn(5, 24, generator=g), torch.randn(5, 24, generator=g)
    chosen = config(
        bits, w_symmetric=symmetric, w_granularity=granularity, w_group_size=size, scale_param="linear"
    )
    quantizer = WeightQuantizer(weight, chosen)
    with torch.no_grad():  # clamp more of the weights, as training may
        quantizer.scale().mul_(0.8317)
    leaf = weight.clone().requires_grad_()
    out = quantizer(leaf)
    out.backward(upstream)
    blocks = weight_blocks((5, 24), granularity, size)
    assert len(blocks) == quantizer.scale().numel()
    w64, up64 = weight.double().numpy(), upstream.double().numpy()
    assert leaf.grad is not None and quantizer.linear_scale is not None
    assert quantizer.linear_scale.grad is not None
    levels = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    for i, j, part in blocks:
        s, z = quantizer.scale()[i, j].item(), quantizer.zero_point[i, j].item()
        assert not symmetric or z == 2 ** (bits - 1)
        expected, grad_w, grad_s, grad_z = reference_weight(w64[part], s, z, 2**bits - 1, up64[part])
        np.testing.assert_allclose(out.detach().numpy()[part], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(leaf.grad.numpy()[part], grad_w.astype(np.float32))
        factor = 1 / np.sqrt(w64[part].size * levels)
        assert quantizer.linear_scale.grad[i, j].item() == pytest.approx(factor * grad_s, rel=2e-3, abs=1e-4)
        if symmetric:
            assert not quantizer.zero_point.requires_grad
        else:
            assert quantizer.zero_point.grad is not None
            assert quantizer.zero_point.grad[i, j].item() == pytest.approx(
                factor * grad_z, rel=1e-4, abs=1e-6
            )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("granularity", "size"), WEIGHTS)
def test_search_finds_the_best_shrink_of_each_block(
    bits: int, symmetric: bool, granularity: Any, size: int
) -> None:
    weight = torch.randn(4, 24, generator=torch.Generator().manual_seed(bits))
    weight[2] = weight[2].abs() + 1  # one sign: the range must include zero
    chosen = config(
        bits, w_symmetric=symmetric, w_granularity=granularity, w_group_size=size, zero_point="fixed"
    )
    scale, zero_point = initial_scale(weight, chosen)
    assert scale.shape == zero_point.shape == scale_shape((4, 24), chosen)
    q_max = 2**bits - 1

    def error(w: np.ndarray, p: float) -> float:
        low, high = min(w.min(), 0.0) * p, max(w.max(), 0.0) * p
        s = max(high, -low) / (q_max // 2) if symmetric else (high - low) / q_max
        z = q_max // 2 + 1 if symmetric else min(max(np.rint(-low / s), 0), q_max)
        return float((np.abs(s * (np.clip(np.rint(w / s + z), 0, q_max) - z) - w) ** 2.4).sum())

    for i, j, part in weight_blocks((4, 24), granularity, size):
        w = weight.double().numpy()[part]
        s, z = scale[i, j].item(), zero_point[i, j].item()
        found = float((np.abs(s * (np.clip(np.rint(w / s + z), 0, q_max) - z) - w) ** 2.4).sum())
        best = min(error(w, 1 - k / 100) for k in range(80))
        assert found <= best * (1 + 1e-3) + 1e-9


def test_search_of_a_matrix_larger_than_the_work_space() -> None:
    weight = torch.randn(40, 4000, generator=torch.Generator().manual_seed(0))
    scale, _ = initial_scale(weight, config(4, w_granularity="tensor", w_symmetric=True))
    w = weight.double().numpy().reshape(-1)
    errors = []
    for k in range(80):
        s = np.abs(w).max() * (1 - k / 100) / 7
        errors.append(float((np.abs(s * np.clip(np.rint(w / s), -8, 7) - w) ** 2.4).sum()))
    best = np.abs(w).max() * (1 - int(np.argmin(errors)) / 100) / 7
    assert scale.item() == pytest.approx(best, rel=1e-5)


def test_symmetric_by_hand() -> None:
    # 2 bits: codes 0..3 stand for -2..1 steps; minmax scale = absmax / 1
    w = torch.tensor([[-2.0, -0.9, 0.4, 1.6]])
    scale, zero = initial_scale(w, config(2, w_symmetric=True, range_init="minmax"))
    assert scale.tolist() == [[2.0]] and zero.tolist() == [[2.0]]
    assert weight_codes(w, torch.ones(1, 1), zero, 3).tolist() == [[0, 1, 2, 3]]
    assert weight_fake_quant(w, torch.ones(1, 1), zero, 3).tolist() == [[-2, -1, 0, 1]]
    one = torch.ones(1)
    # 3 bits: s = 3 / 3; the token's largest side makes the scale
    x = torch.tensor([[-3.0, 0.4, 1.6, 2.6]])
    assert token_fake_quant(x, one, one, 7, symmetric=True).tolist() == [[-3, 0, 2, 3]]
    # clipped to [-1.5, 2.6]: s = 2.6 / 3, and -3 / s = -3.46 keeps its code -3
    half = token_fake_quant(x, one / 2, one, 7, symmetric=True)
    torch.testing.assert_close(half, torch.tensor([[-2.6, 0, 2.6 * 2 / 3, 2.6]]))


def plain_rows(rows: Tensor, lower: Tensor, upper: Tensor, q_max: int, symmetric: bool) -> Tensor:
    """The formula on [..., n] by ordinary autograd."""
    low = rows.amin(-1, keepdim=True).clamp(max=0) * lower
    high = rows.amax(-1, keepdim=True).clamp(min=0) * upper
    if symmetric:
        s = torch.maximum(high, -low) / (q_max // 2)
        z = torch.full_like(s, q_max // 2 + 1)
    else:
        s = (high - low) / q_max
        z = torch.round(-low / s).clamp(0, q_max).detach()
    v = rows / s
    v = v + (torch.round(v) - v).detach()
    return s * (torch.clamp(v + z, 0, q_max) - z)


def plain_activation(x: Tensor, lower: Tensor, upper: Tensor, c: QuantConfig) -> Tensor:
    """Loops over samples, tokens and groups."""
    out = torch.zeros_like(x)
    size = {"token": x.shape[-1], "tensor": x.shape[-1], "group": c.a_group_size}[c.a_granularity]
    for b in range(x.shape[0]):
        parts: list[Any]
        if c.a_granularity == "tensor":
            parts = [np.s_[b]]
        else:
            parts = [np.s_[b, t, g : g + size] for t in range(x.shape[1]) for g in range(0, x.shape[2], size)]
        for part in parts:
            row = plain_rows(x[part].reshape(-1), lower[b], upper[b], 2**c.a_bits - 1, c.a_symmetric)
            out[part] = row.reshape(x[part].shape)
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("granularity", "size"), ACTIVATIONS)
def test_activation_against_float64_loops(bits: int, symmetric: bool, granularity: Any, size: int) -> None:
    g = torch.Generator().manual_seed(bits)
    c = config(bits, a_symmetric=symmetric, a_granularity=granularity, a_group_size=size)
    x, upstream = torch.randn(3, 4, 24, generator=g), torch.randn(3, 4, 24, generator=g)
    x[0, 0] = x[0, 0].abs()
    leaves = [x, torch.tensor([0.9, 0.6, 0.8]), torch.tensor([0.7, 0.95, 0.5])]

    def ours(t: Sequence[Tensor]) -> Tensor:
        return activation_fake_quant(t[0], t[1].view(3, 1, 1), t[2].view(3, 1, 1), c)

    assert_like_autograd(leaves, upstream, ours, lambda t: plain_activation(*t, c), tolerance=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("granularity", "size"), WEIGHTS)
def test_gradcheck_of_clamped_weights(symmetric: bool, granularity: Any, size: int) -> None:
    """Where every code is clamped the function is smooth: no straight-through estimate in it."""
    g = torch.Generator().manual_seed(0)
    c = config(3, w_symmetric=symmetric, w_granularity=granularity, w_group_size=size)
    sign = torch.randn(3, 12, generator=g, dtype=torch.float64).sign()
    weight = (sign * (5 + torch.rand(3, 12, generator=g, dtype=torch.float64))).requires_grad_()
    shape = scale_shape((3, 12), c)
    scale = (0.2 + torch.rand(shape, generator=g, dtype=torch.float64) * 0.1).requires_grad_()
    zero = (torch.rand(shape, generator=g, dtype=torch.float64) * 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, s, z: weight_fake_quant(w, s, z, 7), (weight, scale, zero))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("granularity", "size"), ACTIVATIONS)
def test_gradcheck_of_clamped_activations(symmetric: bool, granularity: Any, size: int) -> None:
    g = torch.Generator().manual_seed(1)
    c = config(3, a_symmetric=symmetric, a_granularity=granularity, a_group_size=size)
    # magnitudes 1..1.5 against a range clipped to about a third: all codes at an end
    x = torch.randn(2, 3, 24, generator=g, dtype=torch.float64).sign()
    x = (x * (1 + torch.rand(2, 3, 24, generator=g, dtype=torch.float64) / 2)).requires_grad_()
    logits = [
        torch.tensor(v, dtype=torch.float64).view(2, 1, 1).requires_grad_()
        for v in ([-0.7, -1.1], [-0.9, -0.8])
    ]

    def function(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        return activation_fake_quant(x, torch.sigmoid(lower), torch.sigmoid(upper), c)

    assert torch.autograd.gradcheck(function, (x, *logits), eps=1e-7)


def test_gradient_where_nothing_is_clamped_passes_whole() -> None:
    # all weights inside the range: identity to w, and the scale sees rounding errors only
    w = torch.linspace(-1, 1, 24).view(2, 12).requires_grad_()
    scale = torch.full((2, 3), 0.3, requires_grad=True)
    zero = torch.full((2, 3), 4.0)
    weight_fake_quant(w, scale, zero, 7).sum().backward()
    assert w.grad is not None and torch.equal(w.grad, torch.ones(2, 12))
    v = w.detach().double() / 0.3
    error = (v.round() - v).view(2, 3, 4).sum(-1)
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad.double(), error, rtol=1e-4, atol=1e-5)


@given(matrices, st.integers(2, 8), st.booleans(), st.sampled_from(WEIGHTS[1:] + [("tensor", 1)]))
@settings(max_examples=150, deadline=None)
def test_weight_properties(
    values: np.ndarray, bits: int, symmetric: bool, granularity: tuple[Any, int]
) -> None:
    c = config(
        bits,
        w_symmetric=symmetric,
        w_granularity=granularity[0],
        w_group_size=max(granularity[1], 2),
        zero_point="fixed",
        range_init="minmax",
    )
    if granularity[0] == "group" and 12 % granularity[1]:
        return
    w, q_max = torch.from_numpy(values), 2**bits - 1
    scale, zero = initial_scale(w, c)
    codes = weight_codes(w, scale, zero, q_max)
    assert torch.equal(codes, codes.round()) and bool(((codes >= 0) & (codes <= q_max)).all())
    once = weight_fake_quant(w, scale, zero, q_max)
    assert torch.equal(once, dequantize(codes, scale, zero))
    assert torch.equal(weight_fake_quant(once, scale, zero, q_max), once)
    assert bool((once[w == 0] == 0).all())
    for _, _, part in weight_blocks((3, 12), *granularity):
        order = np.argsort(values[part], axis=None, kind="stable")
        assert (np.diff(once.numpy()[part].reshape(-1)[order]) >= 0).all()


@given(matrices, st.integers(2, 8), st.booleans(), st.sampled_from(["token", "tensor", "group"]))
@settings(max_examples=150, deadline=None)
def test_activation_properties(values: np.ndarray, bits: int, symmetric: bool, granularity: Any) -> None:
    c = config(bits, a_symmetric=symmetric, a_granularity=granularity, a_group_size=4)
    x, one = torch.from_numpy(values)[None], torch.ones(1)
    out = activation_fake_quant(x, one, one, c)
    assert bool((out[x == 0] == 0).all())
    size = {"token": 12, "tensor": 36, "group": 4}[granularity]
    for row, new in zip(x.reshape(-1, size), out.reshape(-1, size), strict=True):
        assert bool((new[row.argsort()].diff() >= 0).all())
        assert len(new.unique()) <= 2**bits
        # over the whole range nothing moves by more than a step (half of it, but for z's rounding)
        low, high = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
        half = 2 ** (bits - 1) - 1
        step = max(high, -low) / half if symmetric else (high - low) / (2**bits - 1)
        assert float((new - row).abs().max()) <= step * (0.5 if symmetric else 1.0) * (1 + 1e-4) + 1e-9
    if symmetric:  # the largest value is a level, so the second range is the first
        torch.testing.assert_close(activation_fake_quant(out, one, one, c), out, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"w_symmetric": True, "a_symmetric": True},
        {"w_granularity": "tensor", "a_granularity": "tensor"},
        {"w_granularity": "group", "w_group_size": 8, "a_granularity": "group", "a_group_size": 16},
    ],
)
@pytest.mark.parametrize("buckets", [1, 5])
def test_trained_converted_and_loaded_forms_agree(
    options: dict[str, Any], buckets: int, make_model: Callable[[], nn.Module], batch: Any, tmp_path: Path
) -> None:
    c = config(3, learn_clip=True, clip_buckets=buckets, store_dtype="float32", **options)
    model = quantize_(make_model(), c)
    training = model(**batch.inputs)
    exact = {name: layer.effective_weight().detach() for name, layer in quant_layers(model)}
    live = convert_(copy.deepcopy(model))
    for name, weight in exact.items():
        assert torch.equal(dict(frozen_layers(live))[name].weight, weight)  # bit for bit
    torch.testing.assert_close(live(**batch.inputs), training, rtol=1e-5, atol=1e-6)
    save_quantized(live, tmp_path, {})
    loaded = load_quantized(make_model(), tmp_path, {})
    assert torch.equal(loaded(**batch.inputs), live(**batch.inputs))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    c = config(4, a_granularity="tensor")
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9, 1, 50]).view(
        4, 1, 1
    )
    one = torch.ones(1)
    together = activation_fake_quant(x, one, one, c)
    assert torch.equal(together[:1], activation_fake_quant(x[:1], one, one, c))


def test_groups_that_do_not_fit_are_refused(make_model: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"layer first: w_group_size is 5, which does not divide 16 inputs"):
        quantize_(make_model(), config(3, w_granularity="group", w_group_size=5))
    with pytest.raises(ValueError, match=r"layer first: a_group_size is 7, which does not divide 16 inputs"):
        quantize_(make_model(), config(3, a_granularity="group", a_group_size=7))


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_in_bfloat16_are_those_of_float32(symmetric: bool) -> None:
    c = config(4, a_symmetric=symmetric, a_granularity="group", a_group_size=8, learn_clip=True)
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(3)).bfloat16()
    grads = []
    for leaf in (x.clone().requires_grad_(), x.float().requires_grad_()):
        quantizer = ActivationQuantizer(c, ClipContext(1), x.device)
        quantizer(leaf).float().sum().backward()
        assert leaf.grad is not None and quantizer.upper is not None and quantizer.upper.grad is not None
        grads.append((leaf.grad.float(), quantizer.upper.grad))
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(grads[0][1], grads[1][1])
