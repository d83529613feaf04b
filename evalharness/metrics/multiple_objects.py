"""Multiple objects: whether all named objects are in the same frame."""

from __future__ import annotations

from evalharness.api import Sample, Video
from evalharness.metrics.judged import judge_info, reading, things

__all__ = ["MultipleObjects"]


class MultipleObjects:
    """Mean over frames of the product of the named shapes' probabilities."""

    name = "tinyworld.multiple_objects"
    dimension = "multiple_objects"
    summary = "probability that both named shapes are in one frame, mean over frames"

    def __init__(self) -> None:
        self.info = judge_info("VBench's share of frames, as probability; own judge in place of GRiT")

    def score(self, video: Video, sample: Sample) -> float:
        shapes = [shape for shape, _ in things(sample, at_least=2)]
        return float(reading(video).presence[:, shapes].prod(axis=1).mean())
