"""Optical flow by OpenCV's DIS, made fit for videos of a few dozen pixels.

Frames are enlarged first: DIS matches 8x8 patches, nearly half of a tinyworld object.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["enlarge", "enlarged_flow", "visible_motion"]

ENLARGE = 4
WINDOW = 5  # pixels over which an edge's direction is taken
FAINT = 1.0  # squared grey levels a pixel below which nothing is to be seen


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


def enlarge(frame: np.ndarray, factor: int) -> np.ndarray:
    """``frame`` uint8 [H, W, 3] as uint8 [factor * H, factor * W, 3], bicubic."""
    import cv2

    height, width = frame.shape[:2]
    large: np.ndarray = cv2.resize(frame, (factor * width, factor * height), interpolation=cv2.INTER_CUBIC)
    return large


def enlarged_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Flow [H, W, 2] (x, y) in pixels between two frames, uint8 [H, W, 3]."""
    import cv2

    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    with one_thread():
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow: np.ndarray = dis.calc(gray[0], gray[1], None)  # type: ignore[call-overload]
    return flow


def visible_motion(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How far [H, W] things move from ``first`` to ``second`` (uint8 [H, W, 3]), in their pixels.

    That is the flow's length as far as the picture shows it: ``sqrt(f^T J f / (largest eigenvalue
    of J + FAINT))``, J being the structure tensor. Across an edge it is the full length, along
    stripes, where DIS invents flow (nothing tells how far they slid), it is nearly 0.
    """
    import cv2
    import numpy as np

    flow = enlarged_flow(enlarge(first, ENLARGE), enlarge(second, ENLARGE))
    height, width = first.shape[:2]
    flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / ENLARGE
    gray = cv2.cvtColor(first, cv2.COLOR_RGB2GRAY).astype(np.float32)
    across, down = (cv2.Sobel(gray, cv2.CV_32F, x, 1 - x, ksize=3) / 8.0 for x in (1, 0))
    xx, xy, yy = (_local_mean(a * b) for a, b in ((across, across), (across, down), (down, down)))
    largest = 0.5 * (xx + yy + np.hypot(xx - yy, 2.0 * xy))
    x, y = flow[..., 0], flow[..., 1]
    seen = xx * x**2 + 2.0 * xy * x * y + yy * y**2
    lengths: np.ndarray = np.sqrt(np.maximum(seen, 0.0) / (largest + FAINT))
    return lengths


def _local_mean(values: np.ndarray) -> np.ndarray:
    import cv2

    mean: np.ndarray = cv2.blur(values, (WINDOW, WINDOW))
    return mean
