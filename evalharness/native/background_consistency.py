"""Background consistency: how alike CLIP finds each frame to the one before and to the first."""

from __future__ import annotations

from evalharness.api import Sample, Video
from evalharness.metrics.consistency import consistency
from evalharness.native.base import NativeMetric, at_least

__all__ = ["BackgroundConsistency"]


class BackgroundConsistency(NativeMetric):
    """VBench's formula on CLIP ViT-B/32's image features.

    Published scores were made with CLIP in float16, as it runs on a GPU; float32 differs by up to 1e-3.
    """

    name = "vbench.background_consistency"
    dimension = "background_consistency"
    summary = "likeness of CLIP's features to the frame before and to the first"
    weights = ("clip-vit-b32",)

    def score(self, video: Video, sample: Sample) -> float:
        """In [0, 1].

        Raises:
            Skip: fewer than two frames, or weights are missing.
        """
        del sample
        at_least(video, 2, "background consistency")
        return consistency(self.clip_features(video, "clip-vit-b32"))
