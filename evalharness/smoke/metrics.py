"""Two plain numbers of a video's pixels. They say that something was made, not that it is good."""

from __future__ import annotations

from evalharness.api import MetricInfo, Sample, Video

__all__ = ["Contrast", "Steadiness"]


class Contrast:
    """Standard deviation of all pixels over half their range: 0 for one colour, 1 for black and white."""

    name = "smoke.contrast"
    dimension = "contrast"
    summary = "spread of the pixels; 0: a blank video"
    info = MetricInfo(cost_ms=2.0)

    def score(self, video: Video, sample: Sample) -> float:
        return min(1.0, float(video.frames.std()) / 127.5)


class Steadiness:
    """1 minus the mean difference of neighbouring frames over 255: near 0.67 for independent noise."""

    name = "smoke.steadiness"
    dimension = "steadiness"
    summary = "likeness of neighbouring frames; 1: nothing moves"
    info = MetricInfo(cost_ms=5.0)

    def score(self, video: Video, sample: Sample) -> float:
        import numpy as np

        frames = video.frames.astype(np.int16)
        if len(frames) < 2:
            return 1.0
        return 1.0 - float(np.abs(np.diff(frames, axis=0)).mean()) / 255.0
