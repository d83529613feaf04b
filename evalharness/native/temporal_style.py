"""Temporal style: how well the video fits a prompt that asks for a camera's movement, by ViCLIP."""

from __future__ import annotations

from evalharness.native.agreement import ViClipAgreement

__all__ = ["TemporalStyle"]


class TemporalStyle(ViClipAgreement):
    """The formula is the other's too; the prompts are not."""

    name = "vbench.temporal_style"
    dimension = "temporal_style"
    summary = "likeness of video and prompt, by ViCLIP"
