"""Divergence from the full-precision videos: PSNR and SSIM by hand, and files apart from all scores."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalharness import divergence
from evalharness.divergence import LABEL, compare, measure, ssim
from evalharness.hashing import file_sha256
from evalharness.runfolder import CellFolder, RunFolder
from evalharness.store import atomic_write_json
from evalharness.video import write_video

SIZE = 32


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE + 6, 3), dtype=np.uint8)


def ssim_by_definition(one: np.ndarray, other: np.ndarray) -> float:
    """Window by window, as Wang et al. write it."""
    step = np.arange(11) - 5
    line = np.exp(-(step**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        x, y = one[..., channel].astype(float), other[..., channel].astype(float)
        for row in range(x.shape[0] - 10):
            for column in range(x.shape[1] - 10):
                a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("noise", [0, 3, 40])
def test_ssim_equals_its_definition(noise: int) -> None:
    one = picture(0)
    other = (one.astype(int) + np.random.default_rng(1).integers(-noise, noise + 1, one.shape)).clip(0, 255)
    other = other.astype(np.uint8)
    assert ssim(one, other) == pytest.approx(ssim_by_definition(one, other), abs=1e-9)


def test_ssim_equals_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    one, other = picture(0), picture(1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    theirs = metrics.structural_similarity(one, other, channel_axis=-1, **options)
    assert ssim(one, other) == pytest.approx(theirs, abs=1e-9)


def test_psnr_by_hand() -> None:
    zeros = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    tens = zeros + np.uint8(10)
    found = compare(tens, zeros)
    assert found.mse == 100.0
    assert found.psnr == pytest.approx(28.1308, abs=1e-4)  # 10 log10(65025 / 100)
    half = zeros.copy()
    half[1] = 10
    assert compare(half, zeros).mse == 50.0
    assert compare(tens, tens) == (0.0, math.inf, pytest.approx(1.0))


def test_other_shapes_and_tiny_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 32, 32, 3\] and \[3, 32, 32, 3\]"):
        compare(np.zeros((2, 32, 32, 3), np.uint8), np.zeros((3, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(np.zeros((10, 32, 3), np.uint8), np.zeros((10, 32, 3), np.uint8))


def clip(level: int) -> np.ndarray:
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return np.repeat(((x * 4 + y * 3 + level) % 256).astype(np.uint8)[None, ..., None], 3, axis=0).repeat(
        3, axis=3
    )


def add_videos(files: CellFolder, levels: dict[str, int]) -> None:
    for name, level in levels.items():
        files.video(name).parent.mkdir(parents=True, exist_ok=True)
        write_video(files.video(name), clip(level), 8)
        record = {
            "sample": name,
            "status": "ok",
            "hash": "h",
            "sha256": file_sha256(files.video(name)),
            "ms": 1,
        }
        files.samples.append([record])


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Two cells and the reference; one video equals its reference, one is missing there."""
    folder = RunFolder(tmp_path / "run")
    cells = [
        {"model": "toy", "method": m, "w_bits": b, "a_bits": b, "seed": 0, "options": {}}
        for m, b in (("bf16", 16), ("rtn", 4))
    ]
    keys = ("model", "model_fingerprint", "protocol", "prompts_sha256", "skip_layers", "device")
    identity = dict.fromkeys(keys, "toy")
    atomic_write_json(folder.plan, {"schema_version": 1, "identity": identity, "cells": cells})
    add_videos(folder.cell("bf16-s0"), {"0000-0": 0, "0001-0": 40})
    add_videos(folder.cell("rtn-w4a4-s0"), {"0000-0": 0, "0001-0": 60, "0002-0": 9})
    return folder


def lines(run: RunFolder) -> list[dict[str, Any]]:
    return divergence.JsonLines(run.cell("rtn-w4a4-s0").root / "divergence.jsonl").read()


def test_a_run_has_a_table_of_its_own(run: RunFolder) -> None:
    [row] = measure(run)
    assert (row["cell"], row["videos"], row["identical"], row["failed"]) == ("rtn-w4a4-s0", 2, 1, 0)
    same, other = lines(run)
    assert (same["mse"], same["psnr"]) == (0.0, None)
    assert same["ssim"] == pytest.approx(1.0)
    assert 0 < other["psnr"] < 30
    with (run.root / "divergence.csv").open(encoding="utf-8") as file:
        [written] = csv.DictReader(file)
    assert written["what"] == LABEL
    assert "not quality" in written["what"]
    assert float(written["psnr_db"]) == pytest.approx(other["psnr"], abs=1e-3)
    assert not run.cell("rtn-w4a4-s0").scores.path.exists()


def test_only_what_changed_is_measured_again(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    plain = compare
    monkeypatch.setattr(divergence, "compare", lambda a, b: (measured.append(1), plain(a, b))[1])
    first = measure(run)
    assert len(measured) == 2
    assert measure(run) == first
    assert len(measured) == 2
    add_videos(run.cell("rtn-w4a4-s0"), {"0001-0": 41})
    assert measure(run) != first
    assert len(measured) == 3
    assert [row["sample"] for row in lines(run)] == ["0000-0", "0001-0"]


def test_a_damaged_video_is_one_failure_and_is_tried_again(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.cell("bf16-s0").video("0001-0")
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    assert divergence.main([str(run.root)]) == 1
    assert "rtn-w4a4-s0,rtn,w4a4,0,1,1,1,," in capsys.readouterr().out
    assert "0001-0.mp4" in lines(run)[1]["error"]
    path.write_bytes(whole)
    assert divergence.main([str(run.root)]) == 0


def test_a_folder_without_a_reference_is_refused(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        measure(RunFolder(tmp_path / "none"))
    plan = divergence.read_plan_file(run)
    assert len(plan.cells) == 2
    record = json.loads(run.plan.read_text())
    record["cells"] = record["cells"][1:]
    atomic_write_json(run.plan, record)
    with pytest.raises(ValueError, match="no cell bf16"):
        measure(run)


def test_a_mistake_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evalharness.divergence", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
