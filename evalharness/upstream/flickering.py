"""``upstream.temporal_flickering``: the package judges what the static filter lets pass.

VBench filters in a step of its own, on a GPU only; here it is the native filter, which equals it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalharness.api import Sample, Skip, Verdict
from evalharness.frames import FrameStore
from evalharness.native.static_filter import StaticFilter
from evalharness.upstream.metrics import UpstreamMetric

__all__ = ["TemporalFlickering"]


class TemporalFlickering(UpstreamMetric):
    """The package's value of still videos; moving ones are left out."""

    dimension = "temporal_flickering"

    @property
    def missing(self) -> list[str]:
        return [*super().missing, *StaticFilter().missing]

    def judge_files(self, files: Sequence[tuple[Sample, Path]]) -> list[Verdict]:
        """As the package judges; a video that the filter cannot judge is a skip."""
        refused = [self._filtered(path) for _, path in files]
        still = [file for file, verdict in zip(files, refused, strict=True) if verdict is None]
        judged = iter(super().judge_files(still) if still else [])
        return [verdict or next(judged) for verdict in refused]

    def _filtered(self, path: Path) -> Verdict | None:
        """Why the package does not get to see the video; None for a still one."""
        if self._reason() is not None:
            return None  # the package's reason comes first
        decoded = FrameStore().read(path)
        if decoded.video is None:
            return Verdict(error=decoded.error)
        judge = StaticFilter(device=self.device)
        try:
            still = judge.judge(decoded.video)["static"]
        except Skip as skip:
            return Verdict(skip=str(skip))
        if still:
            return None
        return Verdict(skip="the video moves; temporal flickering is judged on still ones", left_out=True)
