"""What overall consistency and temporal style share: likeness of video and prompt, by ViCLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evalharness.api import Sample, Video
from evalharness.frames import middle
from evalharness.native.base import NativeMetric

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ViClipAgreement"]


class ViClipAgreement(NativeMetric):
    """Cosine of ViCLIP's features of eight frames and of the whole prompt."""

    weights = ("viclip-l14", "clip-bpe")
    cost_ms = 500.0
    low = -1.0

    def score(self, video: Video, sample: Sample) -> float:
        """A cosine; a negative one is VBench's score as it is.

        Raises:
            Skip: weights are missing.
        """
        import torch
        from torch.nn import functional

        shown = video.memo(self.memo_key("viclip"), self._shown)
        network: Any = self.network("viclip-l14")
        with torch.inference_mode():
            told = network.text(self.tokens(sample.prompt.text, network.context))[0].float()
        return float(functional.cosine_similarity(shown.double(), told.double(), dim=-1))

    def _shown(self, video: Video) -> Tensor:
        import torch

        from evalharness.native.inputs import clip_bytes_input, planes

        network: Any = self.network("viclip-l14")
        chosen = self.frames(video)[middle(len(video.frames), network.frames)]
        with torch.inference_mode():
            pictures = clip_bytes_input(planes(chosen, self.device))
            feature: Tensor = network.video(pictures.to(self.dtype())).float()
        return feature
