"""A third party's package, installed by pip, can do all that the built-in plugins can."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
Start = Callable[..., subprocess.Popen[str]]


def test_pip_installed_it_with_its_entry_points(toy_site: Path) -> None:
    assert (toy_site / "toybench" / "methods.py").is_file()
    [info] = toy_site.glob("toybench-*.dist-info")
    assert "toy-train = toybench.methods:ToyTrain" in (info / "entry_points.txt").read_text()


def test_its_method_and_metric_run_from_the_command_line(start: Start, tmp_path: Path) -> None:
    process = start("run", "--model", "toy", "--methods", "toy-round", "--bits", "2", "--output", "out")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "toy-round"]
    motion = {row["prompt_id"]: float(row["value"]) for row in rows if row["dimension"] == "motion"}
    assert motion.keys() == {"p01", "p03", "p05"}
    for prompt, value in motion.items():
        capture = cv2.VideoCapture(
            str(tmp_path / "out" / "cells" / "toy-round-w2a2-s0" / "videos" / f"{prompt}-0.mp4")
        )
        frames = []
        while (step := capture.read())[0]:
            frames.append(step[1].astype(float))
        assert value == pytest.approx(np.abs(np.diff(frames, axis=0)).mean() / 255, abs=2e-3)

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    used = {(p["kind"], p["name"]): (p["source"], p["version"]) for p in manifest["plugins"]}
    assert used["methods", "toy-round"] == ("toybench", "0.3.0")
    assert used["metrics", "toy.motion"] == ("toybench", "0.3.0")
    assert ("methods", "toy-train") not in used, "what was not used is not claimed"


def test_the_bits_reach_the_method(start: Start, tmp_path: Path) -> None:
    """At 2 bits the rounded matrix holds at most 5 values: -2..2 steps."""
    from safetensors.numpy import load_file

    process = start(
        "run", "--model", "toy", "--methods", "toy-round", "--bits", "2", "--limit", "1", "--output", "o"
    )
    process.communicate(timeout=300)
    weights = load_file(tmp_path / "o" / "cells" / "toy-round-w2a2-s0" / "checkpoint" / "w.safetensors")
    assert len(np.unique(weights["0.weight"])) <= 5
    assert len(np.unique(weights["2.weight"])) > 100, "the std preset keeps the last layer"


def test_a_package_that_is_gone_is_missed_by_name(start: Start, tmp_path: Path) -> None:
    process = start("run", "--model", "toy", "--limit", "1", "--output", "out", PYTHONPATH=str(REPOSITORY))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "error: unknown model 'toy'" in err
