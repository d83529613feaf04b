"""How long VBench's dimensions take: the unmodified package against the native scorers, in one run.

    python benchmarks/vbench_speed.py --upstream FOLDER --output results/benchmarks/vbench_speed.json

Both sides judge the same h264 clips with the same random weights, in float32: with torch's own settings
(``default``: on a GPU convolutions run in TF32, on both sides alike) or without TF32 anywhere (``strict``).
Upstream decodes each clip once a dimension, as it does; native once for all. Loading of networks is left out
of both. The file is written after each step, so that a run that is cut off leaves what it measured.
``--upstream``: a folder from which ``vbench`` and what it imports can be imported (site-packages of the
environment that ``evalharness fetch vbench`` makes, or wheels unpacked); not needed in that environment.
A dimension whose packages are missing is left out of both sides and named.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    parser.add_argument(
        "--precisions",
        default="float32",
        help="of the native side, of float32, bfloat16 and compiled, a comma list",
    )
    parser.add_argument(
        "--math",
        default="default",
        help="default, strict or both, a comma list; of the second, the first precision alone",
    )
    parser.add_argument("--sizes", type=int, default=2, help="of the two sizes the first so many")
    parser.add_argument("--frames", type=int, default=0, help="of each clip, at most (all)")
    parser.add_argument("--batch", type=int, default=16, help="frames at a time, native side")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: of this process alone, for a machine that others use too",
    )
    parser.add_argument("--threads", type=int, default=0, help="of torch (its own number)")
    parser.add_argument(
        "--limit-s", type=float, default=60.0, help="seconds for a dimension and side, at most"
    )
    parser.add_argument(
        "--budget-s", type=float, default=3600.0, help="seconds for everything: upstream gets what is left"
    )
    parser.add_argument("--upstream", nargs="*", default=[], metavar="FOLDER")
    parser.add_argument("--merges", type=Path, default=None, help="bpe_simple_vocab_16e6.txt.gz (clip's)")
    parser.add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="of runs over some dimensions each: measure nothing",
    )
    parser.add_argument("--tiny", action="store_true", help="small networks and clips: a trial")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args(argv)


def make_clips(
    folder: Path, count: int, shapes: dict[str, tuple[int, int, int, int]]
) -> list[tuple[str, Path]]:
    """(size, file) in turns of the sizes."""
    from benchmarks.vbench_networks import ACTION
    from evalharness.video import write_video

    made = []
    for number in range(count):
        size = list(shapes)[number % len(shapes)]
        frames, height, width, fps = shapes[size]
        path = folder / f"A person is {ACTION}-{number}.mp4"
        write_video(path, moving(number, frames, height, width), fps)
        made.append((size, path))
    return made


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


class Timed:
    """Seconds and values of one side, by dimension and size."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, list[float]]] = {}
        self.values: dict[str, dict[str, float]] = {}

    def add(self, dimension: str, size: str, path: Path, seconds: float, value: float | None) -> None:
        self.seconds.setdefault(dimension, {}).setdefault(size, []).append(seconds)
        if value is not None:
            self.values.setdefault(dimension, {})[path.name] = value

    def count(self, dimension: str, size: str) -> int:
        return len(self.seconds.get(dimension, {}).get(size, ()))

    def mean(self, dimension: str, size: str) -> float | None:
        times = self.seconds.get(dimension, {}).get(size)
        return sum(times) / len(times) if times else None


def time_upstream(
    dimensions: Sequence[str],
    clips: Sequence[tuple[str, Path]],
    networks: Any,
    given: argparse.Namespace,
    end: float,
    timed: Timed,
) -> Iterator[str]:
    """One dimension after the other, as upstream runs; each until its clips or its time are through.

    Args:
        dimensions: VBench's names, and ``static_filter``.
        clips: in turns of the sizes; of each size at least one is timed.
        networks: upstream's, on the device.
        given: the command line.
        end: of the time for all, by ``time.monotonic``; what is left is shared evenly.
        timed: filled.

    Yields:
        Each dimension when it is through.
    """
    from benchmarks.measuring import Deadline
    from benchmarks.vbench_sides import upstream_judge

    device = torch.device(given.device)
    sizes = len({size for size, _ in clips})
    for left, dimension in zip(range(len(dimensions), 0, -1), dimensions, strict=True):
        judge = upstream_judge(dimension, networks, given.device)
        deadline = Deadline(min(given.limit_s, (end - time.monotonic()) / left))
        if device.type == "cuda":
            for _, path in clips[:sizes]:
                judge(path)  # kernels are chosen
        for number, (size, path) in enumerate(clips):
            if number >= sizes and number % sizes == 0 and deadline.passed:
                break
            found: list[float] = []
            took = _seconds(lambda: found.append(judge(path)), given)  # noqa: B023
            timed.add(dimension, size, path, took, found[0])
        print(f"upstream {dimension}: {_told(timed, dimension)}", flush=True)
        yield dimension


def time_native(
    dimensions: Sequence[str],
    clips: Sequence[tuple[str, Path]],
    shelf: Path,
    given: argparse.Namespace,
    precision: str,
    end: float,
) -> Timed:
    """All dimensions of a clip together, decoded once; on a GPU the next is decoded meanwhile.

    No clip is begun after ``end``, by ``time.monotonic``, but the first of each size.
    """
    from benchmarks.measuring import Deadline
    from benchmarks.vbench_sides import native_judge
    from evalharness.api import Video
    from evalharness.frames import Ahead, FrameStore

    device, timed, ahead = torch.device(given.device), Timed(), Ahead(FrameStore())
    sizes = len({size for size, _ in clips})
    judges = {name: native_judge(name, shelf, given.device, precision, given.batch) for name in dimensions}
    small = Video(np.random.default_rng(0).integers(0, 256, (3, 136, 136, 3), np.uint8), 8.0)
    first = [FrameStore().read(path).video for _, path in clips[: sizes if device.type == "cuda" else 0]]
    for video in (small, *first):
        assert video is not None
        for judge in judges.values():  # networks are loaded, kernels are chosen
            judge(video)
    deadline = Deadline(min(given.limit_s * len(dimensions), end - time.monotonic()))
    for number, (size, path) in enumerate(clips):
        if number >= sizes and number % sizes == 0 and deadline.passed:
            break
        clock = _clock(given)
        began = clock()
        video = ahead.take(path).video
        assert video is not None
        timed.add("decoding", size, path, clock() - began, None)
        if device.type == "cuda" and number + 1 < len(clips):
            ahead.start(clips[number + 1][1])
        for name, judge in judges.items():
            found: list[float] = []
            took = _seconds(lambda: found.append(judge(video)), given)  # noqa: B023
            timed.add(name, size, path, took, found[0])
        timed.add("together", size, path, clock() - began, None)
    print(f"native {precision}: {_told(timed, 'together')}", flush=True)
    return timed


def _clock(given: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if given.clock == "cpu" else time.perf_counter


def _seconds(action: Callable[[], object], given: argparse.Namespace) -> float:
    from benchmarks.measuring import wait

    device, clock = torch.device(given.device), _clock(given)
    wait(device)
    start = clock()
    action()
    wait(device)
    return clock() - start


def _told(timed: Timed, dimension: str) -> str:
    return ", ".join(f"{size} {sum(t) / len(t):.3f} s" for size, t in timed.seconds[dimension].items())


def summary(
    upstream: Timed, native: Timed, dimensions: Sequence[str], sizes: Sequence[str]
) -> dict[str, Any]:
    """Seconds for a clip, how many times faster, and how far values are apart.

    ``apart`` sums native's dimensions as if each had decoded the clip for itself.
    """
    table: dict[str, Any] = {}
    for size in sizes:
        theirs = {name: upstream.mean(name, size) for name in dimensions}
        ours = {name: native.mean(name, size) for name in ("decoding", *dimensions, "together")}
        whole = all(value is not None for value in theirs.values())
        total = sum(value for value in theirs.values() if value is not None) if whole else None
        alone = sum((ours[name] or 0.0) + (ours["decoding"] or 0.0) for name in dimensions)
        table[size] = {
            "times_faster": _over(total, ours["together"]),
            "times_faster_apart": _over(total, alone),
            "upstream_s": {**theirs, "together": total},
            "native_s": {**ours, "apart": alone},
            "clips_timed": {
                "native": native.count("together", size),
                "upstream": {name: upstream.count(name, size) for name in dimensions},
            },
        }
    return {"sizes": table, "largest_difference": differences(upstream, native)}


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record of runs that had some dimensions each, where memory does not hold all networks at once.

    The clip is decoded once, as in one run: the shortest of the times that were taken.

    Raises:
        ValueError: they differ in anything but their dimensions, or have one in common.
    """
    facts = [_but_for_dimensions(part) for part in parts]
    for fact in facts[1:]:
        unequal = sorted(key for key in fact.keys() | facts[0].keys() if fact.get(key) != facts[0].get(key))
        if unequal:
            told = "; ".join(f"{key}: {facts[0].get(key)} and {fact.get(key)}" for key in unequal)
            raise ValueError(f"--merge: the runs differ, so that no record holds for both: {told}")
    found: dict[str, Any] = {}
    for math, by_precision in parts[0]["math"].items():
        found[math] = {}
        for precision in by_precision:
            told_by = [part["math"][math][precision] for part in parts]
            table = {
                size: _one_row([each["sizes"][size] for each in told_by])
                for size in by_precision[precision]["sizes"]
            }
            apart = {name: value for each in told_by for name, value in each["largest_difference"].items()}
            found[math][precision] = {"sizes": table, "largest_difference": apart}
    left_out = {name: why for part in parts for name, why in part.get("left_out", {}).items()}
    return {
        **parts[0],
        "math": found,
        "times_faster_as_they_run": as_they_run(found),
        "left_out": left_out,
        "merged": len(parts),
    }


def _but_for_dimensions(part: Mapping[str, Any]) -> dict[str, Any]:
    """All that a run recorded but results and dimensions; of the results what they are of."""
    own = ("math", "times_faster_as_they_run", "left_out", "merged")
    cases = [
        f"{math} {precision} {size}"
        for math, by_precision in part["math"].items()
        for precision, told in by_precision.items()
        for size in told["sizes"]
    ]
    return {**{key: value for key, value in part.items() if key not in own}, "cases": sorted(cases)}


def _one_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = ("decoding", "together", "apart")
    names = [name for row in rows for name in row["upstream_s"] if name not in own]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--merge: {', '.join(twice)} was timed by more than one of the runs")
    theirs = {name: value for row in rows for name, value in row["upstream_s"].items() if name not in own}
    ours = {name: value for row in rows for name, value in row["native_s"].items() if name not in own}
    decoding = min(row["native_s"]["decoding"] for row in rows)
    total = None if None in theirs.values() else sum(theirs.values())  # None: a run was cut off
    together = decoding + sum(ours.values())
    alone = together + decoding * (len(ours) - 1)
    counts = {name: n for row in rows for name, n in row["clips_timed"]["upstream"].items()}
    return {
        "times_faster": _over(total, together),
        "times_faster_apart": _over(total, alone),
        "upstream_s": {**theirs, "together": total},
        "native_s": {"decoding": decoding, **ours, "together": together, "apart": alone},
        "clips_timed": {"native": min(row["clips_timed"]["native"] for row in rows), "upstream": counts},
    }


def differences(upstream: Timed, native: Timed) -> dict[str, float]:
    """The largest of all clips, by dimension."""
    return {
        name: max(
            abs(value - native.values[name][path])
            for path, value in found.items()
            if path in native.values[name]
        )
        for name, found in upstream.values.items()
        if found.keys() & native.values.get(name, {}).keys()
    }


def as_they_run(found: Mapping[str, Any]) -> dict[str, float | None]:
    """By size: the package with torch's own settings over native without TF32, as in the harness."""
    if not {"default", "strict"} <= found.keys():
        return {}
    [theirs, ours] = (next(iter(found[name].values()))["sizes"] for name in ("default", "strict"))
    return {
        size: _over(theirs[size]["upstream_s"]["together"], ours[size]["native_s"]["together"])
        for size in ours
    }


def _over(value: float | None, base: float | None) -> float | None:
    return round(value / base, 2) if value and base else None


def set_math(name: str) -> None:
    """Torch's own settings, or no TF32 anywhere.

    Raises:
        ValueError: neither ``default`` nor ``strict``.
    """
    if name not in ("default", "strict"):
        raise ValueError(f"--math {name}: default or strict, or both as a comma list")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = name == "default"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; exit code 1 if no dimension could be measured on both sides."""
    from benchmarks.measuring import surroundings

    given = arguments(argv)
    if given.merge:
        _write(given.output, merged([json.loads(path.read_text()) for path in given.merge]))
        return 0
    end = time.monotonic() + given.budget_s
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="vbench-speed-") as name:
        root = Path(name)
        networks, left_out = _networks(root, given)
        from benchmarks.vbench_networks import WEIGHTS_SEED
        from benchmarks.vbench_sides import NETWORKS

        wanted = [one for one in given.dimensions.split(",") if one] or list(NETWORKS)
        dimensions = [one for one in wanted if all(need in networks for need in NETWORKS[one])]
        shapes = _shapes(given)
        (root / "clips").mkdir()
        clips = make_clips(root / "clips", max(given.clips, len(shapes)), shapes)
        facts = {
            **surroundings(torch.device(given.device)),
            "threads": torch.get_num_threads(),
            "clips": len(clips),
            "batch": given.batch,
            "weights_seed": WEIGHTS_SEED,
            "tiny": given.tiny,
            "clock": given.clock,
            "left_out": {one: left_out for one in wanted if one not in dimensions},
        }
        if not dimensions:
            print(f"nothing to measure: {left_out}")
            return 1
        print(f"networks and clips are made, {end - time.monotonic():.0f} s are left", flush=True)
        maths = given.math.split(",")
        found: dict[str, Any] = {}
        for number, math in enumerate(maths):
            set_math(math)
            # Of what is left, three quarters for the first of two.
            until = end - (end - time.monotonic()) * 0.25 * (len(maths) - 1 - number)
            precisions = given.precisions.split(",")[: None if number == 0 else 1]
            for told in _both(dimensions, clips, root / "shelf", networks, given, until, precisions):
                found[math] = told
                as_run = as_they_run(found)
                _write(given.output, {"math": found, "times_faster_as_they_run": as_run, **facts})
        for math, by_precision in found.items():
            for precision, told in by_precision.items():
                faster = {size: row["times_faster"] for size, row in told["sizes"].items()}
                print(f"{math} {precision}: {faster} times faster")
    return 0


def _both(
    dimensions: Sequence[str],
    clips: Sequence[tuple[str, Path]],
    shelf: Path,
    networks: Any,
    given: argparse.Namespace,
    end: float,
    precisions: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """What is known after each step, by native's precision; native gets a third of the time at most."""
    native: dict[str, Timed] = {}
    upstream = Timed()
    sizes = list(dict.fromkeys(size for size, _ in clips))

    def known() -> dict[str, Any]:
        return {name: summary(upstream, timed, dimensions, sizes) for name, timed in native.items()}

    share = (end - time.monotonic()) / 3 / len(precisions)
    for precision in precisions:
        until = time.monotonic() + share
        native[precision] = time_native(dimensions, clips, shelf, given, precision, until)
        yield known()
    for _ in time_upstream(dimensions, clips, networks, given, end, upstream):
        yield known()


def _shapes(given: argparse.Namespace) -> dict[str, tuple[int, int, int, int]]:
    """Sizes of the clips, their names telling how many frames are kept."""
    shapes = {}
    for frames, height, width, fps in list((TINY_SHAPES if given.tiny else SHAPES).values())[: given.sizes]:
        kept = min(frames, given.frames or frames)
        shapes[f"{kept}x{height}x{width}"] = (kept, height, width, fps)
    return shapes


def _write(path: Path, data: dict[str, Any]) -> None:
    from benchmarks.measuring import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, data)


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
            network = build(name, given.tiny, given.device)
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
