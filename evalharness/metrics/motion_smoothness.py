"""Motion smoothness: whether the odd frames can be foretold from their neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalharness.api import MetricInfo, Sample, Skip, Video
from evalharness.metrics.flow import enlarge, enlarged_flow

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MotionSmoothness", "midpoint"]

ENLARGE = 2


class MotionSmoothness:
    """VBench's formula with another interpolator.

    The odd frames are dropped and made again from the even ones; m is the mean absolute difference
    to the real ones over pixels, channels and frames, in grey levels; the score is (255 - m) / 255.
    VBench interpolates with AMT-S; here both neighbours are warped half-way along DIS optical flow
    and blended.
    """

    name = "tinyworld.motion_smoothness"
    dimension = "motion_smoothness"
    summary = "how well odd frames follow from their neighbours: (255 - mean difference) / 255"

    def __init__(self) -> None:
        self.info = MetricInfo(cost_ms=30.0, faithful_to="VBench's formula; DIS flow in place of AMT-S")

    def score(self, video: Video, sample: Sample) -> float:
        """In [0, 1].

        Raises:
            Skip: fewer than three frames.
        """
        del sample
        import numpy as np

        frames = video.frames
        if len(frames) < 3:
            raise Skip(f"motion smoothness needs at least 3 frames, the video has {len(frames)}")
        differences = [
            np.abs(
                midpoint(frames[i - 1], frames[i + 1]).astype(np.int16) - frames[i].astype(np.int16)
            ).mean()
            for i in range(1, len(frames) - 1, 2)
        ]
        return (255.0 - float(np.mean(differences))) / 255.0


def midpoint(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The frame half-way between two (uint8 [H, W, 3]).

    Each is enlarged and sampled half a flow vector back; the flow at the midpoint is taken to be
    that at the same pixel, which holds where motion is even.
    """
    import cv2
    import numpy as np

    large = [enlarge(first, ENLARGE), enlarge(second, ENLARGE)]
    height, width = large[0].shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    blend = np.zeros(large[0].shape, dtype=np.float32)
    for source, target in ((0, 1), (1, 0)):
        flow = 0.5 * enlarged_flow(large[source], large[target])
        warped = cv2.remap(
            large[source],
            x - flow[..., 0],
            y - flow[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        blend += 0.5 * warped.astype(np.float32)
    small = cv2.resize(blend, (first.shape[1], first.shape[0]), interpolation=cv2.INTER_AREA)
    middle: np.ndarray = np.rint(small).clip(0, 255).astype(np.uint8)
    return middle
