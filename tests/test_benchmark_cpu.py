"""The CPU benchmark runs from end to end in small, and what it says is consistent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.qat_cpu import main


@pytest.mark.slow
def test_ratios_come_first_and_follow_from_the_times(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        options = [
            "--batches",
            "1",
            "--threads",
            "1",
            "--repeats",
            "2",
            "--output",
            str(tmp_path / "out.json"),
        ]
        assert main(options) == 0
    finally:
        torch.set_num_threads(before)
    found = json.loads((tmp_path / "out.json").read_text())
    assert next(iter(found)) == "ratios" and found["parameters"] == 5_003_456
    setting = found["settings"]["batch 1, threads 1"]
    assert found["ratios"]["batch 1, threads 1"] == setting["ratios"]
    sides = setting["sides"]
    assert list(sides) == ["plain", "qvgen", "lsq", "qvgen_reference"]
    for name, value in setting["ratios"].items():
        side = sides[name.removesuffix("_to_plain")]
        assert value == pytest.approx(side["median_ms"] / sides["plain"]["median_ms"], rel=1e-3)
        turns = setting["ratios_of_turns"][name]
        assert 0 < turns["min"] <= turns["max"]
    losses = setting["losses"]
    assert all(len(values) == 3 + 2 for values in losses.values())
    assert losses["lsq"][-1] < losses["lsq"][0]
    # Both ways train one student in turns, so its loss falls along both.
    assert losses["qvgen_reference"][-1] < losses["qvgen"][0]
