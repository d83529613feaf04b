"""VBench 1.0's prompt suite and two published parts of it. Each satisfies ``evalharness.api.EvalProtocol``.

The prompts are VBench's (Apache-2.0; ``data/vbench.json`` names the source). How a dimension is
judged is the business of the metric plugins called ``vbench.<dimension>``; a dimension whose metric
is not installed stays without a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

from evalharness.api import Prompt, Total
from evalharness.protocols.vbench_suite import DIMENSIONS, suite_prompts
from evalharness.protocols.vbench_totals import TOTALS

__all__ = ["MLPerfProtocol", "QVGen8Protocol", "VBenchProtocol"]


def _metrics(*dimensions: str) -> dict[str, str]:
    return {name: f"vbench.{name}" for name in DIMENSIONS if name in dimensions}


# The package itself, in an environment of its own, judges what has no native scorer.
_UPSTREAM = MappingProxyType({name: f"upstream.{name}" for name in DIMENSIONS})


class _Suite:
    """What the three have in common."""

    samples_per_prompt: ClassVar[int] = 5
    percent: ClassVar[bool] = True
    metrics_optional: ClassVar[bool] = True
    fallback_metrics: ClassVar[Mapping[str, str]] = _UPSTREAM


class VBenchProtocol(_Suite):
    """All 946 entries, 16 dimensions: 6,230 videos."""

    name: ClassVar[str] = "vbench"
    summary: ClassVar[str] = "VBench 1.0: 946 prompts x 5 videos (25 for temporal flickering), 16 dimensions"
    label: ClassVar[str] = "VBench 1.0: its prompts, dimensions and totals"
    samples_by_dimension: ClassVar[Mapping[str, int]] = {"temporal_flickering": 25}
    metrics: ClassVar[Mapping[str, str]] = _metrics(*DIMENSIONS)
    totals: ClassVar[Sequence[Total]] = TOTALS

    def prompts(self) -> Sequence[Prompt]:
        return suite_prompts()


class QVGen8Protocol(_Suite):
    """The three prompt files of QVGen's paper, which cover its eight dimensions: 1,255 videos."""

    name: ClassVar[str] = "qvgen-8"
    summary: ClassVar[str] = "QVGen's part of VBench: 251 prompts x 5 videos, the paper's eight dimensions"
    label: ClassVar[str] = "QVGen's eight dimensions of VBench 1.0 (no VBench total exists for them)"
    metrics: ClassVar[Mapping[str, str]] = _metrics(
        "aesthetic_quality",
        "imaging_quality",
        "overall_consistency",
        "scene",
        "background_consistency",
        "subject_consistency",
        "dynamic_degree",
        "motion_smoothness",
    )

    def prompts(self) -> Sequence[Prompt]:
        return suite_prompts(("overall_consistency", "subject_consistency", "scene"))


class MLPerfProtocol(_Suite):
    """The accuracy check of MLPerf Inference text-to-video; its score is the plain mean."""

    name: ClassVar[str] = "mlperf-t2v"
    summary: ClassVar[str] = "MLPerf text-to-video: 248 VBench prompts x 1 video, six dimensions"
    label: ClassVar[str] = "MLPerf Inference text-to-video: plain mean of six VBench dimensions"
    samples_per_prompt: ClassVar[int] = 1
    metrics: ClassVar[Mapping[str, str]] = _metrics(
        "subject_consistency",
        "background_consistency",
        "motion_smoothness",
        "dynamic_degree",
        "scene",
        "appearance_style",
    )

    def prompts(self) -> Sequence[Prompt]:
        return suite_prompts(("subject_consistency", "appearance_style", "scene"), self.metrics)
