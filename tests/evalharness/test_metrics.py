"""tinyworld's metrics against arithmetic done by hand or by plain NumPy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalharness.api import Metric, Prompt, Sample, Skip, Video
from evalharness.metrics.action import Action
from evalharness.metrics.background_consistency import BackgroundConsistency
from evalharness.metrics.color import Color
from evalharness.metrics.consistency import consistency
from evalharness.metrics.dynamic_degree import DynamicDegree, is_dynamic
from evalharness.metrics.flow import enlarged_flow, visible_motion
from evalharness.metrics.imaging_quality import ImagingQuality
from evalharness.metrics.motion_smoothness import MotionSmoothness, midpoint
from evalharness.metrics.multiple_objects import MultipleObjects
from evalharness.metrics.object_class import ObjectClass
from evalharness.metrics.overall_consistency import OverallConsistency
from evalharness.metrics.scene import Scene
from evalharness.metrics.spatial_relationship import SpatialRelationship
from evalharness.metrics.subject_consistency import SubjectConsistency
from evalharness.tinyworld import spec
from evalharness.tinyworld.judges import Reading, load_judges

BALL, BOX, STAR = (spec.SHAPES.index(name) for name in ("ball", "box", "star"))
RED, BLUE = (spec.COLORS.index(name) for name in ("red", "blue"))
LABELS: dict[str, Any] = {
    "things": [{"color": "red", "shape": "ball"}, {"color": "blue", "shape": "box"}],
    "motion": "moving left",
    "scene": "a desert",
    "relation": "above",
    "caption": "a red ball above a blue box moving left over a desert",
}
BLANK = Reading(
    presence=np.zeros((2, 8), np.float32),
    color=np.zeros((2, 8, 6), np.float32),
    center=np.full((2, 8, 2), 0.5, np.float32),
    count=np.zeros((2, 3), np.float32),
    scene=np.zeros((2, 8), np.float32),
    motion=np.zeros(9, np.float32),
    severity=np.zeros(2, np.float32),
    subject=np.ones((2, 4), np.float32),
    background=np.ones((2, 4), np.float32),
    agreement=np.zeros(64, np.float32),
)


def sample(**labels: Any) -> Sample:
    prompt = Prompt(id="0007", text="", dimensions=(), labels={**LABELS, **labels})
    return Sample(prompt=prompt, index=0, seed=0)


def seen(**fields: np.ndarray) -> Video:
    """A video of which the judges are taken to have said ``fields``."""
    video = Video(np.zeros((2, 48, 48, 3), np.uint8), 8.0)
    video.memo("tinyworld.judges", lambda _: replace(BLANK, **fields))
    return video


def filled(shape: tuple[int, ...], values: dict[tuple[int, ...], float]) -> np.ndarray:
    """Zeros but for what ``values`` names by index."""
    array = np.zeros(shape, np.float32)
    for place, value in values.items():
        array[place] = value
    return array


def texture(size: int = 64) -> np.ndarray:
    """A smooth random grey picture, float [size, size]."""
    noise = np.random.default_rng(3).normal(size=(size, size)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return 128 + 100 * smooth / np.abs(smooth).max()


def window(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """48x48 cut whose content is moved by (x, y), uint8 RGB."""
    shift = np.array([[1, 0, x - 8], [0, 1, y - 8]], np.float32)
    moved = cv2.warpAffine(picture, shift, (48, 48), flags=cv2.INTER_CUBIC)
    return np.repeat(moved.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


# --- consistency ---


def test_consistency_by_hand() -> None:
    """Frames at 0, 60 and 90 degrees: (cos 60 + cos 60) / 2, then (cos 30 + cos 90) / 2."""
    angle = np.deg2rad([0, 60, 90])
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.array([[1.0], [7.0], [0.2]])
    assert consistency(features) == pytest.approx((0.5 + math.sqrt(3) / 4) / 2)


def test_opposite_features_count_nothing() -> None:
    assert consistency(np.array([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(0.25)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 10_000))
def test_consistency_is_vbenchs_formula(frames: int, width: int, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(frames, width)) + 0.1

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return max(0.0, float(a @ b / math.sqrt((a @ a) * (b @ b))))

    total = 0.0
    for t in range(1, frames):
        total += (cosine(features[t - 1], features[t]) + cosine(features[0], features[t])) / 2
    assert consistency(features) == pytest.approx(total / (frames - 1))


def test_each_consistency_reads_its_own_feature() -> None:
    video = seen(subject=np.eye(2, 4, dtype=np.float32))
    assert SubjectConsistency().score(video, sample()) == 0.0
    assert BackgroundConsistency().score(video, sample()) == pytest.approx(1.0)


def test_one_frame_has_no_consistency() -> None:
    with pytest.raises(Skip, match="at least 2 frames"):
        consistency(np.ones((1, 4)))


# --- what the judges see ---


def test_object_class_is_the_mean_presence() -> None:
    presence = filled((2, 8), {(0, BALL): 1.0, (1, BALL): 0.5, (0, STAR): 1.0, (1, STAR): 1.0})
    one = sample(things=[{"color": "red", "shape": "ball"}])
    assert ObjectClass().score(seen(presence=presence), one) == pytest.approx(0.75)


def test_multiple_objects_needs_both_in_one_frame() -> None:
    taking_turns = filled((2, 8), {(0, BALL): 1.0, (1, BOX): 1.0})
    both = filled((2, 8), {(0, BALL): 1.0, (0, BOX): 0.8, (1, BALL): 0.5, (1, BOX): 0.5})
    assert MultipleObjects().score(seen(presence=taking_turns), sample()) == 0.0
    assert MultipleObjects().score(seen(presence=both), sample()) == pytest.approx((0.8 + 0.25) / 2)


def test_color_looks_only_where_the_shape_is_found() -> None:
    presence = filled((2, 8), {(0, BALL): 0.9, (1, BALL): 0.4})
    color = filled((2, 8, 6), {(0, BALL, RED): 0.7, (1, BALL, RED): 0.1, (0, BOX, RED): 1.0})
    one = sample(things=[{"color": "red", "shape": "ball"}])
    assert Color().score(seen(presence=presence, color=color), one) == pytest.approx(0.7)


def test_color_of_a_thing_that_is_never_there_is_zero() -> None:
    color = np.ones((2, 8, 6), np.float32)
    assert Color().score(seen(color=color), sample()) == 0.0
    only_ball = filled((2, 8), {(0, BALL): 1.0, (1, BALL): 1.0})
    assert Color().score(seen(presence=only_ball, color=color), sample()) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("relation", "dx", "dy", "wanted"),
    [
        ("on the left of", -0.3, 0.1, 1.0),
        ("on the left of", 0.3, 0.1, 0.0),
        ("on the left of", -0.1, 0.3, 0.0),
        ("on the right of", 0.3, -0.2, 1.0),
        ("above", 0.1, -0.3, 1.0),
        ("above", 0.1, 0.3, 0.0),
        ("below", -0.2, 0.3, 1.0),
        ("below", 0.0, 0.0, 0.0),
    ],
)
def test_spatial_relationship_by_the_dominant_axis(
    relation: str, dx: float, dy: float, wanted: float
) -> None:
    center = np.full((2, 8, 2), 0.5, np.float32)
    center[:, BALL] += (dx, dy)
    presence = filled((2, 8), {(0, BALL): 1.0, (1, BALL): 1.0, (0, BOX): 1.0, (1, BOX): 0.5})
    video = seen(presence=presence, center=center)
    assert SpatialRelationship().score(video, sample(relation=relation)) == pytest.approx(0.75 * wanted)


def test_scene_action_and_imaging_quality() -> None:
    video = seen(
        scene=filled((2, 8), {(0, 2): 0.9, (1, 2): 0.3}),
        motion=filled((9,), {(1,): 0.65}),
        severity=np.array([0.1, 0.4], np.float32),
    )
    assert Scene().score(video, sample()) == pytest.approx(0.6)
    assert Action().score(video, sample()) == pytest.approx(0.65)
    assert ImagingQuality().score(video, sample()) == pytest.approx(0.75)


def test_overall_consistency_is_a_cosine_cut_at_zero() -> None:
    caption = load_judges().text(LABELS["caption"])
    away = np.roll(caption, 1)
    away -= caption * (away @ caption)
    away /= np.linalg.norm(away)
    mixed = (0.6 * caption + 0.8 * away).astype(np.float32)
    assert OverallConsistency().score(seen(agreement=caption), sample()) == pytest.approx(1.0)
    assert OverallConsistency().score(seen(agreement=mixed), sample()) == pytest.approx(0.6, abs=1e-5)
    assert OverallConsistency().score(seen(agreement=-caption), sample()) == 0.0


@pytest.mark.parametrize(
    ("metric", "key"),
    [
        (ObjectClass(), "things"),
        (MultipleObjects(), "things"),
        (Color(), "things"),
        (SpatialRelationship(), "relation"),
        (SpatialRelationship(), "things"),
        (Scene(), "scene"),
        (Action(), "motion"),
        (OverallConsistency(), "caption"),
    ],
)
def test_a_missing_label_is_a_skip_that_names_it(metric: Metric, key: str) -> None:
    with pytest.raises(Skip, match=f"0007 has no label '{key}'"):
        metric.score(seen(), sample(**{key: None}))


def test_what_the_judges_do_not_know_is_a_skip() -> None:
    with pytest.raises(Skip, match="shape 'banana' is none"):
        ObjectClass().score(seen(), sample(things=[{"color": "red", "shape": "banana"}]))
    with pytest.raises(Skip, match="scene 'a kitchen' is none"):
        Scene().score(seen(), sample(scene="a kitchen"))
    with pytest.raises(Skip, match="names 1 things, 2 are needed"):
        MultipleObjects().score(seen(), sample(things=[{"color": "red", "shape": "ball"}]))
    with pytest.raises(Skip, match="empty caption"):
        OverallConsistency().score(seen(), sample(caption="  "))


# --- optical flow ---


@pytest.mark.parametrize(("x", "y"), [(2.0, 0.0), (0.0, -1.5), (1.0, 1.0), (-3.0, 2.0)])
def test_flow_finds_a_known_shift(x: float, y: float) -> None:
    picture = texture()
    first, second = window(picture, 0, 0), window(picture, x, y)
    inside = enlarged_flow(first, second)[8:-8, 8:-8]
    assert np.median(inside[..., 0]) == pytest.approx(x, abs=0.25)
    assert np.median(inside[..., 1]) == pytest.approx(y, abs=0.25)
    lengths = visible_motion(first, second)[8:-8, 8:-8]
    assert lengths.max() == pytest.approx(math.hypot(x, y), rel=0.3)


def test_only_movement_across_stripes_is_visible() -> None:
    """Flow of (0, 2) invented along vertical stripes must not count; (2, 0) must."""
    stripes = np.repeat(128 + 100 * np.sin(np.arange(64) / 2.0)[None], 64, axis=0).astype(np.float32)
    slid = visible_motion(window(stripes, 0, 0), window(stripes, 0, 2))
    moved = visible_motion(window(stripes, 0, 0), window(stripes, 1.5, 0))
    assert slid.max() < 0.1
    assert np.median(moved[8:-8, 8:-8]) == pytest.approx(1.5, abs=0.3)


# --- dynamic degree ---


def test_the_vote_by_hand() -> None:
    """At 48 pixels the threshold is 1.125; of 17 frames round(4.25) = 4 pairs must exceed it."""
    assert is_dynamic([1.13] * 4 + [0.0] * 12, frames=17, side=48)
    assert not is_dynamic([9.0] * 3 + [0.0] * 13, frames=17, side=48)
    assert not is_dynamic([1.125] * 16, frames=17, side=48)
    assert is_dynamic([6.1] * 4, frames=16, side=256)


def test_a_shift_is_dynamic_and_a_slow_one_is_not() -> None:
    picture = texture()

    def video(step: float, fps: float) -> Video:
        return Video(np.stack([window(picture, step * t / 2, 0) for t in range(9)]), fps)

    assert DynamicDegree().score(video(3.0, 8.0), sample()) == 1.0
    assert DynamicDegree().score(video(1.0, 8.0), sample()) == 0.0
    # At 16 fps every other frame is looked at, so that the same steps are twice as long.
    assert DynamicDegree().score(video(2.0, 16.0), sample()) == 1.0


def test_too_short_for_movement() -> None:
    with pytest.raises(Skip, match="at least 2 frames"):
        DynamicDegree().score(Video(np.zeros((1, 48, 48, 3), np.uint8), 8.0), sample())
    with pytest.raises(Skip, match="at least 3 frames"):
        MotionSmoothness().score(Video(np.zeros((2, 48, 48, 3), np.uint8), 8.0), sample())


# --- motion smoothness ---


def test_smoothness_of_flashing_frames_by_hand() -> None:
    """Even frames 100, odd ones 110: each odd frame is missed by 10 grey levels."""
    frames = np.full((7, 48, 48, 3), 100, np.uint8)
    frames[1::2] = 110
    assert MotionSmoothness().score(Video(frames, 8.0), sample()) == pytest.approx((255 - 10) / 255)


def test_a_repeated_frame_is_perfectly_smooth() -> None:
    frames = np.repeat(window(texture(), 0, 0)[None], 5, axis=0)
    assert MotionSmoothness().score(Video(frames, 8.0), sample()) > 0.999


def test_the_midpoint_of_a_shift_is_half_the_shift() -> None:
    picture = texture()
    middle = midpoint(window(picture, 0, 0), window(picture, 3, 0)).astype(int)
    error = np.abs(middle - window(picture, 1.5, 0))[8:-8, 8:-8].mean()
    unmoved = np.abs(window(picture, 0, 0).astype(int) - window(picture, 1.5, 0))[8:-8, 8:-8].mean()
    assert error < 0.2 * unmoved


def test_even_movement_is_smoother_than_jerks() -> None:
    picture = texture()

    def score(places: list[float]) -> float:
        return MotionSmoothness().score(
            Video(np.stack([window(picture, x, 0) for x in places]), 8.0), sample()
        )

    assert score([0, 1, 2, 3, 4]) > score([0, 2, 1, 4, 3]) + 0.02
