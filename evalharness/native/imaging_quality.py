"""Imaging quality: MUSIQ trained on SPAQ, by pyiqa where that is installed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from evalharness.api import Sample, Skip, Video
from evalharness.native import weights as weight_files
from evalharness.native.base import NativeMetric

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ImagingQuality"]


class ImagingQuality(NativeMetric):
    """Mean over frames of MUSIQ's 0..100, divided by 100; frames made smaller to 512 on the longer side.

    pyiqa's licence forbids commercial use, so it is no dependency: ``pip install pyiqa`` if it suits.
    """

    name = "vbench.imaging_quality"
    dimension = "imaging_quality"
    summary = "MUSIQ (pyiqa, non-commercial, optional), mean over frames, 0..1"
    weights = ("musiq-spaq",)
    cost_ms = 1000.0

    def score(self, video: Video, sample: Sample) -> float:
        """In [0, 1].

        Raises:
            Skip: pyiqa or the weights are missing.
        """
        del sample
        from evalharness.native.inputs import in_batches, musiq_input

        [declared] = weight_files.declared(self.weights, self.folder)
        network = _musiq(self.folder, declared.sha256, self.device)

        def grade(images: Tensor) -> Tensor:
            grades: Tensor = network(musiq_input(images)).reshape(-1)
            return grades

        # MUSIQ stays in float32: its input pipeline picks patches, and that is where time goes.
        return float(in_batches(video.frames, self.batch, self.device, grade).double().mean()) / 100.0


@functools.lru_cache(maxsize=2)
def _musiq(folder: Path, sha256: str, device: str) -> nn.Module:
    del sha256  # part of the key: other weights, another network
    stored = weight_files.tensors("musiq-spaq", folder)
    try:
        from pyiqa.archs.musiq_arch import MUSIQ
    except ImportError as error:
        raise Skip(
            "imaging quality needs pyiqa (non-commercial licence): pip install --no-deps pyiqa"
        ) from error
    return weight_files.fill(MUSIQ(pretrained=False), stored, "musiq-spaq").to(device)
