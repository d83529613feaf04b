"""Temporal flickering: one minus the mean absolute difference of consecutive frames, of still videos."""

from __future__ import annotations

import itertools
from typing import Any

from evalharness.api import LeftOut, Sample, Video
from evalharness.native.base import NativeMetric, at_least
from evalharness.native.static_filter import StaticFilter

__all__ = ["TemporalFlickering", "steadiness"]


class TemporalFlickering(NativeMetric):
    """VBench's steadiness of still videos; one that its static filter calls moving is left out.

    Args:
        options: of ``NativeMetric``.
    """

    name = "vbench.temporal_flickering"
    dimension = "temporal_flickering"
    summary = "1 - mean absolute difference of consecutive frames, of videos that are still"
    weights = ("raft-things",)
    cost_ms = 5000.0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._filter = StaticFilter(**options)

    def score(self, video: Video, sample: Sample) -> float:
        """In [0, 1].

        Raises:
            LeftOut: it moves.
            Skip: fewer than two frames, or the filter cannot judge it (size, weights).
        """
        del sample
        at_least(video, 2, "temporal flickering")
        self._filter.device = self.device
        if not self._filter.judge(video)["static"]:
            raise LeftOut("the video moves; temporal flickering is judged on still ones")
        return steadiness(video)


def steadiness(video: Video) -> float:
    """VBench's ``(255 - m) / 255``, m the mean absolute difference of consecutive frames in grey levels.

    Args:
        video: at least two frames, moving or not.
    """
    import cv2

    frames = video.frames
    # Sums of bytes are whole numbers, exact in float64 too.
    sums = [cv2.norm(before, after, cv2.NORM_L1) for before, after in itertools.pairwise(frames)]
    mean: float = sum(sums) / (len(sums) * frames[0].size)
    return (255.0 - mean) / 255.0
