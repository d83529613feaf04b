"""How long VBench's dimensions take: the unmodified package against the native scorers, in one run.

    python benchmarks/vbench_speed.py --upstream FOLDER --output results/benchmarks/vbench_speed.json

Both sides judge the same h264 clips with the same random weights, in float32: with torch's own settings
(``default``: on a GPU convolutions run in TF32, on both sides alike) or without TF32 anywhere (``strict``).
Upstream decodes each clip once a dimension, as it does; native once for all. Loading of networks is left out
of both. Seconds are medians over clips; where time does not do for all clips, a side takes fewer, and the
record says how many. The file is written after each dimension and side, so that a run that is cut off leaves
what it measured.
``--upstream``: a folder from which ``vbench`` and what it imports can be imported (site-packages of the
environment that ``evalharness fetch vbench`` makes, or wheels unpacked); not needed in that environment.
A dimension whose packages are missing is left out of both sides and named; so is one that fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line; ``dimensions`` as a list, and the ``steps`` of math and precisions."""
    from benchmarks.vbench_run import plan
    from benchmarks.vbench_sides import NETWORKS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=20, help="in turns of both sizes (20)")
    parser.add_argument("--dimensions", default="", help="of these only, a comma list (all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precisions",
        default="float32",
        help="of the native side, of float32, bfloat16 and compiled, a comma list, compared in the first",
    )
    parser.add_argument(
        "--math",
        default="default",
        help="default, strict or both, a comma list; precisions but the first run under the last",
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
        "--limit-s",
        type=float,
        default=60.0,
        help="seconds after which a dimension of upstream takes no further clip",
    )
    parser.add_argument(
        "--budget-s", type=float, default=3600.0, help="seconds for everything, shared among all steps"
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
    given = parser.parse_args(argv)
    given.dimensions = [one for one in given.dimensions.split(",") if one] or list(NETWORKS)
    if unknown := [one for one in given.dimensions if one not in NETWORKS]:
        parser.error(f"--dimensions: {unknown[0]!r} is none of {', '.join(NETWORKS)}")
    try:
        given.steps = plan(given.math.split(","), given.precisions.split(","))
    except ValueError as error:
        parser.error(str(error))
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; exit code 1 if no dimension could be measured on both sides."""
    from benchmarks.measuring import write_json
    from benchmarks.vbench_run import SHARES, prepared
    from benchmarks.vbench_told import merged

    given = arguments(argv)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    if given.merge:
        write_json(given.output, merged([json.loads(path.read_text()) for path in given.merge]))
        return 0
    end = time.monotonic() + given.budget_s
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="vbench-speed-") as name:
        run = prepared(Path(name), given, end)
        if not run.dimensions:
            print(f"nothing to measure: {run.facts['left_out']}")
            return 1
        for number, step in enumerate(given.steps):
            weights = [SHARES[later.side] for later in given.steps[number:]]
            until = time.monotonic() + (end - time.monotonic()) * weights[0] / sum(weights)
            left = until - time.monotonic(), end - time.monotonic()
            if number > 1 and left[1] <= 0:
                print(f"{step}: no time is left", flush=True)
                continue
            print(f"{step}: {left[0]:.0f} s of the {left[1]:.0f} s that are left", flush=True)
            began = time.monotonic()
            for _ in run.timed(step, until):
                write_json(given.output, run.known())
            write_json(given.output, run.known())
            print(f"{step}: {run.told(step)}; took {time.monotonic() - began:.0f} s", flush=True)
        for math, by_precision in run.known()["math"].items():
            for precision, row in by_precision.items():
                faster = {size: each["times_faster"] for size, each in row["sizes"].items()}
                print(f"{math} {precision}: {faster} times faster")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's own library
    sys.exit(main())
