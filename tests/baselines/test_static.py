"""Static activation steps: the paper's gradient, what is exported, where a step starts."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.inputs import SAMPLES_PER_CALL, InputStats, observe_inputs
from baselines.static_steps import (
    UNSEEN_STEP,
    start_lsq_,
    start_normalised_,
    start_search_,
    static_quantizers,
)
from qvgen.api import convert_, quantizable_names, quantize_
from qvgen.config import QuantConfig
from qvgen.fake_quant import weight_fake_quant
from qvgen.fused import switch
from qvgen.fused import weight as fused_weight
from qvgen.quantizers import ClipContext
from qvgen.static import StaticActivationQuantizer, static_fake_quant

CPU = torch.device("cpu")


def static_config(bits: int = 3, buckets: int = 1, *, symmetric: bool = True) -> QuantConfig:
    return QuantConfig(
        w_bits=bits, a_bits=bits, zero_point="fixed", a_granularity="tensor", a_range="static",
        a_symmetric=symmetric, clip_buckets=buckets, clip_first=True,
    )  # fmt: skip


def lsq_by_hand(
    v: NDArray[Any], s: float, q_n: int, q_p: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Equations 1 to 3 and 5 of the paper in float64: value, d value / d s, d value / d v."""
    ratio = v / s
    value = np.rint(np.clip(ratio, -q_n, q_p)) * s
    to_step = np.where(ratio <= -q_n, -q_n, np.where(ratio >= q_p, q_p, -ratio + np.rint(ratio)))
    return value, to_step, ((ratio > -q_n) & (ratio < q_p)).astype(float)


@pytest.mark.parametrize(("q_n", "q_p"), [(4, 3), (0, 7), (8, 7), (2, 1), (0, 3)])
def test_the_step_of_activations_gets_the_papers_gradient(q_n: int, q_p: int) -> None:
    rng = np.random.default_rng(q_p)
    x, upstream = rng.normal(0.3, 1.0, (4, 6, 5)), rng.normal(size=(4, 6, 5))
    s = 0.31
    quantizer = StaticActivationQuantizer(static_config(), ClipContext(1), CPU).double()
    quantizer.q_max = q_n + q_p
    quantizer.start_(s, q_n)
    given = torch.tensor(x, requires_grad=True)
    out = quantizer(given)
    (out * torch.tensor(upstream)).sum().backward()
    value, to_step, to_x = lsq_by_hand(x, s, q_n, q_p)
    np.testing.assert_allclose(out.detach().numpy(), value, atol=1e-12)
    # N features of one sample, Q_P levels above zero; the parameter is log s, hence the factor s.
    expected = (upstream * to_step).sum() / np.sqrt(30 * q_p) * s
    assert quantizer.log_scale.grad is not None and given.grad is not None
    assert quantizer.log_scale.grad.item() == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(given.grad.numpy(), upstream * to_x, atol=1e-12)


def test_the_step_of_a_weight_matrix_gets_the_papers_gradient() -> None:
    rng = np.random.default_rng(0)
    w, upstream, s = rng.normal(size=(5, 7)), rng.normal(size=(5, 7)), 0.4
    step = torch.full((1, 1), s, dtype=torch.float64, requires_grad=True)
    out = weight_fake_quant(
        torch.tensor(w), step, torch.full_like(step, 4.0), 7, 1 / np.sqrt(35 * 3), clip_first=True
    )
    (out * torch.tensor(upstream)).sum().backward()
    value, to_step, _ = lsq_by_hand(w, s, 4, 3)
    np.testing.assert_allclose(out.detach().numpy(), value, atol=1e-12)
    assert step.grad is not None
    assert step.grad.item() == pytest.approx((upstream * to_step).sum() / np.sqrt(35 * 3), rel=1e-9)


def test_clipping_first_and_static_steps_are_never_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused operator knows neither; elsewhere it is taken wherever it fits."""
    calls: list[str] = []

    def fused(weight: Tensor, *_: Any) -> Tensor:
        calls.append("fused")
        return weight

    monkeypatch.setattr(switch, "fits", lambda *_: True)
    monkeypatch.setattr(fused_weight, "weight_fake_quant", fused)
    weight, step, zero = torch.tensor([[0.9, -0.4]]), torch.tensor([[0.5]]), torch.tensor([[2.0]])
    out = weight_fake_quant(weight, step, zero, 3, clip_first=True)
    assert (calls, out.tolist()) == ([], [[0.5, -0.5]])
    for clip_first in (True, False):
        out = static_fake_quant(weight, step[0], zero[0], 3, clip_first=clip_first, dtype=torch.bfloat16)
        assert (calls, out.dtype, out.tolist()) == ([], torch.bfloat16, [[0.5, -0.5]])
    weight_fake_quant(weight, step, zero, 3)
    assert calls == ["fused"]


def test_a_bucket_learns_from_its_own_samples_alone() -> None:
    context = ClipContext(4)
    quantizer = StaticActivationQuantizer(static_config(buckets=4), context, CPU)
    quantizer.start_(0.3, 4)
    context.set_timestep(torch.tensor([10, 600, 700]))
    quantizer(torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert quantizer.log_scale.grad is not None
    assert (quantizer.log_scale.grad != 0).tolist() == [True, False, True, False]


def test_normalising_equals_quantizing_the_normalised_input() -> None:
    """TaQ: ``sigma Q((x - mu) / sigma) + mu`` worked out the long way, with learnt step and offset."""
    context, x = ClipContext(2), torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    quantizer = StaticActivationQuantizer(static_config(4, 2, symmetric=False), context, CPU)
    quantizer.start_(0.25, 6.5)
    mu, sigma = torch.tensor([0.4, -1.0]), torch.tensor([2.0, 0.5])
    quantizer.normalise_(mu, sigma)
    bucket = torch.tensor([1, 0, 1])
    context.set_timestep(bucket * 500)
    m, d = mu[bucket].view(3, 1, 1), sigma[bucket].view(3, 1, 1)
    codes = torch.clamp(torch.round((x - m) / d / 0.25 + 6.5), 0, 15)
    by_hand = (codes - 6.5) * 0.25 * d + m
    torch.testing.assert_close(quantizer(x), by_hand, atol=1e-5, rtol=1e-5)
    assert [tuple(p.shape) for p in quantizer.parameters()] == [(1,), (1,)]


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_frozen_layer_computes_what_was_trained(symmetric: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    quantize_(model, static_config(4, symmetric=symmetric))
    for quantizer in static_quantizers(model).values():
        quantizer.start_(0.21, 8 if symmetric else 6.3)
    x = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        trained = model(x)
        torch.testing.assert_close(convert_(model)(x), trained, atol=1e-6, rtol=1e-6)
        assert model.to(torch.bfloat16)[0].a_scale.dtype == torch.float32


def test_scalar_and_per_sample_steps_agree() -> None:
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(6))
    s, z = torch.tensor([0.2]), torch.tensor([3.0])
    one = static_fake_quant(x, s, z, 7)
    each = static_fake_quant(x, s.expand(3).view(3, 1, 1), z.expand(3).view(3, 1, 1), 7)
    assert torch.equal(one, each)
    assert static_fake_quant(x.bfloat16(), s, z, 7).dtype == torch.bfloat16


def stats_of(x: Tensor, bucket: Tensor, buckets: int) -> InputStats:
    stats = InputStats.empty(buckets, CPU)
    for rows, which in zip(x.split(2), bucket.split(2), strict=True):
        stats.add(rows, which)
    return stats


def test_statistics_are_numpys() -> None:
    x = torch.randn(6, 3, 7, generator=torch.Generator().manual_seed(2)) * 3 + 1
    bucket = torch.tensor([0, 2, 2, 0, 0, 2])
    stats = stats_of(x, bucket, 4)
    mean, deviation = (t.numpy() for t in stats.moments())
    for g in (0, 2):
        own = x[bucket == g].numpy()
        assert (mean[g], deviation[g]) == pytest.approx((own.mean(), own.std()), rel=1e-5)
    # between its neighbours, and the nearest beyond the last
    assert (mean[1], mean[3]) == pytest.approx(((mean[0] + mean[2]) / 2, mean[2]), rel=1e-6)
    assert stats.mean_abs() == pytest.approx(x.abs().mean().item(), rel=1e-6)
    assert (float(stats.low), float(stats.high)) == (float(x.min()), float(x.max()))
    assert torch.equal(stats.sample(), x.flatten())


@pytest.mark.parametrize("shape", [(2, 204, 240), (8, 204, 240), (2, 3, 24576), (1, 2048, 160)])
def test_the_sample_looks_at_every_channel(shape: tuple[int, int, int]) -> None:
    """Few channels of a transformer are large; a stride that divides their number would miss them."""
    x = torch.arange(shape[-1], dtype=torch.float32).expand(shape)
    stats = InputStats.empty(1, CPU)
    stats.add(x, torch.zeros(shape[0], dtype=torch.long))
    assert len(stats.sample().unique()) > 0.25 * shape[-1]
    assert len(stats.sample()) <= max(2 * SAMPLES_PER_CALL, shape[0])
    assert float(stats.sample().mean()) == pytest.approx(float(x.mean()), rel=0.05)


def one_layer(
    symmetric: bool = True, buckets: int = 1, bits: int = 3
) -> tuple[nn.Module, StaticActivationQuantizer]:
    model = quantize_(nn.Sequential(nn.Linear(7, 4)), static_config(bits, buckets, symmetric=symmetric))
    return model, static_quantizers(model)["0"]


@pytest.mark.parametrize(("shift", "zero", "levels"), [(0.0, 4.0, 3), (50.0, 0.0, 7)])
def test_lsq_starts_as_in_the_paper_and_unsigned_where_inputs_are(
    shift: float, zero: float, levels: int
) -> None:
    x = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(4)) + shift
    model, quantizer = one_layer()
    start_lsq_(model, {"0": stats_of(x, torch.zeros(4, dtype=torch.long), 1)})
    assert quantizer.scale().item() == pytest.approx(2 * x.abs().mean().item() / levels**0.5, rel=1e-5)
    assert (quantizer.zero_point().item(), quantizer.levels) == (zero, levels)


def test_the_search_finds_the_best_of_its_80_ranges_on_heavy_tails() -> None:
    """On quantiles of Student's distribution, which no seed makes lighter; the reference is NumPy's."""
    x = scipy.stats.t(3.0).ppf((np.arange(448) + 0.5) / 448).astype(np.float32).astype(float) + 0.5
    zero, widest = -x.min() / (x.max() - x.min()) * 7, (x.max() - x.min()) / 7

    def error(step: float) -> float:
        codes = np.clip(np.rint(x / step + zero), 0, 7)
        return float((np.abs((codes - zero) * step - x) ** 2.4).sum())

    errors = {factor: error(widest * factor / 100) for factor in range(100, 20, -1)}
    best = min(errors, key=lambda factor: errors[factor])
    assert errors[best] < 0.5 * errors[100] and 21 < best < 100
    inputs = torch.tensor(x, dtype=torch.float32).view(4, 16, 7)
    model, quantizer = one_layer(symmetric=False)
    start_search_(model, {"0": stats_of(inputs, torch.zeros(4, dtype=torch.long), 1)})
    assert quantizer.scale().item() == pytest.approx(widest * best / 100, rel=1e-5)
    assert quantizer.zero_point().item() == pytest.approx(zero, rel=1e-5)
    found = (quantizer(inputs) - inputs).detach().double().abs().pow(2.4).sum().item()
    assert found == pytest.approx(errors[best], rel=1e-4)


def test_what_is_not_normalised_starts_as_the_search_does() -> None:
    """The widest candidate spans all values, also those that the sample left out."""
    x = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(5))
    stats = stats_of(x, torch.zeros(2, dtype=torch.long), 1)
    stats.high = torch.tensor(1.25)  # of a value that was not kept
    for start in (start_search_, lambda model, found: start_normalised_(model, found, set())):
        model, quantizer = one_layer(symmetric=False, bits=8)
        start(model, {"0": stats})
        shrink = quantizer.scale().item() * 255 / 1.25
        assert round(shrink * 100) == pytest.approx(shrink * 100, abs=1e-3)  # one of 1.00, 0.99, ...


@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_constant_inputs_start_finite(value: float) -> None:
    x, bucket = torch.full((4, 3, 7), value), torch.zeros(4, dtype=torch.long)
    for symmetric, start in ((True, start_lsq_), (False, start_search_)):
        model, quantizer = one_layer(symmetric)
        start(model, {"0": stats_of(x, bucket, 1)})
        assert torch.isfinite(model(x)).all()
        assert value != 0 or quantizer.scale().item() == pytest.approx(UNSEEN_STEP)
    model, quantizer = one_layer(symmetric=False, bits=4)
    start_normalised_(model, {"0": stats_of(x, bucket, 1)}, {"0"})
    torch.testing.assert_close(quantizer(x), x, atol=1e-5, rtol=1e-5)


def test_inputs_are_watched_by_name_and_hooks_go(make_block: Any, make_context: Any) -> None:
    model = make_block()
    ctx = make_context(model)
    stats = observe_inputs(model, quantizable_names(model, ()), ctx, batches=2, batch_size=4, buckets=5)
    batch_inputs = [next_batch.inputs for next_batch, _ in zip(ctx.batches(4), range(2), strict=False)]
    seen: list[Tensor] = []
    model.up.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for inputs in batch_inputs:
            model(**inputs)
    assert stats["up"].mean_abs() == pytest.approx(torch.cat(seen).abs().mean().item(), rel=1e-5)
    assert sum(stats["up"].count.tolist()) == 8 * 5 * 16
    assert float(stats["down"].low) == 0.0  # behind a ReLU
    assert not model.attn1.to_q._forward_pre_hooks and not ctx.teacher_asked


def test_bad_inputs_name_the_layer(make_block: Any, make_context: Any) -> None:
    class Broken(type(make_context(make_block()))):  # type: ignore[misc]
        def batches(self, batch_size: int) -> Any:
            for batch in super().batches(batch_size):
                batch.inputs["x"][0, 0, 0] = float("nan")
                yield batch

    model = make_block()
    with pytest.raises(ValueError, match=r"layer attn1\.to_q: an input holds NaN"):
        observe_inputs(model, ["attn1.to_q"], Broken(model), batches=1, batch_size=2, buckets=1)
    unused = copy.deepcopy(model)
    unused.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="layer extra: no training batch reaches it"):
        observe_inputs(unused, ["extra"], make_context(model), batches=1, batch_size=2, buckets=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a_range": "static"}, "a_range static goes with a_granularity tensor"),
        ({"a_range": "static", "a_granularity": "tensor", "learn_clip": True}, "without learn_clip"),
        ({"a_range": "fixed"}, "a_range is 'fixed'; allowed: 'dynamic', 'static'"),
        ({"range_init": "lsq"}, "range_init lsq is the start of a symmetric step"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantConfig(w_bits=3, a_bits=3, **options)
