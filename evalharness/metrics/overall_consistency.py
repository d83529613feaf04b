"""Overall consistency: how well video and caption agree."""

from __future__ import annotations

from evalharness.api import Sample, Skip, Video
from evalharness.metrics.judged import judge_info, label, reading

__all__ = ["OverallConsistency"]


class OverallConsistency:
    """Cosine between the video's and the caption's vector; negative ones count 0.

    VBench takes ViCLIP's cosine as it is; its values stay below 0.4, these reach up to 1.
    """

    name = "tinyworld.overall_consistency"
    dimension = "overall_consistency"
    summary = "cosine of the video's and the caption's vector in tinyworld's dual encoder"

    def __init__(self) -> None:
        self.info = judge_info("VBench's cosine; tinyworld's dual encoder in place of ViCLIP")

    def score(self, video: Video, sample: Sample) -> float:
        """In [0, 1].

        Raises:
            Skip: the prompt has no caption.
        """
        from evalharness.tinyworld.judges import load_judges

        caption = str(label(sample, "caption"))
        if not caption.split():
            raise Skip(f"prompt {sample.prompt.id} has an empty caption")
        cosine = float(reading(video).agreement @ load_judges().text(caption))
        return min(1.0, max(0.0, cosine))
