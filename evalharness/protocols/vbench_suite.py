"""VBench's prompt suite as the harness's prompts, with ids of their own.

VBench names a video by its prompt. Of its 946 entries only 944 differ, and 943 without letter case,
so videos overwrite each other. Here an entry's id is its place in the original file, ``0000`` to
``0945``; the same entry has the same id, and so the same seeds, in every protocol made of the suite.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from importlib.resources import files

from evalharness.api import Prompt

__all__ = ["DIMENSIONS", "suite_prompts"]

# In the order of VBench's own table: seven of quality, nine of semantics.
DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
)


def suite_prompts(
    suites: Collection[str] | None = None, dimensions: Collection[str] = DIMENSIONS
) -> list[Prompt]:
    """The prompts of the named suites (all by default), in the order of the original file.

    Args:
        suites: named by the first dimension of their entries, e.g. ``overall_consistency``.
        dimensions: those that count; a prompt keeps no others.
    """
    return [
        Prompt(
            id=prompt.id,
            text=prompt.text,
            dimensions=tuple(name for name in DIMENSIONS if name in prompt.dimensions and name in dimensions),
            labels=prompt.labels,
        )
        for suite, prompt in _suite()
        if suites is None or suite in suites
    ]


@functools.cache
def _suite() -> tuple[tuple[str, Prompt], ...]:
    text = (files("evalharness.protocols") / "data" / "vbench.json").read_text(encoding="utf-8")
    data = json.loads(text)
    return tuple(
        (suite, Prompt(id=f"{number:04d}", text=text, dimensions=tuple(data["suites"][suite]), labels=labels))
        for number, (text, suite, labels) in enumerate(data["entries"])
    )
