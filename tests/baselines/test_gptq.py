"""The GPTQ solver against plain NumPy and against rounding to nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.gptq_solver import gptq_codes
from baselines.layerwise import round_weight
from qvgen.config import QuantConfig


def problem(rows: int = 6, columns: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and inputs whose channels are strongly correlated."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=g) * torch.logspace(0, -2, columns)
    return torch.randn(rows, columns, generator=g), torch.randn(400, columns, generator=g) @ mix.T


def by_obq(weight: Any, hessian: Any, scale: Any, zero: Any, q_max: int, order: Any, damping: float) -> Any:
    """Optimal brain quantization in a fixed order, in float64, by the definition.

    After each column the inverse Hessian of the columns that are left is inverted afresh, and the
    remaining weights move by the closed-form least-squares update. No Cholesky factor, no blocks.
    """
    h = hessian.astype(np.float64).copy()
    h[np.diag_indices_from(h)] += damping * np.mean(np.diag(h))
    w = weight.astype(np.float64).copy()
    codes = np.zeros_like(w)
    left = list(order)
    while left:
        column = left[0]
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        codes[:, column] = np.clip(np.rint(w[:, column] / scale[:, column] + zero[:, column]), 0, q_max)
        quantized = (codes[:, column] - zero[:, column]) * scale[:, column]
        error = (w[:, column] - quantized) / inverse[0, 0]
        w[:, left] -= np.outer(error, inverse[0])
        left = left[1:]
    return codes


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("group", [20, 5])
@pytest.mark.parametrize("block", [128, 7])
def test_codes_are_those_of_the_definition(act_order: bool, group: int, block: int) -> None:
    weight, x = problem()
    hessian = x.T @ x / len(x)
    groups = 20 // group
    blocks = weight.view(6, groups, group)
    scale = (blocks.amax(-1) - blocks.amin(-1)) / 7
    zero = (-blocks.amin(-1) / scale).round()
    found = gptq_codes(weight, hessian, scale, zero, 7, act_order=act_order, block=block, damping=0.05)
    wide = [np.repeat(t.double().numpy(), group, axis=1) for t in (scale, zero)]
    diagonal = np.diag(hessian.numpy())
    order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(20)
    wanted = by_obq(weight.numpy(), hessian.numpy(), *wide, 7, order, 0.05)
    np.testing.assert_array_equal(found.numpy(), wanted)


def output_error(x: Tensor, weight: Tensor, rounded: Tensor) -> float:
    return float(((weight - rounded) @ x.T).square().sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_beats_rounding_on_inputs_it_has_not_seen(bits: int, symmetric: bool) -> None:
    config = QuantConfig(w_bits=bits, a_bits=8, zero_point="fixed", w_symmetric=symmetric)
    weight, x = problem(rows=24, columns=48, seed=bits)
    seen, unseen = x[:300], x[300:]
    nearest = round_weight(weight, config).weight()
    better = round_weight(weight, config, "gptq", seen.T @ seen).weight()
    assert output_error(unseen, weight, better) < 0.6 * output_error(unseen, weight, nearest)
    assert (weight - better).square().sum() > (weight - nearest).square().sum(), "it trades one for the other"


def test_independent_inputs_leave_nothing_to_gain() -> None:
    weight, _ = problem()
    config = QuantConfig(w_bits=3, a_bits=8, zero_point="fixed")
    nearest = round_weight(weight, config)
    found = round_weight(weight, config, "gptq", torch.diag(torch.rand(20) + 0.5))
    assert torch.equal(found.codes, nearest.codes)


def test_inputs_that_were_never_seen_are_rounded_to_nearest() -> None:
    weight, x = problem()
    x[:, [3, 11]] = 0
    config = QuantConfig(w_bits=3, a_bits=8, zero_point="fixed")
    nearest = round_weight(weight, config)
    found = round_weight(weight, config, "gptq", x.T @ x)
    assert torch.equal(found.codes[:, [3, 11]], nearest.codes[:, [3, 11]])
    assert not torch.equal(found.codes, nearest.codes)
    all_dead = round_weight(weight, config, "gptq", torch.zeros(20, 20))
    assert torch.equal(all_dead.codes, nearest.codes)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_unseen_inputs_leave_the_codes_of_the_others_alone_in_any_unit(unit: float) -> None:
    """Damping is a share of what was seen: the definition on the seen columns alone gives the same codes."""
    weight, x = problem()
    seen = [c for c in range(20) if c not in (3, 11)]
    x[:, [3, 11]] = 0
    hessian = x.T @ x / len(x) * unit
    scale = (weight.amax(1, keepdim=True) - weight.amin(1, keepdim=True)) / 7
    zero = (-weight.amin(1, keepdim=True) / scale).round()
    found = gptq_codes(weight, hessian, scale, zero, 7, damping=0.05)[:, seen]
    wide = [np.repeat(t.double().numpy(), len(seen), axis=1) for t in (scale, zero)]
    part = hessian.numpy()[np.ix_(seen, seen)]
    order = np.argsort(-np.diag(part), kind="stable")
    wanted = by_obq(weight.numpy()[:, seen], part, *wide, 7, order, 0.05)
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_a_singular_hessian_is_damped_until_it_serves() -> None:
    weight, _ = problem()
    one = torch.randn(1, 20)
    config = QuantConfig(w_bits=3, a_bits=8, zero_point="fixed")
    found = round_weight(weight, config, "gptq", one.T @ one)
    nearest = round_weight(weight, config)
    assert output_error(one, weight, found.weight()) < 0.1 * output_error(one, weight, nearest.weight())


def test_codes_stay_in_range_and_a_broken_hessian_is_refused() -> None:
    weight, x = problem()
    scale, zero = torch.full((6, 1), 0.05), torch.full((6, 1), 4.0)
    codes = gptq_codes(weight, x.T @ x, scale, zero, 7)
    assert codes.min() == 0 and codes.max() == 7 and torch.equal(codes, codes.round())
    with pytest.raises(ValueError, match="NaN"):
        gptq_codes(weight, torch.full((20, 20), float("nan")), scale, zero, 7)
