"""The released arithmetic, step by step in NumPy with bfloat16 rounding after each operation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qvgen.fake_quant import token_fake_quant, weight_codes
from qvgen.official.arithmetic import quantize_activation, quantize_weight, straight_through_round
from qvgen.official.config import OfficialConfig
from qvgen.official.linear import (
    OfficialActivationQuantizer,
    OfficialQuantLinear,
    OfficialTimestep,
    restart_clip_counters_,
)

START = torch.tensor(float(np.log(0.95 / 0.05)))


def bf(x: np.ndarray | float) -> np.ndarray:
    """Round float32 to bfloat16, half to even, by its bits."""
    bits = np.asarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def to_np(x: Tensor) -> np.ndarray:
    return x.detach().float().numpy()


def reference_weight(
    w: np.ndarray, s: np.ndarray, z: np.ndarray, q_max: int, zero_inside: bool, grad_scaling: bool
) -> np.ndarray:
    if grad_scaling:
        factor = np.float32(1 / np.sqrt(w.shape[1] * q_max))
        parts = [bf(t * factor) for t in (s, z)]
        s, z = (bf(part + bf(t - part)) for part, t in zip(parts, (s, z), strict=True))
    ratio = bf(w / s)
    codes = np.rint(bf(ratio + z)) if zero_inside else bf(np.rint(ratio) + z)
    return bf(s * bf(np.clip(codes, 0, q_max) - z))


def reference_activation(x: np.ndarray, lower: float, upper: float, q_max: int) -> np.ndarray:
    sigmoid_l, sigmoid_u = (bf(1 / (1 + np.exp(-bf(v).astype(np.float64)))) for v in (lower, upper))
    high = bf(sigmoid_u * bf(x.max(-1, keepdims=True) * np.float32(0.95)))
    low = bf(sigmoid_l * bf(x.min(-1, keepdims=True) * np.float32(0.95)))
    s = np.maximum(bf(bf(high - low) / np.float32(q_max)), bf(1e-9))
    z = np.clip(-np.rint(bf(low / s)), 0, q_max)
    codes = np.clip(bf(np.rint(bf(x / s)) + z), 0, q_max)
    return bf(s * bf(codes - z))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero_inside", [True, False])
@pytest.mark.parametrize("grad_scaling", [True, False])
def test_weights_in_bfloat16(bits: int, zero_inside: bool, grad_scaling: bool) -> None:
    g = torch.Generator().manual_seed(bits)
    q_max = 2**bits - 1
    w = torch.randn(16, 96, generator=g).bfloat16()
    s = (torch.rand(16, 1, generator=g) * 3 / q_max + 0.5 / q_max).bfloat16()
    z = (torch.rand(16, 1, generator=g) * q_max).bfloat16()
    z = z if zero_inside else z.round()
    out = quantize_weight(w, s, z, q_max, zero_inside=zero_inside, grad_scaling=grad_scaling)
    assert out.dtype == torch.bfloat16
    expected = reference_weight(to_np(w), to_np(s), to_np(z), q_max, zero_inside, grad_scaling)
    np.testing.assert_array_equal(to_np(out), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_activations_in_bfloat16(bits: int) -> None:
    g = torch.Generator().manual_seed(bits)
    x = (torch.randn(40, 96, generator=g) * 3).bfloat16()
    x[0], x[1] = x[0].abs() + 1, -x[1].abs() - 1
    lower, upper = torch.tensor(1.7), torch.tensor(2.6)
    out = quantize_activation(x, lower, upper, 2**bits - 1, 0.95)
    assert out.dtype == torch.bfloat16
    np.testing.assert_array_equal(to_np(out), reference_activation(to_np(x), 1.7, 2.6, 2**bits - 1))


def test_bfloat16_flips_about_two_per_cent_of_the_codes() -> None:
    # The reason for float32 elsewhere; 2.5 % was measured with the authors' code.
    w = torch.randn(128, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    linear = nn.Linear(512, 128, bias=False, dtype=torch.bfloat16)
    linear.weight.data.copy_(w)
    layer = OfficialQuantLinear.from_linear(linear, OfficialConfig(grad_scaling=False), OfficialTimestep())
    s, z = layer.wquantizer.scale, layer.wquantizer.zero_point
    rough = quantize_weight(w, s, z, 15, zero_inside=True, grad_scaling=False)
    rough_codes = (rough.float() / s.float() + z.float()).round()
    flipped = (rough_codes != weight_codes(w, s, z, 15)).float().mean().item()
    assert 0.01 < flipped < 0.05


def test_real_zero_point_inside_the_rounding() -> None:
    # w/s = 0.6, z = 1.3: LSQ+ rounds 1.9 to 2 and gives 0.7; after the rounding it is 1 + 1.3 = 2.3 -> 1.0
    w, s, z = (torch.tensor([[v]]) for v in (0.6, 1.0, 1.3))
    inside = quantize_weight(w, s, z, 3, zero_inside=True, grad_scaling=False)
    after = quantize_weight(w, s, z, 3, zero_inside=False, grad_scaling=False)
    assert inside.item() == pytest.approx(0.7) and after.item() == pytest.approx(1.0)


def test_zero_point_is_not_clamped() -> None:
    # a row of one sign under LSQ+: z = -min/s is far below 0, and the weights survive
    linear = nn.Linear(16, 1, bias=False)
    linear.weight.data.copy_(torch.linspace(3, 4, 16))
    layer = OfficialQuantLinear.from_linear(linear, OfficialConfig(grad_scaling=False), OfficialTimestep())
    assert layer.wquantizer.zero_point.item() < -40
    assert (layer.wquantizer(layer.w) - layer.w).abs().max() < 1 / 15
    # under LSQ it is clamped at 0, the range [3, 4] becomes [0, 1], and they do not
    plain = OfficialQuantLinear.from_linear(
        linear, OfficialConfig(weights="lsq", grad_scaling=False), OfficialTimestep()
    )
    assert plain.wquantizer.zero_point.item() == 0
    assert plain.wquantizer(plain.w).max().item() <= 1.001


def test_double_clip() -> None:
    # 8 bits, range [-1, 1]: 0.95 * 0.95 = 0.9025 at the start, not 0.95
    x = torch.linspace(-1, 1, 101)[None]
    out = quantize_activation(x, START, START, 255, 0.95)
    assert out.max().item() == pytest.approx(0.9025, abs=0.9025 / 127)
    ours = token_fake_quant(x, torch.tensor([0.95]), torch.tensor([0.95]), 255)
    assert ours.max().item() == pytest.approx(0.95, abs=0.95 / 127)


@pytest.mark.parametrize("sign", [1, -1])
def test_rows_of_one_sign_are_ruined(sign: int) -> None:
    # inputs in [3, 4] come back near 0.9: the range (4 - 3) * 0.9025 starts at 0
    x = sign * torch.linspace(3, 4, 16)[None]
    out = quantize_activation(x, START, START, 15, 0.95)
    torch.testing.assert_close(out, torch.full_like(x, sign * 0.9025), rtol=1e-3, atol=1e-3)
    one = torch.ones(1)
    assert (token_fake_quant(x, one, one, 15) - x).abs().max() < 0.15


def test_a_row_of_zeros_stays_zero() -> None:
    out = quantize_activation(torch.zeros(2, 8, dtype=torch.bfloat16), START, START, 15, 0.95)
    assert out.eq(0).all()


@given(st.floats(-250, 250, width=16))
@settings(max_examples=200, deadline=None)
def test_straight_through_round_is_exact_in_bfloat16(value: float) -> None:
    x = torch.tensor(value).bfloat16()
    assert torch.equal(straight_through_round(x), x.round())


def test_gradients_of_weights() -> None:
    # Worked by hand: w/s + z = -0.5, 1.5, 2.1, 5.5; rounded 0 (even, clamp passes), 2, 2, 6 -> 3
    w = torch.tensor([[-1.0, 0.0, 0.3, 2.0]], requires_grad=True)
    s, z = (torch.tensor([[v]], requires_grad=True) for v in (0.5, 1.5))
    upstream = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    factor = 1 / (4 * 3) ** 0.5
    quantize_weight(w, s, z, 3, zero_inside=True, grad_scaling=True).backward(upstream)
    assert w.grad is not None and s.grad is not None and z.grad is not None
    torch.testing.assert_close(w.grad, torch.tensor([[1.0, 2.0, 4.0, 0.0]]))
    assert s.grad.item() == pytest.approx(factor * (0.5 + 1.0 - 0.4 + 12.0), rel=1e-4)
    assert z.grad.item() == pytest.approx(factor * -0.5 * 8, rel=1e-4)


def test_no_gradient_through_the_zero_point_of_activations() -> None:
    """Against a finite difference of the clip logit where all codes are clamped and z stays put."""
    x = torch.tensor([[-4.0, 4.5]])
    logit = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    out = quantize_activation(x.double(), logit, logit, 7, 0.95)
    out.sum().backward()
    h = 1e-6
    ends = []
    for shift in (-h, h):
        moved = torch.tensor(-1.0 + shift, dtype=torch.float64)
        ends.append(quantize_activation(x.double(), moved, moved, 7, 0.95).sum())
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(((ends[1] - ends[0]) / (2 * h)).item(), rel=1e-5)


def activations(choice: str, entries: int = 50) -> OfficialActivationQuantizer:
    config = OfficialConfig(clip_choice=choice, clip_entries=entries)  # type: ignore[arg-type]
    return OfficialActivationQuantizer(config, OfficialTimestep(), torch.zeros(1))


def test_entry_without_the_counter_is_the_last() -> None:
    quantizer = activations("last")
    assert [quantizer.entry() for _ in range(3)] == [49, 49, 49]


def test_counter_goes_down_with_each_call_and_stays_at_zero() -> None:
    quantizer = activations("counter")
    assert [quantizer.entry() for _ in range(52)] == [*range(49, -1, -1), 0, 0]
    restart_clip_counters_(quantizer)
    assert quantizer.entry() == 49
    # the entry, not only its number: entry 48 lets everything through, the others next to nothing
    x = torch.linspace(-1, 1, 9)[None]
    with torch.no_grad():
        for logits in (quantizer.upper, quantizer.lower):
            logits.fill_(-6)[48] = 6
    assert quantizer(x).max().item() == pytest.approx(0.95, abs=0.08)
    assert quantizer(x).max().item() < 0.01


class Caller(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, timestep: Tensor | None = None) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def test_timestep_modulo_of_the_first_sample_only() -> None:
    quantizer = activations("timestep")
    model = Caller(quantizer)
    quantizer.timestep.follow(model)
    x = torch.linspace(-1, 1, 9).expand(3, 1, 9)
    with torch.no_grad():
        for logits in (quantizer.upper, quantizer.lower):
            logits.fill_(-6)[7] = 6
    for timesteps, open_wide in (
        ([7, 0, 0], True),
        ([957, 8, 8], True),  # 957 mod 50 = 7, a far noise level
        ([957.9, 8, 8], True),  # int() cuts off
        ([8, 7, 7], False),  # the others do not count
        ([70, 7, 7], False),
    ):
        out = model(x, timestep=torch.tensor(timesteps))
        assert (out.max().item() > 0.8) is open_wide, timesteps
        assert torch.equal(out[0], out[2])
    with pytest.raises(ValueError, match="call the model with timestep="):
        model(x)


def test_start_of_a_layer_matches_the_grid_search() -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    linear = nn.Linear(64, 6, bias=False)
    linear.weight.data.copy_(weight)
    layer = OfficialQuantLinear.from_linear(linear, OfficialConfig(), OfficialTimestep())
    for row, s, z in zip(
        weight.double().numpy(), layer.wquantizer.scale, layer.wquantizer.zero_point, strict=True
    ):
        errors = []
        for k in range(80):
            low, high = row.min() * (1 - k / 100), row.max() * (1 - k / 100)
            step = (high - low) / 15
            zero = -low / step
            errors.append(
                (np.abs(step * (np.clip(np.rint(row / step + zero), 0, 15) - zero) - row) ** 2.4).sum()
            )
        best = 1 - int(np.argmin(errors)) / 100
        assert s.item() == pytest.approx((row.max() - row.min()) * best / 15, rel=1e-4)
        assert z.item() == pytest.approx(-row.min() / (row.max() - row.min()) * 15, rel=1e-4)


def test_layer_adds_phi_to_the_quantized_weight_and_rounds_again_in_every_call() -> None:
    linear = nn.Linear(8, 4)
    config = OfficialConfig(grad_scaling=False)
    layer = OfficialQuantLinear(linear, config, OfficialTimestep(), rank=2)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.wquantizer.scale.fill_(0.1)
        layer.wquantizer.zero_point.fill_(7.5)
        layer.wquantizer.L.copy_(torch.randn(4, 2, generator=g))
        layer.wquantizer.R.copy_(torch.randn(2, 8, generator=g))
        layer.wquantizer.gamma.copy_(torch.tensor([1.0, 0.25]))
    x = torch.randn(3, 8, generator=g)
    left, right = layer.wquantizer.L.detach(), layer.wquantizer.R.detach()
    rounded = 0.1 * ((layer.w.detach() / 0.1 + 7.5).round().clamp(0, 15) - 7.5)
    weight = rounded + left[:, :1] @ right[:1] + 0.25 * left[:, 1:] @ right[1:]
    activation = quantize_activation(x, START, START, 15, 0.95)
    torch.testing.assert_close(layer(x), activation @ weight.T + layer.b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        layer.w.add_(0.05)
    assert not torch.allclose(layer(x), activation @ weight.T + layer.b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w_bits": 1}, "w_bits is 1"),
        ({"weights": "lsq++"}, r"weights is 'lsq\+\+'; allowed: 'lsq\+', 'lsq'"),
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"clip_choice": "first"}, "clip_choice is 'first'"),
        ({"clip_entries": 0}, "clip_entries is 0"),
        ({"gamma": (1.0, 2.0)}, "gamma is 2.0"),
    ],
)
def test_config_is_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OfficialConfig(**changes)  # type: ignore[arg-type]
