"""Metrics ``vbench-compiled.<dimension>``: the native scorers in bfloat16, their networks compiled.

A mode of its own as ``vbench-bf16`` is. Each new size of video is compiled first, which takes seconds to a
minute, so that it pays for many videos of one size. Chosen with ``--metric 'vbench-compiled.*'``.
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


class _Compiled(_Native):
    """Put before a native metric, it changes precision, networks and name."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = f"vbench-compiled.{cls.dimension}"
        cls.summary = f"{cls.summary}; in bfloat16, compiled"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "precision": "bfloat16", "compiled": True})


class AestheticQuality(_Compiled, aesthetic_quality.AestheticQuality):
    """CLIP compiled; the linear head stays as it is."""


class AppearanceStyle(_Compiled, appearance_style.AppearanceStyle):
    """Both halves of CLIP compiled."""


class BackgroundConsistency(_Compiled, background_consistency.BackgroundConsistency):
    """CLIP compiled."""


class HumanAction(_Compiled, human_action.HumanAction):
    """UMT compiled."""


class OverallConsistency(_Compiled, overall_consistency.OverallConsistency):
    """ViCLIP's video half compiled."""


class SubjectConsistency(_Compiled, subject_consistency.SubjectConsistency):
    """DINO compiled."""


class TemporalStyle(_Compiled, temporal_style.TemporalStyle):
    """ViCLIP's video half compiled."""
