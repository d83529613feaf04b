"""The two image transformers of VBench's consistency and aesthetics: DINO's and CLIP's.

Same blocks, other ends; ``text``, ``viclip`` and ``umt`` build on them.
Names of DINO's parameters are as published (and as in timm); CLIP's are
brought to them by ``evalharness.native.convert``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Block", "ClipImage", "Dino", "PatchEmbed"]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int, quick: bool, hidden: int = 0) -> None:
        super().__init__()
        self.quick = quick
        self.fc1 = nn.Linear(width, hidden or 4 * width)
        self.fc2 = nn.Linear(hidden or 4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick else functional.gelu(hidden)
        out: Tensor = self.fc2(hidden)
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP.

    Args:
        width: of the tokens.
        heads: of the attention.
        eps: of the norms.
        quick: OpenAI's sigmoid in place of the exact GELU.
        causal: a token sees itself and those before.
        hidden: width within the MLP; 4 times ``width`` by default.
    """

    def __init__(
        self, width: int, heads: int, *, eps: float, quick: bool, causal: bool = False, hidden: int = 0
    ) -> None:
        super().__init__()
        self.causal = causal
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, quick, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), self.causal)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """Patches of pictures [B, 3, H, W] as [B, D, H / patch, W / patch]."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.proj(images)
        return patches


class Dino(nn.Module):
    """DINO's ViT without a head (Caron et al. 2021); defaults: ViT-B/16 of 224 pixels.

    Any input size: positions are interpolated by the scale factor ``(patches + 0.1) / grid``, as DINO
    does it. Interpolating to the size itself gives features that differ by about 3e-3.
    """

    def __init__(
        self, *, width: int = 768, depth: int = 12, heads: int = 12, patch: int = 16, grid: int = 14
    ) -> None:
        super().__init__()
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.patch_embed = PatchEmbed(width, patch)
        self.blocks = nn.Sequential(*(Block(width, heads, eps=1e-6, quick=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Class token's feature [B, D] of images [B, 3, H, W]; what is beyond whole patches is unseen."""
        patches = self.patch_embed(images)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        height, width = images.shape[-2:]
        tokens = tokens + self._positions(*patches.shape[-2:], square=height == width)
        feature: Tensor = self.norm(self.blocks(tokens))[:, 0]
        return feature

    def _positions(self, rows: int, columns: int, *, square: bool) -> Tensor:
        if square and rows * columns == self.grid**2:
            return self.pos_embed
        table = self.pos_embed[:, 1:].reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        spread = functional.interpolate(table.float(), scale_factor=scale, mode="bicubic").to(table.dtype)
        assert spread.shape[-2:] == (rows, columns)
        return torch.cat([self.pos_embed[:, :1], spread.flatten(2).transpose(1, 2)], dim=1)


class ClipImage(nn.Module):
    """The image tower of OpenAI's CLIP (Radford et al. 2021); defaults: ViT-B/32."""

    def __init__(
        self,
        *,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        patch: int = 32,
        embedding: int = 512,
        side: int = 224,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + (side // patch) ** 2, width))
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads, eps=1e-5, quick=True) for _ in range(depth)))
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, embedding))

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, embedding], not normalised, of images [B, 3, side, side]."""
        tokens = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(tokens), 1, -1)
        tokens = self.ln_pre(torch.cat([first, tokens], dim=1) + self.positional_embedding)
        feature: Tensor = self.ln_post(self.blocks(tokens)[:, 0]) @ self.proj
        return feature
