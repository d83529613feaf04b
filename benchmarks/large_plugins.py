"""The toy model under a protocol of as many prompts as ``LARGE_PROMPTS`` says, five videos each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import ClassVar

from benchmarks.toy_plugins import PLUGINS as TOY
from evalharness.api import Prompt


class Large:
    """Every prompt counts for both dimensions of the toy."""

    name: ClassVar[str] = "large"
    summary: ClassVar[str] = "many prompts"
    samples_per_prompt: ClassVar[int] = 5
    metrics: ClassVar[Mapping[str, str]] = {"brightness": "toy.brightness", "motion": "toy.motion"}
    percent: ClassVar[bool] = True
    label: ClassVar[str] = "large scores"

    def prompts(self) -> Sequence[Prompt]:
        """``LARGE_PROMPTS`` of them."""
        count = int(os.environ.get("LARGE_PROMPTS", "10"))
        dimensions = tuple(self.metrics)
        return [Prompt(id=f"p{i:06d}", text=f"prompt {i}", dimensions=dimensions) for i in range(count)]


PLUGINS = {**TOY, "protocols": {"large": Large}}
