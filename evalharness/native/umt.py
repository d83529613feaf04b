"""UMT's action classifier (Li et al. 2023): a ViT over the patches of all frames, in VideoMAE's form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalharness.native.vit import Block, PatchEmbed

__all__ = ["FRAMES", "GRID", "Umt", "position_table"]

FRAMES = 16
GRID = 14
TRAINED_FRAMES = 8


class Umt(nn.Module):
    """Mean of all tokens, a norm and a linear head; defaults: UMT-L/16 for Kinetics-400."""

    def __init__(
        self, *, width: int = 1024, depth: int = 24, heads: int = 16, patch: int = 16, classes: int = 400
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width, patch)
        self.pos_embed = nn.Parameter(position_table(width))
        self.blocks = nn.Sequential(*(Block(width, heads, eps=1e-6, quick=False) for _ in range(depth)))
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Logits [classes] of one clip [16, 3, 224, 224]."""
        patches = self.patch_embed(clip).flatten(2).transpose(1, 2).flatten(0, 1)[None]
        tokens = self.blocks(patches + self.pos_embed)
        logits: Tensor = self.head(self.fc_norm(tokens.mean(dim=1)))[0]
        return logits


def position_table(width: int) -> Tensor:
    """The fixed table [1, 16 x 14 x 14, width].

    Sines and cosines of 8 x 14 x 14 places counted through (Vaswani et al. 2017), made twice as long in
    time by linear interpolation.
    """
    places = torch.arange(TRAINED_FRAMES * GRID * GRID, dtype=torch.float64)[:, None]
    channels = torch.arange(width, dtype=torch.float64)
    angles = places / 10000.0 ** (2 * (channels // 2) / width)
    table = torch.where(channels % 2 == 0, angles.sin(), angles.cos()).float()
    by_place = table.view(TRAINED_FRAMES, GRID * GRID, width).permute(1, 2, 0)
    longer = functional.interpolate(by_place, size=FRAMES, mode="linear")
    return longer.permute(2, 0, 1).reshape(1, -1, width)
