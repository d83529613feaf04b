"""``moved_runs.py``: differences of runs, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.moved_runs import main


def cell(name: str, scores: dict[str, list[float]], log: float = 1.0) -> dict[str, Any]:
    """Of two dimensions and two prompts."""
    rows = {key: [["a", 0, values[0]], ["b", 0, values[1]]] for key, values in scores.items()}
    mean = sum(sum(values) for values in scores.values()) / 4
    real = "-real" in name
    return {
        "id": name,
        "execution": "real" if real else "fake",
        "mean": {"value": mean},
        "train_log": [] if real else [{"error": log}],
        "scores": rows,
    }


def write(path: Path, *cells: dict[str, Any]) -> str:
    path.write_text(json.dumps({"cells": cells}))
    return str(path)


def runs(folder: Path) -> tuple[str, str]:
    first = cell("x-w3a3-s0", {"color": [0.2, 0.4], "scene": [0.5, 0.5]})
    packed = cell("x-real-w3a3-s0", {"color": [0.3, 0.3], "scene": [0.5, 0.7]})
    other = cell("x-w3a3-s0", {"color": [0.4, 0.6], "scene": [0.5, 0.9]}, log=2.0)
    return write(folder / "first.json", first, packed), write(folder / "other.json", other)


def test_differences_by_prompt(tmp_path: Path) -> None:
    first, other = runs(tmp_path)
    output = tmp_path / "record.json"
    assert main([first, "x-w3a3-s0", f"other batches={other}", "--output", str(output)]) == 0
    found = json.loads(output.read_text())["x-w3a3-s0"]
    assert found["first"] == pytest.approx(0.4)
    packed, moved = found["runs"]["packed"], found["runs"]["other batches"]
    assert packed["by_prompt"] == pytest.approx([0.05, 0.05])  # (0.1 + 0) / 2 and (-0.1 + 0.2) / 2
    assert (packed["difference"], packed["standard_error"]) == pytest.approx((0.05, 0.0))
    assert packed["execution"] == "real" and "same_calibration" not in packed
    assert moved["by_prompt"] == pytest.approx([0.1, 0.3])  # (0.2 + 0) / 2 and (0.2 + 0.4) / 2
    assert (moved["mean"], moved["difference"]) == pytest.approx((0.6, 0.2))
    assert moved["standard_error"] == pytest.approx(0.1)  # standard deviation 0.1 * sqrt(2), two prompts
    assert moved["same_calibration"] is False


def test_a_second_cell_is_added(tmp_path: Path) -> None:
    first, _ = runs(tmp_path)
    output = tmp_path / "record.json"
    output.write_text(json.dumps({"x-w3a3-s1": {"first": 0.1, "runs": {}}}))
    main([first, "x-w3a3-s0", f"again={first}", "--output", str(output)])
    found = json.loads(output.read_text())
    assert set(found) == {"x-w3a3-s0", "x-w3a3-s1"}
    assert found["x-w3a3-s0"]["runs"]["again"]["same_calibration"] is True


def test_other_videos_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = runs(tmp_path)
    fewer = cell("x-w3a3-s0", {"color": [0.4, 0.6], "scene": [0.5, 0.9]})
    fewer["scores"]["scene"].pop()
    other = write(tmp_path / "fewer.json", fewer)
    for wrong, words in ((f"fewer={other}", "not the videos of"), (other, "expected WORDS=")):
        with pytest.raises(SystemExit):
            main([first, "x-w3a3-s0", wrong, "--output", str(tmp_path / "record.json")])
        assert words in capsys.readouterr().err


def test_files_that_are_no_records_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is there already is not lost by it."""
    first, other = runs(tmp_path)
    record = tmp_path / "record.json"
    record.write_text("{")
    given = ["x-w3a3-s0", f"again={other}", "--output", str(record)]
    for file, words in ((first, "record.json: no JSON"), (str(tmp_path / "none.json"), "none.json")):
        with pytest.raises(SystemExit):
            main([file, *given])
        assert words in capsys.readouterr().err and record.read_text() == "{"
    Path(other).write_text("{}")
    with pytest.raises(SystemExit):
        main([first, *given])
    assert "other.json: no cell x-w3a3-s0" in capsys.readouterr().err
