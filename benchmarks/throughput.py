"""Videos a second of the harness itself on one GPU and on several: a model's folder, a run, its records.

    python benchmarks/throughput.py --gpus 2 --output results/benchmarks/throughput.json

A pipeline folder of Wan2.1-1.3B with random weights is written first (its text encoder has one layer). Then
``evalharness run --executor torchrun`` makes ``--videos`` videos a GPU on one GPU and on ``--gpus`` of them.
The rate is that of files appearing, without the first third, in which workers load, and the last of each.
``--tiny`` runs it in small on CPUs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIMITS_S = {"one": 240.0, "all": 280.0}
_POLL_S, _GRACE_S = 0.5, 60.0


def write_folder(target: Path, *, tiny: bool) -> None:
    """A whole pipeline, saved as diffusers does."""
    from benchmarks.driver import on_device
    from benchmarks.random_pipelines import open_model

    loaded = open_model("wan_1_3b", on_device(), tiny, memory="resident", steps=1, whole_text=False)
    import diffusers
    import torch

    # The harness's own class has the same name; this one says in the folder where it comes from.
    diffusers.WanPipeline(**loaded.pipeline.components).save_pretrained(target, max_shard_size="2GB")
    del loaded
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the workers' now


def command(given: argparse.Namespace, folder: Path, gpus: int, output: Path) -> list[str]:
    """The run on ``gpus`` of them."""
    size = {"frames": 9, "height": 32, "width": 32} if given.tiny else {"frames": given.frames}
    generation = json.dumps({"steps": given.steps, **size, **({"text_length": 8} if given.tiny else {})})
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus),
        "-m", "evalharness", "run", "--model", "wan", "--weights", str(folder), "--generation", generation,
        "--memory", "resident", "--protocol", "mlperf-t2v", "--limit", str(given.videos * gpus),
        "--no-profile", "--dimensions", "subject_consistency", "--executor", "torchrun",
        "--device", "cpu" if given.tiny else "cuda", "--output", str(output),
    ]  # fmt: skip


def measured(given: argparse.Namespace, folder: Path, gpus: int, limit_s: float) -> dict[str, Any]:
    """One run; seconds of all of it, and the rates of its videos: of those there are, if time runs out."""
    with tempfile.TemporaryDirectory() as scratch:
        output, log = Path(scratch) / "out", Path(scratch) / "log"
        seconds, ended = _run(command(given, folder, gpus, output), output, log, limit_s, given.save)
        rows = _made(output)
        if not rows or (ended and len(rows) != given.videos * gpus):
            raise RuntimeError(f"{len(rows)} videos of {given.videos * gpus}: {log.read_text()[-2000:]}")
        finished = sorted(path.stat().st_mtime for path in output.glob("cells/*/videos/*.mp4"))
    each = sorted(row["ms"] / 1e3 for row in rows)
    return {
        "gpus": gpus,
        "videos": len(rows),
        "ended": ended,
        "run_s": round(seconds, 2),
        "video_s": {"median": each[len(each) // 2], "min": each[0], "max": each[-1]},
        "videos_a_minute": rate(finished, gpus),
        "videos_a_minute_by_workers_clocks": round(60 * gpus * len(rows) / sum(each), 3),
    }


def _run(
    words: Sequence[str], output: Path, log: Path, limit_s: float, save: Callable[[dict[str, Any]], None]
) -> tuple[float, bool]:
    """Run to the end or for ``limit_s``; returns the seconds, and whether it ended."""
    from benchmarks.measuring import ROOT

    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    told = 0
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment)
        try:
            while process.poll() is None and time.perf_counter() - start < limit_s:
                time.sleep(_POLL_S)
                made = sorted(path.stat().st_mtime for path in output.glob("cells/*/videos/*.mp4"))
                if len(made) > told:
                    told = len(made)
                    seconds = time.perf_counter() - start
                    print(f"  {told} videos after {seconds:.0f} s", flush=True)
                    save({"ratios": {}, "ended": False, "made_at": [round(at - made[0], 2) for at in made]})
            ended = process.poll() is not None
        finally:
            _end(process)
    return time.perf_counter() - start, ended


def _end(process: subprocess.Popen[bytes]) -> None:
    """Torchrun ends its workers when it is asked to, not when it is killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _made(output: Path) -> list[dict[str, Any]]:
    """Records of finished videos."""
    lines = (line for path in output.glob("cells/*/samples.jsonl") for line in path.read_text().splitlines())
    return [row for row in map(json.loads, lines) if row["status"] == "ok"]


def rate(finished: Sequence[float], gpus: int) -> float | None:
    """Videos a minute from when each was finished, rising, seconds; None if that is too few of them."""
    first, last = len(finished) // 3, len(finished) - gpus
    if last <= first:
        return None
    return round(60 * (last - first) / (finished[last] - finished[first]), 3)


def main(argv: Sequence[str] | None = None) -> int:
    """Run both; 0 if both ended well. Results are written after each."""
    from benchmarks.driver import command_line, limit_s, parsed, run_parts

    parser = command_line(__doc__, "throughput.json", limits_s=LIMITS_S)
    parser.add_argument("--gpus", type=int, default=2, help="of part all")
    parser.add_argument("--videos", type=int, default=12, help="for each GPU")
    parser.add_argument("--steps", type=int, default=6, help="denoising steps")
    parser.add_argument("--frames", type=int, default=33, help="of a video, 480 x 832")
    parser.add_argument("--scratch", type=Path, help="where the folder is written for a while")
    given = parsed(parser, argv, LIMITS_S)
    rates: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        folder = Path(scratch) / "pipeline"
        start = time.perf_counter()
        write_folder(folder, tiny=given.tiny)
        print(f"  folder written in {time.perf_counter() - start:.0f} s", flush=True)

        def part(name: str) -> dict[str, Any]:
            gpus = 1 if name == "one" else given.gpus
            rates[gpus] = found = measured(given, folder, gpus, limit_s(given, name))
            ratios = {}
            if gpus > 1 and 1 in rates:
                ratios = {
                    f"{key}_for_each_gpu_to_one": found[key] / gpus / rates[1][key]
                    for key in ("videos_a_minute", "videos_a_minute_by_workers_clocks")
                    if found[key] and rates[1][key]
                }
            return {"ratios": ratios, **found}

        return run_parts(given.parts, part, given, lambda: {"steps": given.steps, "frames": given.frames})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
