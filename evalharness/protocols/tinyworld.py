"""The prompt suite of tinyworld: 80 held-out captions, each counted for the dimensions that it tests.

Drawn once by a fixed generator, so the suite is the same everywhere; its hash stands in every run.
As in VBench a prompt counts for some dimensions only, and the captions follow VBench's wording.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from evalharness.api import Prompt
from evalharness.tinyworld import spec

SUITE_SEED = 20250516
SINGLES = 48
RELATED_PAIRS = 24
PLAIN_PAIRS = 8

QUALITY = ("subject_consistency", "background_consistency", "motion_smoothness", "imaging_quality")
ALWAYS = (*QUALITY, "scene", "action", "overall_consistency")
DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "imaging_quality",
    "object_class",
    "multiple_objects",
    "color",
    "spatial_relationship",
    "scene",
    "action",
    "overall_consistency",
)


class TinyWorldProtocol:
    """Satisfies ``evalharness.api.EvalProtocol``."""

    name: ClassVar[str] = "tinyworld"
    summary: ClassVar[str] = "80 held-out captions, 12 dimensions with VBench's names and own judges"
    samples_per_prompt: ClassVar[int] = 1
    percent: ClassVar[bool] = True
    label: ClassVar[str] = "tinyworld scores: VBench's dimension names, own judges, not VBench scores"
    metrics: ClassVar[Mapping[str, str]] = {name: f"tinyworld.{name}" for name in DIMENSIONS}

    def prompts(self) -> Sequence[Prompt]:
        rng = random.Random(SUITE_SEED)
        singles = [_balanced_single(rng, index) for index in range(SINGLES)]
        related = [_balanced_pair(rng, index) for index in range(RELATED_PAIRS)]
        plain = [_balanced_pair(rng, index) for index in range(PLAIN_PAIRS)]
        rows = [_prompt(clip, named=True) for clip in (*singles, *related)]
        rows += [_prompt(clip, named=False) for clip in plain]
        return [
            Prompt(id=f"{number:04d}", text=text, dimensions=dimensions, labels=labels)
            for number, (text, dimensions, labels) in enumerate(rows)
        ]


def _balanced_single(rng: random.Random, index: int) -> spec.Clip:
    """A held-out clip; motions and shapes take turns, so that each appears equally often."""
    motion = spec.MOTIONS[index % len(spec.MOTIONS)]
    shape = spec.SHAPES[(index // len(spec.MOTIONS) + index) % len(spec.SHAPES)]
    while True:
        clip = spec.random_clip(rng, held_out=True, pair=False)
        if clip.motion == motion and clip.things[0].shape == shape:
            return clip


def _balanced_pair(rng: random.Random, index: int) -> spec.Clip:
    relation = spec.RELATIONS[index % len(spec.RELATIONS)]
    while True:
        clip = spec.random_clip(rng, held_out=True, pair=True)
        if clip.relation == relation:
            return clip


def _prompt(clip: spec.Clip, *, named: bool) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    text = spec.caption(clip, name_relation=named)
    pair = len(clip.things) > 1
    dimensions = {*ALWAYS}
    if clip.motion != spec.MOTIONS[0]:
        dimensions.add("dynamic_degree")
    dimensions |= {"multiple_objects"} if pair else {"object_class", "color"}
    if pair and named:
        dimensions.add("spatial_relationship")
    labels = {
        "things": [{"color": thing.color, "shape": thing.shape} for thing in clip.things],
        "motion": clip.motion,
        "scene": clip.scene,
        "relation": clip.relation if named else None,
        "caption": text,
    }
    return text, tuple(name for name in DIMENSIONS if name in dimensions), labels
