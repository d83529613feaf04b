"""The four dimensions of VBench that GRiT judges, by the unmodified package through the harness's driver.

    python benchmarks/vbench_grit.py --env FOLDER --output results/benchmarks/vbench_grit.json

FOLDER is what ``evalharness fetch vbench --env FOLDER --detectron2`` made. GRiT is drawn at its published
size, random but for what makes it see a box, or a few in rows, call each a car and describe it as a red one
(``vbench_parity_upstream``), saved in VBench's cache layout and read by the package from there. So what each
prompt has to give is known: see ``CASES``. A clip of 32x32 pixels, 16 frames of which the package asks for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CLIP = (4, 32, 32, 8)  # frames, height, width, frames per second


class Case(NamedTuple):
    """A prompt with its labels and the value that a detector of red cars gives it; None: left out."""

    dimension: str
    text: str
    labels: Mapping[str, str]
    value: float | None


# Both are saved as the same file: what needs the second comes last.
NETWORKS = {
    "object_class": "grit",
    "multiple_objects": "grit",
    "color": "grit",
    "spatial_relationship": "grit-rows",
}


CASES = (
    Case("object_class", "a car", {"object": "car"}, 1.0),
    Case("object_class", "a person", {"object": "person"}, 0.0),
    Case("multiple_objects", "a car and a car", {"object": "car and car"}, 1.0),
    Case("color", "a red car", {"color": "red"}, 1.0),
    Case("color", "a red bicycle", {"color": "red"}, None),
    Case(
        "spatial_relationship",
        "a car on the top of a car",
        {"object_a": "car", "object_b": "car", "relationship": "on the top of"},
        1.0,
    ),
)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", type=Path, required=True, help="of the package, with detectron2")
    parser.add_argument(
        "--keep", type=Path, default=None, metavar="FOLDER", help="for weights, 0.8 GB (none)"
    )
    parser.add_argument("--dimensions", default="", help="of these only, a comma list (all four)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write or to add to")
    given = parser.parse_args(argv)
    given.dimensions = given.dimensions.split(",") if given.dimensions else list(NETWORKS)
    if unknown := [name for name in given.dimensions if name not in NETWORKS]:
        parser.error(f"--dimensions: {unknown[0]!r} is none of {', '.join(NETWORKS)}")
    if not (given.env / "evalharness.json").is_file():
        parser.error(f"{given.env}: no environment; evalharness fetch vbench --env {given.env} --detectron2")
    return given


def judged(env: Path, cache: Path, clip: Path, dimension: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What the driver says of each case of one dimension, beside what was expected; versions.

    Raises:
        RuntimeError: the dimension could not be judged at all.
    """
    from evalharness.api import Prompt
    from evalharness.upstream.driver import Upstream, UpstreamVideo, score_dimensions

    where = Upstream(python=env / "bin" / "python", cache=cache, local=True)
    cases = {str(number): case for number, case in enumerate(CASES) if case.dimension == dimension}
    videos = [
        UpstreamVideo(
            key, clip, Prompt(id="0000", text=case.text, dimensions=(dimension,), labels=case.labels)
        )
        for key, case in cases.items()
    ]
    began = time.perf_counter()
    [scored] = score_dimensions(where, [dimension], videos)
    if scored.error:
        raise RuntimeError(f"{dimension}: {scored.error}")
    prompts = {
        case.text: {
            "labels": dict(case.labels),
            "expected": case.value,
            "value": scored.videos[key].value,
            "left_out": scored.videos[key].left_out,
            "error": scored.videos[key].error,
            **({"upstream_said": dict(scored.videos[key].extras)} if scored.videos[key].extras else {}),
        }
        for key, case in cases.items()
    }
    return {"prompts": prompts, "seconds": round(time.perf_counter() - began, 1)}, dict(scored.versions)


def main(argv: Sequence[str] | None = None) -> int:
    """Judge and write after each dimension; exit code 1 if one failed or gave another value."""
    from benchmarks.measuring import commit, write_json
    from benchmarks.vbench_clips import moving
    from benchmarks.vbench_parity import Comparison
    from evalharness.video import write_video

    given = arguments(argv)
    installed = json.loads((given.env / "evalharness.json").read_text())["installed"]
    wrong = 0
    known: dict[str, Any] = json.loads(given.output.read_text()) if given.output.is_file() else {}
    found: dict[str, Any] = known.get("dimensions", {})
    with tempfile.TemporaryDirectory(prefix="vbench-grit-") as name:
        cache = given.keep or Path(name) / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        clip = Path(name) / "clip.mp4"
        write_video(clip, moving(0, *CLIP[:3]), CLIP[3])
        for dimension in sorted(given.dimensions, key=list(NETWORKS).index):
            network = NETWORKS[dimension]
            for other in {*NETWORKS.values()} - {network}:  # their file is replaced, so they are not made
                (cache / f".{other}").unlink(missing_ok=True)
            Comparison(given.env, cache, {}).make(network)
            found[dimension], versions = judged(given.env, cache, clip, dimension)
            for text, told in found[dimension]["prompts"].items():
                good = told["value"] == told["expected"] and told["left_out"] is (told["expected"] is None)
                wrong += not good
                print(
                    f"{dimension}: {text}: {told['value']}{'' if good else ', expected another'}", flush=True
                )
            facts = {
                "commit": commit(),
                "clip": "x".join(map(str, CLIP)),
                "upstream": installed,
                "versions": versions,
            }
            write_json(given.output, {**facts, "dimensions": found})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the checkout's own library
    sys.exit(main())
