"""Color: whether the named object has the named colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalharness.api import Sample, Video
from evalharness.metrics.judged import judge_info, reading, things

if TYPE_CHECKING:
    from evalharness.tinyworld.judges import Reading

__all__ = ["Color"]

FOUND = 0.5


class Color:
    """Probability of the named colour among the frames where the object is found.

    VBench drops a video in which the object is never found, which rewards a method that draws no
    object at all. Here such a video scores 0: a named deviation.
    """

    name = "tinyworld.color"
    dimension = "color"
    summary = "probability of the named colour where the shape is found; 0 if it never is"

    def __init__(self) -> None:
        self.info = judge_info(
            "VBench's share of frames with the object, as probability; never found counts 0, not dropped"
        )

    def score(self, video: Video, sample: Sample) -> float:
        seen = reading(video)
        values = [_one(seen, shape, color) for shape, color in things(sample)]
        return sum(values) / len(values)


def _one(seen: Reading, shape: int, color: int) -> float:
    found = seen.presence[:, shape] >= FOUND
    return float(seen.color[found, shape, color].mean()) if found.any() else 0.0
