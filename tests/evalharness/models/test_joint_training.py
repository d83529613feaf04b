"""A training under torchrun is one training: all ranks share its passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evalharness.cli.main import main

REPOSITORY = Path(__file__).parents[3]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LAUNCH = (*TORCHRUN, "-m", "evalharness")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wan2.1", "wan2.2-pair"])
def test_two_ranks_train_what_one_process_trains(
    kind: str, flags: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a training whose passes cannot be shared is refused, which one rank alone would not do.

    The pair needs one expert for both ranks at a time; its first 20 batches are on both sides.
    """
    steps = 4 if kind == "wan2.1" else 10
    recipe = {"steps": steps, "batch_size": 2, "accumulate": 2, "log_every": 1}
    options = {"kd-qat": {"recipe": recipe}, "qvgen": {"recipe": {**recipe, "steps": 6, "accumulate": 1}}}
    command = ["run", *flags(kind), "--protocol", "smoke", "--limit", "1", "--no-profile"]
    command += ["--data", "teacher", "--methods", "kd-qat,qvgen,rtn", "--bits", "8", "--skip-layers", "none"]
    command += ["--method-options", json.dumps(options)]
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--workers", "0", "--output", "one"]) == 0
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    both = [*LAUNCH, *command, "--executor", "torchrun", "--output", "two"]
    done = subprocess.run(both, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert "qvgen-w8a8-s0: could not be prepared: accumulate is 1, but 2 processes share" in done.stderr
    logs = {}
    for name in ("one", "two"):
        log = (tmp_path / name / "cells" / "kd-qat-w8a8-s0" / "train.jsonl").read_text().splitlines()
        logs[name] = [json.loads(line) for line in log]
    assert len(logs["one"]) == len(logs["two"]) == steps
    for a, b in zip(logs["one"], logs["two"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)
    first, second = (
        load_file(next((tmp_path / name / "cells" / "kd-qat-w8a8-s0" / "checkpoint").glob("*.safetensors")))
        for name in ("one", "two")
    )
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, second[key], rtol=2e-2, atol=1e-3)
    for name in ("one", "two"):
        assert list((tmp_path / name / "cells" / "rtn-w8a8-s0" / "videos").iterdir())


BROKEN = """
import os
if os.environ.get("RANK") == "1":
    from evalharness.session import Session
    def fresh(self, device=None):
        raise ValueError("shard 2 of 3 is missing")
    Session.fresh_transformer = fresh
"""


def joint(
    patch: str, flags: Callable[..., list[str]], tmp_path: Path
) -> tuple[subprocess.CompletedProcess[str], float]:
    """A training by two ranks in which ``patch`` runs first; and the seconds from when it left ``failed``."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(patch)
    recipe = {"steps": 2, "batch_size": 1, "accumulate": 2}
    command = ["run", *flags("wan2.1"), "--protocol", "smoke", "--limit", "1", "--no-profile"]
    command += ["--data", "teacher", "--methods", "kd-qat", "--bits", "8", "--executor", "torchrun"]
    command += ["--method-options", json.dumps({"kd-qat": {"recipe": recipe}}), "--output", "out"]
    parts = [str(tmp_path / "site"), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(parts), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*LAUNCH, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip
    failed = tmp_path / "failed"
    return done, time.time() - failed.stat().st_mtime if failed.exists() else 0.0


@pytest.mark.slow
def test_a_rank_that_cannot_load_ends_all_at_once(flags: Callable[..., list[str]], tmp_path: Path) -> None:
    """Not after the time that is given to ranks which hang: that ends in other words."""
    done, _ = joint(BROKEN, flags, tmp_path)
    assert "kd-qat-w8a8-s0: could not be prepared: shard 2 of 3 is missing" in done.stderr
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    [failure] = [event for event in events if event["event"] == "failure"]
    assert failure["kind"] == "user" and failure["error"] == "shard 2 of 3 is missing"
    assert "left waiting" not in done.stderr


# As NCCL leaves it: the one that failed waits for its own last work, and the other for what will not come.
STUCK = """
import os, pathlib, time
if os.environ.get("RANK") == "1" and os.environ.get("TORCHELASTIC_RUN_ID"):
    import torch
    from qvgen.training import step
    def failing(*_):
        pathlib.Path("failed").touch()
        raise torch.OutOfMemoryError("CUDA out of memory")
    step.training_loss = failing
    torch.distributed.destroy_process_group = lambda: time.sleep(600)
"""


@pytest.mark.slow
def test_a_rank_that_fails_within_a_step_ends_all(flags: Callable[..., list[str]], tmp_path: Path) -> None:
    done, took = joint(STUCK, flags, tmp_path)
    assert (
        "one rank failed, the others were left waiting: OutOfMemoryError: CUDA out of memory" in done.stderr
    )
    assert done.returncode != 0 and took < 300  # it would be 600
