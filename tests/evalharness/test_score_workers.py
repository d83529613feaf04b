"""Files shared out over any number of workers: one aggregation, whoever dies and whenever."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalharness.video import write_video
from tests.evalharness.test_killed_workers import ENGINES

ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).with_name("file_judges.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
KILLS = int(os.environ.get("KILLS", "2"))
PATIENCE = 400.0 + 20 * KILLS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight videos, one of which is none."""
    clips = tmp_path / "clips"
    clips.mkdir()
    ramp = np.linspace(0, 1, 3 * 32 * 32 * 3).reshape(3, 32, 32, 3)
    for number in range(8):
        write_video(clips / f"clip {number}-0.mp4", (ramp * (40 + 25 * number)).astype(np.uint8), 8)
    (clips / "clip 5-0.mp4").write_bytes(b"no video")
    return tmp_path


def command(workers: int, engine: str = "local") -> list[str]:
    start = TORCHRUN if engine == "torchrun" else (sys.executable,)
    many = [] if engine == "torchrun" else ["--workers", str(workers)]
    made = [*start, "-m", "evalharness", "score", "clips", "--protocol", "files-like", "--output", "out"]
    return [*made, "--plugin", str(PLUGIN), "--dimensions", "mean,span", "--executor", engine, *many]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *sys.path])
    quiet = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **quiet, **more}


def scored(folder: Path, workers: int, engine: str = "local") -> dict[str, Any]:
    """What one undisturbed command leaves; exit code 1 tells of the file that is no video."""
    done = subprocess.run(
        command(workers, engine), cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    left = left_by(folder / "out")
    shutil.rmtree(folder / "out")
    return left


def left_by(run: Path) -> dict[str, Any]:
    """Bytes of the scores and of the table, and the aggregation without its times."""
    [rows] = run.glob("cells/*/scores.jsonl")
    results = json.loads((run / "results.json").read_text())
    estimates = [cell["dimensions"] for cell in results["cells"]]
    return {"rows": rows.read_bytes(), "csv": (run / "scores.csv").read_bytes(), "estimates": estimates}


def test_any_number_of_workers_leaves_the_same(folder: Path) -> None:
    one = scored(folder, 0)
    rows = [json.loads(line) for line in one["rows"].splitlines()]
    assert len(rows) == len({(row["sample"], row["dimension"]) for row in rows}) == 16
    assert [estimate["mean"]["n"] for estimate in one["estimates"]] == [7]
    assert scored(folder, 3) == one


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_other_engines_leave_the_same(folder: Path, engine: str) -> None:
    assert scored(folder, 2, engine) == scored(folder, 1)


@pytest.mark.slow
def test_killed_at_any_moment(folder: Path) -> None:
    """The command and all its workers die at random times, again and again, until one command is through."""
    undisturbed = scored(folder, 1)
    rng = random.Random(6)
    killed, deadline = 0, time.monotonic() + PATIENCE
    log = folder / "judged"
    slowly = environment(JUDGE_SLOWLY="0.4", JUDGED=str(log))
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    while killed < KILLS:
        assert time.monotonic() < deadline
        process = subprocess.Popen(command(2), cwd=folder, env=slowly, start_new_session=True, **quiet)
        begun = time.monotonic()
        moment = rng.uniform(0.0, 1.0)
        seen = len(log.read_text().splitlines()) if log.exists() else 0
        # Most of a command is its start: the moment is counted from the first video it judges.
        while process.poll() is None and time.monotonic() - begun < 60:
            if log.exists() and len(log.read_text().splitlines()) > seen:
                time.sleep(moment)
                break
            time.sleep(0.02)
        killed += process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.returncode == 1:
            break  # it was through before its moment came
    done = subprocess.run(command(2), cwd=folder, env=environment(), check=False, **quiet)
    assert done.returncode == 1
    assert killed
    assert left_by(folder / "out") == undisturbed
