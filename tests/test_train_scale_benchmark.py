"""The script of a full-size training, on two small blocks: every phase is there, and what was predicted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import train_scale
from benchmarks.train_scale import main, refuse_small_host


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


def test_a_training_that_ends_early_against_a_slower_one(tmp_path: Path) -> None:
    """As many steps as were asked for, CogVideoX's layout, and the rate against a record."""
    sizes = ["--tiny", "--model", "cogvideox-2b", "--rank", "2", "--begin", "quick", "--steps", "8"]
    assert main([*sizes, "--measure", "3", "--output", str(tmp_path / "one")]) == 0
    found = json.loads((tmp_path / "one" / "train_scale.json").read_text())
    assert [phase["name"] for phase in found["phases"]][-1] == "step 2" and len(found["losses"]) == 3
    assert {"versions", "commit", "device"} < set(found)
    slower = {**found, "step_s": 1000.0}
    (tmp_path / "one" / "train_scale.json").write_text(json.dumps(slower))
    against = ["--against", str(tmp_path / "one"), "--output", str(tmp_path / "two")]
    assert main([*sizes, "--measure", "2", *against]) == 0
    again = json.loads((tmp_path / "two" / "train_scale.json").read_text())
    assert again["scaling"]["efficiency"] == pytest.approx(1000 / again["step_s"], rel=1e-3)
    assert main([*sizes, "--limit-s", "0", "--output", str(tmp_path / "three")]) == 0
    assert len(json.loads((tmp_path / "three" / "train_scale.json").read_text())["losses"]) == 1
    with pytest.raises(SystemExit, match="another recipe: accumulate"):
        main([*sizes, "--passes", "2", *against])
    with pytest.raises(SystemExit, match="no train_scale"):
        main([*sizes, "--against", str(tmp_path / "none")])


def test_a_host_without_room_is_refused_before_the_kernel_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight gigabytes are for the processes themselves."""
    refuse_small_host(126.0, 134.0)
    refuse_small_host(126.0, None)
    with pytest.raises(ValueError, match="126 GB would lie on the host, of which 133 are free"):
        refuse_small_host(126.0, 133.4)
    monkeypatch.setattr(train_scale, "host_memory_left", lambda: 100 * 10**9)
    monkeypatch.setattr(train_scale, "transformer", lambda *_: pytest.fail("weights were made"))
    with pytest.raises(ValueError, match="152 GB would lie on the host, of which 100 are free"):
        main(["--model", "wan2.1-14b", "--offload", "moments", "--teacher", "host"])


def test_a_share_of_the_moments_is_predicted_and_trained(tmp_path: Path) -> None:
    """By hand, of 14.29e9 numbers: 2 bytes of the teacher and a quarter of 8 on the host, a twentieth more
    for holes between them, and two chunks of a GiB that are not full."""
    sizes = ["--tiny", "--rank", "0", "--begin", "quick", "--steps", "2", "--output", str(tmp_path)]
    assert main([*sizes, "--offload", "moments", "--offload-share", "0.25", "--teacher", "host"]) == 0
    found = json.loads((tmp_path / "train_scale.json").read_text())
    by_hand = 1.05 * (2 + 0.25 * 8) * 14.29 + 2 * 1.0737
    assert found["predicted_host_gb"] == pytest.approx(by_hand, rel=1e-3)
    assert found["recipe"]["offload_share"] == 0.25 and len(found["losses"]) == 2
    kept = found["predicted_gb"]["student, gradients, moments"]
    assert kept == pytest.approx((8 + 0.75 * 8) * 14.29 + 1.61, rel=1e-3)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """The commands that several GPUs are to be timed by, in small: FSDP2 over gloo, held against one process.

    The same clips in all, so the same losses; the teacher is sharded.
    """
    sizes = ["--tiny", "--model", "wan2.1-1.3b", "--rank", "2", "--begin", "quick", "--steps", "3"]
    assert main([*sizes, "--passes", "2", "--output", str(tmp_path / "one")]) == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    against = ["--against", str(tmp_path / "one"), "--output", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "benchmarks.train_scale", *sizes, "--passes", "1", *against],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "train_scale.json").read_text()) for name in ("one", "two"))
    assert two["gpus"] == 2 and two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    scaling = two["scaling"]
    assert scaling["gpus"] == 1 and scaling["step_s"] == one["step_s"]
    assert scaling["efficiency"] == pytest.approx(one["step_s"] / two["step_s"] / 2, rel=0.02)
