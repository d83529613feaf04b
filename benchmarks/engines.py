"""The same run under every executor, on one worker and on four, in peace and with workers killed at random.

    python benchmarks/engines.py --output results/reliability/engines.json

Part ``workers`` runs tinyworld: everything that is kept of four workers is compared byte by byte with what
one worker left. Part ``kills`` runs the small model of the tests, whose visits are slowed down, and kills
``--kills`` of the processes that do its work under each executor; whatever ends is begun again by the
same command. Ray takes part where it is installed. Results are written after each engine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import below, words

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("local", "torchrun", "ray")
PARTS = ("workers", "kills")
TOY = ("run", "--model", "toy", "--methods", "toy-round", "--bits", "3", "--no-profile")
TINYWORLD = ("run", "--methods", "rtn", "--bits", "4", "--limit", "3", "--no-profile")
# A process of the harness that works, by its words.
_MARKS = ("evalharness.worker", "ray::_Worker", "-m evalharness run", "-u -m evalharness")
_SLOW = {"TOY_SLOW": "0.3"}


def has_ray() -> bool:
    """Whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None


def command(engine: str, run: Sequence[str], workers: int) -> list[str]:
    """The command line of ``run`` under ``engine``, into the folder ``out``."""
    start = [sys.executable, "-m"]
    if engine == "torchrun":
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
        start += ["--max-restarts", "99", "-m"]
    own = [] if engine == "torchrun" else ["--workers", str(workers)]
    return [*start, "evalharness", *run, "--executor", engine, *own, "--output", "out"]


def environment(*paths: Path) -> dict[str, str]:
    """Of a run whose modules are found at ``paths`` and in this checkout."""
    found = [*map(str, (*paths, ROOT)), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **variables}


def results_of(folder: Path) -> dict[str, bytes]:
    """What must not depend on who did the work."""
    kept = [folder / "scores.csv"]
    for pattern in ("scores.jsonl", "videos/*", "checkpoint/*"):
        kept += folder.glob(f"cells/*/{pattern}")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


def done_twice(folder: Path) -> list[str]:
    """Videos that were finished more than once."""
    twice = []
    for path in folder.glob("cells/*/samples.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        done = Counter(record["sample"] for record in records if record["status"] == "ok")
        twice += [f"{path.parent.name} {sample}" for sample, count in done.items() if count != 1]
    return twice


def family(root: int) -> list[int]:
    """Processes below ``root`` that do the harness's work."""
    return sorted(pid for pid in below(root) if any(mark in words(pid) for mark in _MARKS))


def in_peace(folder: Path, run: Sequence[str], variables: Mapping[str, str]) -> dict[str, bytes]:
    """What one local worker leaves."""
    words = command("local", run, 1)
    subprocess.run(words, cwd=folder, env=dict(variables), check=True, capture_output=True)
    return results_of(folder / "out")


def disturbed(
    engine: str, run: Sequence[str], folder: Path, variables: Mapping[str, str], kills: int, patience_s: float
) -> dict[str, int]:
    """Begin ``run`` again and again while ``kills`` processes of its work are killed at random times.

    Once all are killed another engine ends the work, if there is any left.

    Raises:
        TimeoutError: it did not end.
    """
    rng = random.Random(engine)  # noqa: S311
    killed = commands = 0
    code, deadline = 1, time.monotonic() + patience_s
    while not (folder / "out" / "scores.csv").exists() or code != 0:
        commands += 1
        if time.monotonic() > deadline:
            raise TimeoutError(f"{engine}: {killed} killed, {commands} commands, not done")
        present = engine if killed < kills else "local"
        with (folder / "log").open("w") as log:
            words = command(present, run, 2)
            process = subprocess.Popen(words, cwd=folder, env={**variables, **_SLOW}, stdout=log, stderr=log)
            while process.poll() is None:
                time.sleep(rng.uniform(0.3, 1.2))
                if time.monotonic() > deadline:
                    process.terminate()  # torchrun ends its workers then
                    process.wait()
                    raise TimeoutError(f"{engine}: {killed} killed, command {commands} does not end")
                workers = family(process.pid)
                if killed < kills and workers and (folder / "out" / "plan.json").exists():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rng.choice(workers), signal.SIGKILL)
                        killed += 1
        code = process.returncode
    return {"killed": killed, "commands": commands}


def measure_workers(engines: Sequence[str], told: Callable[[dict[str, Any]], None]) -> None:
    """Tinyworld on four workers of each engine, against one worker."""
    with tempfile.TemporaryDirectory() as scratch:
        (one := Path(scratch) / "one").mkdir()
        begun = time.monotonic()
        wanted = in_peace(one, TINYWORLD, environment())
        kinds = Counter(Path(name).suffix for name in wanted)
        found: dict[str, Any] = {
            "run": " ".join(TINYWORLD),
            "files": {kind: kinds[kind] for kind in sorted(kinds)},
            "one_worker_s": round(time.monotonic() - begun, 1),
            "engines": {},
        }
        for engine in engines:
            (folder := Path(scratch) / engine).mkdir()
            begun = time.monotonic()
            words = command(engine, TINYWORLD, 4)
            done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, check=False)
            same = done.returncode == 0 and results_of(folder / "out") == wanted
            seconds = round(time.monotonic() - begun, 1)
            found["engines"][engine] = {"workers": 4, "same_bytes": same, "seconds": seconds}
            print(f"workers, {engine}: {found['engines'][engine]}", flush=True)
            told(found)


def measure_kills(engines: Sequence[str], kills: int, told: Callable[[dict[str, Any]], None]) -> None:
    """The small model under each engine, ``kills`` times killed."""
    plugin = ("--plugin", str(ROOT / "benchmarks" / "toy_plugins.py"))
    run = (*TOY, *plugin)
    with tempfile.TemporaryDirectory() as scratch:
        (quiet := Path(scratch) / "quiet").mkdir()
        wanted = in_peace(quiet, run, environment())
        found: dict[str, Any] = {"videos": sum(name.endswith(".mp4") for name in wanted), "engines": {}}
        for engine in engines:
            (folder := Path(scratch) / engine).mkdir()
            begun = time.monotonic()
            entry: dict[str, Any] = dict(disturbed(engine, run, folder, environment(), kills, 60.0 * kills))
            entry["same_bytes"] = results_of(folder / "out") == wanted
            entry["done_twice"] = len(done_twice(folder / "out"))
            entry["seconds"] = round(time.monotonic() - begun, 1)
            found["engines"][engine] = entry
            print(f"kills, {engine}: {entry}", flush=True)
            told(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 1 if anything was lost, or done twice, or has other bytes."""
    import torch

    from benchmarks.measuring import surroundings, version, write_json

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--kills", type=int, default=20, help="under each engine")
    parser.add_argument("--output", type=Path, default=Path("engines.json"))
    given = parser.parse_args(argv)
    engines = [name for name in given.engines.split(",") if name != "ray" or has_ray()]
    around = surroundings(torch.device("cpu"))
    record: dict[str, Any] = json.loads(given.output.read_text()) if given.output.is_file() else {}
    commit = {"commit": around.pop("commit")}  # of each part
    record |= {**around, "versions": {**around["versions"], "ray": version("ray")}}

    def told(part: str) -> Callable[[dict[str, Any]], None]:
        return lambda found: write_json(given.output, record | {part: record.get(part, {}) | found | commit})

    for part in given.parts.split(","):
        if part == "workers":
            measure_workers(engines, told(part))
        else:
            measure_kills(engines, given.kills, told(part))
        record = json.loads(given.output.read_text())
    ends = [entry for part in PARTS for entry in record.get(part, {}).get("engines", {}).values()]
    return 0 if all(entry["same_bytes"] and not entry.get("done_twice") for entry in ends) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the checkout's own library
    sys.exit(main())
