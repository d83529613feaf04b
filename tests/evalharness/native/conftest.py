"""Small networks with random weights, a folder that holds them, and clips in which things move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from evalharness.native import base
from evalharness.native.raft import Raft
from evalharness.native.text import ClipText
from evalharness.native.umt import Umt
from evalharness.native.viclip import ViClip
from evalharness.native.vit import ClipImage, Dino
from evalharness.native.weights import store
from evalharness.video import Video

SMALL = {
    "clip-vit-b32-text": {"width": 64, "depth": 2, "heads": 2, "embedding": 24},
    "viclip-l14": {"width": 64, "depth": 2, "heads": 2, "patch": 14, "embedding": 24}
    | {"text_width": 64, "text_depth": 2, "text_heads": 2},
    "umt-l16": {"width": 64, "depth": 2, "heads": 2, "patch": 16, "classes": 400},
    "dino-vitb16": {"width": 64, "depth": 2, "heads": 2, "patch": 16, "grid": 14},
    "clip-vit-b32": {"width": 64, "depth": 2, "heads": 2, "patch": 32, "embedding": 24},
    "clip-vit-l14": {"width": 64, "depth": 2, "heads": 2, "patch": 14, "embedding": 24},
    "raft-things": {},
    "aesthetic-linear": {"in_features": 24, "out_features": 1},
}


def moving_disc(frames: int = 5, height: int = 136, width: int = 200, step: float = 3.0) -> np.ndarray:
    """A disc that crosses blurred noise, which slides the other way; uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(3)
    noise = cv2.GaussianBlur(rng.uniform(0, 255, (height, width + 400, 3)).astype(np.float32), (0, 0), 3)
    noise = (noise - noise.min()) / (noise.max() - noise.min()) * 255
    shown = []
    for t in range(frames):
        image = noise[:, round(step * t) : round(step * t) + width].copy()
        cv2.circle(image, (round(30 + 2 * step * t), height // 2), 20, (250, 40, 40), -1)
        shown.append(image.astype(np.uint8))
    return np.stack(shown)


def filled(module: nn.Module, seed: int) -> nn.Module:
    """Random weights, norms included, of a size that keeps activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if "running_var" in name or (tensor.dim() == 1 and "weight" in name):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                fan = tensor[0].numel() if tensor.dim() > 1 else 100
                tensor.normal_(0.0, fan**-0.5, generator=generator)
    return module.eval()


@pytest.fixture(scope="session")
def torchvision_operators() -> object:
    """Where its extension cannot load, beside a CPU torch, two operators are declared before its import."""
    if torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@pytest.fixture
def moving() -> Callable[..., np.ndarray]:
    return moving_disc


@pytest.fixture
def video(moving: Callable[..., np.ndarray]) -> Callable[..., Video]:
    return lambda fps=8.0, **shape: Video(moving(**shape), fps)


@pytest.fixture(scope="session")
def fill() -> Callable[[nn.Module, int], nn.Module]:
    return filled


@pytest.fixture(scope="session")
def networks() -> dict[str, nn.Module]:
    built = {
        "dino-vitb16": Dino(**SMALL["dino-vitb16"]),
        "clip-vit-b32": ClipImage(**SMALL["clip-vit-b32"]),
        "clip-vit-l14": ClipImage(**SMALL["clip-vit-l14"]),
        "raft-things": Raft(),
        "aesthetic-linear": nn.Linear(24, 1),
        "clip-vit-b32-text": ClipText(**SMALL["clip-vit-b32-text"]),
        "viclip-l14": ViClip(**SMALL["viclip-l14"]),
        "umt-l16": Umt(**SMALL["umt-l16"]),
    }
    return {name: filled(module, seed) for seed, (name, module) in enumerate(built.items())}


@pytest.fixture
def folder(tmp_path: Path, networks: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder with all of ``networks``."""
    monkeypatch.setattr(base, "SPECS", MappingProxyType(SMALL))
    base._network.cache_clear()
    for name, module in networks.items():
        store(name, dict(module.state_dict()), tmp_path)
    return tmp_path
