"""What is done to the renderings, or to the captions, before the metrics see them.

A condition turns a case into frames, uint8 [T, H, W, 3], and the sample that they are judged by.
All are pure functions of the case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evalharness.api import Sample
from evalharness.tinyworld import spec, world
from evalharness.tinyworld.calibration.cases import Case, contrary, one_wrong, reversed_relation
from evalharness.tinyworld.training import damage

__all__ = ["CONDITIONS", "NOISE_SIGMA", "NOISE_STEPS", "Condition", "noisy", "rendering", "to_frames"]

NOISE_SIGMA = 0.2
NOISE_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
VARIANTS = 4

Make = Callable[[Case], tuple[np.ndarray, Sample]]


class Condition(NamedTuple):
    """A row of the table: its name, what it does in one line, and the function."""

    name: str
    what: str
    make: Make


def rendering(case: Case, clip: spec.Clip | None = None) -> Tensor:
    """The case's video [T, 3, H, W] in [0, 1]; another ``clip`` is drawn in the same places."""
    generator = torch.Generator().manual_seed(case.sample.seed)
    return world.render(world.encode_clips([clip or case.clip]), generator)[0]


def to_frames(video: Tensor) -> np.ndarray:
    """Tensor [T, 3, H, W] in [0, 1] as uint8 [T, H, W, 3]."""
    frames: np.ndarray = (255.0 * video.permute(0, 2, 3, 1)).round().to(torch.uint8).numpy()
    return frames


def noisy(case: Case, sigma: float) -> np.ndarray:
    """Independent Gaussian noise of ``sigma`` (of the full range) in every value."""
    video = rendering(case)
    noise = torch.randn(video.shape, generator=_generator(case))
    return to_frames((video + sigma * noise).clamp(0.0, 1.0))


def _generator(case: Case) -> torch.Generator:
    """Randomness of the damage, apart from that of the rendering."""
    return torch.Generator().manual_seed(case.sample.seed ^ 0x5EED)


def _clean(case: Case) -> np.ndarray:
    return to_frames(rendering(case))


def _frozen(case: Case) -> np.ndarray:
    frames = _clean(case)
    repeated: np.ndarray = np.repeat(frames[len(frames) // 2][None], len(frames), axis=0)
    return repeated


def _shuffled(case: Case) -> np.ndarray:
    frames = _clean(case)
    shuffled: np.ndarray = frames[torch.randperm(len(frames), generator=_generator(case)).numpy()]
    return shuffled


def _blurred(case: Case) -> np.ndarray:
    video = rendering(case)
    severity = torch.full((len(video),), 0.9)
    return to_frames(damage.blur(video, severity, _generator(case)))


def _things_flicker(case: Case) -> np.ndarray:
    """Each frame shows one of four sets of things in the same place, each differing in all."""
    variants = [case.clip]
    for step in range(1, VARIANTS):
        things = tuple(
            spec.Thing(_turn(spec.COLORS, thing.color, step), _turn(spec.SHAPES, thing.shape, step))
            for thing in case.clip.things
        )
        variants.append(replace(case.clip, things=things))
    return _mixed(case, variants)


def _scene_flickers(case: Case) -> np.ndarray:
    """Each frame shows the same things over one of four scenes."""
    variants = [replace(case.clip, scene=_turn(spec.SCENES, case.clip.scene, k)) for k in range(VARIANTS)]
    return _mixed(case, variants)


def _mixed(case: Case, variants: list[spec.Clip]) -> np.ndarray:
    videos = torch.stack([rendering(case, clip) for clip in variants])
    frames = videos.shape[1]
    choice = torch.randint(len(variants), (frames,), generator=_generator(case))
    return to_frames(videos[choice, torch.arange(frames)])


def _turn(names: tuple[str, ...], name: str, step: int) -> str:
    return names[(names.index(name) + step) % len(names)]


def _shown(change: Callable[[Case], np.ndarray]) -> Make:
    return lambda case: (change(case), case.sample)


def _asked(change: Callable[[Case], Sample]) -> Make:
    return lambda case: (_clean(case), change(case))


CONDITIONS: Mapping[str, Condition] = {
    condition.name: condition
    for condition in (
        Condition(
            "renderings", "held-out renderings as they are: what a perfect model scores", _shown(_clean)
        ),
        Condition("frozen", "the middle frame, repeated", _shown(_frozen)),
        Condition("shuffled", "the frames in random order", _shown(_shuffled)),
        Condition(
            "noise", f"Gaussian noise of {NOISE_SIGMA} of the range", _shown(lambda c: noisy(c, NOISE_SIGMA))
        ),
        Condition(
            "wrong captions", "nothing of the caption is true but the number of things", _asked(contrary)
        ),
        Condition("blur", "Gaussian blur of 1.5 pixels", _shown(_blurred)),
        Condition("backwards", "the last frame first", _shown(lambda c: _clean(c)[::-1].copy())),
        Condition("things flicker", "shape and colour change from frame to frame", _shown(_things_flicker)),
        Condition("scene flickers", "the scene changes from frame to frame", _shown(_scene_flickers)),
        Condition(
            "relation reversed", "the caption says above for below and so on", _asked(reversed_relation)
        ),
        Condition("one wrong word", "the caption is false by one attribute", _asked(one_wrong)),
    )
}
