"""Killed, interrupted, run twice, run by other numbers of workers: the same bytes in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evalharness.store import read_json
from tests.processor import run_within

Outcome = dict[str, bytes]
Start = Callable[..., subprocess.Popen[str]]

RUN = ("run", "--model", "toy", "--methods", "toy-train,toy-round", "--bits", "3", "--output", "out")
PATIENCE = 300.0
REPOSITORY = Path(__file__).parents[2]


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def outcome(folder: Path) -> Outcome:
    """What must not depend on how a run went: scores, videos, checkpoints."""
    kept = [folder / "scores.csv"]
    for pattern in ("scores.jsonl", "videos/*", "checkpoint/*", "train.jsonl"):
        kept += folder.glob(f"cells/*/{pattern}")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="session")
def undisturbed(toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The outcome of one quiet run with one worker."""
    folder = tmp_path_factory.mktemp("undisturbed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(toy_site), str(REPOSITORY)])}
    command = [sys.executable, "-m", "evalharness", *RUN, "--workers", "1"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return outcome(folder / "out")


@pytest.mark.parametrize("place", ["prepare:3", "generate:10", "score:5", "profile:2", "aggregate:1"])
def test_killed_and_run_again(start: Start, tmp_path: Path, undisturbed: Outcome, place: str) -> None:
    """SIGKILL while a worker is inside a stage: workers die too, and the next run completes it."""
    log = tmp_path / "log"
    log.mkdir()
    stage, number = place.split(":")
    first = start(*RUN, "--workers", "1", TOY_LOG=str(log), TOY_PAUSE=place)
    visits = log / stage
    wait_for(lambda: visits.exists() and len(visits.read_text().splitlines()) >= int(number))
    workers = {int(line.split()[0]) for file in log.iterdir() for line in file.read_text().splitlines()}
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in workers))
    assert not (tmp_path / "out" / "scores.csv").exists()

    code, _, err = finish(start(*RUN, "--workers", "1"))
    assert code == 0, err
    assert outcome(tmp_path / "out") == undisturbed
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    if stage in ("score", "profile", "aggregate"):
        assert "generate:" not in err, "finished videos are not made again"


def test_killed_while_making_a_cell_again(start: Start, tmp_path: Path) -> None:
    """Its old numbers are gone at once, whatever runs next; the same command then completes it."""
    redo = (*RUN, "--workers", "0", "--set", "toy-train.steps=4")
    assert finish(start(*RUN, "--workers", "0"))[0] == 0
    log = tmp_path / "log"
    log.mkdir()
    visits = log / "prepare"
    process = start(*redo, TOY_LOG=str(log), TOY_PAUSE="prepare:3")
    wait_for(lambda: visits.exists() and len(visits.read_text().splitlines()) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cell = tmp_path / "out" / "cells" / "toy-train-w3a3-s0"
    assert not (cell / "prepare.json").exists()
    assert not (cell / "profile.json").exists()

    only_the_other = [word if word != "toy-train,toy-round" else "toy-round" for word in RUN]
    assert finish(start(*only_the_other, "--workers", "0"))[0] == 0
    results = read_json(tmp_path / "out" / "results.json")
    assert results is not None
    coverage = {cell["id"]: cell["coverage"] for cell in results["cells"]}
    assert coverage == {"bf16-s0": 1, "toy-train-w3a3-s0": 0, "toy-round-w3a3-s0": 1}

    assert finish(start(*redo))[0] == 0
    quiet = [word if word != "out" else "quiet" for word in redo]
    assert finish(start(*quiet))[0] == 0
    assert outcome(tmp_path / "out") == outcome(tmp_path / "quiet")


def test_other_workers_and_another_order(start: Start, tmp_path: Path, undisturbed: Outcome) -> None:
    """First a part in the command's own process, then three workers, methods the other way round."""
    reordered = [word if word != "toy-train,toy-round" else "toy-round,toy-train" for word in RUN]
    assert finish(start(*reordered, "--workers", "0", "--limit", "2"))[0] == 0
    assert finish(start(*reordered, "--workers", "3"))[0] == 0
    assert outcome(tmp_path / "out") == undisturbed


def test_two_at_once(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    first = start(*RUN, "--workers", "1", TOY_LOG=str(log), TOY_PAUSE="prepare:1")
    wait_for(lambda: (log / "prepare").exists())
    try:
        code, _, err = finish(start(*RUN))
    finally:
        first.kill()
        first.wait()
    assert code == 2
    [line] = err.splitlines()
    assert line.startswith(f"error: out is in use by process {first.pid} (since 20")


def test_control_c_stops_cleanly_and_says_how_to_go_on(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    process = start(*RUN, "--workers", "2", TOY_LOG=str(log), TOY_PAUSE="generate:4")
    wait_for(lambda: (log / "generate").exists() and len((log / "generate").read_text().splitlines()) >= 4)
    workers = {int(line.split()[0]) for line in (log / "generate").read_text().splitlines()}
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert err.splitlines()[-1] == "interrupted; what is finished is kept, and the same command resumes"
    assert "Traceback" not in err
    assert not any(is_alive(pid) for pid in workers)


def test_a_worker_that_dies_costs_one_video(start: Start, tmp_path: Path, undisturbed: Outcome) -> None:
    """As the kernel's out-of-memory killer would do it."""
    code, _, err = finish(start(*RUN, "--workers", "2", TOY_DIE="generate/four"))
    assert code == 1
    assert "bf16-s0/p03-0: worker process was killed (signal 9; often: out of memory)" in err
    assert "3 videos in all: worker process was killed" in err
    assert len(list((tmp_path / "out").rglob("*.mp4"))) == 3 * 5
    assert finish(start(*RUN, "--workers", "0"))[0] == 0
    assert outcome(tmp_path / "out") == undisturbed


TELL = """
import sys
from evalharness.cli.main import main
code = main(sys.argv[1:])
print(sorted({"torch", "pandas", "diffusers", "cv2"} & set(sys.modules)))
sys.exit(code)
"""


def test_the_second_run_needs_no_torch_and_little_time(start: Start, tmp_path: Path, toy_site: Path) -> None:
    assert finish(start(*RUN, "--workers", "0"))[0] == 0
    manifest = read_json(tmp_path / "out" / "manifest.json")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(toy_site), str(REPOSITORY)])}
    command = [sys.executable, "-c", TELL, *RUN]
    again = run_within(5.0, command, cwd=tmp_path, env=environment)
    assert "nothing to do: 3 cells, 18 videos, 27 scores up to date" in again.stderr
    assert again.stdout.splitlines()[-1] == "[]"
    assert read_json(tmp_path / "out" / "manifest.json") == manifest
