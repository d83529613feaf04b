"""Human action: whether UMT sees the named action among its five surest."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from evalharness.api import Sample, Skip, Video
from evalharness.frames import middle
from evalharness.native.base import NativeMetric

__all__ = ["HumanAction", "kinetics_labels"]

TOP = 5
LEAST = 0.85


class HumanAction(NativeMetric):
    """1 if the action is among the five likeliest of Kinetics-400 with a probability of 0.85 or more.

    The package reads the action from the file's name; here the prompt's label names it. ``details``
    keeps the probability and the rank behind the yes or no.
    """

    name = "vbench.human_action"
    dimension = "human_action"
    summary = "1 if UMT sees the named action (top 5, at 0.85), else 0"
    weights = ("umt-l16",)
    cost_ms = 500.0

    def score(self, video: Video, sample: Sample) -> float:
        """0 or 1.

        Raises:
            Skip: the prompt names no action of Kinetics-400, or weights are missing.
        """
        return 1.0 if self.details(video, sample)["seen"] else 0.0

    def details(self, video: Video, sample: Sample) -> Mapping[str, Any]:
        """``seen``; the action's ``probability`` and ``rank``, from 1; ``likeliest``, the surest action."""
        labels = kinetics_labels()
        action = str(sample.prompt.labels.get("action", "")).lower()
        if action not in labels:
            raise Skip(f"the prompt names no action of Kinetics-400 (label action: {action!r})")
        probabilities = video.memo(self.memo_key("umt"), self._probabilities)
        order = sorted(range(len(probabilities)), key=lambda number: -probabilities[number])
        number = labels.index(action)
        rank = order.index(number) + 1
        # VBench rounds to four digits before it compares.
        seen = rank <= TOP and round(probabilities[number], 4) >= LEAST
        return {
            "seen": seen,
            "probability": probabilities[number],
            "rank": rank,
            "likeliest": labels[order[0]],
        }

    def _probabilities(self, video: Video) -> list[float]:
        """Of each class by itself: sigmoids, which need not add up to 1."""
        import torch

        from evalharness.native.inputs import action_input
        from evalharness.native.umt import FRAMES

        chosen = video.frames[middle(len(video.frames), FRAMES)]
        network = self.network("umt-l16")
        with torch.inference_mode():
            logits = network(action_input(chosen, self.device).to(self.dtype()))
            probabilities: list[float] = torch.sigmoid(logits.float()).tolist()
        return probabilities


@functools.cache
def kinetics_labels() -> tuple[str, ...]:
    """The 400 classes in the order of the classifier's outputs."""
    text = (files("evalharness.native") / "data" / "kinetics400.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["labels"])
