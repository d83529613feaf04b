"""Why scales are trained as logarithms: what one step of Adam does to each parametrisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvgen.api import convert_, quant_layers, quantize_
from qvgen.config import QuantConfig
from qvgen.quantizers import WeightQuantizer
from qvgen.training.loop import train_
from qvgen.training.recipe import TrainRecipe


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


@pytest.mark.parametrize("scale", [-0.19, 0.0, math.nan, math.inf])
def test_a_scale_that_crossed_zero_is_not_converted(
    scale: float, make_model: Callable[[], nn.Module]
) -> None:
    model = quantize_(make_model(), QuantConfig(w_bits=3, a_bits=4, scale_param="linear"))
    with torch.no_grad():
        model.get_parameter("second.wquantizer.linear_scale")[3] = scale
    with pytest.raises(ValueError, match=r"layer second: its least scale is .* use scale_param log, which"):
        convert_(model)
    assert len(list(quant_layers(model))) == 2, "nothing has been changed"


def test_a_scale_that_crosses_zero_ends_the_training_at_the_next_line(
    make_model: Callable[[], nn.Module], make_context: Callable[..., Any]
) -> None:
    ctx = make_context(make_model())
    recipe = TrainRecipe(steps=20, batch_size=4, lr_scales=0.5, log_every=1)
    model = quantize_(make_model(), QuantConfig(w_bits=3, a_bits=4, scale_param="linear"))
    with pytest.raises(ValueError, match=r"its least scale is -[\d.]+, must be positive and finite"):
        train_(model, recipe, ctx)
    assert len(ctx.records) < 10
