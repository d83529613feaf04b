"""quantize_ and convert_: which layers, what they compute, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qvgen.api import convert_, frozen_layers, quant_layers, quantize_
from qvgen.checkpoint import load_quantized, save_quantized
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.linear import FrozenQuantLinear, QuantLinear

W3A3 = QuantConfig(w_bits=3, a_bits=3)


def test_replaces_all_but_skipped(make_model: Callable[[], nn.Module]) -> None:
    model = quantize_(make_model(), W3A3, skip=["second"])
    assert [name for name, _ in quant_layers(model)] == ["first"]
    assert type(model.get_submodule("second")) is nn.Linear
    convert_(model)
    assert [name for name, _ in frozen_layers(model)] == ["first"]
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_output_is_quantized_weight_times_quantized_input() -> None:
    linear = nn.Linear(6, 4)
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    model = convert_(quantize_(nn.Sequential(linear), QuantConfig(w_bits=2, a_bits=8, zero_point="fixed")))
    layer = model.get_submodule("0")
    assert isinstance(layer, FrozenQuantLinear)
    weight = (layer.codes.double() - layer.zero_point) * layer.scale
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    s = (high - low) / 255
    z = (-low / s).round()
    x_hat = s * ((x / s).round().add(z).clamp(0, 255) - z)
    expected = x_hat.double() @ weight.T + linear.bias.double()
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert int(layer.codes.max()) <= 3


def test_training_and_inference_forms_agree(make_model: Callable[[], nn.Module], batch: Any) -> None:
    config = QuantConfig(w_bits=3, a_bits=3, learn_clip=True, clip_buckets=5, store_dtype="float32")
    model = quantize_(make_model(), config)
    for _, layer in quant_layers(model):  # clips that differ by bucket
        assert layer.aquantizer.upper is not None
        layer.aquantizer.upper.data.copy_(torch.linspace(-1, 3, 5))
    training = model(**batch.inputs)
    torch.testing.assert_close(convert_(copy.deepcopy(model))(**batch.inputs), training, rtol=1e-5, atol=1e-6)


def test_phi_starts_by_repairing_the_weight(make_model: Callable[[], nn.Module]) -> None:
    original = make_model().get_submodule("first").weight
    assert isinstance(original, torch.Tensor)
    errors = []
    for rank in (1, 4, 16):
        layer = quantize_(make_model(), QVGenConfig(quant=W3A3, rank=rank)).get_submodule("first")
        assert isinstance(layer, QuantLinear)
        errors.append(float((layer.effective_weight() - original).detach().norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4  # 16 inputs: rank 16 repairs all


def test_timestep_picks_the_clip(make_model: Callable[[], nn.Module], batch: Any) -> None:
    model = quantize_(make_model(), QuantConfig(w_bits=8, a_bits=3, learn_clip=True, clip_buckets=10))
    x = batch.inputs["x"]
    before = model(x=x, timestep=torch.full((6,), 250))
    layer = model.get_submodule("first")
    assert isinstance(layer, QuantLinear) and layer.aquantizer.upper is not None
    layer.aquantizer.upper.data[2] = -1.0  # serves timesteps 200..299 only
    for t, same in ((199, True), (200, False), (299, False), (300, True), (999, True)):
        timesteps = torch.full((6,), t)
        assert torch.equal(model(x=x, timestep=timesteps), before) is same, t
    mixed = model(x=x, timestep=torch.tensor([100, 250] * 3))
    assert torch.equal(mixed[0::2], before[0::2])  # each sample has its own
    assert not torch.equal(mixed[1::2], before[1::2])
    with pytest.raises(ValueError, match="clips depend on the timestep"):
        model(x=x)
    with pytest.raises(ValueError, match="4 timesteps for a batch of 6"):
        model(x=x, timestep=torch.zeros(4))


def test_casting_keeps_scales_exact(make_model: Callable[[], nn.Module], batch: Any) -> None:
    model = convert_(quantize_(make_model(), W3A3))
    output = model(**batch.inputs)
    scales = {n: layer.scale.clone() for n, layer in frozen_layers(model)}
    state = {n: layer.weight.clone() for n, layer in frozen_layers(model)}
    model.to(torch.bfloat16)
    for name, layer in frozen_layers(model):
        assert layer.weight.dtype == torch.bfloat16 and torch.equal(layer.scale, scales[name])
    model.to(torch.float32)
    for name, layer in frozen_layers(model):
        assert torch.equal(layer.weight, state[name])
    torch.testing.assert_close(model(**batch.inputs), output, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("assign", [False, True])
def test_a_loaded_state_is_what_computes(
    assign: bool, make_model: Callable[[], nn.Module], batch: Any
) -> None:
    source = make_model()
    with torch.no_grad():
        source.get_parameter("first.weight").mul_(-2)
    source = convert_(quantize_(source, W3A3))
    model = convert_(quantize_(make_model(), W3A3))
    for twin in (copy.deepcopy(model), model):
        assert not torch.equal(twin(**batch.inputs), source(**batch.inputs))
        twin.load_state_dict(source.state_dict(), assign=assign)
        for (_, loaded), (_, layer) in zip(frozen_layers(twin), frozen_layers(source), strict=True):
            assert torch.equal(loaded.weight, (layer.codes - layer.zero_point) * layer.scale)
        assert torch.equal(twin(**batch.inputs), source(**batch.inputs))


class Special(nn.Linear):
    """With a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.attention(x, x, x)[0])
        return y


def test_linears_of_a_class_of_their_own_are_refused(make_model: Callable[[], nn.Module]) -> None:
    model = make_model()
    model.second = Special(48, 8)
    with pytest.raises(ValueError, match=r"layer second is a Special and no plain nn.Linear: .*; skip it"):
        quantize_(model, W3A3)
    assert not list(quant_layers(model)), "nothing was replaced"
    quantize_(model, W3A3, skip=["second"])
    assert [n for n, _ in quant_layers(model)] == ["first"] and type(model.second) is Special
    with pytest.raises(ValueError, match=r"layer attention.out_proj is a NonDynamicallyQuantizableLinear"):
        quantize_(Attending(), W3A3)


def test_a_skipped_special_linear_does_not_hinder_loading(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attending().eval()
    saved = convert_(quantize_(copy.deepcopy(model), W3A3, skip=["attention.out_proj"]))
    save_quantized(saved, tmp_path, {})
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        assert torch.equal(load_quantized(model, tmp_path, {})(x), saved(x))


class Twice(nn.Module):
    """One linear under two names, and one block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.block = nn.ModuleList([nn.Linear(16, 16)])
        self.again = self.first
        self.block_again = self.block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.block[0], self.again, self.block_again[0]):
            x = layer(x).tanh()
        return x


def test_a_shared_layer_is_quantized_under_all_its_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original, x = Twice().eval(), torch.randn(2, 3, 16)
    model = quantize_(copy.deepcopy(original), W3A3)
    for finished in (model, convert_(copy.deepcopy(model))):
        assert finished.first is finished.again and not isinstance(finished.again, nn.Linear)
        assert finished.block[0] is finished.block_again[0]  # type: ignore[index]
        torch.testing.assert_close(finished(x), model(x), rtol=1e-5, atol=1e-6)
    scale = model.get_submodule("first").wquantizer.scale()  # type: ignore[operator,union-attr]
    convert_(model)
    assert torch.equal(model.get_buffer("again.scale"), scale), "not rounded as an unquantized tensor"
    save_quantized(model, tmp_path, {})
    loaded = load_quantized(copy.deepcopy(original), tmp_path, {})
    assert loaded.first is loaded.again
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert [n for n, _ in quant_layers(quantize_(copy.deepcopy(original), W3A3, skip=["again"]))] == [
        "block.0"
    ]


def test_refusals(make_model: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="skip: 'frist' is no linear of the model; did you mean 'first'"):
        quantize_(make_model(), W3A3, skip=["frist"])
    with pytest.raises(ValueError, match="nothing to quantize: the model has 2 linears, 2 skipped"):
        quantize_(make_model(), W3A3, skip=["first", "second"])
    with pytest.raises(ValueError, match="wrap it"):
        quantize_(nn.Linear(2, 2), W3A3)
    with pytest.raises(ValueError, match="quantized already"):
        quantize_(quantize_(make_model(), W3A3), W3A3)
    with pytest.raises(ValueError, match="call quantize_"):
        convert_(make_model())
    with pytest.raises(ValueError, match="layer first: Phi is still active"):
        convert_(quantize_(make_model(), QVGenConfig(quant=W3A3, rank=2)))
    broken = make_model()
    with torch.no_grad():
        broken.get_parameter("first.weight").fill_(float("inf"))
    with pytest.raises(ValueError, match="layer first: a weight to quantize holds NaN or infinity"):
        quantize_(broken, W3A3)
