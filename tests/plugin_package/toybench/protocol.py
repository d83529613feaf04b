"""Six prompts in two overlapping dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from evalharness.api import Prompt

TEXTS = ("one", "two", "three", "four", "five", "six")


class ToyProtocol:
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "six prompts, two dimensions"
    samples_per_prompt: ClassVar[int] = 1
    metrics: ClassVar[Mapping[str, str]] = {"brightness": "toy.brightness", "motion": "toy.motion"}
    percent: ClassVar[bool] = True

    def prompts(self) -> Sequence[Prompt]:
        """All count for brightness, every second one for motion too."""
        return [
            Prompt(
                id=f"p{number:02d}",
                text=text,
                dimensions=("brightness", "motion") if number % 2 else ("brightness",),
                labels={"number": number},
            )
            for number, text in enumerate(TEXTS)
        ]
