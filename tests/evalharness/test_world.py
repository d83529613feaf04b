"""The procedural world, seen through its pixels."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from evalharness.api import Prompt, Sample, Video
from evalharness.metrics.dynamic_degree import DynamicDegree
from evalharness.tinyworld import spec, world

# Silhouettes whose centroid is their centre; a heart's, say, is not.
SYMMETRIC = ("ball", "box", "ring", "cross", "star")
SAMPLE = Sample(prompt=Prompt(id="0000", text="", dimensions=()), index=0, seed=0)


def clip(
    motion: str = "standing still", shape: str = "ball", color: str = "red", scene: str = "an ocean"
) -> spec.Clip:
    return spec.Clip(things=(spec.Thing(color, shape),), motion=motion, scene=scene)


def draw(clips: list[spec.Clip], seed: int = 0, *, objects: bool = True) -> np.ndarray:
    """Float [B, T, H, W, 3]."""
    video = world.render(world.encode_clips(clips), torch.Generator().manual_seed(seed), objects=objects)
    return video.permute(0, 1, 3, 4, 2).numpy()


def silhouettes(clips: list[spec.Clip], seed: int = 0) -> np.ndarray:
    """Bool [B, T, H, W]: where the things are, by what they hide."""
    return np.abs(draw(clips, seed) - draw(clips, seed, objects=False)).max(axis=-1) > 0.02


def centroids(mask: np.ndarray) -> np.ndarray:
    """Mean place (x, y) in [0, 1] of the set pixels: [..., H, W] -> [..., 2]."""
    size = mask.shape[-1]
    axis = (np.arange(size) + 0.5) / size
    total = mask.sum(axis=(-2, -1))
    return np.stack([(mask.sum(axis=-2) @ axis) / total, (mask.sum(axis=-1) @ axis) / total], axis=-1)


def every_single() -> list[spec.Clip]:
    return [
        clip(motion, shape, color, scene)
        for motion, shape, color, scene in itertools.product(
            spec.MOTIONS, spec.SHAPES, spec.COLORS, spec.SCENES
        )
    ]


def test_captions_read_as_english() -> None:
    pair = spec.Clip(
        things=(spec.Thing("orange", "ball"), spec.Thing("blue", "box")),
        motion="spinning",
        scene="an ocean",
        relation="on the left of",
    )
    assert spec.caption(clip("moving left", "star", "red", "a snowy field")) == (
        "a red star moving left over a snowy field"
    )
    assert spec.caption(pair) == "an orange ball on the left of a blue box spinning over an ocean"
    assert spec.caption(pair, name_relation=False) == "an orange ball and a blue box spinning over an ocean"


def test_a_caption_says_all_that_sets_a_clip_apart() -> None:
    clips = every_single()
    assert len({spec.caption(one) for one in clips}) == len(clips) == 3072


def test_ids_round_trip() -> None:
    rng = random.Random(0)
    clips = [spec.random_clip(rng, held_out=k % 3 == 0, pair=k % 2 == 0) for k in range(200)]
    assert world.decode_clips(world.encode_clips(clips)) == clips


def test_both_held_out_rules_agree() -> None:
    rng = random.Random(1)
    pairs = [spec.random_clip(rng, held_out=k % 2 == 0, pair=True) for k in range(300)]
    clips = every_single() + pairs
    mask = world.held_out_mask(world.encode_clips(clips)).tolist()
    assert mask == [spec.is_held_out(one) for one in clips]
    assert 0.08 < np.mean(mask[:3072]) < 0.12


def test_a_pair_is_held_out_by_either_thing() -> None:
    hidden = next(
        one.things[0] for one in every_single() if spec.is_held_out(one) and one.motion == "spinning"
    )
    shown = next(
        one.things[0]
        for one in every_single()
        if not spec.is_held_out(one) and one.motion == "spinning" and one.things[0].shape != hidden.shape
    )
    scene = next(s for s in spec.SCENES if spec.is_held_out(spec.Clip((hidden,), "spinning", s)))
    assert not spec.is_held_out(spec.Clip((shown,), "spinning", scene))
    for things in ((hidden, shown), (shown, hidden)):
        assert spec.is_held_out(spec.Clip(things, "spinning", scene, "above"))


def test_training_clips_are_of_the_training_split_and_drawable() -> None:
    batch = world.random_batch(500, torch.Generator().manual_seed(3))
    clips = world.decode_clips(batch)
    assert len(clips) == 500
    assert not any(spec.is_held_out(one) for one in clips)
    for one in clips:
        assert (one.relation is None) == (len(one.things) == 1)
        assert len({thing.shape for thing in one.things}) == len(one.things)
        if one.relation in spec.RELATIONS[:2]:
            assert one.motion in spec.SIDEWAYS_PAIR_MOTIONS
        elif one.relation:
            assert one.motion in spec.STACKED_PAIR_MOTIONS
    assert 0.3 < np.mean([len(one.things) == 2 for one in clips]) < 0.5
    assert {one.motion for one in clips} == set(spec.MOTIONS)


@pytest.mark.parametrize("motion", spec.MOTIONS)
def test_a_thing_is_where_the_layout_says(motion: str) -> None:
    clips = [clip(motion, shape) for shape in SYMMETRIC]
    wanted = world.layout(world.encode_clips(clips), torch.Generator().manual_seed(5)).center[:, 0].numpy()
    pixel = 1.0 / spec.SIZE
    assert np.abs(centroids(silhouettes(clips, 5)) - wanted).max() < pixel
    assert wanted.min() > 0.2
    assert wanted.max() < 0.8


def test_directions_seen_in_pixels() -> None:
    signs = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}
    path = centroids(silhouettes([clip(motion) for motion in signs]))
    step = path[:, -1] - path[:, 0]
    for moved, (x, y) in zip(step, signs.values(), strict=True):
        along = moved @ np.array([x, y])
        across = abs(moved @ np.array([y, x]))
        assert along > 0.44
        assert across < 0.02


def test_bouncing_goes_up_and_down_and_circling_round() -> None:
    bounce, circle = centroids(silhouettes([clip("bouncing"), clip("circling")]))
    assert np.ptp(bounce[:, 1]) > 0.3
    assert np.ptp(bounce[:, 0]) < 0.02
    assert (np.abs(np.diff(np.sign(np.diff(bounce[:, 1])))) > 0).sum() >= 2
    middle = (circle[0] + circle[8]) / 2  # half a turn apart
    radius = np.hypot(*(circle - middle).T)
    assert np.abs(radius - 0.2).max() < 0.03
    angle = np.unwrap(np.arctan2(*(circle - middle).T[::-1]))
    assert abs(abs(angle[-1] - angle[0]) - 2 * np.pi) < 0.3


def test_spinning_turns_on_the_spot_and_still_does_nothing() -> None:
    clips = [clip("spinning", "box"), clip("standing still", "box")]
    path = centroids(silhouettes(clips))
    assert np.ptp(path, axis=1).max() < 0.02
    mask = silhouettes(clips)
    changed = (mask[:, 1:] ^ mask[:, :-1]).sum(axis=(1, 2, 3))
    assert changed[0] > 200
    assert changed[1] < 10


@pytest.mark.parametrize("relation", spec.RELATIONS)
def test_relations_and_colours_seen_in_pixels(relation: str) -> None:
    things = (spec.Thing("yellow", "ball"), spec.Thing("blue", "box"))
    video = draw([spec.Clip(things, "standing still", "a forest", relation)], 2)[0, 0]
    place = []
    for thing in things:
        wanted = np.array(world.PALETTE[thing.color])
        near = np.abs(video - wanted).max(axis=-1) < 0.2
        assert near.sum() > 40
        place.append(centroids(near))
    x, y = place[0] - place[1]
    side = {"on the left of": -x, "on the right of": x, "above": -y, "below": y}[relation]
    assert side > 0.3
    assert min(abs(x), abs(y)) < 0.15


def test_drawing_is_a_pure_function_of_clip_and_seed() -> None:
    clips = [clip("circling", "star"), clip("spinning", "moon", "green", "a city")]
    first = draw(clips, 7)
    torch.manual_seed(123)
    assert np.array_equal(draw(clips, 7), first)
    assert not np.array_equal(draw(clips, 8), first)
    assert first.min() >= 0.0
    assert first.max() <= 1.0


def test_no_background_counts_as_movement_but_every_mover_does() -> None:
    scenes = [clip(scene=scene) for scene in spec.SCENES]
    movers = [
        clip(motion, "star", scene=scene)
        for motion, scene in zip(spec.MOTIONS[1:5], spec.SCENES, strict=False)
    ]
    metric = DynamicDegree()

    def score(video: np.ndarray) -> float:
        return metric.score(Video((255 * video).round().astype(np.uint8), spec.FPS), SAMPLE)

    assert [score(video) for video in draw(scenes, 4, objects=False)] == [0.0] * len(scenes)
    assert [score(video) for video in draw(movers, 4)] == [1.0] * len(movers)
