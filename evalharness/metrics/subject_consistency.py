"""Subject consistency: whether the thing keeps its looks from frame to frame."""

from __future__ import annotations

from evalharness.api import Sample, Video
from evalharness.metrics.consistency import consistency
from evalharness.metrics.judged import judge_info, reading

__all__ = ["SubjectConsistency"]


class SubjectConsistency:
    """VBench's formula on the features of the tracked things.

    Unlike DINO's, the feature is cut out around each thing, so travel and turning cost nothing;
    change of shape, colour or texture, blur and noise do.
    """

    name = "tinyworld.subject_consistency"
    dimension = "subject_consistency"
    summary = "likeness of the things' looks to the frame before and to the first"

    def __init__(self) -> None:
        self.info = judge_info("VBench's formula; tinyworld's frame judge in place of DINO")

    def score(self, video: Video, sample: Sample) -> float:
        del sample
        return consistency(reading(video).subject)
