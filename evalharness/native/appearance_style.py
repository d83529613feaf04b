"""Appearance style: how well each frame fits the named style, by CLIP."""

from __future__ import annotations

from typing import Any

from evalharness.api import Sample, Skip, Video
from evalharness.native.base import NativeMetric

__all__ = ["AppearanceStyle"]


class AppearanceStyle(NativeMetric):
    """Mean over frames of CLIP ViT-B/32's logit of the style's text, divided by 100.

    Published scores were made with CLIP in float16, as it runs on a GPU.
    """

    name = "vbench.appearance_style"
    dimension = "appearance_style"
    summary = "likeness of the frames and the named style, by CLIP ViT-B/32"
    weights = ("clip-vit-b32", "clip-vit-b32-text", "clip-bpe")
    cost_ms = 1000.0
    low = -1.0

    def score(self, video: Video, sample: Sample) -> float:
        """A cosine; a negative one is VBench's score as it is.

        Raises:
            Skip: the prompt names no style, or weights are missing.
        """
        import torch
        from torch.nn import functional

        from evalharness.native.inputs import clip_antialiased_input

        style = sample.prompt.labels.get("appearance_style")
        if not isinstance(style, str):
            raise Skip("the prompt names no appearance_style")
        image = self.network("clip-vit-b32")
        text: Any = self.network("clip-vit-b32-text")
        with torch.inference_mode():
            named = functional.normalize(text(self.tokens(style, len(text.positional_embedding))), dim=-1)
            scale = text.logit_scale.double().exp() / 100.0
            likenesses, frames = [], self.frames(video)
            for start in range(0, len(frames), self.batch):
                pictures = clip_antialiased_input(frames[start : start + self.batch], self.device)
                features = image(pictures.to(self.dtype()))
                likenesses.append((functional.normalize(features, dim=-1) @ named.T).double())
            return float(torch.cat(likenesses).mean() * scale)
