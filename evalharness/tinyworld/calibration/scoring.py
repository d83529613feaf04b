"""Runs the tinyworld protocol's metrics over a condition's videos, as files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from evalharness.api import Metric, Sample, Skip, Video
from evalharness.protocols.tinyworld import TinyWorldProtocol
from evalharness.registry import Registry
from evalharness.stats import Key
from evalharness.tinyworld import spec
from evalharness.tinyworld.calibration.cases import Case
from evalharness.video import decode_video, encode_video

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Scores", "protocol_metrics", "score", "through_codec"]

Scores = dict[str, dict[Key, float]]


def protocol_metrics(dimensions: Sequence[str] | None = None) -> dict[str, Metric]:
    """The metric of each dimension, in the table's order."""
    registry = Registry()
    named = TinyWorldProtocol.metrics
    return {d: registry.get("metrics", named[d])() for d in named if dimensions is None or d in dimensions}


def through_codec(frames: np.ndarray) -> Video:
    """What the scorer reads back after the frames, uint8 [T, H, W, 3], were written to a file."""
    return decode_video(encode_video(frames, spec.FPS))


def score(videos: Iterable[tuple[Case, Video, Sample]], metrics: Mapping[str, Metric]) -> Scores:
    """Dimension -> video -> value; what a metric skips is left out.

    As in the protocol, ``dynamic_degree`` is asked of clips that move, ``object_class`` and
    ``color`` of single things.
    """
    scores: Scores = {dimension: {} for dimension in metrics}
    for case, video, sample in videos:
        for dimension, metric in metrics.items():
            if not _asked(dimension, case):
                continue
            try:
                value = metric.score(video, sample)
            except Skip:
                continue
            scores[dimension][Key(sample.prompt.id, sample.index)] = value
    return scores


def _asked(dimension: str, case: Case) -> bool:
    if dimension == "dynamic_degree":
        return case.moving
    return not (case.pair and dimension in ("object_class", "color"))
