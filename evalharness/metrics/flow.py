"""Optical flow by OpenCV's DIS, made fit for videos of a few dozen pixels.

Frames are enlarged first (DIS matches 8x8 patches, more than half of a tinyworld object); flow is
given in pixels of the original frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ENLARGE", "enlarge", "enlarged_flow", "flow_magnitudes"]

ENLARGE = 4


@contextmanager
def one_thread() -> Iterator[None]:
    """DIS cuts the image into one stripe a thread, so its result depends on their number."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def enlarge(frame: np.ndarray) -> np.ndarray:
    """``frame`` uint8 [H, W, 3] as uint8 [4H, 4W, 3], bicubic."""
    import cv2

    height, width = frame.shape[:2]
    large: np.ndarray = cv2.resize(frame, (ENLARGE * width, ENLARGE * height), interpolation=cv2.INTER_CUBIC)
    return large


def enlarged_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Flow [4H, 4W, 2] (x, y) in enlarged pixels between two enlarged frames [4H, 4W, 3]."""
    import cv2

    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    with one_thread():
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow: np.ndarray = dis.calc(gray[0], gray[1], None)  # type: ignore[call-overload]
    return flow


def flow_magnitudes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Length [H, W] of the flow from ``first`` to ``second`` (uint8 [H, W, 3]), in their pixels."""
    import cv2
    import numpy as np

    flow = enlarged_flow(enlarge(first), enlarge(second))
    height, width = first.shape[:2]
    flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / ENLARGE
    lengths: np.ndarray = np.hypot(flow[..., 0], flow[..., 1])
    return lengths
