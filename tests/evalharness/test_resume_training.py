"""A run killed in the middle of a training goes on where the training stood, to the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalharness.api import Bits
from evalharness.cells import Cell
from evalharness.checkpoints import _made_as_asked
from evalharness.executor import WorkerSpec
from evalharness.models.tinyworld import CHECKPOINTS
from evalharness.registry import Registry
from evalharness.session import Session
from evalharness.stages.context import StageContext
from qvgen.diverged import DivergedError

RUN = (
    "run", "--model", "toy", "--methods", "qvgen", "--bits", "3", "--limit", "1", "--no-profile",
    "--set", "qvgen.recipe.steps=1500", "--set", "qvgen.recipe.save_every=50", "--output",
)  # fmt: skip
CELL = "cells/qvgen-w3a3-s0"
Start = Callable[..., subprocess.Popen[str]]


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def log(cell: Path) -> list[dict[str, Any]]:
    """The whole lines: the last one may still be being written."""
    text = (cell / "train.jsonl").read_text()
    records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


@pytest.mark.slow
def test_killed_in_mid_training(start: Start, tmp_path: Path) -> None:
    cell, quiet = tmp_path / "out" / CELL, tmp_path / "quiet" / CELL

    def in_the_middle() -> bool:
        begun = (cell / "train.jsonl").exists() and len(log(cell)) >= 20
        return begun and any(cell.glob("training-*/train_state.safetensors"))

    first = start(*RUN, "out", "--workers", "1")
    wait_for(in_the_middle)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert len(log(cell)) < 150 and not (cell / "prepare.json").exists()
    begun = (cell / "train.jsonl").read_text().splitlines()[:5]

    _, err = (again := start(*RUN, "out", "--workers", "0")).communicate(timeout=300)
    assert again.returncode == 0, err
    kept = (cell / "train.jsonl").read_text().splitlines()[:5]
    assert kept == begun, "lines with their seconds: these steps were not taken again"
    assert not list(cell.glob("training-*"))

    _, err = (other := start(*RUN, "quiet", "--workers", "0")).communicate(timeout=300)
    assert other.returncode == 0, err
    assert log(cell) == log(quiet)
    files = sorted(p.name for p in (quiet / "checkpoint").iterdir())
    assert "model.safetensors" in files
    assert all(
        (cell / "checkpoint" / f).read_bytes() == (quiet / "checkpoint" / f).read_bytes() for f in files
    )


@pytest.mark.slow
def test_a_log_that_is_hurt_while_its_training_lies_killed(start: Start, tmp_path: Path) -> None:
    """Two of the lines that the state knows of: the training goes on, and everybody is told of two."""
    cell = tmp_path / "out" / CELL
    run = tuple("qvgen.recipe.steps=400" if word.endswith("steps=1500") else word for word in RUN)
    first = start(*run, "out", "--workers", "1")
    wait_for(lambda: any(cell.glob("training-*/train_state.safetensors")))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (cell / "prepare.json").exists() and (cell / ".train.crc").exists()
    lines = (cell / "train.jsonl").read_text().splitlines(keepends=True)
    hurt = lines[2].replace('"loss": 0', '"loss": 1', 1)
    assert hurt != lines[2]
    (cell / "train.jsonl").write_text("".join([lines[0], hurt, *lines[3:]]))

    _, err = (again := start(*run, "out", "--workers", "0")).communicate(timeout=300)
    assert again.returncode == 0, err
    said = "train.jsonl lost 2 lines before the training went on"
    assert f"qvgen-w3a3-s0: {said}" in err
    seal = json.loads((cell / "prepare.json").read_text())["train_log"]
    assert seal["lost"] == 2 and not (cell / ".train.crc").exists()
    found = (cell / "train.jsonl").read_text().splitlines(keepends=True)
    assert (found[0], found[1:3]) == (lines[0], ['{"event": "lost"}\n'] * 2) and len(found) == seal["lines"]
    assert [record["step"] for record in log(cell)[3:5]] == [json.loads(line)["step"] for line in lines[3:5]]
    assert f"TRAINING LOG of qvgen-w3a3-s0: {said}" in (tmp_path / "out" / "leaderboard.md").read_text()


def test_a_training_with_other_options_starts_anew(toy_run: Callable[..., Any], tmp_path: Path) -> None:
    """What an abandoned training left is removed, neither used nor refused."""
    left = tmp_path / "out" / CELL / "training-0123456789abcdef"
    options = ("--methods", "qvgen", "--bits", "3", "--limit", "1", "--no-profile")
    assert toy_run("--methods", "toy-round", "--bits", "3", "--limit", "1", "--no-profile").code == 0
    left.mkdir(parents=True)
    (left / "train_state.safetensors").write_bytes(b"of other options")
    assert toy_run(*options, "--set", "qvgen.recipe.steps=6").code == 0
    assert not left.exists() and len(log(tmp_path / "out" / CELL)) == 1


def test_the_log_is_rewound(toy: Path, tmp_path: Path) -> None:
    session = Session(WorkerSpec(model="toy", protocol="toy", device="cpu", skip_layers="std"))
    context = StageContext(session, 0, tmp_path / "train.jsonl", tmp_path / "state")
    context.rewind_log(0)
    for step in range(4):
        context.log({"step": step})
    context.rewind_log(2)
    context.log({"step": 9})
    assert [record["step"] for record in log(tmp_path)] == [0, 1, 9]


def test_validation_batches_are_others(toy: Path, tmp_path: Path) -> None:
    session = Session(WorkerSpec(model="toy", protocol="toy", device="cpu", skip_layers="std"))
    context = StageContext(session, 0, tmp_path / "train.jsonl")
    assert context.state_folder is None
    held_out, training = context.validation_batches(4), context.batches(4)
    assert not next(held_out).target.eq(next(training).target).any()


@pytest.mark.parametrize("method", ["lsq", "qvgen"])
def test_published_checkpoints_are_found_by_the_options_that_made_them(method: str) -> None:
    """Options that a method gained later count with their defaults."""
    options = yaml.safe_load(Path("configs/tinyworld-published.yaml").read_text())["method_options"][method]
    folder = CHECKPOINTS / f"{method}-w3a3"
    cell = Cell(model="tinyworld", method=method, bits=Bits(3, 3), seed=0, options=options)
    assert _made_as_asked(folder, cell, Registry(()))
    other = {**options, "recipe": {**options["recipe"], "accumulate": 2}}
    cell = Cell(model="tinyworld", method=method, bits=Bits(3, 3), seed=0, options=other)
    assert not _made_as_asked(folder, cell, Registry(()))


@pytest.mark.parametrize(
    ("error", "is_kept"), [(ValueError("no such weights"), True), (DivergedError("NaN"), False)]
)
def test_only_a_training_that_diverged_loses_its_state(
    error: Exception,
    is_kept: bool,
    toy_run: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights that are not mounted just now must not cost hours that are on the disk."""

    def log(self: StageContext, record: Any) -> None:
        folder = Path(self.state_folder)  # type: ignore[arg-type]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train_state.safetensors").write_bytes(b"hours")
        raise error

    monkeypatch.setattr(StageContext, "log", log)
    options = ("--methods", "qvgen", "--bits", "3", "--limit", "1", "--no-profile")
    assert toy_run(*options).code == 1
    left = list((tmp_path / "out" / CELL).glob("training-*/train_state.safetensors"))
    assert bool(left) == is_kept
