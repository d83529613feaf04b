"""The benchmark script runs from end to end in small, and what it says is consistent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "qat_step.py"


def run_script(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True, text=True, check=False, env=environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("benchmark") / "out.json"
    done = run_script("--tiny", "--repeats", "1", "--output", str(path))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_every_part_gives_its_ratios_first(results: dict[str, Any]) -> None:
    parts = results["parts"]
    assert list(parts) == list(results["ratios"]) == ["kernels", "linears", "step", "phi"]
    variants = parts["linears"]["variants"]
    assert list(variants) == ["plain", "fused", "unfused", "official"]
    expected = variants["fused"]["median_ms"] / variants["plain"]["median_ms"]
    assert results["ratios"]["linears"]["fused_to_plain"] == pytest.approx(expected, rel=1e-3)
    assert results["versions"]["torch"] and results["tiny"] is True


@pytest.mark.slow
def test_a_quantized_step_trains_what_a_plain_step_trains_and_more(results: dict[str, Any]) -> None:
    sides = results["parts"]["step"]["sides"]
    assert sides["fused"]["parameters"] > sides["plain"]["parameters"]
    assert sides["plain"]["losses"] == sides["plain again"]["losses"]
    for side in sides.values():
        assert side["losses"][-1] < side["losses"][0]


@pytest.mark.slow
def test_rank_halving_keeps_the_product(results: dict[str, Any]) -> None:
    phi = results["parts"]["phi"]
    assert phi["layers"] == phi["layers_with_phi"] == phi["layers_in_svd_estimate"] == 21
    assert phi["ratios"]["reconstruction_error"] < 1e-7
    assert all(0.9999 <= energy < 1.0001 for energy in phi["captured_energy"].values())


def test_an_unknown_part_is_refused_by_name() -> None:
    done = run_script("--tiny", "--parts", "linear")
    assert done.returncode == 2
    assert "'linear' is none of kernels, linears, step, phi" in done.stderr
