"""Workers that die at random, under every executor: nothing is lost, and nothing finished is done twice.

``KILLS=20 pytest tests/evalharness/test_killed_workers.py`` kills more of them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
KILLS = int(os.environ.get("KILLS", "1"))
RUN = ("run", "--model", "toy", "--methods", "toy-round", "--bits", "3", "--no-profile")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "99")
PATIENCE = 120.0 + 20 * KILLS

has_ray = importlib.util.find_spec("ray") is not None
ENGINES = [
    "local",
    "torchrun",
    pytest.param("ray", marks=pytest.mark.skipif(not has_ray, reason="Ray is not installed")),
]


def command(engine: str) -> list[str]:
    start = (
        [*TORCHRUN, "-m", "evalharness"] if engine == "torchrun" else [sys.executable, "-m", "evalharness"]
    )
    workers = [] if engine == "torchrun" else ["--workers", "2"]
    return [*start, *RUN, "--executor", engine, *workers, "--output", "out"]


def results_of(folder: Path) -> dict[str, bytes]:
    kept = [folder / "scores.csv"]
    for pattern in ("scores.jsonl", "videos/*", "checkpoint/*"):
        kept += folder.glob(f"cells/*/{pattern}")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def environment(toy_site: Path) -> dict[str, str]:
    paths = [str(toy_site), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    path = os.pathsep.join(paths)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def undisturbed(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    call = [sys.executable, "-m", "evalharness", *RUN, "--workers", "1", "--output", "out"]
    subprocess.run(call, cwd=folder, env=environment, check=True, capture_output=True)
    return results_of(folder / "out")


def family(root: int) -> list[int]:
    """Processes below ``root`` that do the harness's work."""
    parents: dict[int, int] = {}
    words: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parents[int(entry.name)] = int(
                    entry.joinpath("stat").read_text().rpartition(")")[2].split()[1]
                )
                words[int(entry.name)] = entry.joinpath("cmdline").read_text().replace("\0", " ")
    found, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    marks = ("evalharness.worker", "ray::_Worker", "-m evalharness run", "-u -m evalharness")
    return sorted(pid for pid in found - {root} if any(mark in words.get(pid, "") for mark in marks))


def finished_once(folder: Path) -> None:
    for path in folder.glob("cells/*/samples.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        done = Counter(record["sample"] for record in records if record["status"] == "ok")
        assert done and set(done.values()) == {1}, path


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_random(
    engine: str, environment: dict[str, str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    rng = random.Random(engine)
    slow = {**environment, "TOY_SLOW": "0.3"}
    killed = runs = 0
    code = 1
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "out" / "scores.csv").exists() or code != 0:
        runs += 1
        assert time.monotonic() < deadline
        log = (tmp_path / "log").open("w")
        present = engine if killed < KILLS else "local"  # the rest by another engine
        process = subprocess.Popen(command(present), cwd=tmp_path, env=slow, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(rng.uniform(0.3, 1.2))
            workers = family(process.pid)
            if killed < KILLS and workers and (tmp_path / "out" / "plan.json").exists():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    killed += 1
        code = process.returncode
    assert killed == KILLS
    assert results_of(tmp_path / "out") == undisturbed
    finished_once(tmp_path / "out")


def test_outside_of_torchrun_it_says_so(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    finished = call(*RUN, "--executor", "torchrun")
    errors: Sequence[str] = finished.errors  # type: ignore[attr-defined]
    assert finished.code == 2  # type: ignore[attr-defined]
    assert "was not started by torchrun" in errors[-1]


def test_a_cluster_needs_a_number(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    finished = call(*RUN, "--executor", "ray")
    assert finished.code == 2  # type: ignore[attr-defined]
    assert "with --workers N" in finished.errors[-1]  # type: ignore[attr-defined]


def test_a_cluster_that_does_not_start(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    ray = types.SimpleNamespace(is_initialized=lambda: False)

    def init(**options: object) -> None:
        raise RuntimeError("The current node timed out\nduring startup.")

    ray.init = init
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    finished = call(*RUN, "--executor", "ray")
    assert finished.code == 2  # type: ignore[attr-defined]
    line = finished.errors[-1]  # type: ignore[attr-defined]
    assert "no cluster on this machine: RuntimeError: The current node timed out during startup." in line


def test_without_ray_it_says_so(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    finished = call(*RUN, "--executor", "ray")
    assert finished.code == 2  # type: ignore[attr-defined]
    assert 'pip install "evalharness[ray]"' in finished.errors[-1]  # type: ignore[attr-defined]
