"""The benchmark of packed execution runs from end to end in small, and what it says is consistent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.packed_cpu import main


@pytest.mark.slow
def test_ratios_follow_from_the_times(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        assert main(["--bits", "w4a4", "--repeats", "3", "--output", str(tmp_path / "out.json")]) == 0
    finally:
        torch.set_num_threads(before)
    found = json.loads((tmp_path / "out.json").read_text())
    setting = found["settings"]["w4a4, threads 1"]
    assert next(iter(found)) == "ratios" and found["ratios"]["w4a4, threads 1"] == setting["ratios"]
    times = setting["times"]
    for name, value in setting["ratios"].items():
        wanted = times[name.removesuffix("_to_fp32")]["median_ms"] / times["fp32"]["median_ms"]
        assert value == pytest.approx(wanted, rel=1e-3)
    worked = setting["processor"]
    for name, value in setting["processor_ratios"].items():
        wanted = worked[name.removesuffix("_to_fp32")]["median_ms"] / worked["fp32"]["median_ms"]
        assert value == pytest.approx(wanted, rel=1e-3)
    assert all(worked[name]["n"] == times[name]["n"] == 3 for name in times)
    held = setting["held_mb"]
    assert setting["packed_mb"] < held["packed_reference"] < held["packed_cpu"] < held["fp32"] < held["fake"]
    assert all(value < 0.1 for value in setting["largest_difference_of_output"].values())
