"""LPIPS (Zhang et al. 2018), version 0.1 on AlexNet: how far two pictures are apart to a trained eye.

Of all frames of two videos, for ``evalharness.divergence``; no dimension of VBench.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evalharness.native import weights as weight_files
from evalharness.native.inputs import planes

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MIN_SIDE", "WEIGHTS", "AlexNet", "Lpips", "lpips"]

WEIGHTS = ("alexnet", "lpips-alex")
MIN_SIDE = 32  # pixels; AlexNet's last maps are of one place then
BATCH = 16
WIDTHS = (64, 192, 384, 256, 256)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class AlexNet(nn.Module):
    """The five convolutions (Krizhevsky 2014), numbered as torchvision has them."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = {
            "0": nn.Conv2d(3, 64, 11, 4, 2),
            "3": nn.Conv2d(64, 192, 5, padding=2),
            "6": nn.Conv2d(192, 384, 3, padding=1),
            "8": nn.Conv2d(384, 256, 3, padding=1),
            "10": nn.Conv2d(256, 256, 3, padding=1),
        }
        self.features = nn.ModuleDict(convolutions)

    def forward(self, images: Tensor) -> list[Tensor]:
        """What each convolution gives after its ReLU; the second and third see maps half as large."""
        found = []
        for name, convolution in self.features.items():
            pooled = nn.functional.max_pool2d(images, 3, 2) if name in ("3", "6") else images
            images = nn.functional.relu(convolution(pooled))
            found.append(images)
        return found


class Lpips(nn.Module):
    """Weighted squares of differences of unit features, mean over places, sum over layers."""

    def __init__(self) -> None:
        super().__init__()
        self.alexnet = AlexNet()
        self.weights = nn.ParameterDict({f"lin{i}": torch.zeros(width) for i, width in enumerate(WIDTHS)})

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Distances [B] of two stacks [B, 3, H, W], 0..255."""
        pairs = zip(self.alexnet(_scaled(images)), self.alexnet(_scaled(references)), strict=True)
        layers = [
            ((_unit(one) - _unit(other)).square() * self.weights[f"lin{i}"].view(-1, 1, 1))
            .sum(1)
            .mean((1, 2))
            for i, (one, other) in enumerate(pairs)
        ]
        return torch.stack(layers).sum(dim=0)


def lpips(frames: np.ndarray, reference: np.ndarray, folder: Path, device: str = "cpu") -> float:
    """Mean over the frames of two videos, uint8 [T, H, W, 3] of one shape, sides of ``MIN_SIDE`` or more.

    Raises:
        Skip: weights are missing.
    """
    hashes = tuple(declared.sha256 for declared in weight_files.declared(WEIGHTS, folder))
    network = _network(folder, hashes, device)
    with torch.inference_mode():
        found = [
            network(
                planes(frames[start : start + BATCH], device),
                planes(reference[start : start + BATCH], device),
            )
            for start in range(0, len(frames), BATCH)
        ]
    return float(torch.cat(found).double().mean())


@functools.lru_cache(maxsize=1)
def _network(folder: Path, hashes: tuple[str, ...], device: str) -> Any:
    del hashes  # part of the key: other weights, another network
    network = Lpips()
    weight_files.fill(network.alexnet, weight_files.tensors("alexnet", folder), "alexnet")
    weight_files.fill(network.weights, weight_files.tensors("lpips-alex", folder), "lpips-alex")
    return network.to(device)


def _scaled(images: Tensor) -> Tensor:
    shift, scale = (images.new_tensor(values).view(-1, 1, 1) for values in (SHIFT, SCALE))
    return (images / 127.5 - 1.0 - shift) / scale


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
