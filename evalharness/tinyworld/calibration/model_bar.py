"""The bundled model's videos of held-out captions, and how often the judges find them right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evalharness.api import Video
from evalharness.hashing import digest
from evalharness.models.tinyworld import TinyWorld
from evalharness.stats import Key, Resampler, bootstrap_ci
from evalharness.tinyworld import spec
from evalharness.tinyworld.calibration.cases import Case
from evalharness.tinyworld.judges import Reading, load_judges
from evalharness.video import read_video, write_video

__all__ = ["BAR", "model_videos", "quality", "right"]

BAR = {"object": 0.85, "color": 0.85, "scene": 0.85, "motion": 0.70}


def model_videos(cases: Sequence[Case], folder: Path) -> Iterator[tuple[Case, Video]]:
    """Generate each case's video with the model's own settings, or take it from ``folder``.

    File names carry a hash of weights and settings, so another model's files are never taken.
    """
    model = TinyWorld()
    name = digest([model.fingerprint(), model.settings])[:12]
    loaded = None
    for case in cases:
        sample = case.sample
        path = folder / f"{name}-{sample.prompt.id}.mp4"
        if not path.is_file():
            loaded = loaded or model.load("cpu")
            frames = loaded.generate([sample.prompt.text], [sample.seed])[0]
            write_video(path, frames, spec.FPS)
        yield case, read_video(path)


def right(clip: spec.Clip, seen: Reading) -> dict[str, bool]:
    """What of the clip the judges find in a video: by majority over frames; motion by the clip.

    ``object``: the likeliest shapes of a frame, as many as the clip has, are the clip's.
    ``color``: each named shape has its colour where it is likeliest to be. ``count`` of things;
    ``relation`` only for a pair: the side on which the centres lie in most frames.
    """
    shapes = [spec.SHAPES.index(thing.shape) for thing in clip.things]
    found = np.sort(np.argsort(-seen.presence, axis=1)[:, : len(shapes)], axis=1)
    colors = seen.color.argmax(axis=2)
    verdict = {
        "object": _most((found == np.sort(shapes)).all(axis=1)),
        "color": all(
            _majority(colors[:, shape]) == spec.COLORS.index(thing.color)
            for shape, thing in zip(shapes, clip.things, strict=True)
        ),
        "count": _majority(seen.count.argmax(axis=1)) == len(clip.things),
        "scene": _majority(seen.scene.argmax(axis=1)) == spec.SCENES.index(clip.scene),
        "motion": int(seen.motion.argmax()) == spec.MOTIONS.index(clip.motion),
    }
    if clip.relation is not None:
        step = seen.center[:, shapes[0]] - seen.center[:, shapes[1]]
        sideways = np.abs(step[:, 0]) > np.abs(step[:, 1])
        relation = np.where(sideways, step[:, 0] > 0, 2 + (step[:, 1] > 0))
        verdict["relation"] = _majority(relation) == spec.RELATIONS.index(clip.relation)
    return verdict


def quality(videos: Sequence[tuple[Case, Video]], resampler: Resampler) -> dict[str, Any]:
    """The model card's figures: shares judged right, with intervals, the bar, and by motion and shape."""
    judges = load_judges()
    verdicts = [(case, right(case.clip, judges.read(video.frames))) for case, video in videos]
    shares: dict[str, Any] = {}
    for what in ("object", "color", "count", "scene", "motion", "relation"):
        rows = {
            Key(case.sample.prompt.id, 0): float(found[what]) for case, found in verdicts if what in found
        }
        share = bootstrap_ci(rows, resampler)
        bar = BAR.get(what)
        met = None if bar is None or share.value is None else share.value >= bar
        shares[what] = {
            "value": share.value,
            "lo": share.lo,
            "hi": share.hi,
            "n": share.n,
            "bar": bar,
            "met": met,
        }
    settings = TinyWorld.settings
    return {
        "captions": len(verdicts),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "fingerprint": TinyWorld().fingerprint(),
        "shares": shares,
        "motion_by_name": _split(verdicts, "motion", lambda clip: clip.motion),
        "object_by_shape": _split(
            [row for row in verdicts if not row[0].pair], "object", lambda clip: clip.things[0].shape
        ),
    }


def _split(
    verdicts: Sequence[tuple[Case, dict[str, bool]]], what: str, key: Any
) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for case, found in verdicts:
        row = table.setdefault(key(case.clip), {"right": 0, "n": 0})
        row["right"] += found[what]
        row["n"] += 1
    return dict(sorted(table.items()))


def _most(flags: np.ndarray) -> bool:
    return bool(flags.mean() > 0.5)


def _majority(ids: np.ndarray) -> int:
    return int(np.bincount(ids).argmax())
