"""Scene: whether it is the named scene."""

from __future__ import annotations

from evalharness.api import Sample, Video
from evalharness.metrics.judged import choice, judge_info, label, reading
from evalharness.tinyworld import spec

__all__ = ["Scene"]


class Scene:
    """Mean over frames of the probability of the named scene."""

    name = "tinyworld.scene"
    dimension = "scene"
    summary = "probability of the named scene, mean over frames"

    def __init__(self) -> None:
        self.info = judge_info("VBench's share of frames, as probability; own judge in place of Tag2Text")

    def score(self, video: Video, sample: Sample) -> float:
        scene = choice(label(sample, "scene"), spec.SCENES, "scene")
        return float(reading(video).scene[:, scene].mean())
