"""Every verb and every registered method, on a tiny pipeline of each class, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalharness.cli.main import main
from evalharness.registry import Registry

Folders = Callable[[str], Path]
Flags = Callable[..., list[str]]

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


def harness(*arguments: str) -> int:
    return main(list(arguments))


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_prepares_generates_scores_and_is_profiled(
    kind: str,
    flags: Flags,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    methods = [name for name in Registry().names("methods") if not name.startswith("toy")]
    assert len(methods) >= 11
    command = ["run", *flags(kind), "--protocol", "smoke", "--limit", "1", "--workers", "0"]
    command += ["--data", "teacher", "--bits", "4", "--methods", ",".join(methods), "--output", "out"]
    command += ["--method-options", json.dumps(OPTIONS)]
    assert harness(*command) == 0, capfd.readouterr().err
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
    assert harness(*command) == 0
    assert "nothing to do" in capfd.readouterr().err
    # the other verbs, on the same folder
    assert harness("score", "out", "--workers", "0") == 0
    assert harness("report", "out") == 0
    assert harness("compare", "out:bf16", "out:rtn-w4a4") == 0
    assert harness("check", "out", "--against", "out") in (0, 4)
