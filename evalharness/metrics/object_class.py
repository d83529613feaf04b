"""Object class: whether the named object is there."""

from __future__ import annotations

from evalharness.api import Sample, Video
from evalharness.metrics.judged import judge_info, reading, things

__all__ = ["ObjectClass"]


class ObjectClass:
    """Mean over frames, and over the named things, of the probability that the shape is there.

    VBench counts frames in which the detector names the object; the probability in place of the
    vote is felt before the vote turns.
    """

    name = "tinyworld.object_class"
    dimension = "object_class"
    summary = "probability that the named shape is in the frame, mean over frames"

    def __init__(self) -> None:
        self.info = judge_info("VBench's share of frames, as probability; own judge in place of GRiT")

    def score(self, video: Video, sample: Sample) -> float:
        shapes = [shape for shape, _ in things(sample)]
        return float(reading(video).presence[:, shapes].mean())
