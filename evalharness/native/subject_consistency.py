"""Subject consistency: how alike DINO finds each frame to the one before and to the first."""

from __future__ import annotations

from evalharness.api import Sample, Video
from evalharness.metrics.consistency import consistency
from evalharness.native.base import NativeMetric, at_least

__all__ = ["SubjectConsistency"]


class SubjectConsistency(NativeMetric):
    """VBench's formula on DINO ViT-B/16's class token, frames at 224 on the shorter side, not cropped.

    VBench averages over all pairs of all videos; the harness over videos. Both agree where all
    videos are of one length, as within a run they are.
    """

    name = "vbench.subject_consistency"
    dimension = "subject_consistency"
    summary = "likeness of DINO's features to the frame before and to the first"
    weights = ("dino-vitb16",)

    def score(self, video: Video, sample: Sample) -> float:
        """In [0, 1].

        Raises:
            Skip: fewer than two frames, or weights are missing.
        """
        del sample
        at_least(video, 2, "subject consistency")
        return consistency(self.dino_features(video))
