"""Every verb and every registered method, on a tiny pipeline of each class, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalharness.cli.main import main
from evalharness.registry import Registry

KINDS = ["cogvideox-2b", "cogvideox1.5", "wan2.1", "wan2.2-pair"]
RECIPE = {"steps": 6, "batch_size": 2, "log_every": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "gptq": {"prompts": 1},
    "svdquant": {"prompts": 1, "rank": 2, "grid": 2},
    "viditq": {"prompts": 1},
    "rtn-static": {"prompts": 1},
    **{name: {"recipe": RECIPE} for name in ("lsq", "qdm", "kd-qat")},
    "efficientdm": {"recipe": RECIPE, "rank": 2},
    "qvgen": {"recipe": RECIPE, "rank": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_prepares_generates_scores_and_is_profiled(
    kind: str, run: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    methods = [name for name in Registry().names("methods") if not name.startswith("toy")]
    assert len(methods) >= 11
    options = ["--method-options", json.dumps(OPTIONS)]
    command = run(kind, "--data", "teacher", "--bits", "4", "--methods", ",".join(methods), *options)
    results = json.loads(Path("out/results.json").read_text())
    cells = {cell["method"]: cell for cell in results["cells"]}
    assert set(cells) == {"bf16", *methods}
    for name, cell in cells.items():
        assert cell["profile"]["step_ms"] > 0, name
        assert [value["n"] for value in cell["dimensions"].values()] == [1, 1], name
    # quantized at all: no cell's video is the reference's, and few bits are stored
    videos = {name: next(Path("out/cells").glob(f"{name}-*/videos/*.mp4")).read_bytes() for name in cells}
    assert all(videos[name] != videos["bf16"] for name in methods)
    assert all(cells[name]["profile"]["weight_bits"] < 16 for name in methods)
    capfd.readouterr()
    assert main(command) == 0
    assert "nothing to do" in capfd.readouterr().err
    # the other verbs, on the same folder
    assert main(["score", "out", "--workers", "0"]) == 0
    assert main(["report", "out"]) == 0
    assert main(["compare", "out:bf16", "out:rtn-w4a4"]) == 0
    assert main(["check", "out", "--against", "out"]) in (0, 4)
