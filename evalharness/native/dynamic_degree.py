"""Dynamic degree: whether anything moves far enough, often enough, by RAFT."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from evalharness.api import Sample, Skip, Video
from evalharness.frames import at_rate
from evalharness.native.base import NativeMetric

__all__ = ["DynamicDegree", "flow_statistic", "large_enough", "verdict"]

RATE = 8.0  # frames per second that are looked at
PIXELS_PER_256 = 6.0
PAIRS_PER_16 = 4.0


class DynamicDegree(NativeMetric):
    """VBench's yes or no, and the flow behind it.

    Every ``max(1, round(fps / 8))``-th frame is kept. A pair of neighbours counts when the mean of
    its largest 5 % of flow passes ``6 * min(H, W) / 256`` pixels; the video is dynamic (1, else 0)
    when at least ``round(4 * n / 16)`` pairs count, n frames being kept.

    ``details`` keeps what the vote throws away: each pair's strength, and ``statistic``, the strength
    of the pair that decides over the threshold. The video is dynamic if and only if it passes 1.
    """

    name = "vbench.dynamic_degree"
    dimension = "dynamic_degree"
    summary = "1 if RAFT's largest motions pass VBench's threshold often enough, else 0"
    weights = ("raft-things",)
    cost_ms = 3000.0

    def score(self, video: Video, sample: Sample) -> float:
        """0 or 1.

        Raises:
            Skip: fewer than two frames at 8 per second, a side below 128 pixels, or no weights.
        """
        return 1.0 if self.details(video, sample)["dynamic"] else 0.0

    def details(self, video: Video, sample: Sample) -> Mapping[str, Any]:
        """Strengths in pixels, their threshold, votes wanted and found, the statistic and the verdict."""
        del sample
        details: Mapping[str, Any] = video.memo(self.memo_key("dynamic_degree"), self._judge)
        return details

    def _judge(self, video: Video) -> Mapping[str, Any]:
        kept = at_rate(len(video.frames), video.fps, RATE)
        if len(kept) < 2:
            raise Skip(f"dynamic degree needs at least 2 frames at 8 fps, the video has {len(kept)}")
        large_enough(video, "dynamic degree")
        network = self.network("raft-things")
        from evalharness.native.flow import DYNAMIC_SHARE, pair_strengths

        strengths = pair_strengths(
            network,  # type: ignore[arg-type]
            self.frames(video),
            list(itertools.pairwise(kept)),
            share=DYNAMIC_SHARE,
            batch=self.batch,
            device=self.device,
            dtype=self.dtype(),
            known=video.memo(self.memo_key("raft"), lambda _: {}),
        )
        return verdict(strengths, len(kept), min(video.frames.shape[1:3]))


def verdict(strengths: list[float], frames: int, side: int) -> dict[str, Any]:
    """VBench's vote over the strengths of ``frames - 1`` pairs, in pixels, and what it is made of.

    Args:
        strengths: by any flow.
        frames: that were kept.
        side: the shorter one, in pixels.
    """
    threshold = PIXELS_PER_256 * side / 256.0
    wanted = round(PAIRS_PER_16 * frames / 16.0)
    moving = sum(strength > threshold for strength in strengths)
    return {
        "dynamic": moving >= wanted,
        "statistic": flow_statistic(strengths, threshold, wanted),
        "threshold": threshold,
        "moving": moving,
        "wanted": wanted,
        "strengths": strengths,
    }


def flow_statistic(strengths: list[float], threshold: float, wanted: int) -> float | None:
    """The ``wanted``-th largest strength over the threshold; None where no pair is wanted.

    More than 1 if and only if ``wanted`` strengths pass the threshold.
    """
    return sorted(strengths, reverse=True)[wanted - 1] / threshold if wanted > 0 else None


def large_enough(video: Video, what: str) -> None:
    """Skip a video that RAFT cannot judge.

    Raises:
        Skip: a side below 128 pixels, where VBench's own result is not a number.
    """
    from evalharness.native.raft import MIN_SIDE

    height, width = video.frames.shape[1:3]
    # Borders are added to multiples of 8 first.
    if min(-(-height // 8), -(-width // 8)) * 8 < MIN_SIDE:
        raise Skip(f"{what} needs at least {MIN_SIDE} pixels on each side, the video has {height}x{width}")
