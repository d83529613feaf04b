"""Renderings with their truth, endlessly, for training the judges."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

from evalharness.tinyworld import spec, world
from evalharness.tinyworld.judge_nets import NO_MOTION, by_video
from evalharness.tinyworld.training import damage

EMPTY_FRACTION = 0.05
BROKEN_FRACTION = 0.2


class Scenes(NamedTuple):
    """Rendered clips and what is in them.

    Attributes:
        video: [B, T, 3, H, W] in [0, 1], undamaged.
        batch: ids; a clip with ``count`` 0 shows only its scene.
        center: [B, K, T, 2] in [0, 1], x right, y down.
        present: bool [B, S], the shapes in the clip.
    """

    video: Tensor
    batch: world.WorldBatch
    center: Tensor
    present: Tensor


def training_scenes(count: int, generator: torch.Generator, device: torch.device) -> Scenes:
    """``count`` clips of the training split; one in twenty shows no thing at all."""
    batch = world.random_batch(count, generator)
    empty = torch.rand(count, generator=generator) < EMPTY_FRACTION
    batch = batch._replace(count=batch.count * (~empty).long())
    return render_scenes(batch, generator, device)


def held_out_scenes(count: int, seed: int, device: torch.device, *, pair: bool) -> Scenes:
    """``count`` clips of combinations that training never sees."""
    rng = random.Random(seed)
    clips = [spec.random_clip(rng, held_out=True, pair=pair) for _ in range(count)]
    return render_scenes(world.encode_clips(clips), torch.Generator().manual_seed(seed), device)


def render_scenes(batch: world.WorldBatch, generator: torch.Generator, device: torch.device) -> Scenes:
    """Draw ``batch`` and note where its things are."""
    # ``render`` draws the layout first, so a copy of the generator tells where things will be.
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    center = world.layout(batch, copy).center.to(device)
    video = world.render(batch, generator, device=device)
    batch = batch.to(device)
    slots = torch.arange(world.SLOTS, device=device) < batch.count[:, None]
    present = torch.zeros(len(batch.scene), len(spec.SHAPES), dtype=torch.bool, device=device)
    for slot in range(world.SLOTS):
        rows = slots[:, slot].nonzero()[:, 0]
        present[rows, batch.shape[rows, slot]] = True
    return Scenes(video, batch, center, present)


def shape_centers(scenes: Scenes, rows: Tensor, times: Tensor) -> Tensor:
    """Centres [N, S, 2] by shape, of frames (row, time); the middle of the frame where absent."""
    center = torch.full((len(rows), len(spec.SHAPES), 2), 0.5, device=scenes.center.device)
    index = torch.arange(len(rows), device=center.device)
    for slot in range(world.SLOTS):
        there = (scenes.batch.count[rows] > slot).nonzero()[:, 0]
        shape = scenes.batch.shape[rows[there], slot]
        center[index[there], shape] = scenes.center[rows[there], slot, times[there]]
    return center


def motion_clips(scenes: Scenes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips [B, T, 3, H, W], some of them broken, and their class [B] among the 9.

    Broken in time means "none of these": frames in random order, a cut to another clip, no thing.
    A thing that stands still does so in any order, and also when a single frame is repeated.
    ``generator`` lives on the CPU.
    """
    video, labels = scenes.video.clone(), scenes.batch.motion.clone()
    count, frames = video.shape[:2]
    still = spec.MOTIONS.index("standing still")
    kinds = torch.rand(count, generator=generator).tolist()
    for i, kind in enumerate(kinds):
        if kind < 0.5 * BROKEN_FRACTION:
            video[i] = scenes.video[i, torch.randperm(frames, generator=generator)]
            labels[i] = torch.where(labels[i] == still, still, NO_MOTION)
        elif kind < 0.75 * BROKEN_FRACTION:
            cut = int(torch.randint(5, frames - 5, (), generator=generator))
            video[i, cut:] = scenes.video[i - 1, cut:]
            labels[i] = NO_MOTION
        elif kind < BROKEN_FRACTION:
            video[i] = scenes.video[i, int(torch.randint(frames, (), generator=generator))]
            labels[i] = still
    labels = torch.where(scenes.batch.count == 0, NO_MOTION, labels)
    return video, labels


def damaged_clips(
    video: Tensor, generator: torch.Generator, *, chance: float = 0.25, limit: float = 0.5
) -> Tensor:
    """Mild damage of random kinds, new in each frame, then the codec; [B, T, 3, H, W]."""
    frames, _ = damage.random_damage(
        video.flatten(0, 1), generator, damage.QUALITY_DAMAGES, chance=chance, limit=limit
    )
    return by_video(damage.codec(frames, generator), len(video))


def smeared_clips(video: Tensor, generator: torch.Generator) -> Tensor:
    """``damaged_clips``, with what a video model's temporal decoder does to fast things.

    Half of the clips: neighbouring frames shine through, up to ghosts as strong as the thing, and
    each frame is bent by a field of its own. ``video`` [B, T, 3, H, W].
    """
    count, frames = video.shape[:2]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=video.device)

    chosen = uniform(count, 1) < 0.5
    before = torch.cat([video[:, :1], video[:, :-1]], dim=1)
    after = torch.cat([video[:, 1:], video[:, -1:]], dim=1)
    share = uniform(count, frames)[:, :, None, None, None]
    ghost = (0.6 * uniform(count, 1) * uniform(count, frames) * chosen)[:, :, None, None, None]
    smeared = (1.0 - ghost) * video + ghost * (share * before + (1.0 - share) * after)
    severity = (0.5 * uniform(count, 1) * uniform(count, frames) * chosen).flatten()
    bent = damage.warp(smeared.flatten(0, 1), severity, generator)
    return damaged_clips(by_video(bent, count), generator)


def wrong_captions(clip: spec.Clip, rng: random.Random) -> list[str]:
    """Captions that are false by one attribute: one for each attribute that the clip has."""
    wrong = [
        _with_thing(clip, rng, color=True),
        _with_thing(clip, rng, color=False),
        _replace(clip, motion=_other(spec.MOTIONS, clip.motion, rng)),
        _replace(clip, scene=_other(spec.SCENES, clip.scene, rng)),
    ]
    if clip.relation is not None:
        wrong.append(_replace(clip, relation=opposite(clip.relation)))
        first, second = clip.things
        swapped = (spec.Thing(second.color, first.shape), spec.Thing(first.color, second.shape))
        if first.color != second.color:
            wrong.append(_replace(clip, things=swapped))
    return [spec.caption(other) for other in wrong]


def opposite(relation: str) -> str:
    """``above`` for ``below`` and so on."""
    return spec.RELATIONS[spec.RELATIONS.index(relation) ^ 1]


def _with_thing(clip: spec.Clip, rng: random.Random, *, color: bool) -> spec.Clip:
    slot = rng.randrange(len(clip.things))
    thing = clip.things[slot]
    if color:
        changed = spec.Thing(_other(spec.COLORS, thing.color, rng), thing.shape)
    else:
        shapes = tuple(s for s in spec.SHAPES if s not in {t.shape for t in clip.things})
        changed = spec.Thing(thing.color, rng.choice(shapes))
    return _replace(clip, things=(*clip.things[:slot], changed, *clip.things[slot + 1 :]))


def _replace(clip: spec.Clip, **changes: object) -> spec.Clip:
    fields = {"things": clip.things, "motion": clip.motion, "scene": clip.scene, "relation": clip.relation}
    return spec.Clip(**{**fields, **changes})  # type: ignore[arg-type]


def _other(names: tuple[str, ...], name: str, rng: random.Random) -> str:
    return rng.choice([other for other in names if other != name])
