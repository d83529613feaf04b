"""Timestep buckets: which clip serves which timestep, for how many samples, and how often."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from qvgen.api import quant_layers, quantize_
from qvgen.config import QuantConfig
from qvgen.quantizers import ActivationQuantizer, ClipContext


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_timestep_that_is_no_number_is_refused(bad: float) -> None:
    context = ClipContext(4)
    with pytest.raises(ValueError, match="a timestep is NaN or infinite"):
        context.set_timestep(torch.tensor([10.0, bad]))
    context.set_timestep(torch.tensor([0.0, 999.9, 1500.0, -3.0]))
    assert context.bucket is not None and context.bucket.tolist() == [0, 3, 3, 0]


@pytest.mark.parametrize("buckets", [1, 2, 3, 7, 10, 49, 50, 333, 999, 1000])
def test_every_timestep_has_its_bucket(buckets: int) -> None:
    context = ClipContext(buckets)
    expected = [t * buckets // 1000 for t in range(1000)]
    for timesteps in (torch.arange(1000), torch.arange(1000.0), torch.arange(1000, dtype=torch.int32)):
        context.set_timestep(timesteps)
        assert context.bucket is not None and context.bucket.tolist() == expected
    context.set_timestep(torch.tensor([-1.0, 1000.0, 999.99]))  # schedulers may stand on the edge
    assert context.bucket is not None
    assert context.bucket.tolist() == [0, buckets - 1, buckets - 1]


def test_neighbouring_noise_levels_share_a_clip_and_distant_ones_do_not() -> None:
    # The official `t mod 50` gives 0, 50, ..., 950 one clip; here they lie in 20 of 50 buckets.
    context = ClipContext(50)
    context.set_timestep(torch.arange(0, 1000, 50))
    assert context.bucket is not None and len(set(context.bucket.tolist())) == 20
    context.set_timestep(torch.arange(500, 520))
    assert set(context.bucket.tolist()) == {25}


def quantizer(buckets: int, context: ClipContext) -> ActivationQuantizer:
    made = ActivationQuantizer(
        QuantConfig(w_bits=4, a_bits=4, learn_clip=True, clip_buckets=buckets), context, torch.device("cpu")
    )
    assert made.upper is not None and made.lower is not None
    with torch.no_grad():
        made.upper.copy_(torch.linspace(-1, 3, buckets))
        made.lower.copy_(torch.linspace(2, -2, buckets))
    return made


@pytest.mark.parametrize("buckets", [1, 4, 50])
def test_guidance_batch_with_one_or_two_timesteps(buckets: int) -> None:
    """Conditional and unconditional pass as one batch: one timestep for both, or one each."""
    context = ClipContext(buckets)
    made = quantizer(buckets, context)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    outputs = []
    for timestep in (torch.tensor(730), torch.tensor([730]), torch.tensor([730, 730])):
        context.set_timestep(timestep)
        outputs.append(made(x))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    # and as two passes of one sample each, as Wan's pipeline runs them
    halves = []
    for half in x.split(1):
        context.set_timestep(torch.tensor([730]))
        halves.append(made(half))
    assert torch.equal(torch.cat(halves), outputs[0])


def test_bucket_of_each_sample_and_of_two_dimensional_input() -> None:
    context = ClipContext(4)
    made = quantizer(4, context)
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).expand(4, 16)
    context.set_timestep(torch.tensor([0, 250, 500, 999]))
    out = made(x)
    assert made.upper is not None and made.lower is not None
    for i in range(4):
        u, low = torch.sigmoid(made.upper[i]).item(), torch.sigmoid(made.lower[i]).item()
        step = (x[i].max().item() * u - x[i].min().item() * low) / 15
        codes = out[i].double() / step
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert len({tuple(row.tolist()) for row in out}) == 4


def test_only_the_bucket_in_use_gets_a_gradient() -> None:
    context = ClipContext(5)
    made = quantizer(5, context)
    context.set_timestep(torch.tensor([100, 850]))
    made(torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert made.upper is not None and made.upper.grad is not None
    assert [bool(g) for g in made.upper.grad != 0] == [True, False, False, False, True]


def test_clip_is_applied_once() -> None:
    # 8 bits, range [0, 1] and ratio 0.95: the largest value comes back as 0.95, not 0.95 * 0.95
    context = ClipContext(1)
    made = ActivationQuantizer(QuantConfig(w_bits=4, a_bits=8, learn_clip=True), context, torch.device("cpu"))
    out = made(torch.tensor([[[0.0, 0.5, 1.0]]]))
    assert out.max().item() == pytest.approx(0.95)
    assert made.upper is not None and made.upper.item() == pytest.approx(math.log(0.95 / 0.05))


def test_one_bucket_needs_no_timestep(make_model: Callable[[], nn.Module], batch: Any) -> None:
    model = quantize_(make_model(), QuantConfig(w_bits=4, a_bits=4, learn_clip=True, clip_buckets=1))
    without = model(x=batch.inputs["x"])
    assert torch.equal(model(**batch.inputs), without)
    assert all(layer.aquantizer.context.bucket is None for _, layer in quant_layers(model))
