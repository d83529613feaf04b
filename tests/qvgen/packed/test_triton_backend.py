"""The Triton backend of packed linears gives what the reference backend gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from qvgen.config import QuantConfig
from qvgen.packed import triton_int8
from qvgen.packed.activations import quantize_activations
from qvgen.packed.backends import Backend
from qvgen.packed.layout import ActivationSpec, PackedWeight, pack_rows
from qvgen.packed.linear import PackedLinear
from qvgen.packed.products import Operand, float64_product, linear
from qvgen.quantizers import ClipContext


def weight_of(rows: int, columns: int, bits: int, device: str, seed: int = 0) -> PackedWeight:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    scale = torch.rand(rows, 1, generator=generator) * 0.1 + 0.01
    zero = torch.rand(rows, 1, generator=generator) * (2**bits - 1)
    return PackedWeight(
        pack_rows(codes, bits).to(device), scale.to(device), zero.to(device), bits, (rows, columns)
    )


def spec_of(bits: int, device: str, symmetric: bool = False) -> ActivationSpec:
    first, second = torch.tensor([0.9], device=device), torch.tensor([0.8], device=device)
    return ActivationSpec(bits, "token", 0, symmetric, False, first, second)


def reference(x: Tensor, weight: PackedWeight, spec: ActivationSpec, bias: Tensor | None) -> Tensor:
    operand = Operand(
        weight.centred(), weight.scale.double(), weight.zero_point.double() - 2 ** (weight.bits - 1)
    )
    y = linear(quantize_activations(x, spec), operand, bias, float64_product, torch.float64)
    return y.view(*x.shape[:-1], weight.shape[0])


@pytest.mark.parametrize("w_bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("a_bits", [2, 7, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_layer_of_any_width(w_bits: int, a_bits: int, symmetric: bool, device: str) -> None:
    generator = torch.Generator().manual_seed(w_bits)
    x = torch.randn(2, 5, 50, generator=generator).to(device)
    bias = torch.randn(20, generator=generator).to(device)
    weight, spec = weight_of(20, 50, w_bits, device), spec_of(a_bits, device, symmetric)
    assert triton_int8.fits(weight, spec, x.device)
    y = triton_int8.int8_linear(x, weight, spec, bias)
    expected = reference(x, weight, spec, bias)
    size = float(expected.abs().max())
    torch.testing.assert_close(y.double(), expected, rtol=2**-20, atol=size * 2**-20)


def test_layers_of_one_input(device: str) -> None:
    x = torch.randn(3, 4, 40, generator=torch.Generator().manual_seed(1)).to(device)
    specs = [
        replace(spec_of(4, device), first=torch.rand(3, 1, 1, device=device) * 0.5 + 0.5, second=second)
        for second in torch.rand(2, 3, 1, 1, device=device) * 0.5 + 0.5
    ]
    layers = [(weight_of(n, 40, 3, device, n), s, None) for n, s in zip((16, 24), specs, strict=True)]
    for y, layer in zip(triton_int8.int8_linears(x, layers), layers, strict=True):
        assert torch.equal(y, triton_int8.int8_linear(x, *layer))
        assert y.shape == (3, 4, layer[0].shape[0])


def test_no_rows_give_none(device: str) -> None:
    weight, spec = weight_of(8, 40, 4, device), spec_of(4, device)
    x = torch.empty(2, 0, 40, device=device)
    assert triton_int8.int8_linear(x, weight, spec, None).shape == (2, 0, 8)
    assert [y.shape for y in triton_int8.int8_linears(x, [(weight, spec, None)])] == [(2, 0, 8)]


def test_what_it_does_not_execute(device: str) -> None:
    weight, spec = weight_of(8, 40, 4, device), spec_of(4, device)
    place = torch.device(device)
    assert triton_int8.fits(weight, spec, place)
    groups = replace(weight, scale=weight.scale.expand(8, 2), zero_point=weight.zero_point.expand(8, 2))
    assert not triton_int8.fits(groups, spec, place)
    for other in ("group", "tensor"):
        assert not triton_int8.fits(weight, replace(spec, granularity=other), place)
    assert not triton_int8.fits(weight, replace(spec, static=True), place)
    assert not triton_int8.fits(weight, spec, torch.device("meta"))
    with pytest.raises(ValueError, match="expected float32, bfloat16 or float16"):
        triton_int8.int8_linear(torch.randn(2, 40, device=device).double(), weight, spec, None)


def test_a_packed_linear_compiles_to_one_graph(device: str) -> None:
    weight, generator = weight_of(24, 40, 3, device), torch.Generator().manual_seed(0)
    layers = []
    for backend in (Backend.TRITON_INT8, Backend.REFERENCE):
        bias = nn.Parameter(torch.linspace(-1, 1, 24, device=device))
        config = QuantConfig(w_bits=3, a_bits=4)
        layer = PackedLinear(
            (24, 40), bias, config, ClipContext(1), device=torch.device(device), backend=backend
        )
        for name in ("codes", "scale", "zero_point"):
            layer.get_buffer(name).copy_(getattr(weight, name))
        layers.append(layer.prepare_())
    x = torch.randn(2, 3, 40, generator=generator).to(device)
    torch.compiler.reset()
    with torch.no_grad():
        ours, plain = (layer(x) for layer in layers)
        compiled = torch.compile(layers[0], backend="aot_eager", fullgraph=True)(x)
    assert layers[0].executed is Backend.TRITON_INT8 and layers[0].execution() == "real"
    assert torch.equal(compiled, ours)
    torch.testing.assert_close(ours, plain, rtol=2**-20, atol=float(plain.abs().max()) * 2**-20)
