"""A run of 100,000 samples: time and peak memory of the report, of resuming, and of reading it.

    python benchmarks/large.py
    python benchmarks/large.py --base CHECKOUT --output results/benchmarks/large.json

The folder is a real one of the toy model at full coverage: a first command makes a few videos, then the
records of all others are written as the stages write them, with the very hashes that the stages ask for
(their videos are hard links to one of the first). What is timed are plain commands, each in a process of its
own, some of them in several turns. On a shared machine a command waits for a core: ``quiet_seconds`` are
those of the clock without that, and ``load`` is how many processes wanted to run when the commands began.

With ``--base`` the commands of another checkout are timed on the same folder, in turns with these, and what
both wrote is compared byte by byte. The first to aggregate then reads every video, the other does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalharness.store import atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ROOT / "benchmarks" / "large_plugins.py"
SAME = ("scores.csv", "leaderboard.csv", "leaderboard.md", "leaderboard.tex")
_SECONDS = ("seconds", "quiet_seconds", "cpu_seconds")
OWN = (b' "manifest": ', b' "crc": ')
"""Beginnings of lines of ``results.json`` that every run has for itself."""
SAMPLES_PER_PROMPT = 5
CELLS = 2


def command(folder: Path, *more: str) -> list[str]:
    """The run's command line."""
    words = ["run", "--model", "toy", "--protocol", "large", "--methods", "toy-round", "--bits", "3"]
    return [*words, "--workers", "0", "--plugin", str(PLUGINS), "--output", str(folder), *more]


def timed(words: Sequence[str], prompts: int, root: Path = ROOT) -> dict[str, Any]:
    """Seconds, those of the CPU, and peak megabytes of ``python -m evalharness ...`` of a checkout.

    ``quiet_seconds`` are seconds less the time that its main thread was ready and others had the cores.
    """
    code = (
        "import resource, sys; from evalharness.cli.main import main; c = main(sys.argv[1:]); "
        "u = resource.getrusage(resource.RUSAGE_SELF); "
        # Not ru_maxrss, which a process takes over from the one that started it.
        "m = [x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM')][0]; "
        # Nanoseconds that the kernel let it wait for a core that others had.
        "w = open('/proc/self/schedstat').read().split()[1]; "
        "print(c, m, u.ru_utime + u.ru_stime, w, 'torch' in sys.modules, file=sys.stderr)"
    )
    # A first path beats an installed package, and no file of the current folder shadows it.
    code = f"import sys; sys.path.insert(0, {str(root)!r}); {code}"
    environment = {**os.environ, "LARGE_PROMPTS": str(prompts), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(root)
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *words], env=environment, capture_output=True, text=True,
        check=True, cwd=tempfile.gettempdir(),
    )  # fmt: skip
    seconds = time.monotonic() - begin
    *said, last = done.stderr.splitlines()
    status, kilobytes, cpu, waited, torch = last.split()
    if status != "0" and words[0] != "check":  # a cell without its size is INCOMPLETE there
        raise RuntimeError("\n".join(said))
    return {
        "seconds": round(seconds, 1),
        "quiet_seconds": round(seconds - int(waited) / 1e9, 1),
        "cpu_seconds": round(float(cpu), 2),
        "peak_mb": round(int(kilobytes) / 1000),
        "torch": torch == "True",
        "said": said[-1:],
    }


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


def measure(samples: int, folder: Path, roots: Mapping[str, Path], turns: int) -> dict[str, Any]:
    """All figures of one size: side -> command -> medians."""
    prompts = samples // SAMPLES_PER_PROMPT // CELLS
    timed(command(folder, "--limit", "1", "--no-profile"), prompts)
    fill(folder, prompts)
    found: dict[str, Any] = {"samples": prompts * SAMPLES_PER_PROMPT * CELLS, "load": os.getloadavg()[0]}
    taken: dict[str, dict[str, list[dict[str, Any]]]] = {side: {} for side in roots}
    written: dict[str, dict[str, bytes]] = {}
    for turn in range(turns):
        for side, root in roots.items():
            verbs = _commands(folder)
            if turn and len(roots) == 1:
                verbs.pop("aggregate and report")  # once: nothing changes any more
            for name, words in verbs.items():
                if words[0] == "leaderboard":
                    shutil.rmtree(folder.with_name("merged"), ignore_errors=True)
                taken[side].setdefault(name, []).append(timed(words, prompts, root))
            written[side] = {name: (folder / name).read_bytes() for name in SAME}
            lines = (folder / "results.json").read_bytes().split(b"\n")
            written[side]["results.json"] = b"\n".join(x for x in lines if not x.startswith(OWN))
    for side, times in taken.items():
        found[side] = {name: _middle(each) for name, each in times.items()}
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if any(cell["coverage"] != 1.0 for cell in results["cells"]):
        raise RuntimeError("the made-up records do not cover the run")
    found["same bytes"] = sorted({name for name in written["new"]} - _differ(written))
    found["report.html, MB"] = round((folder / "report.html").stat().st_size / 1e6, 1)
    return found


def shipped(roots: Mapping[str, Path], turns: int) -> dict[str, Any]:
    """The shipped table against itself: side -> command -> medians."""
    given = str(ROOT / "results" / "tinyworld")
    verbs = {"compare": ["compare", given, given], "check": ["check", given, "--against", given]}
    taken: dict[str, dict[str, list[dict[str, Any]]]] = {side: {} for side in roots}
    for _ in range(turns):
        for side, root in roots.items():
            for name, words in verbs.items():
                taken[side].setdefault(name, []).append(timed(words, 0, root))
    return {side: {name: _middle(each) for name, each in times.items()} for side, times in taken.items()}


def _commands(folder: Path) -> dict[str, list[str]]:
    two = [f"a={folder}", f"b={folder}", "--output", str(folder.with_name("merged"))]
    return {
        "aggregate and report": command(folder, "--no-profile"),
        "resume, nothing to do": command(folder, "--no-profile"),
        "report": ["report", str(folder)],
        "compare": ["compare", str(folder), str(folder)],
        "check": ["check", str(folder), "--against", str(folder)],
        "leaderboard merge": ["leaderboard", "merge", *two],
    }


def _middle(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the turns."""
    middle = {key: statistics.median(turn[key] for turn in turns) for key in _SECONDS}
    return {**turns[-1], **middle, "peak_mb": max(turn["peak_mb"] for turn in turns), "turns": len(turns)}


def _differ(written: Mapping[str, Mapping[str, bytes]]) -> set[str]:
    """Files that are not alike; of ``results.json`` all but the manifest, which has clocks, is looked at."""
    first = written["new"]
    return {name for name in first if any(each[name] != first[name] for each in written.values())}


def document(sizes: Sequence[dict[str, Any]]) -> str:
    """Markdown: seconds and megabytes by size."""
    verbs = list(sizes[0]["new"])
    lines = [
        "# Large runs",
        "",
        "Made by `python benchmarks/large.py`. Seconds of the CPU / without waiting / of the clock, MB.",
        "",
    ]
    lines += ["| samples | " + " | ".join(verbs) + " | report.html, MB |", "|---" * (len(verbs) + 2) + "|"]
    for size in sizes:
        cells = [_shown(size["new"][verb]) for verb in verbs]
        lines.append(f"| {size['samples']} | " + " | ".join(cells) + f" | {size['report.html, MB']} |")
    return "\n".join(lines) + "\n"


def _shown(found: Mapping[str, Any]) -> str:
    seconds = " / ".join(f"{found[key]} s" for key in ("cpu_seconds", "quiet_seconds", "seconds"))
    return f"{seconds} / {found['peak_mb']} MB"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--base", type=Path, default=None, help="another checkout, timed in turns")
    options = parser.parse_args(argv)
    roots = {"base": options.base.resolve()} if options.base is not None else {}
    roots["new"] = ROOT
    sizes = []
    for samples in options.samples:
        with tempfile.TemporaryDirectory(prefix="large-") as place:
            sizes.append(measure(samples, Path(place) / "run", roots, options.turns))
    print(document(sizes))
    table = shipped(roots, options.turns)
    print(json.dumps(table, indent=1))
    if options.output is not None:
        found = {"sizes": sizes, "shipped table": table}
        atomic_write_text(options.output, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
