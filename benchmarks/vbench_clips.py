"""Clips for the benchmarks of VBench's scorers: two published sizes, a pattern that slides under a disc."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

__all__ = ["SHAPES", "TINY_SHAPES", "Clips", "Shape", "chosen_shapes", "make_clips", "moving"]

Shape = tuple[int, int, int, int]  # frames, height, width, frames per second
Clips = list[tuple[str, Path]]  # name of the size, file

SHAPES: Mapping[str, Shape] = {"49x480x720": (49, 480, 720, 8), "81x480x832": (81, 480, 832, 16)}
TINY_SHAPES: Mapping[str, Shape] = {"5x136x144": (5, 136, 144, 8), "7x144x136": (7, 144, 136, 16)}


def chosen_shapes(*, tiny: bool, sizes: int, frames: int) -> dict[str, Shape]:
    """The first ``sizes`` shapes, of at most ``frames`` frames (0: all), by names that tell how many."""
    shapes = {}
    for count, height, width, fps in list((TINY_SHAPES if tiny else SHAPES).values())[:sizes]:
        kept = min(count, frames or count)
        shapes[f"{kept}x{height}x{width}"] = (kept, height, width, fps)
    return shapes


def make_clips(folder: Path, count: int, shapes: Mapping[str, Shape], action: str) -> Clips:
    """``count`` h264 files in turns of the sizes, named as upstream reads an action; several at a time."""
    from evalharness.video import write_video

    def make(number: int) -> tuple[str, Path]:
        size = list(shapes)[number % len(shapes)]
        frames, height, width, fps = shapes[size]
        path = folder / f"A person is {action}-{number}.mp4"
        write_video(path, moving(number, frames, height, width), fps)
        return size, path

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a file's bytes do not depend on who is beside it
        return list(pool.map(make, range(count)))


def moving(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """Blurred noise that slides under a disc that moves; uint8 [T, H, W, 3]."""
    import cv2

    rng = np.random.default_rng(seed)
    noise = rng.uniform(0, 255, (height // 8, width // 8 + 80, 3)).astype(np.float32)
    noise = cv2.resize(noise, (width + 640, height), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    shown = []
    for t in range(frames):
        image = noise[:, 2 * t : 2 * t + width].copy()
        cv2.circle(image, (40 + 4 * t, height // 2), height // 6, (250, 40, 40), -1)
        shown.append(image.astype(np.uint8))
    return np.stack(shown)
