"""SVDQuant and ViDiT-Q as a whole against the papers' formulas in NumPy, float64, with dense matrices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from baselines.balancing import balance, balanced_error
from baselines.low_rank import Problem, refine_branch, search_smoothing, smoothed
from baselines.svdquant import GELU_SHIFT, SVDQuant
from baselines.viditq import BalanceOptions
from qvgen.config import QuantConfig
from qvgen.hadamard import hadamard_matrix, random_signs
from tests.baselines.ptq import Context, inputs, make_block, sample
from tests.finished import finished_layers

Array = Any


def rounded(x: Array, bits: int, symmetric: bool, group: int) -> Array:
    """``x`` [n, C] quantized and back, a range for each group of each row."""
    blocks = x.reshape(len(x), -1, group)
    low, high = np.minimum(blocks.min(-1, keepdims=True), 0), np.maximum(blocks.max(-1, keepdims=True), 0)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        step = np.maximum(high, -low) / top
        return (np.clip(np.rint(blocks / step), -top - 1, top) * step).reshape(x.shape)
    step = (high - low) / (2**bits - 1)
    zero = np.rint(-low / step)
    return ((np.clip(np.rint(blocks / step) + zero, 0, 2**bits - 1) - zero) * step).reshape(x.shape)


def best_of_rank(matrix: Array, rank: int) -> Array:
    u, s, v = scipy.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def svdquant_error(x: Array, weight: Array, branch: Array, residual: Array, quantize: Any) -> float:
    wanted = x @ weight.T
    found = quantize(x) @ residual.T + x @ branch.T
    return float(((found - wanted) ** 2).sum() / (wanted**2).sum())


@pytest.mark.parametrize(("symmetric", "group"), [(False, 24), (True, 12)])
def test_smoothing_and_branch_of_svdquant(symmetric: bool, group: int) -> None:
    """The grid's choice, and every error of the refinement up to its stop."""
    rank, bits = 4, 4
    weight = torch.randn(36, 24, generator=torch.Generator().manual_seed(3))
    x = inputs(11)[0]
    granularity: Any = {"w_granularity": "group", "a_granularity": "group"} if group < 24 else {}
    config = QuantConfig(
        w_bits=bits, a_bits=bits, zero_point="fixed", range_init="minmax", w_symmetric=symmetric,
        a_symmetric=symmetric, w_group_size=group, a_group_size=group, **granularity,
    )  # fmt: skip
    problem = Problem(weight, x, x.abs().amax(0), config)
    chosen = search_smoothing(problem, rank, 20)
    _, errors = refine_branch(smoothed(problem, chosen), rank, 100)

    def quantize(values: Array) -> Array:
        return rounded(values, bits, symmetric, group)

    w, rows = weight.double().numpy(), x.double().numpy()
    top_x, top_w = np.abs(rows).max(0), np.abs(w).max(0)
    candidates = [np.ones(24)]
    for a in np.arange(1, 20) / 20:
        candidates += [top_x**a, top_x**a / top_w ** (1 - a)]
    tried = []
    for factor in candidates:
        branch = best_of_rank(w * factor, rank)
        residual = quantize(w * factor - branch)
        tried.append(svdquant_error(rows / factor, w * factor, branch, residual, quantize))
    best = candidates[int(np.argmin(tried))]
    np.testing.assert_allclose(chosen, best, rtol=1e-5)
    weight_hat, x_hat = w * best, rows / best
    residual, wanted = np.zeros_like(w), []
    while True:
        branch = best_of_rank(weight_hat - residual, rank)
        residual = quantize(weight_hat - branch)
        error = svdquant_error(x_hat, weight_hat, branch, residual, quantize)
        if wanted and error >= wanted[-1]:
            break
        wanted.append(error)
    assert len(wanted) > 1
    np.testing.assert_allclose(errors, wanted, rtol=1e-3)


@pytest.mark.parametrize(("mode", "bits"), [("fair", 4), ("fair", 3), ("author", 4)])
def test_a_finished_layer_of_svdquant_is_the_papers_formula(mode: Any, bits: int) -> None:
    """``y = Q(x / s) Q(R)^T + (x / s) (U D)^T + b``, with the shift after GELU in author mode."""
    method = SVDQuant(w_bits=bits, a_bits=bits, prompts=2, rank=4, mode=mode)
    model = method.apply(make_block(), Context(make_block(), sample))
    for name, layer in finished_layers(model):
        x = torch.nn.functional.gelu(2 * inputs(2)[0]) if name == "down" else inputs(2)[0]
        x = x if layer.in_features == 24 else torch.cat([x, x.flip(0)], 1)
        config, width = layer.inner.config, layer.in_features
        group = config.a_group_size if config.a_granularity == "group" else width
        shift = GELU_SHIFT if mode == "author" and name == "down" else 0.0
        smooth = (x.double().numpy() + shift) * layer.input_scale.double().numpy()
        assert shift == 0 or smooth.min() >= 0, "unsigned codes without a zero point"
        branch = layer.up.double().numpy() @ layer.down.double().numpy()
        exact = rounded(smooth, bits, config.a_symmetric, group) @ layer.inner.weight.double().numpy().T
        wanted = exact + smooth @ branch.T + layer.bias.double().numpy()
        found = layer(x).double().numpy()
        # A few inputs on the border between two codes may fall to either side in float32.
        assert np.square(found - wanted).sum() < 1e-4 * np.square(wanted).sum()


@pytest.mark.parametrize(("width", "pair"), [(24, None), (960, (60, 16))])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_error_that_chooses_alpha(width: int, pair: tuple[int, int] | None, symmetric: bool) -> None:
    """Mask, signs, dense Hadamard matrix, both quantizers: ViDiT-Q from end to end."""
    g = torch.Generator().manual_seed(width)
    x = torch.randn(80, width, generator=g) * torch.logspace(-1, 1, width)
    linear = torch.nn.Linear(width, 20, bias=False)
    weight = torch.randn(20, width, generator=g)
    linear.weight.data.copy_(weight)
    absmax = torch.stack([x[:40].abs().amax(0), x[40:].abs().amax(0)])
    config = QuantConfig(w_bits=4, a_bits=4, zero_point="fixed", range_init="minmax", a_symmetric=symmetric)
    found: Any = SimpleNamespace(absmax=absmax, rows=x)
    options = BalanceOptions(alpha=0.3, rotate=True, over_time="max")
    w, rows = weight.double().numpy(), x.double().numpy()
    mask = np.abs(w).max(0) ** 0.3 / np.abs(rows).max(0) ** 0.7
    orders = pair or balance(weight, found, options).rotation.factors  # type: ignore[union-attr]
    q = np.ones((1, 1))
    for order in orders:
        q = np.kron(q, hadamard_matrix(order).double().numpy())
    q = np.diag(random_signs(width, 0).double().numpy()) @ q / np.sqrt(width)
    np.testing.assert_allclose(q @ q.T, np.eye(width), atol=1e-12)
    turned = rounded(rows * mask @ q, 4, symmetric, width)
    divided = rounded(w / mask @ q, 4, False, width)
    wanted = rows @ w.T
    error = np.square(turned @ divided.T - wanted).sum() / np.square(wanted).sum()
    assert balanced_error(linear, found, options, config) == pytest.approx(error, rel=2e-3)
