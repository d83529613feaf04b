"""VBench's static filter: which videos of a prompt that asks for stillness are still.

Temporal flickering is meant for those alone. VBench generates 25 videos a prompt and keeps at most
5 that pass; the protocol says so, see ``evalharness.sampling``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from evalharness.api import Video
from evalharness.native.base import NativeMetric, at_least
from evalharness.native.dynamic_degree import large_enough

__all__ = ["StaticFilter", "is_static"]

PIXELS_PER_256 = 3.0
PAIRS_PER_16 = 2.0


class StaticFilter(NativeMetric):
    """RAFT on all consecutive pairs, and between the first and the last frame both ways. No metric."""

    name = "vbench.static_filter"
    dimension = "temporal_flickering"
    summary = "whether a video is still enough for temporal flickering"
    weights = ("raft-things",)

    def judge(self, video: Video) -> Mapping[str, Any]:
        """``static``, and behind it strengths (pixels), both ``wrap`` strengths, threshold and allowance.

        Raises:
            Skip: fewer than two frames, a side below 128 pixels, or no weights.
        """
        at_least(video, 2, "the static filter")
        large_enough(video, "the static filter")
        network = self.network("raft-things")
        from evalharness.native.flow import STATIC_SHARE, pair_strengths

        last = len(video.frames) - 1
        pairs = [*itertools.pairwise(range(last + 1)), (0, last), (last, 0)]
        strengths = pair_strengths(
            network,  # type: ignore[arg-type]
            self.frames(video),
            pairs,
            share=STATIC_SHARE,
            batch=self.batch,
            device=self.device,
            dtype=self.dtype(),
            known=video.memo(self.memo_key("raft"), lambda _: {}),
        )
        threshold = PIXELS_PER_256 * min(video.frames.shape[1:3]) / 256.0
        allowed = round(PAIRS_PER_16 * len(video.frames) / 16.0)
        return {
            "static": is_static(strengths[:-2], strengths[-2:], threshold=threshold, allowed=allowed),
            "threshold": threshold,
            "allowed": allowed,
            "strengths": strengths[:-2],
            "wrap": strengths[-2:],
        }


def is_static(strengths: list[float], wrap: list[float], *, threshold: float, allowed: int) -> bool:
    """VBench's rule: at most ``allowed`` pairs pass, and no wrap passes ``2 * allowed * threshold``."""
    moving = sum(strength > threshold for strength in strengths)
    return moving <= allowed and all(strength <= threshold * allowed * 2 for strength in wrap)
