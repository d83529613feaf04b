"""The script of a full-size training, on two small blocks: every phase is there, and what was predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.train_scale import main


def test_a_small_training_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--frames", "5", "--height", "32", "--width", "32", "--text", "4", "--steps", "3", "--rank", "2"]
    options = [
        "--offload",
        "moments",
        "--state",
        str(tmp_path / "state"),
        "--save-every",
        "2",
        "--save-async",
    ]
    assert main(["--tiny", *sizes, *options, "--begin", "quick", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "train_scale.json").read_text())
    assert [phase["name"] for phase in found["phases"]] == [
        "weights made", "student quantized and sharded", "teacher in place", "step 0", "step 1", "step 2",
        "converted",
    ]  # fmt: skip
    assert len(found["losses"]) == 3 and min(found["losses"]) > 0
    assert found["gpus"] == 1 and found["recipe"]["offload"] == "moments"
    parts = found["predicted_gb"]
    assert found["predicted_step_peak_gb"] == pytest.approx(sum(parts.values()), abs=0.05)
    assert parts["student, gradients, moments"] == pytest.approx(8 * 14.29 + 1.61, rel=0.01)
    assert (tmp_path / "state" / "train_state.safetensors").exists()
    assert '"model": "wan2.1-14b"' in capsys.readouterr().out
