"""Layers with a changed input: what they compute, what they store, what a foreign file is told."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from qvgen.api import finish_, frozen_layers
from qvgen.checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_quantized, save_quantized
from qvgen.config import QuantConfig
from qvgen.fake_quant import weight_codes
from qvgen.quantizers import initial_scale
from qvgen.transformed import Transform, TransformedQuantLinear, frozen_from_codes
from tests.finished import finished_layers

CONFIG = QuantConfig(w_bits=3, a_bits=4, zero_point="fixed")
STATIC = dataclasses.replace(CONFIG, a_granularity="tensor", a_range="static")
ALL = Transform(scaled=True, rotated=True, rank=3, shift=0.25)


def layer_of(linear: nn.Linear, transform: Transform, config: QuantConfig = CONFIG) -> TransformedQuantLinear:
    """A layer with arbitrary contents: any codes, scales and factors will do."""
    g = torch.Generator().manual_seed(5)
    weight = linear.weight.detach().float()
    scale, zero = initial_scale(weight, config)
    codes = weight_codes(weight, scale, zero, 2**config.w_bits - 1)
    layer = TransformedQuantLinear(frozen_from_codes(linear, config, codes, scale, zero), transform)
    for name in ("input_scale", "down", "up"):
        tensor = getattr(layer, name)
        if tensor is not None:
            tensor.copy_(torch.rand(tensor.shape, generator=g) + 0.5)
    if config.a_range == "static":  # steps of 0.2 from -1 to 2
        layer.inner.a_scale.fill_(0.2)
        layer.inner.a_zero_point.fill_(5)
    return layer


def make_model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 8), nn.Linear(8, 4, bias=False)
        ).eval()


def quantized() -> nn.Sequential:
    """One layer of each form: transformed with other bits, static, plain."""
    model = make_model()
    eight = QuantConfig(w_bits=8, a_bits=8, zero_point="fixed", a_symmetric=True)
    model[0] = layer_of(model[0], ALL, eight)
    model[2] = layer_of(model[2], Transform(scaled=True), STATIC)
    plain = layer_of(model[3], Transform()).inner
    model[3] = plain
    finish_(model, CONFIG)
    return model


def test_the_forward_pass_is_its_formula() -> None:
    linear = nn.Linear(12, 5)
    layer = layer_of(linear, ALL, QuantConfig(w_bits=3, a_bits=8, zero_point="fixed"))
    x = torch.randn(7, 12)
    assert layer.rotation is not None and layer.input_scale is not None
    scaled = (x.numpy() + 0.25) * layer.input_scale.numpy()
    dense = layer.rotation(torch.eye(12, dtype=torch.float64)).numpy()
    turned = scaled @ dense
    low, high = np.minimum(turned.min(1), 0), np.maximum(turned.max(1), 0)
    step = ((high - low) / 255)[:, None]
    zero = np.rint(-low[:, None] / step)
    rounded = (np.clip(np.rint(turned / step) + zero, 0, 255) - zero) * step
    branch = scaled @ layer.down.numpy().T @ layer.up.numpy().T  # type: ignore[union-attr]
    wanted = rounded @ layer.inner.weight.numpy().T + branch + linear.bias.detach().numpy()
    found = layer(x).detach().numpy()
    step_effect = np.abs(layer.inner.weight.numpy()).sum() * step.max()  # a code may round the other way
    assert np.abs(found - wanted).max() < 1e-4 + step_effect * 0.01


def test_a_static_range_does_not_follow_the_input() -> None:
    linear = nn.Linear(6, 3, bias=False)
    layer = layer_of(linear, Transform(), STATIC)
    x = torch.tensor([[-5.0, -0.31, 0.0, 0.09, 0.12, 7.0]])
    rounded = torch.tensor([[-1.0, -0.4, 0.0, 0.0, 0.2, 2.0]])  # -0.31 is nearer to -0.4
    torch.testing.assert_close(layer(x), rounded @ layer.inner.weight.T)
    far = layer(torch.tensor([[-10.0, 0.0, 0.0, 0.0, 0.0, 14.0]]))
    clamped = torch.tensor([[-1.0, 0.0, 0.0, 0.0, 0.0, 2.0]])
    torch.testing.assert_close(far, clamped @ layer.inner.weight.T)


def test_saved_and_loaded_are_the_same(tmp_path: Path) -> None:
    live = quantized()
    save_quantized(live, tmp_path, {"method": "m"}, CONFIG)
    loaded = load_quantized(make_model(), tmp_path, {"method": "m", "w_bits": 3, "a_bits": 4})
    state, again = live.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    for name in state:
        assert torch.equal(state[name], again[name]), name
    x = torch.randn(9, 12)
    assert torch.equal(live(x), loaded(x))
    assert [m.transform for m in loaded.modules() if isinstance(m, TransformedQuantLinear)] == [
        ALL,
        Transform(scaled=True),
    ]
    assert dict(frozen_layers(loaded))["0.inner"].config.w_bits == 8
    assert dict(frozen_layers(loaded))["2.inner"].config == STATIC
    header = json.loads((tmp_path / CONFIG_NAME).read_text())
    older = {name: {**value, "static": False} for name, value in header["transforms"].items()}
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**header, "transforms": older}))
    assert torch.equal(load_quantized(make_model(), tmp_path, {})(x), live(x)), "a file of an older format"


def test_stored_bits_are_those_of_the_file(tmp_path: Path) -> None:
    live = quantized()
    save_quantized(live, tmp_path, {}, CONFIG)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    for name, layer in finished_layers(live):
        own = [t for n, t in tensors.items() if n.startswith(f"{name}.") and not n.endswith("bias")]
        assert layer.stored_bits() == sum(8 * t.numel() * t.element_size() for t in own), name
    assert [name for name, _ in finished_layers(live)] == ["0", "2", "3"]


def test_multiplications_are_counted_by_what_runs() -> None:
    layer = layer_of(nn.Linear(24, 7), ALL)
    assert layer.rotation is not None and layer.rotation.factors == (24,)
    low, branch, turn = 10 * 24 * 7, 10 * 3 * (24 + 7), 10 * 24 * 24
    assert dict(layer.macs(10)) == {(3, 4): low, (16, 16): branch + turn}
    assert dict(layer_of(nn.Linear(24, 7), Transform(scaled=True)).macs(10)) == {(3, 4): low}
    assert layer.bias is layer.inner.bias is not None


def test_a_plain_model_has_no_new_keys(tmp_path: Path) -> None:
    model = make_model()
    for index in (0, 2, 3):
        model[index] = layer_of(model[index], Transform()).inner
    save_quantized(finish_(model, CONFIG), tmp_path, {})
    header = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert "transforms" not in header and "layer_configs" not in header


def test_scales_stay_exact_in_bf16() -> None:
    model = quantized()
    first = model[0]
    assert isinstance(first, TransformedQuantLinear)
    exact = copy.deepcopy(first.input_scale)
    model.to(torch.bfloat16)
    assert exact is not None and first.input_scale is not None and torch.equal(first.input_scale, exact)
    assert first.down is not None and first.down.dtype == torch.bfloat16
    assert first(torch.randn(3, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


def altered(folder: Path, **changes: object) -> str:
    path = folder / CONFIG_NAME
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, **changes}))
    with pytest.raises(ValueError) as caught:
        load_quantized(make_model(), folder, {})
    path.write_text(json.dumps(header))
    return str(caught.value)


def test_headers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_quantized(quantized(), tmp_path, {}, CONFIG)
    header = json.loads((tmp_path / CONFIG_NAME).read_text())
    transforms, configs = header["transforms"], header["layer_configs"]
    assert "unknown key 'ranc'; did you mean 'rank'" in altered(tmp_path, transforms={"0": {"ranc": 2}})
    assert "'transforms' is no dict" in altered(tmp_path, transforms=[])
    assert "names 9.inner" in altered(tmp_path, transforms={**transforms, "9": {}})
    assert "layer '0.inner' of the checkpoint is no linear" in altered(tmp_path, transforms={})
    wider = {**transforms, "0": {**transforms["0"], "rank": 4}}
    assert "0.down is (3, 12), the model needs (4, 12)" in altered(tmp_path, transforms=wider)
    assert "w_bits is 9" in altered(tmp_path, layer_configs={"0.inner": {**configs["0.inner"], "w_bits": 9}})
    assert "names 7" in altered(tmp_path, layer_configs={**configs, "7": configs["0.inner"]})
    fewer = {**transforms, "0": {**transforms["0"], "rank": 0}}
    assert "surplus tensor 0.down" in altered(tmp_path, transforms=fewer)
