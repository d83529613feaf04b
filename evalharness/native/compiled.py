"""Metrics ``vbench-compiled.<dimension>``: the native scorers in bfloat16, their networks compiled.

A mode of its own as ``vbench-bf16`` is. Each new size of video is compiled first, which takes seconds to a
minute, so that it pays for many videos of one size. Chosen with ``--metric 'vbench-compiled.*'``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from evalharness.native import bf16

__all__ = [
    "AestheticQuality",
    "AppearanceStyle",
    "BackgroundConsistency",
    "HumanAction",
    "OverallConsistency",
    "SubjectConsistency",
    "TemporalStyle",
]


class _Compiled(bf16.InBfloat16):
    """Put before a metric in bfloat16, it compiles the networks and changes the name."""

    mode: ClassVar[str] = "vbench-compiled"
    told: ClassVar[str] = ", compiled"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "compiled": True})


class AestheticQuality(_Compiled, bf16.AestheticQuality):
    """CLIP compiled; the linear head stays as it is."""


class AppearanceStyle(_Compiled, bf16.AppearanceStyle):
    """Both halves of CLIP compiled."""


class BackgroundConsistency(_Compiled, bf16.BackgroundConsistency):
    """CLIP compiled."""


class HumanAction(_Compiled, bf16.HumanAction):
    """UMT compiled."""


class OverallConsistency(_Compiled, bf16.OverallConsistency):
    """ViCLIP's video half compiled."""


class SubjectConsistency(_Compiled, bf16.SubjectConsistency):
    """DINO compiled."""


class TemporalStyle(_Compiled, bf16.TemporalStyle):
    """ViCLIP's video half compiled."""
