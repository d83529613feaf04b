"""Background consistency: how alike CLIP finds each frame to the one before and to the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalharness.api import Video
from evalharness.native.likeness import FrameLikeness

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BackgroundConsistency"]


class BackgroundConsistency(FrameLikeness):
    """VBench's formula on CLIP ViT-B/32's image features.

    Published scores were made with CLIP in float16, as it runs on a GPU; float32 differs by up to 1e-3.
    """

    name = "vbench.background_consistency"
    dimension = "background_consistency"
    summary = "likeness of CLIP's features to the frame before and to the first"
    weights = ("clip-vit-b32",)

    def features(self, video: Video) -> np.ndarray:
        return self.clip_features(video, "clip-vit-b32")
