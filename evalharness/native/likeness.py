"""What subject and background consistency share: one formula, on features of different networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from evalharness.api import Sample, Video
from evalharness.metrics.consistency import consistency
from evalharness.native.base import NativeMetric, at_least

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FrameLikeness"]


class FrameLikeness(NativeMetric, ABC):
    """Likeness of each frame's features to the frame before and to the first.

    VBench averages over all pairs of all videos; the harness over videos. Both agree where all
    videos are of one length, as within a run they are.
    """

    @abstractmethod
    def features(self, video: Video) -> np.ndarray:
        """[T, D], of any length."""

    def score(self, video: Video, sample: Sample) -> float:
        """In [0, 1].

        Raises:
            Skip: fewer than two frames, or weights are missing.
        """
        del sample
        at_least(video, 2, self.dimension.replace("_", " "))
        return consistency(self.features(video))
