"""Subject consistency: how alike DINO finds each frame to the one before and to the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalharness.api import Video
from evalharness.native.likeness import FrameLikeness

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SubjectConsistency"]


class SubjectConsistency(FrameLikeness):
    """VBench's formula on DINO ViT-B/16's class token, frames at 224 on the shorter side, not cropped."""

    name = "vbench.subject_consistency"
    dimension = "subject_consistency"
    summary = "likeness of DINO's features to the frame before and to the first"
    weights = ("dino-vitb16",)

    def features(self, video: Video) -> np.ndarray:
        return self.dino_features(video)
