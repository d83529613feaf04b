"""Four prompts, one video each, two measures that need no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from evalharness.api import Prompt

__all__ = ["SmokeProtocol"]

_TEXTS = (
    "A yellow kayak drifts down a calm river, wide shot.",
    "Close-up of a potter shaping a bowl on a wheel.",
    "Two goats climb a rocky slope in morning light.",
    "Rain runs down the window of a moving train.",
)


class SmokeProtocol:
    """Satisfies ``evalharness.api.EvalProtocol``."""

    name: ClassVar[str] = "smoke"
    summary: ClassVar[str] = "does it run: 4 prompts, few steps and frames, no judgement of quality"
    samples_per_prompt: ClassVar[int] = 1
    percent: ClassVar[bool] = True
    label: ClassVar[str] = "smoke: tells a picture from noise, black or a frozen frame; no quality scores"
    metrics: ClassVar[Mapping[str, str]] = {"contrast": "smoke.contrast", "steadiness": "smoke.steadiness"}

    def prompts(self) -> Sequence[Prompt]:
        return [
            Prompt(id=f"{number:04d}", text=text, dimensions=tuple(self.metrics))
            for number, text in enumerate(_TEXTS)
        ]
