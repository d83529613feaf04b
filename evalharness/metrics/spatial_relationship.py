"""Spatial relationship: whether the first object is where the caption puts it."""

from __future__ import annotations

from evalharness.api import Sample, Video
from evalharness.metrics.judged import choice, judge_info, label, reading, things
from evalharness.tinyworld import spec

__all__ = ["SpatialRelationship"]

# Relation -> axis of the centre (0 is x, to the right; 1 is y, down) and sign of first minus second.
DIRECTIONS = ((0, -1.0), (0, 1.0), (1, -1.0), (1, 1.0))


class SpatialRelationship:
    """Mean over frames of: both are there, and the dominant axis between the centres fits.

    VBench's rule: left or right needs abs(dx) > abs(dy), above or below the opposite, and the sign
    must fit. Being there is a probability in place of a vote; VBench's discount for overlapping
    boxes is left out, as tinyworld's judge gives centres and its things do not overlap.
    """

    name = "tinyworld.spatial_relationship"
    dimension = "spatial_relationship"
    summary = "both shapes there and the dominant axis between them as named, mean over frames"

    def __init__(self) -> None:
        self.info = judge_info("VBench's dominant-axis rule without its IoU term; own judge in place of GRiT")

    def score(self, video: Video, sample: Sample) -> float:
        relation = choice(label(sample, "relation"), spec.RELATIONS, "relation")
        (first, _), (second, _) = things(sample, at_least=2)[:2]
        seen = reading(video)
        step = seen.center[:, first] - seen.center[:, second]
        axis, sign = DIRECTIONS[relation]
        fits = (abs(step[:, axis]) > abs(step[:, 1 - axis])) & (sign * step[:, axis] > 0)
        return float((seen.presence[:, first] * seen.presence[:, second] * fits).mean())
