"""The benchmarks of post-training quantization run from end to end in small and are consistent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def run_script(name: str, output: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), "--tiny", "--output", str(output), *options],
        capture_output=True, text=True, check=False, env=environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done, json.loads(output.read_text()) if output.exists() else None


@pytest.mark.slow
def test_ptq_time_counts_one_calibration_in_each_total(tmp_path: Path) -> None:
    done, found = run_script("ptq_time.py", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert list(found["parts"]) == ["viditq", "svdquant"]
    calibrations = set()
    for name, part in found["parts"].items():
        assert part["complete"] and part["groups_done"] == part["groups"] > 0
        assert list(part["phases"]) == ["calibration", "choosing", "solving", "finishing"]
        total = sum(phase["seconds"] for phase in part["phases"].values())
        assert found["ratios"][name]["seconds"] == pytest.approx(total)
        assert "estimated_seconds" not in found["ratios"][name]
        assert 0 < part["output_error"] < 0.1
        calibrations.add(part["phases"]["calibration"]["seconds"])
    assert calibrations == {found["calibration_s"]}
    # q, k and v are one problem of SVDQuant, three layers of ViDiT-Q: 6 linears in each of 2 blocks.
    assert [part["groups"] for part in found["parts"].values()] == [12, 8]


@pytest.mark.slow
def test_ptq_time_says_when_it_did_not_finish(tmp_path: Path) -> None:
    done, found = run_script("ptq_time.py", tmp_path / "out.json", "--limit-s", "0", "--methods", "svdquant")
    assert done.returncode == 0, done.stderr
    part = found["parts"]["svdquant"]
    assert part["complete"] is False and "output_error" not in part
    assert found["ratios"]["svdquant"]["target_s"] == 900


def test_ptq_time_refuses_an_unknown_method(tmp_path: Path) -> None:
    done, found = run_script("ptq_time.py", tmp_path / "out.json", "--methods", "rtn")
    assert done.returncode == 2 and found is None
    assert "'rtn' is none of viditq, svdquant" in done.stderr


@pytest.mark.slow
def test_hadamard_compares_with_the_linear(tmp_path: Path) -> None:
    done, found = run_script("hadamard.py", tmp_path / "out.json", "--repeats", "2")
    assert done.returncode == 0, done.stderr
    assert list(found["parts"]) == ["check", "launches", "shares"]
    assert found["ratios"]["check"]["largest_share_of_codes_that_differ"] < 0.05
    for name, linear in found["parts"]["shares"]["linears"].items():
        median = {variant: entry["median_ms"] for variant, entry in linear["times"].items()}
        added = median["rotate and quantize"] - median["quantize"]
        share = found["ratios"]["shares"][f"{name}: rotation adds, of the linear"]
        assert share == pytest.approx(added / median["linear"], rel=1e-3, abs=1e-6)
        assert linear["fused"] is False  # no kernel without Triton and a GPU
    assert found["parts"]["launches"]["skipped"]
