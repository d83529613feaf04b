"""VBench's consistency formula, for features of any backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalharness.api import Skip

if TYPE_CHECKING:
    import numpy as np

__all__ = ["consistency"]


def consistency(features: np.ndarray) -> float:
    """How much each frame looks like the one before and like the first.

    The mean over t >= 1 of ``1/2 [max(0, cos(f_{t-1}, f_t)) + max(0, cos(f_0, f_t))]``
    (VBench, subject and background consistency).

    Args:
        features: [T, D], any length other than zero.

    Raises:
        Skip: fewer than two frames.
    """
    import numpy as np

    if len(features) < 2:
        raise Skip(f"consistency needs at least 2 frames, the video has {len(features)}")
    unit = features.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    before = np.maximum(0.0, (unit[:-1] * unit[1:]).sum(axis=1))
    first = np.maximum(0.0, unit[1:] @ unit[0])
    return min(1.0, float(np.mean((before + first) / 2.0)))
