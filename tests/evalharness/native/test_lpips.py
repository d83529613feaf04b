"""LPIPS by its formula, position by position, on random weights; and within a run's divergence."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evalharness import divergence
from evalharness.api import Skip
from evalharness.native import convert, weights
from evalharness.native.lpips import MIN_SIDE, AlexNet, Lpips, lpips
from evalharness.native.renaming import alexnet
from evalharness.native.renaming import lpips as renamed
from evalharness.native.weights import store


@pytest.fixture
def shelf(tmp_path: Path, fill: Callable[..., nn.Module]) -> tuple[Path, Lpips]:
    network = Lpips()
    fill(network.alexnet, 3)
    with torch.no_grad():
        for number, weight in enumerate(network.weights.values()):
            weight.uniform_(0, 1, generator=torch.Generator().manual_seed(number))
    store("alexnet", dict(network.alexnet.state_dict()), tmp_path)
    store("lpips-alex", dict(network.weights.state_dict()), tmp_path)
    return tmp_path, network


def by_definition(network: Lpips, one: np.ndarray, other: np.ndarray) -> float:
    """Of one frame: the sum over layers of the mean over places of weighted squared differences."""

    def maps(frame: np.ndarray) -> list[np.ndarray]:
        image = frame.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
        shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
        x = torch.from_numpy(((image - shift[:, None, None]) / scale[:, None, None]).astype(np.float32))[None]
        found, features = [], network.alexnet.features
        for name, stride, padding in (("0", 4, 2), ("3", 1, 2), ("6", 1, 1), ("8", 1, 1), ("10", 1, 1)):
            layer = features[name]
            x = functional.relu(functional.conv2d(x, layer.weight, layer.bias, stride, padding))
            found.append(x[0].detach().double().numpy())
            if name in ("0", "3"):
                x = functional.max_pool2d(x, 3, 2)
        return found

    total = 0.0
    for number, (a, b) in enumerate(zip(maps(one), maps(other), strict=True)):
        weight = network.weights[f"lin{number}"].detach().double().numpy()
        places = [(i, j) for i in range(a.shape[1]) for j in range(a.shape[2])]
        values = []
        for i, j in places:
            x, y = (m[:, i, j] / (np.sqrt((m[:, i, j] ** 2).sum()) + 1e-10) for m in (a, b))
            values.append((weight * (x - y) ** 2).sum())
        total += float(np.mean(values))
    return total


@pytest.mark.parametrize("size", [(32, 32), (40, 70), (71, 48)])
def test_lpips_equals_its_definition(shelf: tuple[Path, Lpips], size: tuple[int, int]) -> None:
    folder, network = shelf
    one, other = (
        np.random.default_rng(seed).integers(0, 256, (2, *size, 3), dtype=np.uint8) for seed in (0, 1)
    )
    expected = np.mean([by_definition(network, a, b) for a, b in zip(one, other, strict=True)])
    assert lpips(one, other, folder) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01
    assert lpips(one, one, folder) == 0.0
    assert MIN_SIDE == 32
    with pytest.raises(RuntimeError):  # so smaller ones are not measured
        lpips(one[:, :26, :26], other[:, :26, :26], folder)


def test_missing_weights_are_a_skip(tmp_path: Path) -> None:
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(Skip, match="alexnet-owt-7be5be79"):
        lpips(frames, frames, tmp_path / "none")


def test_published_forms_become_ours(
    tmp_path: Path, shelf: tuple[Path, Lpips], monkeypatch: pytest.MonkeyPatch
) -> None:
    """AlexNet's classifier stays behind; weights of channels are convolutions there, vectors here."""
    _, network = shelf
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "converted"))
    lin = {f"{k}.model.1.weight": v[None, :, None, None] for k, v in network.weights.state_dict().items()}
    torch.save(lin, tmp_path / "alex.pth")
    convert.convert("lpips-alex", tmp_path / "alex.pth")
    state = {**network.alexnet.state_dict(), "classifier.1.weight": torch.ones(3, 3)}
    assert alexnet(state).keys() == AlexNet().state_dict().keys()
    for key, value in weights.tensors("lpips-alex").items():
        assert torch.equal(value, network.weights[key])


def test_divergence_has_lpips_where_the_weights_are(
    shelf: tuple[Path, Lpips], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, network = shelf
    one, other = (
        np.random.default_rng(seed).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8) for seed in (0, 1)
    )
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "none"))
    without = divergence._Further("cpu", None)
    assert without.of(one, other) == {"lpips": None, "latent_rms": None}
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(folder))
    further = divergence._Further("cpu", ("vae", lambda frames: frames.astype(np.float32) / 10))
    found = further.of(one, other)
    assert found["lpips"] == pytest.approx(by_definition(network, one[0], other[0]), rel=1e-4)
    apart = (one.astype(float) - other) / 10
    assert found["latent_rms"] == pytest.approx(np.sqrt((apart**2).mean()), rel=1e-6)
    assert not further.is_current(without.identity) and further.is_current(further.identity)
    assert without.is_current(further.identity)  # what is there beyond stays
    assert further.of(one[:, :20, :20], other[:, :20, :20])["lpips"] is None


@pytest.mark.skipif(importlib.util.find_spec("lpips") is None, reason="the package lpips is not installed")
def test_lpips_equals_the_package(shelf: tuple[Path, Lpips], torchvision_operators: object) -> None:
    folder, network = shelf
    theirs = importlib.import_module("lpips").LPIPS(
        net="alex", pretrained=False, pnet_rand=True, verbose=False
    )
    theirs.eval()
    state = theirs.state_dict()
    for key, value in network.alexnet.state_dict().items():
        [name] = [k for k in state if k.startswith("net.slice") and k.endswith(key.removeprefix("features"))]
        state[name] = value
    for key, value in network.weights.state_dict().items():
        state[f"{key}.model.1.weight"] = value[None, :, None, None]
    theirs.load_state_dict(state)
    one, other = (
        np.random.default_rng(seed).integers(0, 256, (3, 64, 90, 3), dtype=np.uint8) for seed in (2, 3)
    )
    stacks = [torch.from_numpy(f).permute(0, 3, 1, 2).float() / 127.5 - 1 for f in (one, other)]
    with torch.no_grad():
        expected = theirs(*stacks).mean().item()
    assert lpips(one, other, folder) == pytest.approx(expected, rel=1e-5)
    lins = {k: v for k, v in theirs.state_dict().items() if k.startswith("lin") and not k.startswith("lins")}
    assert renamed(lins).keys() == network.weights.state_dict().keys()
