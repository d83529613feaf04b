"""Overall consistency: how well the video fits its whole prompt, by ViCLIP."""

from __future__ import annotations

from evalharness.native.agreement import ViClipAgreement

__all__ = ["OverallConsistency"]


class OverallConsistency(ViClipAgreement):
    """The formula is the other's too; the prompts are not."""

    name = "vbench.overall_consistency"
    dimension = "overall_consistency"
    summary = "likeness of video and prompt, by ViCLIP"
