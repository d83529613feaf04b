"""Captions to calibrate with, and to train along the teacher's own sampling: none is of a protocol."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["captions"]

_SUBJECTS = (
    "an old fisherman", "a red tractor", "two brown horses", "a young violinist", "a grey heron",
    "a paper boat", "a street vendor", "a black labrador", "a glass teapot", "three schoolchildren",
    "a freight train", "a potter", "a hot air balloon", "a wooden windmill", "a swarm of bees",
    "a mountain goat",
)  # fmt: skip
_ACTIONS = (
    "moving slowly from left to right", "turning towards the camera", "waiting in light rain",
    "seen from above", "crossing the frame", "resting", "shaking in the wind", "coming closer",
    "disappearing behind a wall", "reflected in water",
)  # fmt: skip
_PLACES = (
    "on a gravel road", "beside a frozen river", "in a crowded market", "in a wheat field at dusk",
    "under a railway bridge", "on a rooftop terrace", "in a dim workshop", "at the edge of a cliff",
    "in front of white tiles", "on wet asphalt at night",
)  # fmt: skip
_LOOKS = ("handheld shot", "wide shot", "close-up", "overcast light", "warm morning light", "shallow focus")


def captions(seed: int) -> Iterator[str]:
    """An endless sequence, a pure function of ``seed``."""
    rng = random.Random(seed)  # noqa: S311 - draws sentences, no secrets
    parts = (_SUBJECTS, _ACTIONS, _PLACES, _LOOKS)
    while True:
        subject, action, place, look = (rng.choice(part) for part in parts)
        yield f"{subject[0].upper()}{subject[1:]} {action} {place}, {look}."
