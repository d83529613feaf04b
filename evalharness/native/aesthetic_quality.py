"""Aesthetic quality: LAION's linear predictor on CLIP's features."""

from __future__ import annotations

from evalharness.api import Sample, Video
from evalharness.native.base import NativeMetric

__all__ = ["AestheticQuality"]


class AestheticQuality(NativeMetric):
    """Mean over frames of the predictor's 0..10 on normalised CLIP ViT-L/14 features, divided by 10."""

    name = "vbench.aesthetic_quality"
    dimension = "aesthetic_quality"
    summary = "LAION's aesthetic predictor on CLIP ViT-L/14, mean over frames, 0..1"
    weights = ("clip-vit-l14", "aesthetic-linear")
    cost_ms = 1000.0

    def score(self, video: Video, sample: Sample) -> float:
        """Nominally in [0, 1]; the predictor is linear, so nothing bounds it.

        Raises:
            Skip: weights are missing.
        """
        del sample
        import torch
        from torch.nn import functional

        features = torch.from_numpy(self.clip_features(video, "clip-vit-l14"))
        head = self.network("aesthetic-linear", "float32")  # whatever CLIP runs in, as VBench has it
        with torch.inference_mode():
            unit = functional.normalize(features, dim=-1).to(self.device)
            grades = head(unit)
        return float(grades.double().mean()) / 10.0
