"""How long VBench's dimensions take: the unmodified package against the native scorers, in one run.

    python benchmarks/vbench_speed.py --upstream FOLDER --output results/benchmarks/vbench_speed.json

Both sides judge the same h264 clips with the same random weights, in float32 without TF32. Upstream decodes
each clip once a dimension, as it does; native once for all. Loading of networks is left out of both.
``--upstream``: a folder from which ``vbench`` and what it imports can be imported (site-packages of the
environment that ``evalharness fetch vbench`` makes, or wheels unpacked); not needed in that environment.
A dimension whose packages are missing is left out of both sides and named.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHAPES = {"49x480x720": (49, 480, 720, 8), "81x480x832": (81, 480, 832, 16)}
TINY_SHAPES = {"5x136x144": (5, 136, 144, 8), "7x144x136": (7, 144, 136, 16)}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=20, help="in turns of both sizes (20)")
    parser.add_argument("--dimensions", default="", help="of these only, a comma list (all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precisions", default="float32", help="of the native side, a comma list")
    parser.add_argument("--batch", type=int, default=16, help="frames at a time, native side")
    parser.add_argument("--threads", type=int, default=0, help="of torch (its own number)")
    parser.add_argument(
        "--limit-s", type=float, default=60.0, help="seconds for a dimension and side, at most"
    )
    parser.add_argument("--upstream", nargs="*", default=[], metavar="FOLDER")
    parser.add_argument("--merges", type=Path, default=None, help="bpe_simple_vocab_16e6.txt.gz (clip's)")
    parser.add_argument("--tiny", action="store_true", help="small networks and clips: a trial")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args(argv)


def make_clips(
    folder: Path, count: int, shapes: dict[str, tuple[int, int, int, int]]
) -> list[tuple[str, Path]]:
    """Blurred noise that slides under a disc that moves; (size, file) in turns of the sizes."""
    import cv2

    from benchmarks.vbench_networks import ACTION
    from evalharness.video import write_video

    made = []
    for number in range(count):
        size = list(shapes)[number % len(shapes)]
        frames, height, width, fps = shapes[size]
        rng = np.random.default_rng(number)
        noise = rng.uniform(0, 255, (height // 8, width // 8 + 80, 3)).astype(np.float32)
        noise = cv2.resize(noise, (width + 640, height), interpolation=cv2.INTER_CUBIC).clip(0, 255)
        shown = []
        for t in range(frames):
            image = noise[:, 2 * t : 2 * t + width].copy()
            cv2.circle(image, (40 + 4 * t, height // 2), height // 6, (250, 40, 40), -1)
            shown.append(image.astype(np.uint8))
        path = folder / f"A person is {ACTION}-{number}.mp4"
        write_video(path, np.stack(shown), fps)
        made.append((size, path))
    return made


class Timed:
    """Seconds and values of one side, by dimension and size."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, list[float]]] = {}
        self.values: dict[str, dict[str, float]] = {}

    def add(self, dimension: str, size: str, path: Path, seconds: float, value: float | None) -> None:
        self.seconds.setdefault(dimension, {}).setdefault(size, []).append(seconds)
        if value is not None:
            self.values.setdefault(dimension, {})[path.name] = value

    def mean(self, dimension: str, size: str) -> float | None:
        times = self.seconds.get(dimension, {}).get(size)
        return sum(times) / len(times) if times else None


def time_upstream(
    dimensions: Sequence[str], clips: Sequence[tuple[str, Path]], networks: Any, given: argparse.Namespace
) -> Timed:
    """One dimension after the other, as upstream runs; each until its clips or its time are through."""
    from benchmarks.measuring import Deadline, seconds
    from benchmarks.vbench_sides import upstream_judge

    device, timed = torch.device(given.device), Timed()
    sizes = len({size for size, _ in clips})
    for dimension in dimensions:
        judge = upstream_judge(dimension, networks, given.device)
        if device.type == "cuda":
            judge(clips[0][1])  # kernels are chosen
        deadline = Deadline(given.limit_s)
        for number, (size, path) in enumerate(clips):
            if number >= sizes and deadline.passed:
                break
            found: list[float] = []
            took = seconds(lambda: found.append(judge(path)), device)  # noqa: B023
            timed.add(dimension, size, path, took, found[0])
        print(f"upstream {dimension}: {_told(timed, dimension)}", flush=True)
    return timed


def time_native(
    dimensions: Sequence[str],
    clips: Sequence[tuple[str, Path]],
    shelf: Path,
    given: argparse.Namespace,
    precision: str,
) -> Timed:
    """All dimensions of a clip together, decoded once; on a GPU the next is decoded meanwhile."""
    from benchmarks.measuring import Deadline, seconds
    from benchmarks.vbench_sides import native_judge
    from evalharness.frames import Ahead, FrameStore

    device, timed, ahead = torch.device(given.device), Timed(), Ahead(FrameStore())
    judges = {name: native_judge(name, shelf, given.device, precision, given.batch) for name in dimensions}
    first = FrameStore().read(clips[0][1]).video
    assert first is not None
    for judge in judges.values():  # networks are loaded, kernels are chosen
        judge(first)
    first._memo.clear()
    deadline = Deadline(given.limit_s * len(dimensions))
    for number, (size, path) in enumerate(clips):
        if number >= len({size for size, _ in clips}) and deadline.passed:
            break
        began = time.perf_counter()
        video = ahead.take(path).video
        assert video is not None
        timed.add("decoding", size, path, time.perf_counter() - began, None)
        if device.type == "cuda" and number + 1 < len(clips):
            ahead.start(clips[number + 1][1])
        for name, judge in judges.items():
            found: list[float] = []
            took = seconds(lambda: found.append(judge(video)), device)  # noqa: B023
            timed.add(name, size, path, took, found[0])
        timed.add("together", size, path, time.perf_counter() - began, None)
    print(f"native {precision}: {_told(timed, 'together')}", flush=True)
    return timed


def _told(timed: Timed, dimension: str) -> str:
    return ", ".join(f"{size} {sum(t) / len(t):.3f} s" for size, t in timed.seconds[dimension].items())


def summary(
    upstream: Timed, native: Timed, dimensions: Sequence[str], sizes: Sequence[str]
) -> dict[str, Any]:
    """Seconds for a clip, how many times faster, and how far values are apart."""
    table: dict[str, Any] = {}
    for size in sizes:
        theirs = {name: upstream.mean(name, size) for name in dimensions}
        ours = {name: native.mean(name, size) for name in ("decoding", *dimensions, "together")}
        total = sum(value for value in theirs.values() if value is not None)
        together = ours["together"]
        table[size] = {
            "times_faster": round(total / together, 2) if together else None,
            "upstream_s": {**theirs, "together": total},
            "native_s": ours,
        }
    apart = {
        name: max(
            abs(value - native.values[name][path])
            for path, value in found.items()
            if path in native.values[name]
        )
        for name, found in upstream.values.items()
    }
    return {"sizes": table, "largest_difference": apart}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; exit code 1 if no dimension could be measured on both sides."""
    from benchmarks.measuring import surroundings, write_json

    given = arguments(argv)
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory(prefix="vbench-speed-") as name:
        root = Path(name)
        networks, left_out = _networks(root, given)
        from benchmarks.vbench_sides import NETWORKS

        wanted = [one for one in given.dimensions.split(",") if one] or list(NETWORKS)
        dimensions = [one for one in wanted if all(need in networks for need in NETWORKS[one])]
        shapes = TINY_SHAPES if given.tiny else SHAPES
        (root / "clips").mkdir()
        clips = make_clips(root / "clips", max(given.clips, len(shapes)), shapes)
        facts = {
            **surroundings(torch.device(given.device)),
            "threads": torch.get_num_threads(),
            "clips": len(clips),
            "tiny": given.tiny,
            "left_out": {one: left_out for one in wanted if one not in dimensions},
        }
        if not dimensions:
            print(f"nothing to measure: {left_out}")
            return 1
        native = {
            p: time_native(dimensions, clips, root / "shelf", given, p) for p in given.precisions.split(",")
        }
        upstream = time_upstream(dimensions, clips, networks, given)
        found = {p: summary(upstream, timed, dimensions, list(shapes)) for p, timed in native.items()}
        write_json(given.output, {"native": found, **facts})
        for precision, told in found.items():
            print(precision, {size: row["times_faster"] for size, row in told["sizes"].items()})
    return 0


def _networks(root: Path, given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Upstream's networks on the device, their weights on the shelf; what could not be built, and why."""
    from benchmarks.vbench_networks import build, prepare_imports, shelve, use_sizes
    from benchmarks.vbench_sides import NETWORKS
    from evalharness.native.weights import store

    prepare_imports(given.upstream, root / "cache", given.merges)
    use_sizes(given.tiny)
    networks: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    wanted = [one for one in given.dimensions.split(",") if one] or list(NETWORKS)
    for name in dict.fromkeys(need for one in wanted for need in NETWORKS[one]):
        try:
            network = build(name, given.tiny)
        except ImportError as error:
            left_out[name] = str(error)
            continue
        shelve(name, network, root / "shelf")
        networks[name] = network.to(given.device)
    merges = (root / "cache" / "ViCLIP" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    store("clip-bpe", {"bytes": torch.frombuffer(bytearray(merges), dtype=torch.uint8)}, root / "shelf")
    return networks, left_out


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
