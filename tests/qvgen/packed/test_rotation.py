"""Integers of rotated tokens in one kernel: those that the rotating fake quantizer rounds to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qvgen.config import QuantConfig
from qvgen.fused import rotate, switch
from qvgen.hadamard import Hadamard
from qvgen.packed import triton_rotation
from qvgen.packed.backends import Backend
from qvgen.packed.convert import pack_
from qvgen.packed.layout import ActivationSpec
from qvgen.packed.reading import linears
from qvgen.packed.triton_linear import Tokens
from qvgen.transformed import Transform, TransformedQuantLinear, mark_twins_
from tests.qvgen.packed.test_linear import frozen

interpreted = pytest.mark.skipif(
    not (switch.INTERPRETED and switch.AVAILABLE), reason="needs Triton and TRITON_INTERPRET=1"
)
KINDS = [(4, False), (3, True), (8, False), (8, True)]


@pytest.fixture(params=[pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not switch.AVAILABLE:
        pytest.skip("needs Triton and a C compiler")
    return str(request.param)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens_of(x: Tensor, balance: Tensor, rotation: Hadamard, bits: int, symmetric: bool) -> Tokens:
    one = torch.ones(1, device=x.device)
    spec = ActivationSpec(
        bits=bits, granularity="token", group_size=0, symmetric=symmetric, static=False, first=one, second=one
    )
    assert triton_rotation.rotates(x, balance, rotation)
    return triton_rotation.rotate_tokens(x, balance, rotation, spec)


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_integers_are_those_of_the_fake_quantizer(
    bits: int, symmetric: bool, dtype: torch.dtype, device: str
) -> None:
    rotation = Hadamard(960, torch.device(device), paired=True)
    x = draw(2, 5, 960, seed=bits).to(dtype).to(device)
    x[0, 0] = 0
    balance = draw(960, seed=1).exp().to(device)
    tokens = tokens_of(x, balance, rotation, bits, symmetric)
    wanted = rotate.rotate_fake_quant(x, balance, rotation, 2**bits - 1, symmetric).reshape(10, 960)
    zero = (
        torch.zeros(10, dtype=torch.int32, device=device) if tokens.zero_point is None else tokens.zero_point
    )
    assert (tokens.zero_point is not None) == (bits == 8 and not symmetric)
    whole = tokens.codes.int() - zero[:, None]
    given = (whole * tokens.scale[:, None]).to(dtype)
    if dtype == torch.bfloat16 and device == "cpu":  # the interpreter cuts where the device rounds
        assert torch.allclose(given.float(), wanted.float(), rtol=2**-7, atol=0)
    else:
        assert torch.equal(given, wanted)
    assert torch.equal(tokens.sums, whole.sum(1).int())
    assert int(whole.amax()) <= 2**bits - 1 and not whole[0].any()


def test_a_row_with_nan_shows_it(device: str) -> None:
    rotation = Hadamard(256, torch.device(device), paired=True)
    x = draw(3, 256).bfloat16().to(device)
    x[0, 3], x[1, 4] = float("nan"), float("inf")
    scale = tokens_of(x, torch.ones(256, device=device), rotation, 4, False).scale
    assert scale[0].isnan() and not scale[1].isfinite() and scale[2].isfinite()


def layer_of(seed: int, a_bits: int = 4, outputs: int = 48) -> TransformedQuantLinear:
    config = QuantConfig(w_bits=4, a_bits=a_bits, zero_point="fixed")
    layer = TransformedQuantLinear(
        frozen(config, (outputs, 960), seed), Transform(scaled=True, rotated=True, paired=True)
    )
    assert layer.input_scale is not None
    layer.input_scale.copy_(draw(960, seed=3).exp())
    return layer.requires_grad_(False).eval()


def packed(model: nn.Module, device: str) -> nn.Module:
    """In float16: the interpreter has no bfloat16 to multiply."""
    on_device = copy.deepcopy(model).to(device, torch.float16)
    return pack_(on_device, backend=Backend.TRITON_INT8)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What quantized: the kernel, or the plain transform of ``Hadamard``."""
    seen: list[str] = []
    kernel, plain = triton_rotation.rotate_tokens, Hadamard.forward
    monkeypatch.setattr(triton_rotation, "rotate_tokens", lambda *a: (seen.append("kernel"), kernel(*a))[1])
    monkeypatch.setattr(Hadamard, "forward", lambda self, x: (seen.append("plain"), plain(self, x))[1])
    return seen


def test_a_packed_layer_reads_them(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(layer_of(0))
    fake, x = copy.deepcopy(model).to(device, torch.float16), draw(2, 9, 960).half().to(device)
    real = packed(model, device)
    seen = counting(monkeypatch)
    out = real(x)
    assert seen == ["kernel"] and out.shape == (2, 9, 48)
    wanted = fake(x).float()
    assert seen == ["kernel"], "the fake-quantized layer has its own kernel"
    # The same codes; the fake-quantized operands are rounded to float16 and the packed ones are not.
    assert float((out.float() - wanted).norm() / wanted.norm()) < 2**-9
    real(x[:, :0])
    assert seen[1:] == ["plain"], "an empty input"


def test_a_compiled_layer_reads_them(device: str) -> None:
    real, x = packed(nn.Sequential(layer_of(0)), device), draw(2, 9, 960).half().to(device)
    compiled = torch.compile(real, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), real(x))


def test_twins_share_one_read_and_others_do_not(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleList([layer_of(0), layer_of(1), layer_of(2, a_bits=8)])
    mark_twins_(list(model))
    real = packed(model, device)
    x = draw(1, 5, 960).half().to(device)
    alone = [layer(x) for layer in real]
    seen = counting(monkeypatch)
    same = linears(x, list(real)[:2])
    assert seen == ["kernel"] and all(map(torch.equal, same, alone))
    seen.clear()
    mixed = linears(x, list(real))
    assert seen == ["plain"], "widths differ: one transform, as before"
    for a, b in zip(mixed, alone, strict=True):
        assert float((a - b).norm() / b.norm()) < 0.1


def test_operator_keeps_torchs_rules(device: str) -> None:
    rotation = Hadamard(256, torch.device(device), paired=True)
    first, second = (rotation.get_buffer(f"factor_{axis}") for axis in range(2))
    x = draw(4, 256).bfloat16().to(device)
    for q_max in (7, 255):
        arguments = (x, torch.ones(256, device=device), first, second, q_max, False)
        torch.library.opcheck(triton_rotation._operator, arguments)


def test_what_takes_more_than_one_kernel(device: str) -> None:
    rotation = Hadamard(960, torch.device(device), paired=True)
    balance = torch.ones(960, device=device)
    x = draw(2, 960).to(device)
    assert not triton_rotation.rotates(x, balance, rotation), "float32"
    assert not triton_rotation.rotates(x.bfloat16().requires_grad_(), balance, rotation)
    odd = Hadamard(336, torch.device(device), paired=True)
    assert not triton_rotation.rotates(draw(2, 336).bfloat16().to(device), balance[:336], odd), "not 32 codes"
