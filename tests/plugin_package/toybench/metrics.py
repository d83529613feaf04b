"""Two toy metrics."""

from __future__ import annotations

from typing import ClassVar

from evalharness.api import MetricInfo, Sample, Skip, Video
from toybench.hooks import reach


class Brightness:
    name: ClassVar[str] = "toy.brightness"
    dimension: ClassVar[str] = "brightness"
    summary: ClassVar[str] = "mean pixel value over 255"
    info: ClassVar[MetricInfo] = MetricInfo(cost_ms=0.1)

    def score(self, video: Video, sample: Sample) -> float:
        reach(f"score/{sample.prompt.id}")
        return float(video.frames.mean() / 255)


class Motion:
    name: ClassVar[str] = "toy.motion"
    dimension: ClassVar[str] = "motion"
    summary: ClassVar[str] = "mean absolute difference of neighbouring frames over 255"
    info: ClassVar[MetricInfo] = MetricInfo(cost_ms=0.1)

    def score(self, video: Video, sample: Sample) -> float:
        import numpy as np

        if len(video.frames) < 2:
            raise Skip("a single frame cannot move")
        return float(np.abs(np.diff(video.frames.astype(np.float64), axis=0)).mean() / 255)
