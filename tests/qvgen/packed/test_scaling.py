"""Tokens that one kernel shifts, scales and quantizes: the bits of the two passes of plain torch."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from qvgen.config import QuantConfig
from qvgen.packed import triton_scaling
from qvgen.packed.backends import Backend
from qvgen.packed.convert import pack_
from qvgen.packed.layout import ActivationSpec
from qvgen.packed.linear import PackedLinear
from qvgen.packed.reading import linears
from qvgen.packed.triton_linear import quantize_tokens
from qvgen.transformed import Transform, TransformedQuantLinear, mark_twins_
from tests.qvgen.packed.test_linear import frozen
from tests.qvgen.triton_cases import draw

SHIFT = (
    11 / 64
)  # of few digits: on a CPU torch rounds it to the dtype of the input first, on a GPU it does not


def spec_of(bits: int, device: str, symmetric: bool = False) -> ActivationSpec:
    one = torch.ones(1, device=device)
    return ActivationSpec(bits, "token", 0, symmetric, False, one, one)


@pytest.mark.parametrize("shift", [0.0, SHIFT])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("bits", "symmetric"), [(3, True), (4, False), (8, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_bits_of_two_passes(
    dtype: torch.dtype, bits: int, symmetric: bool, keep: bool, shift: float, device: str
) -> None:
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("the interpreter cuts where the device rounds")
    shift = 0.17 if shift and device == "cuda" else shift
    for rows, columns in ((1, 31), (4, 48), (2, 200)):
        x = draw(rows, columns, seed=columns).to(dtype).to(device)
        factor = draw(columns, seed=1).exp().to(device)
        wanted = (((x + shift) if shift else x) * factor).to(dtype)
        spec = spec_of(bits, device, symmetric)
        plain = quantize_tokens(wanted, spec.first, spec.second, 2**bits - 1, symmetric)
        tokens, kept = triton_scaling.scale_tokens(x, factor, shift, spec, keep=keep)
        assert kept is None if not keep else torch.equal(kept, wanted)
        for name in ("codes", "scale", "zero_point", "sums"):
            found, each = getattr(tokens, name), getattr(plain, name)
            assert found is None if each is None else torch.equal(found, each), name


def test_rows_that_do_not_follow_each_other_and_nan(device: str) -> None:
    wide = draw(6, 80).to(device)
    x, factor = wide[:, 8:56], draw(48, seed=1).exp().to(device)
    tokens, kept = triton_scaling.scale_tokens(x, factor, 0.5, spec_of(4, device), keep=True)
    whole, _ = triton_scaling.scale_tokens(x.contiguous(), factor, 0.5, spec_of(4, device), keep=False)
    assert kept is not None and torch.equal(kept, (x + 0.5) * factor)
    assert torch.equal(tokens.codes, whole.codes) and torch.equal(tokens.scale, whole.scale)
    wide[2, 20] = float("nan")
    tokens, _ = triton_scaling.scale_tokens(x, factor, 0.0, spec_of(4, device), keep=False)
    assert tokens.scale.isnan().tolist() == [False, False, True, False, False, False]


def layer_of(seed: int, device: str, *, rank: int = 3, shift: float = SHIFT, **options: int) -> nn.Module:
    config = QuantConfig(**{"w_bits": 4, "a_bits": 4, **options})  # type: ignore[arg-type]  # bits alone
    layer = TransformedQuantLinear(
        frozen(config, (24, 48), seed), Transform(scaled=True, rank=rank, shift=shift)
    )
    layer.input_scale = draw(48, seed=3).exp()
    if rank:
        layer.down, layer.up = draw(rank, 48, seed=4), draw(24, rank, seed=seed)
    return layer.requires_grad_(False).eval().to(device, torch.float16)


def in_two_passes(model: nn.Module, monkeypatch: pytest.MonkeyPatch, *inputs: Tensor) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(triton_scaling, "scales", lambda x, scale: False)
        return [model(x) for x in inputs]


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("shift", [0.0, SHIFT])
def test_a_packed_layer_takes_it(
    shift: float, rank: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pack_(nn.Sequential(layer_of(0, device, rank=rank, shift=shift)), Backend.TRITON_INT8)
    x = draw(2, 5, 48).half().to(device)
    calls: list[bool] = []
    run = triton_scaling.scale_tokens
    monkeypatch.setattr(
        triton_scaling, "scale_tokens", lambda *a, keep: (calls.append(keep), run(*a, keep=keep))[1]
    )
    (wanted,) = in_two_passes(real, monkeypatch, x)
    assert not calls
    assert torch.equal(real(x), wanted) and calls == [rank > 0]
    assert real(x[:, :0]).shape == (2, 0, 24) and len(calls) == 1, "an empty input"
    compiled = torch.compile(real, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), wanted)


def test_twins_share_one_pass(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleList([layer_of(seed, device) for seed in range(3)])
    assert mark_twins_(list(model)) == 2
    real = pack_(copy.deepcopy(model), Backend.TRITON_INT8)
    x = draw(2, 5, 48).half().to(device)
    alone = [in_two_passes(layer, monkeypatch, x)[0] for layer in real]
    count: list[int] = []
    run = triton_scaling._launch
    monkeypatch.setattr(triton_scaling, "_launch", lambda *a: (count.append(1), run(*a))[1])
    assert all(map(torch.equal, linears(x, list(real)), alone)) and count == [1]


def test_other_kinds_take_two_passes(device: str) -> None:
    """Clips by timestep, other backends, what is no number for kernels."""
    one = torch.ones(48, device=device)
    x = draw(4, 48).to(device)
    assert triton_scaling.scales(x, one)
    assert not triton_scaling.scales(x.double(), one) and not triton_scaling.scales(x, one.half())
    assert not triton_scaling.scales(x, one[:40]) and not triton_scaling.scales(x[:0], one)
    assert not triton_scaling.scales(x.clone().requires_grad_(), one)
    config = QuantConfig(w_bits=4, a_bits=4, learn_clip=True)
    layer = TransformedQuantLinear(frozen(config, (24, 48)), Transform(scaled=True)).to(device)
    layer.input_scale = one.exp()
    (packed,) = pack_(nn.Sequential(copy.deepcopy(layer)), Backend.TRITON_INT8)
    assert packed.fused_read(x) is None
    slow = PackedLinear.from_frozen(layer.inner, Backend.REFERENCE)
    assert slow.scaled_read(x, one, 0.0, keep=True) is None
    outs = [pack_(nn.Sequential(layer_of(0, device)), one) for one in (Backend.TRITON_INT8, "reference")]
    for a, b in pairwise(each(draw(3, 48).half().to(device)) for each in outs):
        assert float((a.float() - b.float()).norm() / b.float().norm()) < 2**-9


def test_operator_keeps_torchs_rules(device: str) -> None:
    x, one = draw(4, 48).to(device), torch.ones(1, device=device)
    for q_max, keep in ((7, False), (255, True)):
        torch.library.opcheck(
            triton_scaling._operator, (x, draw(48).exp().to(device), 0.5, keep, one, one, q_max, False)
        )
