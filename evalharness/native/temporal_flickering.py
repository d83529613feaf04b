"""Temporal flickering: how little pixels change from frame to frame."""

from __future__ import annotations

import itertools

from evalharness.api import Sample, Video
from evalharness.native.base import NativeMetric, at_least

__all__ = ["TemporalFlickering"]


class TemporalFlickering(NativeMetric):
    """VBench's ``(255 - m) / 255``, m the mean absolute difference of consecutive frames in grey levels.

    Meant for static videos: see ``evalharness.native.static_filter``.
    """

    name = "vbench.temporal_flickering"
    dimension = "temporal_flickering"
    summary = "1 - mean absolute difference of consecutive frames"
    cost_ms = 50.0

    def score(self, video: Video, sample: Sample) -> float:
        """In [0, 1].

        Raises:
            Skip: fewer than two frames.
        """
        del sample
        import cv2
        import numpy as np

        at_least(video, 2, "temporal flickering")
        frames = video.frames
        # Sums of bytes are exact in int64, so the mean is too.
        sums = [
            int(cv2.absdiff(before, after).sum(dtype=np.int64))
            for before, after in itertools.pairwise(frames)
        ]
        mean: float = sum(sums) / (len(sums) * frames[0].size)
        return (255.0 - mean) / 255.0
