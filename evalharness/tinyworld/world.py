"""Draws tinyworld: clips given as ids become short videos, batched, on any device.

Every pixel comes from a formula, so there is no data set to download, no end of training data and
no doubt about what a video shows. Two draws of one clip differ in place, size, angle, speed, tint
and in the details of the background.

Shape legend: B batch, T frames, H height, W width; K = 2 slots for things.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evalharness.tinyworld import spec
from evalharness.tinyworld.scenes import SCENE_FUNCTIONS, Canvas
from evalharness.tinyworld.shapes import HIGHLIGHTS, SHAPE_FUNCTIONS

SLOTS = 2
SPOTS = 14
SUPERSAMPLE = 2
OUTLINE = 0.16  # width of the dark border, in radii
HIGHLIGHT = 0.15  # radius of the highlight, in radii

PALETTE = {
    "red": (0.9, 0.12, 0.12),
    "orange": (1.0, 0.55, 0.05),
    "yellow": (1.0, 0.92, 0.15),
    "green": (0.1, 0.72, 0.2),
    "blue": (0.15, 0.35, 0.95),
    "purple": (0.62, 0.18, 0.8),
}


class WorldBatch(NamedTuple):
    """Clips as ids into the tuples of ``spec``.

    Attributes:
        scene, motion, relation: long [B]; relation is -1 for a single thing.
        shape, color: long [B, K]; slot 1 is ignored for a single thing.
        count: long [B], 1 or 2.
    """

    scene: Tensor
    motion: Tensor
    relation: Tensor
    shape: Tensor
    color: Tensor
    count: Tensor  # type: ignore[assignment] # hides tuple.count, which nobody calls on a batch

    def to(self, device: torch.device | str) -> WorldBatch:
        return WorldBatch(*(field.to(device) for field in self))

    def take(self, rows: Tensor | slice) -> WorldBatch:
        """The clips at ``rows``, a long or bool index or a slice."""
        return WorldBatch(*(field[rows] for field in self))


class Layout(NamedTuple):
    """Where each thing is: ``center`` [B, K, T, 2] in [0, 1], ``angle`` [B, K, T], ``radius`` [B, K]."""

    center: Tensor
    angle: Tensor
    radius: Tensor


def encode_clips(clips: Sequence[spec.Clip]) -> WorldBatch:
    """Ids of the clips, on the CPU."""
    rows = []
    for clip in clips:
        things = [*clip.things, *clip.things][:SLOTS]
        rows.append(
            [
                spec.SCENES.index(clip.scene),
                spec.MOTIONS.index(clip.motion),
                -1 if clip.relation is None else spec.RELATIONS.index(clip.relation),
                *(spec.SHAPES.index(thing.shape) for thing in things),
                *(spec.COLORS.index(thing.color) for thing in things),
                len(clip.things),
            ]
        )
    ids = torch.tensor(rows, dtype=torch.long)
    return WorldBatch(ids[:, 0], ids[:, 1], ids[:, 2], ids[:, 3:5], ids[:, 5:7], ids[:, 7])


def decode_clips(batch: WorldBatch) -> list[spec.Clip]:
    """The inverse of ``encode_clips``."""
    clips = []
    for scene, motion, relation, shape, color, count in zip(*(f.tolist() for f in batch), strict=True):
        things = tuple(spec.Thing(spec.COLORS[color[k]], spec.SHAPES[shape[k]]) for k in range(count))
        clips.append(
            spec.Clip(
                things=things,
                motion=spec.MOTIONS[motion],
                scene=spec.SCENES[scene],
                relation=None if relation < 0 else spec.RELATIONS[relation],
            )
        )
    return clips


def random_batch(count: int, generator: torch.Generator, *, pair_fraction: float = 0.4) -> WorldBatch:
    """``count`` clips of the training split, uniformly drawn; pairs make up ``pair_fraction``."""
    kept: list[WorldBatch] = []
    total = 0
    while total < count:
        drawn = _draw(2 * count + 16, generator, pair_fraction)
        drawn = drawn.take(~held_out_mask(drawn))
        kept.append(drawn)
        total += len(drawn.scene)
    merged = WorldBatch(*(torch.cat(fields) for fields in zip(*kept, strict=True)))
    return merged.take(slice(0, count))


def held_out_mask(batch: WorldBatch) -> Tensor:
    """Bool [B]; agrees with ``spec.is_held_out``."""
    code = 7 * batch.color + 3 * batch.shape + (batch.motion + batch.scene)[:, None]
    hit = code % spec.HELD_OUT_ONE_IN == 0
    return hit[:, 0] | (hit[:, 1] & (batch.count > 1))


def _draw(count: int, generator: torch.Generator, pair_fraction: float) -> WorldBatch:
    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape or (count,), generator=generator)

    pair = torch.rand(count, generator=generator) < pair_fraction
    relation = torch.where(pair, integers(len(spec.RELATIONS)), -torch.ones(count, dtype=torch.long))
    first = integers(len(spec.SHAPES))
    second = (first + 1 + integers(len(spec.SHAPES) - 1)) % len(spec.SHAPES)
    sideways = _motion_ids(spec.SIDEWAYS_PAIR_MOTIONS)[integers(len(spec.SIDEWAYS_PAIR_MOTIONS))]
    stacked = _motion_ids(spec.STACKED_PAIR_MOTIONS)[integers(len(spec.STACKED_PAIR_MOTIONS))]
    motion = torch.where(relation < 2, sideways, stacked)
    motion = torch.where(pair, motion, integers(len(spec.MOTIONS)))
    return WorldBatch(
        scene=integers(len(spec.SCENES)),
        motion=motion,
        relation=relation,
        shape=torch.stack([first, second], dim=1),
        color=integers(len(spec.COLORS), count, SLOTS),
        count=1 + pair.long(),
    )


def _motion_ids(names: Sequence[str]) -> Tensor:
    return torch.tensor([spec.MOTIONS.index(name) for name in names])


def layout(batch: WorldBatch, generator: torch.Generator, frames: int = spec.FRAMES) -> Layout:
    """Draw sizes, places and paths; on the CPU, whatever the batch's device."""
    batch = batch.to("cpu")
    size = len(batch.scene)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    t = torch.linspace(0.0, 1.0, frames)[None]
    pair = (batch.count > 1)[:, None]
    radius = torch.where(pair, uniform(0.15, 0.165, size, 1), uniform(0.175, 0.21, size, 1)).repeat(1, SLOTS)
    radius = radius * uniform(0.95, 1.05, size, SLOTS)

    home = uniform(0.28, 0.72, size, 2)
    travel = uniform(0.46, 0.54, size, 1) * (t - 0.5)
    swing = 0.36 * (0.5 - torch.sin(2.0 * math.pi * (t + uniform(0.0, 0.5, size, 1))).abs())
    turn = 2.0 * math.pi * (t + uniform(0.0, 1.0, size, 1)) * uniform(-1.0, 1.0, size, 1).sign()
    motion = {name: (batch.motion == i).float()[:, None] for i, name in enumerate(spec.MOTIONS)}

    dx = travel * (motion["moving right"] - motion["moving left"])
    dy = travel * (motion["moving down"] - motion["moving up"]) + swing * motion["bouncing"]
    dx = dx + 0.2 * torch.cos(turn) * motion["circling"]
    dy = dy + 0.2 * torch.sin(turn) * motion["circling"]
    # A mover starts near the middle of its path, so that the whole path stays in the frame.
    moves_x = (motion["moving left"] + motion["moving right"] + motion["circling"])[:, 0]
    moves_y = (motion["moving up"] + motion["moving down"] + motion["bouncing"] + motion["circling"])[:, 0]
    near = uniform(0.46, 0.54, size, 2)
    home = torch.stack(
        [torch.where(moves_x > 0, near[:, 0], home[:, 0]), torch.where(moves_y > 0, near[:, 1], home[:, 1])],
        1,
    )

    homes = home[:, None].repeat(1, SLOTS, 1)
    gap = uniform(0.2, 0.225, size)
    for relation, (axis, sign) in enumerate([(0, -1.0), (0, 1.0), (1, -1.0), (1, 1.0)]):
        chosen = batch.relation == relation
        middle = uniform(0.48, 0.52, size)
        for slot in range(SLOTS):
            side = sign if slot == 0 else -sign
            homes[chosen, slot, axis] = (middle + side * gap)[chosen]
    homes = homes + uniform(-0.03, 0.03, size, SLOTS, 2) * pair[:, None].float()

    path = torch.stack([dx, dy], dim=-1)[:, None]
    spin = turn * motion["spinning"]
    tilt = uniform(-0.2, 0.2, size, SLOTS, 1)
    return Layout(homes[:, :, None] + path, spin[:, None] + tilt, radius)


def render(
    batch: WorldBatch,
    generator: torch.Generator,
    *,
    size: int = spec.SIZE,
    frames: int = spec.FRAMES,
    device: torch.device | str = "cpu",
    objects: bool = True,
) -> Tensor:
    """Videos [B, T, 3, H, W], float32 in [0, 1]. ``generator`` lives on the CPU.

    Without ``objects`` the same generator state gives the same background alone.
    """
    places = Layout(*(field.to(device) for field in layout(batch, generator, frames)))
    phase = torch.rand(len(batch.scene), 4, generator=generator).to(device)
    spots = torch.rand(len(batch.scene), SPOTS, 3, generator=generator).to(device)
    tint = 1.0 + 0.12 * (torch.rand(len(batch.scene), SLOTS, 3, generator=generator).to(device) - 0.5)
    light = 1.0 + 0.12 * (torch.rand(len(batch.scene), 1, 1, 1, 1, generator=generator).to(device) - 0.5)
    batch = batch.to(device)

    fine = size * SUPERSAMPLE
    grid = (torch.arange(fine, device=device, dtype=torch.float32) + 0.5) / fine
    x, y = grid[None, None, None, :], grid[None, None, :, None]
    t = torch.linspace(0.0, 1.0, frames, device=device)[None, :, None, None]
    video = torch.empty(len(batch.scene), frames, 3, fine, fine, device=device)
    for index, name in enumerate(spec.SCENES):
        chosen = (batch.scene == index).nonzero()[:, 0]
        if len(chosen):
            video[chosen] = SCENE_FUNCTIONS[name](Canvas(x, y, t, phase[chosen], spots[chosen]))
    video = video * light
    for slot in range(SLOTS if objects else 0):
        for index, name in enumerate(spec.SHAPES):
            chosen = ((batch.shape[:, slot] == index) & (batch.count > slot)).nonzero()[:, 0]
            if len(chosen):
                color = _palette(batch.color[chosen, slot]) * tint[chosen, slot]
                video[chosen] = _stamp(video[chosen], name, color, places, chosen, slot, x, y)
    video = video.clamp(0.0, 1.0).flatten(0, 1)
    video = torch.nn.functional.avg_pool2d(video, SUPERSAMPLE)
    return video.reshape(-1, frames, *video.shape[1:])


def _palette(color: Tensor) -> Tensor:
    table = torch.tensor([PALETTE[name] for name in spec.COLORS], device=color.device)
    return table[color]


def _stamp(
    video: Tensor, shape: str, color: Tensor, places: Layout, rows: Tensor, slot: int, x: Tensor, y: Tensor
) -> Tensor:
    """Draw one thing of ``color`` [b, 3] over ``video`` [b, T, 3, H, W]."""
    radius = places.radius[rows, slot][:, None, None, None]
    cx, cy = (places.center[rows, slot, :, i][:, :, None, None] for i in range(2))
    cos, sin = (f(places.angle[rows, slot])[:, :, None, None] for f in (torch.cos, torch.sin))
    dx, dy = (x - cx) / radius, (y - cy) / radius
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    distance = SHAPE_FUNCTIONS[shape](u, v)
    pixels = radius * video.shape[-1]

    def cover(signed: Tensor) -> Tensor:
        return (0.5 - signed * pixels).clamp(0.0, 1.0)[:, :, None]

    hx, hy = HIGHLIGHTS[shape]
    fill = color[:, None, :, None, None]
    video = video + (0.3 * fill - video) * cover(distance)
    video = video + (fill - video) * cover(distance + OUTLINE)
    return video + (1.0 - video) * cover(torch.hypot(u - hx, v - hy) - HIGHLIGHT)
