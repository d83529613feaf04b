"""The CPU benchmark runs from end to end in small, and what it says is consistent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ptq_cpu
from benchmarks.qat_cpu import main
from evalharness.stages import context


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


@pytest.mark.slow
def test_quantizing_after_training_is_timed_with_and_without_its_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[int] = []
    collect = context.calibrate

    def counted(*args: Any, **options: Any) -> Any:
        collected.append(1)
        return collect(*args, **options)

    monkeypatch.setattr(context, "calibrate", counted)
    path = tmp_path / "out.json"
    before = torch.get_num_threads()
    try:
        assert ptq_cpu.main(["--methods", "gptq", "--prompts", "1", "--output", str(path)]) == 0
    finally:
        torch.set_num_threads(before)
    found = json.loads(path.read_text())
    assert (found["prompts"], found["bits"], found["threads"]) == (1, 4, 1)
    assert set(found["methods"]["gptq"]) == {"seconds", "seconds_calibrated", "target_s"}
    assert len(collected) == 1, "the second start finds what the first has collected"
