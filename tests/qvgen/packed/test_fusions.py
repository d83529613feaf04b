"""Norms, modulation and GELU within the quantized read: against the plain reference and unfused blocks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn
from torch.nn import functional

from qvgen.api import convert_, quantize_
from qvgen.config import QuantConfig
from qvgen.integrations.blocks import FusedCogVideoXBlock, FusedWanBlock, fuse_
from qvgen.packed import triton_int8, triton_linear, triton_reading
from qvgen.packed.backends import Backend
from qvgen.packed.convert import pack_
from qvgen.packed.layout import ActivationSpec, PackedWeight
from qvgen.packed.linear import PackedLinear
from qvgen.packed.reading import linear_gelu
from qvgen.packed.sources import Gelu, Normed, Part, Source, plain, shape_of
from qvgen.packed.triton_linear import Tokens, quantize_groups, split_tokens
from qvgen.transformed import Transform, TransformedQuantLinear
from tests.qvgen.packed.models import MODELS, finished, inputs
from tests.qvgen.packed.test_linear import frozen
from tests.qvgen.triton_cases import DEVICES, draw


def normed(
    columns: int, dtype: torch.dtype, device: str, *, affine: bool, modulated: bool, wide: bool
) -> Normed:
    """Two parts of two samples; the second is a view that starts within a longer sequence."""
    x = (draw(2, 9, columns, seed=columns) * 2 + 0.3).to(dtype).to(device)
    numbers = (draw(2, 1, 4 * columns, seed=1) * 0.4).to(torch.float32 if wide else dtype).to(device)
    a, b, c, d = numbers.chunk(4, dim=2) if modulated else (None,) * 4
    weight, bias = (
        (draw(columns, seed=2) + 1).to(dtype).to(device),
        draw(columns, seed=3).to(dtype).to(device),
    )
    parts = (Part(x[:, :3], a, b), Part(x[:, 3:], c, d))
    return Normed(parts, weight if affine else None, bias if affine else None, 1e-5, wide)


def exact(source: Source) -> Tensor:
    """In float64 without rounding in between, [B, L, K]."""
    if isinstance(source, Gelu):
        return functional.gelu(source.x.double(), approximate="tanh")
    assert isinstance(source, Normed)
    found = []
    for part in source.parts:
        weight = None if source.weight is None else source.weight.double()
        bias = None if source.bias is None else source.bias.double()
        y = functional.layer_norm(part.x.double(), part.x.shape[-1:], weight, bias, source.eps)
        if part.scale is not None and part.shift is not None:
            y = y * (1 + part.scale.double()) + part.shift.double()
        found.append(y)
    return torch.cat(found, 1)


def values(tokens: Tokens, columns: int) -> Tensor:
    zero = 0 if tokens.zero_point is None else tokens.zero_point[:, None].double()
    return (tokens.codes[:, :columns].double() - zero) * tokens.scale[:, None].double()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("affine", "modulated"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("columns", [48, 200])
def test_norm_and_quantize(
    columns: int, affine: bool, modulated: bool, bits: int, dtype: torch.dtype, device: str
) -> None:
    """Within half a step of exact arithmetic: nothing is rounded in between; rows stand in order."""
    source = normed(columns, dtype, device, affine=affine, modulated=modulated, wide=False)
    one = torch.ones(1, device=device)
    spec = ActivationSpec(bits, "token", 0, False, False, one, one)
    (tokens,) = triton_reading.read_tokens(source, [spec], [False])
    wanted = exact(source).view(-1, columns)
    step = tokens.scale[:, None].double()
    # The range's ends can be off by as much again, where the whole zero point cuts it.
    assert ((values(tokens, columns) - wanted).abs() <= step * 1.0001).all()
    inner = (values(tokens, columns) - wanted).abs() <= step * 0.5001
    assert inner.double().mean() > 0.9
    assert shape_of(source) == tuple(plain(source).shape) == (2, 9, columns)


def reference_codes(source: Source, bits: int) -> Tokens:
    """Of the plain tensor, by the kernel that only quantizes."""
    x = plain(source)
    one = torch.ones(1, device=x.device)
    return split_tokens(*quantize_groups(x.contiguous(), one, one, 1, 2**bits - 1, False))[0]


def levels(tokens: Tokens) -> Tensor:
    """Codes less their zero point: at 8 bits that of a row may be another one, which moves all its codes."""
    zero = 0 if tokens.zero_point is None else tokens.zero_point[:, None]
    return tokens.codes.int() - zero


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("kind", ["cog", "wan", "gelu"])
def test_how_many_codes_differ_from_the_plain_path(kind: str, bits: int, device: str) -> None:
    """bfloat16 moves values by up to 2^-9 of themselves at each rounding that the plain path has.

    CogVideoX has four of these (norm, 1 + scale, product, sum), Wan and GELU one. A code changes where
    that carries its value over a border: by one at up to 4 bits; at 8 bits, where steps are of the
    size of the rounding, by more.
    """
    if kind == "gelu":
        source: Source = Gelu(draw(6, 3, 200).to(torch.bfloat16).to(device))
    else:
        source = normed(200, torch.bfloat16, device, affine=kind == "cog", modulated=True, wide=kind == "wan")
    one = torch.ones(1, device=device)
    spec = ActivationSpec(bits, "token", 0, False, False, one, one)
    (fused,) = triton_reading.read_tokens(source, [spec], [False])
    apart = (levels(fused) - levels(reference_codes(source, bits))).abs()
    share = float((apart > 0).double().mean())
    assert apart.max() <= (1 if bits < 8 else 2)
    limits = {"cog": {3: 0.02, 4: 0.03, 8: 0.3}, "wan": {3: 0.01, 4: 0.02, 8: 0.2}}
    assert share <= limits.get(kind, limits["wan"])[bits]


@pytest.mark.parametrize("device", DEVICES)
def test_clips_of_several_layers_and_samples(device: str) -> None:
    """Groups and samples meet their own clips: as if the plain float32 tensor were quantized."""
    source = normed(48, torch.float32, device, affine=False, modulated=True, wide=True)
    clips = torch.rand(3, 2, 1, 1, generator=torch.Generator().manual_seed(0)).to(device) * 0.4 + 0.6
    specs = [ActivationSpec(4, "token", 0, False, False, clip, clip * 0.9) for clip in clips]
    x = plain(source)
    for each, spec in zip(triton_reading.read_tokens(source, specs, [True] * 3), specs, strict=True):
        wanted = split_tokens(*quantize_groups(x, spec.first, spec.second, 1, 15, False))[0]
        torch.testing.assert_close(each.scale, wanted.scale, rtol=1e-5, atol=0)
        assert (each.codes != wanted.codes).double().mean() < 1e-3


@pytest.mark.parametrize("name", ["cog", "wan"])
@pytest.mark.parametrize("backend", [Backend.CPU, Backend.REFERENCE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_blocks_give_the_same_bits_without_kernels(
    name: str, backend: Backend, dtype: torch.dtype
) -> None:
    fake = finished(name, learn_clip=True).to(dtype)
    fused, unfused = pack_(copy.deepcopy(fake), backend), pack_(copy.deepcopy(fake), backend, fuse=False)
    kinds = {"cog": FusedCogVideoXBlock, "wan": FusedWanBlock}
    assert sum(isinstance(part, kinds[name]) for part in fused.modules()) == 2
    assert not any(isinstance(part, kinds[name]) for part in unfused.modules())
    assert list(fused.state_dict()) == list(unfused.state_dict())
    with torch.no_grad():
        assert torch.equal(fused(**inputs(name, dtype=dtype))[0], unfused(**inputs(name, dtype=dtype))[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["cog", "wan"])
def test_fused_blocks_with_kernels(name: str, device: str) -> None:
    """One block in bfloat16: as near to the unfused one as that is to itself in float32."""
    fake = finished(name, layers=1, a_bits=8, w_bits=4).to(device)
    given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs(name).items()}
    exact = pack_(copy.deepcopy(fake), Backend.REFERENCE)
    half = {
        k: v.bfloat16() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()
    }
    fused = pack_(copy.deepcopy(fake).bfloat16(), Backend.TRITON_INT8)
    unfused = pack_(copy.deepcopy(fake).bfloat16(), Backend.TRITON_INT8, fuse=False)
    with torch.no_grad():
        wanted, a, b = exact(**given)[0], fused(**half)[0].float(), unfused(**half)[0].float()
    usual = float((b - wanted).norm() / wanted.norm())
    assert float((a - wanted).norm() / wanted.norm()) < 1.2 * usual < 0.06
    assert float((a - b).norm() / wanted.norm()) < 1.5 * usual


def epilogues(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each product that runs from now on, whether GELU is in it."""
    seen: list[bool] = []
    one, run = triton_linear.int8_linear, triton_reading.multiply_tokens
    monkeypatch.setattr(triton_linear, "int8_linear", lambda *a: (seen.append(a[-2]), one(*a))[1])
    monkeypatch.setattr(
        triton_reading, "multiply_tokens", lambda t, w, dtype: (seen.append(w.gelu), run(t, w, dtype))[1]
    )
    return seen


def behind(device: str, rank: int) -> TransformedQuantLinear:
    """Scaled and shifted, with a branch of that rank or none."""
    inner = frozen(QuantConfig(w_bits=4, a_bits=4), (24, 48))
    layer = TransformedQuantLinear(inner, Transform(scaled=True, shift=0.25, rank=rank))
    layer.input_scale = draw(48, seed=3).exp()
    if rank:
        layer.down, layer.up = draw(rank, 48, seed=4), draw(24, rank, seed=5)
    return layer.to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["plain", "scaled", "branch"])
def test_gelu_behind_a_linear(kind: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the product where nothing is added to it afterwards; other backends compute what a model does."""
    fake = {"plain": frozen(QuantConfig(w_bits=4, a_bits=4), (24, 48)).to(device),
            "scaled": behind(device, 0), "branch": behind(device, 3)}[kind]  # fmt: skip
    x = draw(2, 5, 48, seed=1).to(device)
    seen = epilogues(monkeypatch)
    for backend in (Backend.TRITON_INT8, Backend.REFERENCE):
        (layer,) = pack_(nn.Sequential(copy.deepcopy(fake)), backend).requires_grad_(False)
        seen.clear()
        got = linear_gelu(x, layer)
        is_inside = backend is Backend.TRITON_INT8 and kind != "branch"
        assert any(seen) == is_inside
        wanted = functional.gelu(layer(x), approximate="tanh")
        if is_inside:
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["cog", "wan"])
def test_a_block_whose_second_linear_reads_for_itself(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept in full precision, say: GELU goes into the product of the first."""
    model = MODELS[name](num_layers=1)
    linears = [n for n, part in model.named_modules() if isinstance(part, nn.Linear)]
    keep = [n for n in linears if n.endswith("net.2") or "blocks" not in n]
    fake = convert_(quantize_(model, QuantConfig(w_bits=4, a_bits=8), keep)).to(device)
    given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs(name).items()}
    fused = pack_(copy.deepcopy(fake), Backend.TRITON_INT8)
    unfused = pack_(copy.deepcopy(fake), Backend.TRITON_INT8, fuse=False)
    with torch.no_grad():
        wanted = unfused(**given)[0]
        seen = epilogues(monkeypatch)
        got = fused(**given)[0]
    assert seen.count(True) == 1
    assert float((got - wanted).norm() / wanted.norm()) < 1e-2, "norms in the reads move codes of 8 bits"


def test_what_is_not_fused() -> None:
    for name, block in (("cog", CogVideoXBlock), ("wan", WanTransformerBlock)):
        model = MODELS[name]()
        assert all(type(part) is block for part in fuse_(model).modules() if isinstance(part, block))
    exact_gelu = pack_(finished("cog"), fuse=False)
    for part in exact_gelu.modules():
        if isinstance(part, CogVideoXBlock):
            part.ff.net[0].approximate = "none"
    assert not any(isinstance(part, FusedCogVideoXBlock) for part in fuse_(exact_gelu).modules())
    dropping = pack_(finished("cog"), fuse=False)
    for part in dropping.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.1
    assert not any(isinstance(part, FusedCogVideoXBlock) for part in fuse_(dropping).modules())


@pytest.mark.parametrize("name", ["cog", "wan"])
def test_a_processor_of_ones_own_is_used(name: str) -> None:
    model = pack_(finished(name, layers=1))
    calls: list[int] = []
    block = (model.transformer_blocks if name == "cog" else model.blocks)[0]
    original = block.attn1.processor

    class Counting:
        _attention_backend = _parallel_config = None

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return original(*args, **kwargs)

    with torch.no_grad():
        wanted = model(**inputs(name))[0]
        block.attn1.processor = Counting()
        assert torch.equal(model(**inputs(name))[0], wanted)
    assert calls == [1]


def test_a_timestep_for_each_token_of_wan() -> None:
    """Wan 2.2's modulation by token takes diffusers' own way."""
    fake = finished("wan", layers=1)
    fused, unfused = pack_(copy.deepcopy(fake)), pack_(fake, fuse=False)
    given: dict[str, Any] = {**inputs("wan"), "timestep": torch.tensor([[20] * 18, [900] * 18])}
    with torch.no_grad():
        assert torch.equal(fused(**given)[0], unfused(**given)[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["cog", "wan"])
@pytest.mark.parametrize(("dtype", "inside"), [(torch.bfloat16, 1), (torch.float32, 0)])
def test_gelu_goes_into_a_product_that_hides_it(
    name: str, device: str, dtype: torch.dtype, inside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only of 16-bit results: others are not multiplied by the kernel that hides its epilogue."""
    fake = convert_(quantize_(MODELS[name](num_layers=1), QuantConfig(w_bits=4, a_bits=8))).to(device, dtype)
    given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs(name).items()}
    given |= {k: v.to(dtype) for k, v in given.items() if isinstance(v, Tensor) and v.is_floating_point()}
    fused = pack_(copy.deepcopy(fake), Backend.TRITON_INT8)
    for part in fused.modules():
        if isinstance(part, PackedLinear):
            part.hides_epilogue = True
    with torch.no_grad():
        wanted = pack_(fake, Backend.TRITON_INT8, fuse=False)(**given)[0]
        seen = epilogues(monkeypatch)
        got = fused(**given)[0]
    assert seen.count(True) == inside
    assert float((got - wanted).norm() / wanted.norm()) < 3e-2


@pytest.mark.parametrize("device", DEVICES)
def test_gelu_goes_there_from_the_first_call_on(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that offloading brings are not ready before a call: the first one must not round otherwise."""
    monkeypatch.setattr(triton_int8, "hides_epilogue", lambda *_: True)
    fake = convert_(quantize_(MODELS["cog"](num_layers=1), QuantConfig(w_bits=4, a_bits=8)))
    fused = pack_(fake.to(device, torch.bfloat16), Backend.TRITON_INT8)
    given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs("cog").items()}
    given |= {k: v.bfloat16() for k, v in given.items() if isinstance(v, Tensor) and v.is_floating_point()}
    for part in fused.modules():
        if isinstance(part, PackedLinear):
            part._ready_for, part.hides_epilogue = None, False  # as where it rests on the host
    seen = epilogues(monkeypatch)
    with torch.no_grad():
        first = fused(**given)[0]
        assert seen.count(True) == 1
        assert torch.equal(fused(**given)[0], first) and seen.count(True) == 2


def test_which_products_hide_an_epilogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long ones of warps that take turns; these have no zero points of 8-bit tokens."""
    monkeypatch.setattr(triton_linear, "runs_on", lambda device: True)
    monkeypatch.setattr(triton_int8, "takes_turns", lambda device: device.type == "cuda")
    one = torch.ones(1)

    def hides(columns: int, bits: int = 4, symmetric: bool = False, device: str = "cuda") -> bool:
        weight = PackedWeight(one, one, one, 4, (8, columns))
        spec = ActivationSpec(bits, "token", 0, symmetric, False, one, one)
        return triton_int8.hides_epilogue(weight, spec, torch.device(device))

    assert hides(5120) and not hides(1920) and not hides(5120, device="cpu")
    assert not hides(5120, 8) and hides(5120, 8, symmetric=True)
