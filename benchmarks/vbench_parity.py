"""Native scorers against the unmodified package, with networks of the published sizes and random weights.

    python benchmarks/vbench_parity.py --env FOLDER --output results/benchmarks/vbench_parity.json

FOLDER is what ``evalharness fetch vbench --env FOLDER`` made. For each dimension the package's networks are
drawn there and saved in VBench's cache layout; the package judges h264 clips from those files, and the native
scorer judges the same clips from what our conversion makes of the same files. So the reading of published
forms, the networks, the choice of frames and the formulas are compared at once. One dimension after the
other; those in the output already are left alone, so that a long comparison can be made in parts.
``--real FOLDER`` adds the beginnings of videos that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {  # frames, height, width, frames per second
    "square": (4, 136, 136, 8),
    "wide": (5, 136, 240, 16),
    "portrait": (7, 240, 136, 24),
    "odd": (4, 130, 150, 8),
    "larger than 512": (2, 300, 640, 8),
    "20 frames": (20, 136, 136, 8),
}
TEXT, STYLE, ACTION = "A person is playing guitar", "oil painting", "playing guitar"
SCENE = "word"  # the drawn captioner's own vocabulary: each of its captions holds it
NETWORKS: Mapping[str, tuple[str, ...]] = {
    "temporal_flickering": (),
    "motion_smoothness": ("amt-s",),
    "dynamic_degree": ("raft-things",),
    "background_consistency": ("clip-vit-b32",),
    "appearance_style": ("clip-vit-b32",),
    "imaging_quality": ("musiq-spaq",),
    "subject_consistency": ("dino-vitb16",),
    "aesthetic_quality": ("clip-vit-l14", "aesthetic-linear"),
    "overall_consistency": ("viclip-l14",),
    "temporal_style": ("viclip-l14",),
    "human_action": ("umt-l16",),
    "scene": ("tag2text",),
}
VOTES = ("dynamic_degree", "human_action")
UPSTREAM_ONLY = ("motion_smoothness", "scene")
# Networks so large that a few clips must do on a CPU; the others judge all.
FEW: Mapping[str, tuple[str, ...]] = {
    "subject_consistency": (
        "square",
        "wide",
        "portrait",
        "odd",
        "larger than 512",
        "real: carphone_pristine",
    ),
    "aesthetic_quality": ("square", "odd", "larger than 512", "tinyworld: moving left"),
    "overall_consistency": ("portrait", "20 frames"),
    "temporal_style": ("wide",),
    "human_action": ("20 frames",),
    "scene": ("square",),
}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", type=Path, required=True, help="of the package, by evalharness fetch vbench")
    parser.add_argument(
        "--dimensions", default="", help="of these only, a comma list (all, cheap ones first)"
    )
    parser.add_argument("--real", type=Path, default=None, metavar="FOLDER", help="of videos")
    parser.add_argument("--real-frames", type=int, default=5, help="that are taken of each")
    parser.add_argument("--keep", type=Path, default=None, metavar="FOLDER", help="for weights, 6 GB (none)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write or to add to")
    return parser.parse_args(argv)


def make_clips(folder: Path, real: Path | None, real_frames: int) -> dict[str, Path]:
    """Files by what is special about them."""
    from benchmarks.vbench_clips import moving
    from benchmarks.vbench_real import rendered
    from evalharness.video import read_video, write_video

    clips = {}
    for number, (name, (frames, height, width, fps)) in enumerate(SHAPES.items()):
        clips[name] = folder / f"made-{number}.mp4"
        write_video(clips[name], moving(number, frames, height, width), fps)
    for motion in ("standing still", "moving left"):
        clips[f"tinyworld: {motion}"] = folder / f"{motion}.mp4"
        write_video(clips[f"tinyworld: {motion}"], rendered(motion)[:5, :192, :192].copy(), 8)
    for number, path in enumerate(sorted(real.glob("*.mp4")) if real else ()):
        video = read_video(path)
        clips[f"real: {path.stem}"] = folder / f"real-{number}.mp4"
        write_video(
            clips[f"real: {path.stem}"], np.ascontiguousarray(video.frames[:real_frames]), round(video.fps)
        )
    return clips


class Comparison:
    """One environment, one folder of weights, and the clips."""

    def __init__(self, env: Path, cache: Path, clips: Mapping[str, Path]) -> None:
        self._env, self._cache, self._clips = env, cache, clips

    def compare(self, dimension: str) -> dict[str, Any]:
        """Values of both sides by clip, and how far they are apart."""
        for name in NETWORKS[dimension]:
            self.make(name)
        began = time.perf_counter()
        upstream, why = self._upstream(dimension)
        between = time.perf_counter()
        native = {} if dimension in UPSTREAM_ONLY else self._native(dimension, list(upstream))
        seconds = {"upstream": round(between - began, 1), "native": round(time.perf_counter() - between, 1)}
        table = {name: {"upstream": upstream[name], "native": native.get(name)} for name in upstream}
        both = [row for row in table.values() if row["native"] is not None and row["upstream"] is not None]
        return {
            "networks": list(NETWORKS[dimension]),
            "clips": table,
            "compared": len(both),
            "largest_difference": max((_apart(row) for row in both), default=None),
            "seconds": seconds,
            **({"upstream_said": why} if why else {}),
        }

    def make(self, name: str) -> None:
        """Draw a network in the environment, unless it was, and save it in the cache."""
        mark = self._cache / f".{name}"
        if not mark.exists():
            self._in_environment("make", name, str(self._cache))
            mark.touch()

    def _in_environment(self, *command: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "VBENCH_CACHE_DIR": str(self._cache)}
        python = str(self._env / "bin" / "python")
        subprocess.run(
            [python, "-m", "benchmarks.vbench_parity_upstream", *command],
            env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def _upstream(self, dimension: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The package's value of each clip; of a vote, with what it is made of."""
        few = FEW.get(dimension, tuple(self._clips))
        clips = {name: path for name, path in self._clips.items() if name in few}
        if dimension in VOTES:
            return self._behind(dimension, clips), {}
        from evalharness.upstream.driver import Upstream, UpstreamVideo, score_dimensions

        where = Upstream(python=self._env / "bin" / "python", cache=self._cache, local=True)
        prompt = _asked(dimension).prompt
        videos = [UpstreamVideo(str(number), path, prompt) for number, path in enumerate(clips.values())]
        [scored] = score_dimensions(where, [dimension], videos)
        if scored.error:
            raise RuntimeError(f"{dimension}: {scored.error}")
        names = dict(zip(map(str, range(len(clips))), clips, strict=True))
        values = {names[key]: found.value for key, found in scored.videos.items()}
        return values, {names[key]: found.error for key, found in scored.videos.items() if found.error}

    def _behind(self, dimension: str, clips: Mapping[str, Path]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="vbench-parity-") as name:
            work = Path(name)
            files = {key: str(path) for key, path in clips.items()}
            job = {"cache": str(self._cache), "work": name, "files": files, "action": ACTION}
            (work / "job.json").write_text(json.dumps(job))
            self._in_environment("behind", dimension, str(work / "job.json"), str(work / "told.json"))
            told: dict[str, Any] = json.loads((work / "told.json").read_text())
        return told

    def _native(self, dimension: str, names: Sequence[str]) -> dict[str, Any]:
        from evalharness.native import convert, temporal_flickering
        from evalharness.native.catalogue import CATALOGUE
        from evalharness.native.renaming import RENAMINGS
        from evalharness.native.weights import store
        from evalharness.video import read_video

        videos = {name: read_video(self._clips[name]) for name in names}
        if dimension == "temporal_flickering":
            return {name: temporal_flickering.steadiness(video) for name, video in videos.items()}
        shelf = self._cache / "shelf"
        metric = _metric(dimension)(folder=shelf)
        for needed in metric.weights:
            entry = CATALOGUE[needed]  # their hashes cannot be the published ones, so convert() would refuse
            store(
                needed, RENAMINGS[entry.renaming](convert._read(self._cache / entry.original, entry)), shelf
            )
        metric, sample = _metric(dimension)(folder=shelf), _asked(dimension)
        if dimension == "dynamic_degree":
            told = {name: metric.details(video, sample) for name, video in videos.items()}
            return {name: {"vote": d["dynamic"], "behind": d["strengths"]} for name, d in told.items()}
        if dimension == "human_action":
            told = {name: metric.details(video, sample) for name, video in videos.items()}
            return {name: {"vote": d["seen"], "behind": [d["probability"]]} for name, d in told.items()}
        return {name: metric.score(video, sample) for name, video in videos.items()}


def _asked(dimension: str) -> Any:
    from evalharness.api import Prompt, Sample

    labels = {"appearance_style": STYLE, "action": ACTION, "scene": SCENE}
    return Sample(
        prompt=Prompt(id="0000", text=TEXT, dimensions=(dimension,), labels=labels), index=0, seed=0
    )


def _metric(dimension: str) -> Any:
    from benchmarks.vbench_sides import NATIVE

    return NATIVE[dimension]


def _apart(row: Mapping[str, Any]) -> float:
    """Difference of two values; infinite for votes that differ, else relative, of what is behind them."""
    theirs, ours = row["upstream"], row["native"]
    if not isinstance(theirs, dict):
        return abs(theirs - ours)
    if theirs["vote"] is not ours["vote"] or len(theirs["behind"]) != len(ours["behind"]):
        return float("inf")
    pairs = zip(theirs["behind"], ours["behind"], strict=True)
    return max((abs(a - b) / max(1.0, abs(a)) for a, b in pairs), default=0.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and write; exit code 1 if a dimension failed."""
    from benchmarks.measuring import commit, version, write_json

    given = arguments(argv)
    known: dict[str, Any] = json.loads(given.output.read_text()) if given.output.is_file() else {}
    found: dict[str, Any] = known.get("dimensions", {})
    wanted = [name for name in given.dimensions.split(",") if name] or list(NETWORKS)
    record = json.loads((given.env / "evalharness.json").read_text())
    failed = 0
    with tempfile.TemporaryDirectory(prefix="vbench-parity-") as name:
        cache = given.keep or Path(name) / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        clips = make_clips(Path(name), given.real, given.real_frames)
        _give_merges(given.env, cache)
        for dimension in [one for one in wanted if one not in found]:
            try:
                found[dimension] = Comparison(given.env, cache, clips).compare(dimension)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                print(f"{dimension}: failed: {error}", flush=True)
                failed += 1
                continue
            print(f"{dimension}: {found[dimension]['largest_difference']}", flush=True)
            facts = {
                "torch": version("torch"),
                "upstream": record["installed"],
                "commit": commit(),
                "clips": {
                    **{key: "x".join(map(str, shape)) for key, shape in SHAPES.items()},
                    "real": given.real_frames,
                },
            }
            write_json(given.output, {**facts, "dimensions": {n: found[n] for n in NETWORKS if n in found}})
    return 1 if failed else 0


def _give_merges(env: Path, cache: Path) -> None:
    [merges] = env.glob("lib/python*/site-packages/clip/bpe_simple_vocab_16e6.txt.gz")
    (cache / "ViCLIP").mkdir(exist_ok=True)
    shutil.copy(merges, cache / "ViCLIP")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the checkout's own library
    sys.exit(main())
