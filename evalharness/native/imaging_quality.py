"""Imaging quality: MUSIQ trained on SPAQ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalharness.api import Sample, Video
from evalharness.native.base import NativeMetric

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ImagingQuality"]


class ImagingQuality(NativeMetric):
    """Mean over frames of MUSIQ's 0..100, divided by 100; frames made smaller to 512 on the longer side.

    The network is our own. The weights that VBench uses are pyiqa's file, whose licence forbids
    commercial use.
    """

    name = "vbench.imaging_quality"
    dimension = "imaging_quality"
    summary = "MUSIQ (weights non-commercial), mean over frames, 0..1"
    weights = ("musiq-spaq",)
    cost_ms = 1000.0
    version = 2

    def score(self, video: Video, sample: Sample) -> float:
        """In [0, 1].

        Raises:
            Skip: the weights are missing.
        """
        del sample
        from evalharness.native.inputs import in_batches, musiq_input

        network = self.network("musiq-spaq", "float32")

        def grade(images: Tensor) -> Tensor:
            grades: Tensor = network(musiq_input(images))
            return grades

        grades = in_batches(self.frames(video), self.batch, self.device, grade)
        return float(grades.double().mean()) / 100.0
