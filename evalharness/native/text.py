"""The text transformer of OpenAI's CLIP (Radford et al. 2021), which ViCLIP has with a shorter context."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from evalharness.native.vit import Block

__all__ = ["ClipText"]


class ClipText(nn.Module):
    """Causal blocks; the feature is that of the text's last token. Defaults: CLIP ViT-B/32's."""

    def __init__(
        self,
        *,
        width: int = 512,
        depth: int = 12,
        heads: int = 8,
        context: int = 77,
        vocabulary: int = 49408,
        embedding: int = 512,
        scaled: int = 1,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, width))
        blocks = (Block(width, heads, eps=1e-5, quick=True, causal=True) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, embedding))
        if scaled:
            self.logit_scale = nn.Parameter(torch.tensor(math.log(100.0)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Features [B, embedding], not normalised.

        Args:
            tokens: [B, T] numbers of the vocabulary, T at most the context; the largest is the text's end.
        """
        ends = tokens.argmax(dim=-1)
        tokens = tokens[:, : int(ends.max()) + 1]  # what follows the end is not seen by it
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        last: Tensor = self.ln_final(self.blocks(x))[torch.arange(len(tokens), device=x.device), ends]
        return last @ self.text_projection
