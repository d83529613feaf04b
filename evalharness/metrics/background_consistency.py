"""Background consistency: whether the scenery stays the same while things move before it."""

from __future__ import annotations

from evalharness.api import Sample, Video
from evalharness.metrics.consistency import consistency
from evalharness.metrics.judged import judge_info, reading

__all__ = ["BackgroundConsistency"]


class BackgroundConsistency:
    """VBench's formula on features of all that is not a thing."""

    name = "tinyworld.background_consistency"
    dimension = "background_consistency"
    summary = "likeness of the background to the frame before and to the first"

    def __init__(self) -> None:
        self.info = judge_info("VBench's formula; tinyworld's frame judge, things masked, in place of CLIP")

    def score(self, video: Video, sample: Sample) -> float:
        del sample
        return consistency(reading(video).background)
