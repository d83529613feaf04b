"""Dynamic degree: whether anything moves far enough, often enough."""

from __future__ import annotations

import itertools

from evalharness.api import MetricInfo, Sample, Skip, Video
from evalharness.metrics.flow import visible_motion

__all__ = ["DynamicDegree", "is_dynamic"]

RATE = 8.0  # frames per second that are looked at
TOP_FRACTION = 0.05
PIXELS_PER_256 = 6.0
COUNT_PER_16 = 4.0


class DynamicDegree:
    """VBench's yes or no, with DIS optical flow in place of RAFT.

    Every ``max(1, round(fps / 8))``-th frame is kept. A pair of neighbours counts when the mean of
    its largest 5 % of flow magnitudes (``flow.visible_motion``) exceeds ``6 * min(H, W) / 256``
    pixels; the video is dynamic (1, else 0) when at least ``round(4 * n / 16)`` pairs count, n
    frames being kept. Noise moves too: read it beside ``imaging_quality``. A spinning ball or ring
    hardly moves: its score is 0.
    """

    name = "tinyworld.dynamic_degree"
    dimension = "dynamic_degree"
    summary = "1 if the largest motions exceed VBench's threshold often enough, else 0"

    def __init__(self) -> None:
        self.info = MetricInfo(
            cost_ms=60.0, faithful_to="VBench's formula; DIS flow, without that along edges, in place of RAFT"
        )

    def score(self, video: Video, sample: Sample) -> float:
        """0 or 1.

        Raises:
            Skip: fewer than two frames are left at 8 per second.
        """
        del sample
        frames = video.frames[:: max(1, round(video.fps / RATE))]
        if len(frames) < 2:
            raise Skip(f"dynamic degree needs at least 2 frames at 8 fps, the video has {len(frames)}")
        strengths = []
        for first, second in itertools.pairwise(frames):
            lengths = visible_motion(first, second).reshape(-1)
            lengths.sort()
            strengths.append(float(lengths[-max(1, int(TOP_FRACTION * lengths.size)) :].mean()))
        return float(is_dynamic(strengths, frames=len(frames), side=min(frames.shape[1:3])))


def is_dynamic(strengths: list[float], *, frames: int, side: int) -> bool:
    """VBench's vote over the pairs' strengths, in pixels, of a video whose shorter side is ``side``."""
    moving = sum(strength > PIXELS_PER_256 * side / 256.0 for strength in strengths)
    return moving >= round(COUNT_PER_16 * frames / 16.0)
