"""A run of 100,000 samples: time and peak memory of the report, of resuming, and of reading it.

    python benchmarks/large.py --samples 100000 --output results/reliability

The folder is a real one of the toy model at full coverage: a first command makes a few videos, then the
records of
all others are written as the stages write them, with the very hashes that the stages ask for (their
videos are hard
links to one of the first). What is timed are plain commands, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalharness.store import atomic_write_text

PLUGINS = Path(__file__).with_name("large_plugins.py")
SAMPLES_PER_PROMPT = 5
CELLS = 2


def command(folder: Path, *more: str) -> list[str]:
    """The run's command line."""
    words = ["run", "--model", "toy", "--protocol", "large", "--methods", "toy-round", "--bits", "3"]
    return [*words, "--workers", "0", "--plugin", str(PLUGINS), "--output", str(folder), *more]


def timed(words: Sequence[str], prompts: int) -> dict[str, Any]:
    """Seconds and peak megabytes of ``python -m evalharness ...``."""
    code = (
        "import resource, sys; from evalharness.cli.main import main; c = main(sys.argv[1:]); "
        "print(c, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    environment = {**os.environ, "LARGE_PROMPTS": str(prompts), "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, check=True
    )
    seconds = time.monotonic() - begin
    *said, last = done.stderr.splitlines()
    status, kilobytes = last.split()
    if status != "0":
        raise RuntimeError("\n".join(said))
    return {"seconds": round(seconds, 1), "peak_mb": round(int(kilobytes) / 1000), "said": said[-1:]}


def fill(folder: Path, prompts: int) -> None:
    """Records of all samples of both cells, beside those of the few that were made."""
    os.environ["LARGE_PROMPTS"] = str(prompts)
    from evalharness.config import RunConfig
    from evalharness.plan import build_plan
    from evalharness.registry import Registry
    from evalharness.runfolder import RunFolder
    from evalharness.stages.samples import cell_hash, sample_hash
    from evalharness.stages.score import MetricHashes

    config = RunConfig(
        model="toy", protocol="large", methods="toy-round", bits="3", workers=0, plugin=[str(PLUGINS)],
        output=str(folder), profile=False,
    )  # fmt: skip
    registry = Registry(config.plugin)
    plan = build_plan(config, registry)
    hashes, run = MetricHashes(registry), RunFolder(folder)
    for cell in plan.cells:
        files = run.cell(cell.id)
        shared = cell_hash(plan.identity(), files)
        assert shared is not None
        made, scored = files.samples.read()[0], files.scores.read()
        template = {row["dimension"]: row for row in scored if row["sample"] == made["sample"]}
        source, known = files.video(made["sample"]), {row["sample"] for row in files.samples.read()}
        samples, rows = [], []
        for number, sample in enumerate(plan.samples(cell)):
            if sample.id in known:
                continue
            files.video(sample.id).hardlink_to(source) if number % 60000 else files.video(
                sample.id
            ).write_bytes(source.read_bytes())
            if number % 60000 == 0:
                source = files.video(sample.id)  # file systems limit the links to one file
            facts = {"prompt_id": sample.prompt.id, "index": sample.index, "seed": sample.seed}
            samples.append({**made, **facts, "sample": sample.id, "hash": sample_hash(shared, sample)})
            for dimension, metric in plan.metrics.items():
                value = (number * 7919 % 1000) / 1000
                told = {"sample": sample.id, "prompt_id": sample.prompt.id, "value": value}
                row = {**template[dimension], **told, "metric_hash": hashes.of(metric, sample.prompt)}
                rows.append(row)
        files.samples.append(samples)
        files.scores.append(rows)


def measure(samples: int, folder: Path) -> dict[str, Any]:
    """All figures of one size."""
    prompts = samples // SAMPLES_PER_PROMPT // CELLS
    timed(command(folder, "--limit", "1", "--no-profile"), prompts)
    fill(folder, prompts)
    found = {
        "samples": prompts * SAMPLES_PER_PROMPT * CELLS,
        "aggregate and report": timed(command(folder, "--no-profile"), prompts),
        "resume, nothing to do": timed(command(folder, "--no-profile"), prompts),
        "report": timed(["report", str(folder)], prompts),
        "compare": timed(["compare", str(folder), str(folder)], prompts),
    }
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if any(cell["coverage"] != 1.0 for cell in results["cells"]):
        raise RuntimeError("the made-up records do not cover the run")
    found["report.html, MB"] = round((folder / "report.html").stat().st_size / 1e6, 1)
    return found


def document(sizes: Sequence[dict[str, Any]]) -> str:
    """Markdown: seconds and megabytes by size."""
    verbs = [key for key, value in sizes[0].items() if isinstance(value, dict)]
    lines = [
        "# Large runs",
        "",
        "Made by `python benchmarks/large.py`. Seconds / peak MB of each command.",
        "",
    ]
    lines += ["| samples | " + " | ".join(verbs) + " | report.html, MB |", "|---" * (len(verbs) + 2) + "|"]
    for size in sizes:
        cells = [f"{size[verb]['seconds']} s / {size[verb]['peak_mb']} MB" for verb in verbs]
        lines.append(f"| {size['samples']} | " + " | ".join(cells) + f" | {size['report.html, MB']} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args(argv)
    sizes = []
    for samples in options.samples:
        with tempfile.TemporaryDirectory(prefix="large-") as place:
            sizes.append(measure(samples, Path(place) / "run"))
    print(document(sizes))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        atomic_write_text(options.output / "large.json", json.dumps(sizes, indent=1) + "\n")
        atomic_write_text(options.output / "large.md", document(sizes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
