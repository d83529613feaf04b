"""Our MUSIQ: against pyiqa's where that is installed, against its grades always, and its parts by hand."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evalharness.api import Prompt, Sample, Skip, Video
from evalharness.native import base
from evalharness.native.imaging_quality import ImagingQuality
from evalharness.native.inputs import musiq_input, planes
from evalharness.native.musiq import HASHES, Bottleneck, Musiq, StandardConv, _bordered, _hashed, _smaller
from evalharness.native.renaming import musiq
from evalharness.native.weights import fill, store

SMALL = {"width": 48, "depth": 2, "heads": 2, "hidden": 96, "stem": 64}
SIZES = [(341, 512), (136, 136), (100, 333), (33, 31)]
GOLDEN = Path(__file__).parents[1] / "golden" / "musiq.json"
SAMPLE = Sample(prompt=Prompt(id="0000", text="", dimensions=()), index=0, seed=0)


def published(small: bool, fill_: Callable[..., nn.Module]) -> dict[str, torch.Tensor]:
    """Random weights under pyiqa's names."""
    network = fill_(Musiq(**SMALL) if small else Musiq(), 21)
    state, names = network.state_dict(), {"position": "posembed_input.position_emb", "cls": "cls"}
    names |= {"scale": "scaleembed_input.scale_emb", "norm.weight": "encoder_norm.weight"}
    names["norm.bias"] = "encoder_norm.bias"
    theirs: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if key in names:
            name = f"transformer_encoder.{names[key]}"
            theirs[name] = tensor[None] if key == "position" else tensor
        elif key.startswith("blocks."):
            name = f"transformer_encoder.transformer.encoderblock_{key.removeprefix('blocks.')}"
            if ".attn.qkv." in key:
                for part, value in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    theirs[name.replace("attn.qkv", f"attention.{part}")] = value
            else:
                theirs[name.replace("attn.proj", "attention.out")] = tensor
        else:
            theirs[key] = tensor
    return theirs


def picture(height: int, width: int) -> torch.Tensor:
    """A smooth one with an edge, the same everywhere: no random numbers, no codec."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = [0.5 + 0.5 * torch.sin(9 * x * (k + 1) + 5 * y) for k in range(3)]
    image = torch.stack(waves)
    image[:, height // 3 :, : width // 4] *= 0.2
    return image[None]


def test_grades_equal_pyiqa_s_that_are_kept(fill: Callable[..., nn.Module]) -> None:
    network = filled_from(published(True, fill), SMALL)
    golden: dict[str, float] = json.loads(GOLDEN.read_text())["grades"]
    for height, width in SIZES:
        with torch.no_grad():
            found = network(picture(height, width)).item()
        assert found == pytest.approx(golden[f"{height}x{width}"], abs=2e-5)
    assert len({round(value, 3) for value in golden.values()}) == len(SIZES)


def filled_from(state: dict[str, torch.Tensor], sizes: dict[str, int]) -> Any:
    return fill(Musiq(**sizes), musiq(state), "musiq-spaq")


def pyiqa_s(state: dict[str, torch.Tensor], small: bool) -> Any:
    module = importlib.import_module("pyiqa.archs.musiq_arch")
    options = {"hidden_size": 48, "mlp_dim": 96, "num_heads": 2, "num_layers": 2} if small else {}
    network = module.MUSIQ(pretrained=False, **options)
    network.load_state_dict(state, strict=True)
    return network.eval()


@pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="pyiqa is not installed")
@pytest.mark.parametrize("small", [True, False], ids=["small", "published size"])
def test_grades_equal_pyiqa_s(
    fill: Callable[..., nn.Module], small: bool, torchvision_operators: object
) -> None:
    state = published(small, fill)
    ours, theirs = filled_from(state, SMALL if small else {}), pyiqa_s(state, small)
    for size in SIZES:
        with torch.no_grad():
            assert ours(picture(*size)).item() == pytest.approx(theirs(picture(*size)).item(), abs=1e-5)


def test_a_batch_is_its_pictures_one_by_one(fill: Callable[..., nn.Module]) -> None:
    network = filled_from(published(True, fill), SMALL)
    images = torch.rand(3, 3, 70, 110, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_allclose(network(images), [network(x[None]).item() for x in images], atol=1e-6)


def test_the_score_is_the_mean_of_frames_made_small(
    tmp_path: Path,
    moving: Callable[..., np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    fill: Callable[..., nn.Module],
) -> None:
    monkeypatch.setattr(base, "SPECS", {**base.SPECS, "musiq-spaq": SMALL})
    base._network.cache_clear()
    network = filled_from(published(True, fill), SMALL)
    store("musiq-spaq", dict(network.state_dict()), tmp_path)
    frames = moving(3, 300, 640)
    with torch.no_grad():
        grades = [network(musiq_input(planes(frame[None]))).item() for frame in frames]
    for batch in (1, 16):
        score = ImagingQuality(folder=tmp_path, batch=batch).score(Video(frames, 8.0), SAMPLE)
        assert score == pytest.approx(sum(grades) / 300, abs=1e-7)
    assert musiq_input(planes(frames[:1])).shape[-2:] == (240, 512)
    with pytest.raises(Skip, match="are missing"):
        ImagingQuality(folder=tmp_path / "none").score(Video(frames, 8.0), SAMPLE)


# ---- parts by hand


def test_borders_are_tensorflow_s() -> None:
    """``SAME``: an odd zero goes to the end."""
    ones = torch.ones(1, 1, 32, 31)
    assert _bordered(ones, 7, 2).shape[-2:] == (37, 37)
    assert _bordered(ones, 7, 2)[0, 0, 2:34, 3:34].eq(1).all()
    assert _bordered(torch.ones(1, 1, 16, 16), 3, 2)[0, 0, :16, :16].eq(1).all()
    assert _bordered(torch.ones(1, 1, 70, 96), 32, 32).shape[-2:] == (96, 96)


@pytest.mark.parametrize("count", [1, 4, 5, 7, 10, 11, 16])
def test_places_are_hashed_by_proportion(count: int) -> None:
    expected = [math.floor(place * HASHES / count) for place in range(count)]
    assert _hashed(count, torch.device("cpu")).tolist() == expected


def test_weights_are_standardised() -> None:
    conv = StandardConv(3, 2, 3, bias=False)
    x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    kernel = conv.weight.detach().double().numpy()
    kernel = np.stack([(k - k.mean()) / (k.std(ddof=1) + 1e-5) for k in kernel])
    expected = functional.conv2d(x.double(), torch.from_numpy(kernel), padding=1)
    np.testing.assert_allclose(conv(x).detach(), expected, atol=1e-5)
    assert Bottleneck(64)(torch.zeros(1, 64, 8, 8)).shape == (1, 256, 8, 8)


def test_the_longer_side_is_brought_to_a_size() -> None:
    assert _smaller(torch.zeros(1, 3, 341, 512), 224).shape[-2:] == (149, 224)
    assert _smaller(torch.zeros(1, 3, 100, 80), 384).shape[-2:] == (384, 307)
