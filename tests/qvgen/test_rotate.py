"""The rotating quantizer in one kernel against float64, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qvgen import fused
from qvgen.config import QuantConfig
from qvgen.fake_quant import token_fake_quant, weight_codes
from qvgen.fused import rotate, switch
from qvgen.hadamard import Hadamard
from qvgen.quantizers import initial_scale
from qvgen.transformed import Transform, TransformedQuantLinear, frozen_from_codes
from tests.qvgen.triton_cases import draw

# Largest relative error of the rotation before rounding: tf32x3, and two roundings of the half way.
ROUGH = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def exact(x: Tensor, balance: Tensor, rotation: Hadamard) -> Tensor:
    """The rotated input in float64; balanced values are rounded as layers round them."""
    balanced = (x.float() * balance).to(x.dtype).double()
    turned: Tensor = rotation.double()(balanced)
    rotation.float()
    return turned


def check_codes(out: Tensor, turned: Tensor, q_max: int, symmetric: bool) -> None:
    """``out`` is ``turned`` rounded to its row's grid, but for values nearly half way between two."""
    one = torch.ones(1, device=out.device, dtype=torch.float64)
    wanted = token_fake_quant(turned, one, one, q_max, symmetric=symmetric)
    low, high = turned.amin(-1, keepdim=True).clamp(max=0), turned.amax(-1, keepdim=True).clamp(min=0)
    step = torch.maximum(high, -low) * 2 / (q_max - 1) if symmetric else (high - low) / q_max
    rough = ROUGH[out.dtype]
    size = float(turned.abs().amax())
    off = (out.double() - wanted).abs()
    assert bool((off <= 1.001 * step + 4 * rough * size).all()), "never more than one code off"
    near = ((turned / step - (turned / step).floor()) - 0.5).abs() * step < 4 * rough * size
    assert bool((near | (off <= 4 * rough * size)).all()), "codes differ only where they nearly tie"
    assert float((off > step / 2).float().mean()) < max(100 * rough, 1e-3) * q_max / 15


@pytest.mark.parametrize("width", [240, 960, 1024, 1920])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", list(ROUGH))
def test_codes_are_those_of_the_exact_rotation(
    width: int, symmetric: bool, dtype: torch.dtype, device: str
) -> None:
    rotation = Hadamard(width, torch.device(device), paired=width >= 256)
    x = draw(2, 5, width, seed=width).to(dtype).to(device)
    x[0, 0] = 0
    x[1, 4, 3] = 40.0
    balance = (draw(width, seed=1).exp() * draw(width, seed=2).sign()).to(device)
    assert rotate.rotation_fits(x, balance, rotation)
    out = rotate.rotate_fake_quant(x, balance, rotation, 15, symmetric)
    assert out.dtype == dtype and out.shape == x.shape
    check_codes(out, exact(x, balance, rotation), 15, symmetric)
    assert not out[0, 0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "how",
    [
        rotate.Launch(4, 4, 1),
        rotate.Launch(3, 1, 2, chained=True, turned=True),
        rotate.Launch(3, 4, 1, chained=True),
        rotate.Launch(0, 2, 1, chained=True, turned=True, resident=1, registers=168),
    ],
)
def test_every_launch_makes_the_codes_of_the_exact_rotation(
    how: rotate.Launch, dtype: torch.dtype, device: str
) -> None:
    rotation = Hadamard(960, torch.device(device), paired=True)
    first, second = (rotation.get_buffer(f"factor_{axis}") for axis in range(2))
    x = (draw(7, 960, seed=4) * torch.tensor([1.0, 1e-3, 30.0, 0, 1, 1, 1])[:, None]).to(dtype).to(device)
    balance = draw(960, seed=1).exp().to(device)
    for q_max, symmetric in ((15, False), (7, True), (255, False)):
        out = rotate.launched(x, balance, first, second, q_max, symmetric, how)
        check_codes(out, exact(x, balance, rotation), q_max, symmetric)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_rows_take_the_short_kernel(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 960, dtype=dtype)
    assert rotate.chains(x, (60, 32)) and not rotate.chains(x.float(), (60, 32))
    assert rotate.usual_launch(2048, chained=True).chained and not rotate.usual_launch(2048).chained
    assert rotate.table_of((60, 24)) == 64 * 32


@pytest.mark.cuda
@pytest.mark.parametrize("width", [1536, 5120, 7680, 8960, 13824])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_widths_of_real_models(width: int, dtype: torch.dtype) -> None:
    if not switch.AVAILABLE:
        pytest.skip("needs Triton and a C compiler")
    rotation = Hadamard(width, torch.device("cuda"), paired=True)
    x = draw(37, width).to(dtype).cuda()
    balance = draw(width, seed=1).exp().cuda()
    out = rotate.rotate_fake_quant(x, balance, rotation, 255, False)
    check_codes(out, exact(x, balance, rotation), 255, False)


def test_any_number_of_rows_and_strides(device: str) -> None:
    rotation = Hadamard(256, torch.device(device), paired=True)
    wide = draw(3, 7, 512).to(device)
    x = wide.transpose(0, 1)[..., 128:384]
    balance = torch.ones(256, device=device)
    found = rotate.rotate_fake_quant(x, balance, rotation, 7, False)
    assert torch.equal(found, rotate.rotate_fake_quant(x.contiguous(), balance, rotation, 7, False))
    one = rotate.rotate_fake_quant(x[2:3, 1:2].clone(), balance, rotation, 7, False)
    assert torch.equal(one, found[2:3, 1:2]), "a token's result does not depend on the others"


def test_nan_and_infinity_are_not_hidden(device: str) -> None:
    rotation = Hadamard(256, torch.device(device), paired=True)
    x = draw(3, 256).to(device)
    x[0, 3], x[1, 4] = float("nan"), float("inf")
    out = rotate.rotate_fake_quant(x, torch.ones(256, device=device), rotation, 15, False)
    assert out[0].isnan().all() and not out[1].isfinite().any() and out[2].isfinite().all()


def layer_of(device: str, transform: Transform, config: QuantConfig) -> TransformedQuantLinear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(960, 24).to(device)
    scale, zero = initial_scale(linear.weight, config)
    codes = weight_codes(linear.weight, scale, zero, 2**config.w_bits - 1)
    layer = TransformedQuantLinear(frozen_from_codes(linear, config, codes, scale, zero), transform)
    if layer.input_scale is not None:
        layer.input_scale.copy_(draw(960, seed=3).exp())
    return layer.requires_grad_(False)


ROTATES = Transform(scaled=True, rotated=True, paired=True)
EIGHT = QuantConfig(w_bits=8, a_bits=8, zero_point="fixed")


def test_a_layer_takes_it_and_agrees(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(device, ROTATES, EIGHT)
    x = draw(2, 9, 960).to(device)
    called: list[int] = []
    kernel = rotate.rotate_fake_quant
    monkeypatch.setattr(rotate, "rotate_fake_quant", lambda *a: (called.append(1), kernel(*a))[1])
    out = layer(x)
    with fused.disabled():
        plain = layer(x)
    assert called == [1]
    assert float((out - plain).norm() / plain.norm()) < 1e-3


def test_layers_that_do_more_and_gradients_take_the_plain_form(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> Tensor:
        raise AssertionError("fused operator called")

    monkeypatch.setattr(rotate, "rotate_fake_quant", forbidden)
    x = draw(2, 9, 960).to(device)
    more = [
        Transform(scaled=True, rotated=True, paired=True, rank=2),
        Transform(scaled=True, rotated=True, paired=True, shift=0.5),
        Transform(scaled=True, rotated=True),  # three factors
        Transform(rotated=True, paired=True),
        Transform(scaled=True),
    ]
    for transform in more:
        assert layer_of(device, transform, EIGHT)(x).shape == (2, 9, 24)
    groups = QuantConfig(w_bits=4, a_bits=4, zero_point="fixed", a_granularity="group", a_group_size=64)
    assert layer_of(device, ROTATES, groups)(x).shape == (2, 9, 24)
    layer = layer_of(device, ROTATES, EIGHT)
    layer(x.clone().requires_grad_()).sum().backward()
    with pytest.raises(AssertionError, match="fused operator called"):
        layer(x)


def test_operator_keeps_torchs_rules(device: str) -> None:
    rotation = Hadamard(256, torch.device(device), paired=True)
    first, second = (rotation.get_buffer(f"factor_{axis}") for axis in range(2))
    arguments = (draw(4, 256).to(device), torch.ones(256, device=device), first, second, 7, False)
    torch.library.opcheck(rotate._operator, arguments)
