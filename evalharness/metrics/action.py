"""Action: whether it is the named motion."""

from __future__ import annotations

from evalharness.api import Sample, Video
from evalharness.metrics.judged import choice, judge_info, label, reading
from evalharness.tinyworld import spec

__all__ = ["Action"]


class Action:
    """Probability of the named motion among the eight and "none of these".

    VBench's human_action is 1 when the label is among the top five with at least 0.85; the
    probability itself feels damage before such a vote turns. A thing that stands still in every
    frame stands still in any order of the frames, and also when one frame is repeated.
    """

    name = "tinyworld.action"
    dimension = "action"
    summary = "probability of the named motion"

    def __init__(self) -> None:
        self.info = judge_info("after VBench's human_action, as probability; own judge in place of UMT")

    def score(self, video: Video, sample: Sample) -> float:
        motion = choice(label(sample, "motion"), spec.MOTIONS, "motion")
        return float(reading(video).motion[motion])
