"""Range search against a brute-force NumPy search in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qvgen.config import QuantConfig
from qvgen.quantizers import WeightQuantizer, initial_scale
from qvgen.ranges import minmax_range, search_range


def brute_force(row: np.ndarray, q_max: int, integer_zero: bool) -> tuple[float, list[float]]:
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    errors = []
    for step in range(80):
        p = 1 - step / 100
        s = max((high * p - low * p) / q_max, 1e-9)
        z = -low * p / s
        z = min(max(round(z), 0), q_max) if integer_zero else z
        codes = np.clip(np.rint(row / s + z), 0, q_max)
        errors.append(float((np.abs(s * (codes - z) - row) ** 2.4).sum()))
    return 1 - int(np.argmin(errors)) / 100, errors


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("integer_zero", [True, False])
def test_search_finds_the_best_shrink(bits: int, integer_zero: bool) -> None:
    weight = torch.randn(12, 200, generator=torch.Generator().manual_seed(bits))
    weight[3] *= 1e-3
    weight[4] = weight[4].abs()
    _, high = search_range(weight, 2**bits - 1, integer_zero=integer_zero)
    for i, row in enumerate(weight.double().numpy()):
        best, errors = brute_force(row, 2**bits - 1, integer_zero)
        found = float(high[i] / max(weight[i].max(), 0))
        chosen = errors[round((1 - found) * 100)]
        assert chosen <= min(errors) * (1 + 1e-4), (i, found, best)


def test_gaussian_rows_shrink_to_about_four_fifths() -> None:
    # Reference value for 4 bits from a run of the official quantizer: 0.80 (0.70..0.86).
    weight = torch.randn(64, 1536, generator=torch.Generator().manual_seed(0))
    _, high = search_range(weight, 15, integer_zero=False)
    shrink = (high / weight.amax(1, keepdim=True)).flatten()
    assert float(shrink.min()) > 0.65 and float(shrink.max()) < 0.92
    assert 0.75 < float(shrink.median()) < 0.85


def test_equal_errors_keep_the_widest() -> None:
    # A row of zeros has error 0 whatever the range, and scale at its floor.
    low, high = search_range(torch.zeros(2, 4), 7, integer_zero=True)
    assert low.eq(0).all() and high.eq(0).all()
    # Two levels that every range represents only at p = 1 exactly.
    _, high = search_range(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), 3, integer_zero=True)
    assert high.item() == 3.0


def test_of_equal_candidates_the_widest_is_taken() -> None:
    # With whole zero points every one of the 80 ranges holds zero exactly.
    low, high = search_range(
        torch.zeros(2, 4), 7, integer_zero=True, extremes=(-torch.ones(2, 1), torch.ones(2, 1))
    )
    assert low.tolist() == [[-1], [-1]] and high.tolist() == [[1], [1]]


def test_range_includes_zero() -> None:
    low, high = minmax_range(torch.tensor([[1.0, 2.0], [-3.0, -1.0]]))
    assert low.flatten().tolist() == [0, -3] and high.flatten().tolist() == [2, 0]


def test_minmax_scale_by_hand() -> None:
    config = QuantConfig(w_bits=2, a_bits=4, range_init="minmax", zero_point="fixed")
    scale, zero = initial_scale(torch.tensor([[-1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]), config)
    assert scale.flatten().tolist() == pytest.approx([1.0, 1e-9])
    assert zero.flatten().tolist() == [1, 0]


def test_broken_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        initial_scale(torch.tensor([[float("nan")]]), QuantConfig(w_bits=4, a_bits=4))


def test_log_and_linear_scale_are_the_same_function() -> None:
    weight = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    log, linear = (
        WeightQuantizer(weight, QuantConfig(w_bits=3, a_bits=3, scale_param=p)) for p in ("log", "linear")
    )
    torch.testing.assert_close(log(weight), linear(weight))
    for quantizer in (log, linear):
        quantizer(weight).square().sum().backward()
    assert log.log_scale is not None and linear.linear_scale is not None
    assert log.log_scale.grad is not None and linear.linear_scale.grad is not None
    # chain rule: dL/dlog(s) = s dL/ds
    torch.testing.assert_close(log.log_scale.grad, linear.linear_scale.grad * linear.linear_scale)


def test_gradient_factor_is_that_of_lsq() -> None:
    quantizer = WeightQuantizer(torch.randn(4, 10), QuantConfig(w_bits=3, a_bits=3))
    assert quantizer.grad_scale == pytest.approx(1 / (10 * 7) ** 0.5)
