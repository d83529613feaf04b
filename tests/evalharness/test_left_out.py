"""A run under a protocol with optional metrics, extra videos, videos left out by rule, and totals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalharness.results import read_results

PLUGIN = str(Path(__file__).with_name("vbench_like.py"))


def test_what_is_left_out_by_rule_is_not_missing(toy_run: Callable[..., Any], tmp_path: Path) -> None:
    finished = toy_run("--protocol", "vbench-like", "--plugin", PLUGIN, "--no-profile")
    assert finished.code == 0
    assert "no metric is installed for rare" in finished.err
    results = read_results(tmp_path / "out" / "results.json")
    [cell] = results.cells
    assert cell.n_videos_expected == 5 * 2 + 4
    flicker, rare = cell.dimensions["flicker"], cell.dimensions["rare"]
    assert (flicker.n, flicker.expected) == (2, 2)
    assert [row.sample for row in cell.scores["flicker"]] == [1, 3]
    assert (rare.n, rare.expected) == (0, 4)
    assert cell.mean is None
    assert cell.totals["all"] is None
    light = cell.totals["light"]
    assert light is not None and light.value is not None
    brightness = cell.dimensions["brightness"].value
    assert brightness is not None and flicker.value is not None
    assert light.value == pytest.approx(((brightness - 0.2) / 0.8 + 0.5 * flicker.value) / 1.5)
    rows = (tmp_path / "out/cells/bf16-s0/scores.jsonl").read_text().splitlines()
    assert sum(json.loads(row).get("left_out", False) for row in rows) == 2
    table = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "light_score" in table and "rare 0/4" in table


def test_a_protocol_that_insists_on_its_metrics_still_does(
    toy_run: Callable[..., Any], tmp_path: Path
) -> None:
    strict = tmp_path / "strict.py"
    strict.write_text(Path(PLUGIN).read_text().replace("metrics_optional = True", "metrics_optional = False"))
    finished = toy_run("--protocol", "vbench-like", "--plugin", str(strict))
    assert finished.code == 2
    assert "vbench.rare" in finished.err


def test_intervals_are_cut_where_the_metric_declares_it(toy_run: Callable[..., Any], tmp_path: Path) -> None:
    """A metric of -1..1 whose scores lie around zero: the interval's lower end is below zero."""
    text = Path(PLUGIN).read_text()
    brightness, flicker = text.split("class Flicker")
    brightness = brightness.replace("MetricInfo()", "MetricInfo(low=-1.0)")
    brightness = brightness.replace("video.frames.mean() / 255", "(-0.03, 0.05)[int(sample.prompt.id) % 2]")
    plugin = tmp_path / "cosine.py"
    plugin.write_text(f"{brightness}class Flicker{flicker}")
    assert toy_run("--protocol", "vbench-like", "--plugin", str(plugin), "--no-profile").code == 0
    results = read_results(tmp_path / "out" / "results.json")
    assert results.ranges == {"brightness": (-1.0, 1.0)}
    lo = results.cells[0].dimensions["brightness"].lo
    assert lo is not None and lo < -0.03
