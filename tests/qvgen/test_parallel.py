"""One training on one process, on two, and handed from one number to the other: the same losses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from tests.qvgen import parallel_training
from tests.qvgen.test_resume import lines, saved_step

REPOSITORY = Path(__file__).parents[2]


def torchrun(
    folder: Path,
    *arguments: str,
    processes: int = 2,
    script: str = parallel_training.__file__,
    seconds: int = 500,
) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, script, str(folder), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)


def assert_same_training(folder: Path, other: Path) -> None:
    """Same lines, numbers alike but for the order of sums; quantized weights alike."""
    assert len(lines(folder)) == 11
    for ours, theirs in zip(lines(folder), lines(other), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if isinstance(value, float):
                assert value == pytest.approx(theirs[key], rel=2e-3, abs=1e-6), (key, ours["step"])
    assert lines(folder)[0]["loss"] == pytest.approx(lines(other)[0]["loss"], rel=1e-5)
    ours, theirs = (load_file(f / "model.safetensors") for f in (folder, other))
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.float(), theirs[name].float(), rtol=2e-2, atol=2e-3)
        else:  # packed codes: a weight on the edge of two may fall to either side
            assert tensor.ne(theirs[name]).float().mean() < 0.02


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    parallel_training.train(folder)
    return folder


@pytest.mark.slow
def test_two_processes_are_one(alone: Path, tmp_path: Path) -> None:
    done = torchrun(tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path, alone)


@pytest.mark.slow
def test_a_state_of_two_processes_is_resumed_by_one(alone: Path, tmp_path: Path) -> None:
    """The two keep moments on the host, write in the background and share a teacher; the one does not."""
    stopped = torchrun(tmp_path, "60", "all")
    assert stopped.returncode != 0 and "Stopped" in stopped.stderr
    assert saved_step(tmp_path) == 12
    parallel_training.train(tmp_path)
    assert_same_training(tmp_path, alone)


@pytest.mark.slow
def test_a_state_of_one_process_is_resumed_by_two(alone: Path, tmp_path: Path) -> None:
    with pytest.raises(parallel_training.Stopped):
        parallel_training.train(tmp_path, 60, offload="moments")
    assert saved_step(tmp_path) == 12
    done = torchrun(tmp_path, "100000", "all")
    assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path, alone)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"accumulate": 3}, "accumulate is 3, but 2 processes share"), ({"compile": "graph"}, "on one process")],
)
def test_what_two_processes_cannot_do(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    with pytest.raises(ValueError, match=message):
        parallel_training.train(tmp_path, **change)
