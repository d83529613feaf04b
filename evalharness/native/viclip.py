"""ViCLIP (Wang et al. 2023, InternVid): CLIP ViT-L/14 whose attention goes over all frames at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evalharness.native.text import ClipText
from evalharness.native.vit import Block

__all__ = ["ViClip", "ViClipVideo"]


class ViClipVideo(nn.Module):
    """One class token, and the patches of all frames with their places in the picture and in time."""

    def __init__(
        self, *, width: int, depth: int, heads: int, patch: int, embedding: int, frames: int, side: int = 224
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + (side // patch) ** 2, width))
        self.temporal_embedding = nn.Parameter(torch.zeros(frames, width))
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads, eps=1e-5, quick=True) for _ in range(depth)))
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, embedding))

    def forward(self, clip: Tensor) -> Tensor:
        """Feature [embedding], not normalised, of one clip [frames, 3, side, side]."""
        patches = self.conv1(clip).flatten(2).transpose(1, 2)
        patches = patches + self.positional_embedding[1:] + self.temporal_embedding[:, None]
        first = self.class_embedding + self.positional_embedding[0]
        tokens = torch.cat([first[None], patches.flatten(0, 1)])[None]
        feature: Tensor = self.ln_post(self.blocks(self.ln_pre(tokens))[0, 0]) @ self.proj
        return feature


class ViClip(nn.Module):
    """Both halves; defaults: ViCLIP-L/14."""

    def __init__(
        self,
        *,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        patch: int = 14,
        embedding: int = 768,
        frames: int = 8,
        text_width: int = 768,
        text_depth: int = 12,
        text_heads: int = 12,
        context: int = 32,
        vocabulary: int = 49408,
    ) -> None:
        super().__init__()
        self.context = context
        self.frames = frames
        self.video = ViClipVideo(
            width=width, depth=depth, heads=heads, patch=patch, embedding=embedding, frames=frames
        )
        self.text = ClipText(
            width=text_width,
            depth=text_depth,
            heads=text_heads,
            context=context,
            vocabulary=vocabulary,
            embedding=embedding,
            scaled=0,
        )
