"""Metrics ``vbench-bf16.<dimension>``: the native scorers with networks in bfloat16.

A mode of its own, for speed on a GPU: such scores are not VBench's, have other names, and no total, column
or submission takes them for it. Chosen with ``--metric 'vbench-bf16.*'``. RAFT and MUSIQ have no such form:
a vote on pixels of flow, and a grade of noise, are what eight bits of mantissa would change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evalharness.native import (
    aesthetic_quality,
    appearance_style,
    background_consistency,
    human_action,
    overall_consistency,
    subject_consistency,
    temporal_style,
)

if TYPE_CHECKING:
    from evalharness.native.base import NativeMetric as _Native
else:
    _Native = object

__all__ = [
    "AestheticQuality",
    "AppearanceStyle",
    "BackgroundConsistency",
    "HumanAction",
    "OverallConsistency",
    "SubjectConsistency",
    "TemporalStyle",
]


class _InBfloat16(_Native):
    """Put before a native metric, it changes precision and name."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = f"vbench-bf16.{cls.dimension}"
        cls.summary = f"{cls.summary}; in bfloat16"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "precision": "bfloat16"})


class AestheticQuality(_InBfloat16, aesthetic_quality.AestheticQuality):
    """CLIP in bfloat16; the linear head stays in float32."""


class AppearanceStyle(_InBfloat16, appearance_style.AppearanceStyle):
    """Both halves of CLIP in bfloat16."""


class BackgroundConsistency(_InBfloat16, background_consistency.BackgroundConsistency):
    """CLIP in bfloat16."""


class HumanAction(_InBfloat16, human_action.HumanAction):
    """UMT in bfloat16."""


class OverallConsistency(_InBfloat16, overall_consistency.OverallConsistency):
    """Both halves of ViCLIP in bfloat16."""


class SubjectConsistency(_InBfloat16, subject_consistency.SubjectConsistency):
    """DINO in bfloat16."""


class TemporalStyle(_InBfloat16, temporal_style.TemporalStyle):
    """Both halves of ViCLIP in bfloat16."""
