"""MUSIQ (Ke et al. 2021): a transformer over patches of a picture in three sizes, which grades its quality.

Own code from the paper and the shapes of the published weights. Patches that only fill a row up, which the
published form masks, are not made here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalharness.native.vit import Block

__all__ = ["LONGER_SIDES", "PATCH", "Musiq"]

PATCH = 32
LONGER_SIDES = (224, 384)  # of the two smaller sizes; the third is the picture's own
HASHES = 10  # places a side: a patch's place is hashed to a grid of 10 x 10
GROUPS = 32


class StandardConv(nn.Conv2d):
    """A convolution whose weights have mean 0 and deviation 1 for each output (Qiao et al. 2019).

    Borders are added so that the output has ``ceil(side / stride)`` places, more of them at the end.
    """

    def forward(self, x: Tensor) -> Tensor:
        spread = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = spread / (spread.std((1, 2, 3), keepdim=True) + 1e-5)
        return functional.conv2d(_bordered(x, self.kernel_size[0], self.stride[0]), weight, None, self.stride)


class Bottleneck(nn.Module):
    """The one residual block of the patches' ResNet, with group norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = StandardConv(width, width, 1, bias=False)
        self.gn1 = nn.GroupNorm(GROUPS, width, eps=1e-4)
        self.conv2 = StandardConv(width, width, 3, bias=False)
        self.gn2 = nn.GroupNorm(GROUPS, width, eps=1e-4)
        self.conv3 = StandardConv(width, 4 * width, 1, bias=False)
        self.gn3 = nn.GroupNorm(GROUPS, 4 * width, eps=1e-4)
        self.conv_proj = StandardConv(width, 4 * width, 1, bias=False)
        self.gn_proj = nn.GroupNorm(GROUPS, 4 * width, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to [B, 4 D, H, W]."""
        inner = functional.relu(self.gn1(self.conv1(x)))
        inner = functional.relu(self.gn2(self.conv2(inner)))
        return functional.relu(self.gn3(self.conv3(inner)) + self.gn_proj(self.conv_proj(x)))


class Musiq(nn.Module):
    """Sizes are those of the published networks of one grade, such as SPAQ's."""

    def __init__(
        self, *, width: int = 384, depth: int = 14, heads: int = 6, hidden: int = 1152, stem: int = 64
    ) -> None:
        super().__init__()
        self.conv_root = StandardConv(3, stem, 7, 2, bias=False)
        self.gn_root = nn.GroupNorm(GROUPS, stem, eps=1e-6)
        self.block1 = Bottleneck(stem)
        self.embedding = nn.Linear(4 * stem * (PATCH // 4) ** 2, width)
        self.position = nn.Parameter(torch.zeros(HASHES * HASHES, width))
        self.scale = nn.Parameter(torch.zeros(1 + len(LONGER_SIDES), width))
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        options: dict[str, Any] = {"eps": 1e-6, "quick": False, "hidden": hidden}
        self.blocks = nn.Sequential(*(Block(width, heads, **options) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Grades [B], nominally 0..100, of pictures [B, 3, H, W], 0..1."""
        images = images * 2.0 - 1.0
        sizes = [*(_smaller(images, side) for side in LONGER_SIDES), images]
        tokens = torch.cat([self._tokens(image, number) for number, image in enumerate(sizes)], dim=1)
        tokens = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)
        grades: Tensor = self.head(self.norm(self.blocks(tokens)[:, 0]))[:, 0]
        return grades

    def _tokens(self, images: Tensor, size: int) -> Tensor:
        """[B, N, D] of the patches of one size, row by row."""
        rows, columns = (-(-side // PATCH) for side in images.shape[-2:])
        patches = functional.unfold(_bordered(images, PATCH, PATCH), PATCH, stride=PATCH)
        pixels = patches.transpose(1, 2).reshape(-1, 3, PATCH, PATCH)
        stem = functional.relu(self.gn_root(self.conv_root(pixels)))
        features = self.block1(functional.max_pool2d(_bordered(stem, 3, 2), 3, 2))
        flat = features.permute(0, 2, 3, 1).reshape(len(images), rows * columns, -1)
        tokens: Tensor = self.embedding(flat)
        places = _hashed(rows, tokens.device)[:, None] * HASHES + _hashed(columns, tokens.device)
        return tokens + self.position[places.flatten()] + self.scale[size]


def _smaller(images: Tensor, longer: int) -> Tensor:
    """The longer side at ``longer`` pixels, whichever way that is; bicubic."""
    ratio = longer / max(images.shape[-2:])
    size = tuple(round(side * ratio) for side in images.shape[-2:])
    return functional.interpolate(images, size, mode="bicubic", align_corners=False)


def _bordered(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around, so that windows cover all; an odd one goes to the end."""
    borders: list[int] = []
    for side in reversed(x.shape[-2:]):
        missing = (-(-side // stride) - 1) * stride + kernel - side
        borders += [missing // 2, missing - missing // 2]
    return functional.pad(x, borders) if any(borders) else x


def _hashed(count: int, device: torch.device) -> Tensor:
    """For each of ``count`` places in a row, its place among ``HASHES``."""
    grid = torch.arange(float(HASHES), device=device).view(1, 1, -1)
    return functional.interpolate(grid, count, mode="nearest").long().flatten()
