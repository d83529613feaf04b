"""Imaging quality: whether the frames are free of blur, noise and blocking."""

from __future__ import annotations

from evalharness.api import Sample, Video
from evalharness.metrics.judged import judge_info, reading

__all__ = ["ImagingQuality"]


class ImagingQuality:
    """One minus the mean severity of damage over all frames.

    The scale is that of ``evalharness.tinyworld.training.damage``: noise of standard deviation
    0.08 of the full range, a Gaussian blur of one pixel, or a DCT step of 0.25 score 1/e each.
    """

    name = "tinyworld.imaging_quality"
    dimension = "imaging_quality"
    summary = "1 - severity of blur, noise and blocking, mean over frames"

    def __init__(self) -> None:
        self.info = judge_info("VBench's mean over frames; tinyworld's quality judge in place of MUSIQ")

    def score(self, video: Video, sample: Sample) -> float:
        del sample
        return 1.0 - float(reading(video).severity.mean())
