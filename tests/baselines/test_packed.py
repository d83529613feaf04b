"""Every registered method's model, packed, is the fake-quantized one: codes and outputs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from evalharness.api import Bits
from evalharness.cells import Cell, build_method
from evalharness.models import tinyworld
from evalharness.registry import Registry
from qvgen.checkpoint import load_quantized
from qvgen.packed.convert import pack_, packed_layers
from qvgen.training.recipe import TrainRecipe
from tests.baselines import conftest as trained_world
from tests.baselines import ptq
from tests.qvgen.packed.comparison import compare

RECIPE = TrainRecipe(steps=8, batch_size=2, lr_weights=1e-4, lr_scales=1e-4, lr_phi=1e-4, lr_clips=1e-4)


def methods() -> dict[str, type[Any]]:
    found = Registry().load_all("methods")
    return {n: cls for n, cls in found.items() if cls.__module__.startswith(("baselines.", "qvgen."))}


def made(name: str, bits: int) -> tuple[nn.Module, Any]:
    """A finished small model of the method, and a call of it."""
    method = build_method(Registry(), Cell(model="m", method=name, bits=Bits(bits, bits), seed=0))
    if method.needs != "training":
        model: nn.Module = ptq.make_block()
        finished = method.apply(copy.deepcopy(model), ptq.Context(model, ptq.sample))
        return finished, lambda m: ptq.sample(m, 3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        block = trained_world.Block().eval()
    context = trained_world.Context(block)
    method = replace(method, recipe=RECIPE)
    batch = next(trained_world.Context(block).batches(3))
    return method.apply(block, context), lambda m: m(**batch.inputs)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method(name: str, bits: int) -> None:
    finished, call = made(name, bits)
    compare(finished, call)


@pytest.mark.parametrize("name", ["viditq", "svdquant", "qvgen"])
def test_bfloat16_models(name: str) -> None:
    """Rounding of the fake-quantized operands to bfloat16 is what differs: under one per cent."""
    finished, call = made(name, 4)
    if name == "qvgen":
        with pytest.raises(ValueError, match="call convert_"):
            pack_(nn.Sequential(nn.Linear(4, 4)))
    compare(finished.float(), call)
    packed = pack_(copy.deepcopy(finished)).to(torch.bfloat16)
    assert all(layer.scale.dtype == torch.float32 for _, layer in packed_layers(packed))
    x = ptq.inputs(1).bfloat16()
    if name != "qvgen":
        with torch.no_grad():
            exact, rounded = finished(x.float()), packed(x).float()
        assert (exact - rounded).square().sum() / exact.square().sum() < 0.02


@pytest.mark.parametrize("method", ["qvgen", "lsq", "kd-qat"])
@pytest.mark.parametrize("bits", ["w2a2", "w3a3", "w4a4"])
def test_bundled_checkpoints_on_tinyworld(method: str, bits: str, loaded: tinyworld.LoadedTinyWorld) -> None:
    model = load_quantized(copy.deepcopy(loaded.transformer), tinyworld.CHECKPOINTS / f"{method}-{bits}", {})
    packed = compare(model, lambda m: m(**loaded.step_inputs()))
    layers = dict(packed_layers(packed))
    stored = sum(layer.codes.numel() for layer in layers.values())
    weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    assert weights * int(bits[1]) / 8 <= stored <= 1.09 * weights * int(bits[1]) / 8  # rows of 240 as of 256
    with pytest.raises(ValueError, match="is packed already"):
        pack_(packed)


@pytest.fixture(scope="module")
def loaded() -> tinyworld.LoadedTinyWorld:
    return tinyworld.TinyWorld().load("cpu")


def test_backend_errors_name_the_layer(loaded: tinyworld.LoadedTinyWorld) -> None:
    model = load_quantized(copy.deepcopy(loaded.transformer), tinyworld.CHECKPOINTS / "lsq-w4a4", {})
    with pytest.raises(ValueError, match=r"layer transformer_blocks\.0.*to_q: backend scaled_mm needs"):
        pack_(model, "scaled_mm")
    with pytest.raises(ValueError, match="backend is 'gpu'; choose one of auto, reference, cpu"):
        pack_(model, "gpu")
