"""Metrics ``vbench-bf16.<dimension>``: the native scorers with networks in bfloat16.

A mode of its own, for speed on a GPU: such scores are not VBench's, have other names, and no total, column
or submission takes them for it. Chosen with ``--metric 'vbench-bf16.*'``. RAFT and MUSIQ have no such form:
a vote on pixels of flow, and a grade of noise, are what eight bits of mantissa would change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

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
    "InBfloat16",
    "OverallConsistency",
    "SubjectConsistency",
    "TemporalStyle",
]


class InBfloat16(_Native):
    """Put before a native metric, it changes precision and name.

    Attributes:
        mode: what the name begins with.
        told: what is put behind the summary.
    """

    mode: ClassVar[str] = "vbench-bf16"
    told: ClassVar[str] = "; in bfloat16"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if hasattr(cls, "dimension"):  # a mode made of this one has none yet
            cls.name = f"{cls.mode}.{cls.dimension}"
            cls.summary = f"{cls.summary}{cls.told}"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "precision": "bfloat16"})


class AestheticQuality(InBfloat16, aesthetic_quality.AestheticQuality):
    """CLIP in bfloat16; the linear head stays in float32."""


class AppearanceStyle(InBfloat16, appearance_style.AppearanceStyle):
    """Both halves of CLIP in bfloat16."""


class BackgroundConsistency(InBfloat16, background_consistency.BackgroundConsistency):
    """CLIP in bfloat16."""


class HumanAction(InBfloat16, human_action.HumanAction):
    """UMT in bfloat16."""


class OverallConsistency(InBfloat16, overall_consistency.OverallConsistency):
    """Both halves of ViCLIP in bfloat16."""


class SubjectConsistency(InBfloat16, subject_consistency.SubjectConsistency):
    """DINO in bfloat16."""


class TemporalStyle(InBfloat16, temporal_style.TemporalStyle):
    """Both halves of ViCLIP in bfloat16."""
