"""Why scales are trained as logarithms: what one step of Adam does to each parametrisation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from qvgen.config import QuantConfig
from qvgen.quantizers import WeightQuantizer


def weights() -> Tensor:
    """Rows whose sizes differ by a factor of a thousand."""
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    return rows * torch.tensor([[1e-3], [1e-2], [1e-1], [1.0]])


def one_step(param: Any, rate: float, factor: float | None = None) -> tuple[Tensor, Tensor]:
    """Scales before and after one step of Adam on the quantization error."""
    weight = weights()
    config = QuantConfig(w_bits=3, a_bits=3, scale_param=param, range_init="minmax")
    quantizer = WeightQuantizer(weight, config)
    if factor is not None:
        quantizer.grad_scale = factor
    before = quantizer.scale().detach().clone()
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=rate, weight_decay=0.0, eps=1e-16)
    # a shrunken target: every scale has a gradient of one sign
    (quantizer(weight) - weight * 0.5).square().sum().backward()
    optimizer.step()
    return before, quantizer.scale().detach()


def test_log_scales_move_by_the_same_factor() -> None:
    before, after = one_step("log", 5e-4)
    torch.testing.assert_close(after / before, torch.full((4, 1), math.exp(-5e-4)), rtol=1e-5, atol=0)


def test_linear_scales_move_by_the_same_amount_whatever_their_size() -> None:
    before, after = one_step("linear", 1e-4)
    torch.testing.assert_close(before - after, torch.full((4, 1), 1e-4), rtol=1e-2, atol=0)
    relative = ((before - after) / before).flatten().tolist()
    assert relative[0] > 0.05 and relative[3] < 2e-4  # a tenth of a small scale in a single step


@pytest.mark.parametrize("param", ["log", "linear"])
def test_adam_does_not_see_the_lsq_factor(param: Any) -> None:
    _, after = one_step(param, 1e-4)
    _, unscaled = one_step(param, 1e-4, factor=1.0)
    torch.testing.assert_close(after, unscaled, rtol=1e-6, atol=0)
