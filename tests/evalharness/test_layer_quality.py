"""Layers judged one by one: the arithmetic by hand, the command in small, the order that was published."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evalharness.errors import UserError
from evalharness.models import tinyworld
from evalharness.tinyworld import layer_quality
from evalharness.tinyworld.layer_quality_document import Row, as_markdown, paired

PUBLISHED = Path(__file__).parents[2] / "results" / "tinyworld" / "layer_quality" / "layers.csv"


def row(method: str, layer: str, sqnr_db: float, seed: int = 0) -> Row:
    return Row(method, "w4a4", seed, layer, sqnr_db, 40, 10)


def test_sqnr_is_numpys() -> None:
    original, rounded = nn.Linear(6, 4), nn.Linear(6, 4)
    x = torch.randn(50, 6)
    wanted, found = (
        x.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        for layer in (original, rounded)
    )
    expected = 10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum())
    statistics_ = SimpleNamespace(rows=x)
    assert layer_quality.sqnr_db(rounded, original, statistics_) == pytest.approx(expected, abs=1e-4)  # type: ignore[arg-type]
    assert layer_quality.sqnr_db(original, original, statistics_) == math.inf  # type: ignore[arg-type]


def test_pairs_and_kinds_by_hand() -> None:
    rows = [
        row("a", "blocks.0.q", 10.0), row("a", "blocks.1.q", 12.0), row("a", "out", 7.0),
        row("b", "blocks.0.q", 11.0), row("b", "blocks.1.q", 10.0), row("b", "blocks.2.q", 99.0),
    ]  # fmt: skip
    assert paired(rows, "b", "a") == (1, 2, -0.5)
    assert paired(rows, "a", "b") == (1, 2, 0.5)
    assert [r.kind for r in rows[:3]] == ["q", "q", "out"]
    text = as_markdown(rows, "few rows", "python -m x")
    assert "| `a` | 3 | 10.0 | 9.7 | 7.0 | 12.0 | 4.0 |" in text
    assert "| `b` | 3 | 11.0 | 40.0 | 10.0 | 99.0 | 4.0 |" in text
    assert "| `b` | 11.0 | - |" in text, "median of the kind q, none of out"
    assert "| `b` | 1/2, -0.5 |  |" in text


@pytest.mark.slow
def test_the_command_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinyworld, "SETTINGS", replace(tinyworld.SETTINGS, steps=2))
    options = [
        "--methods",
        "rtn-minmax,rtn[range=minmax]",
        "--bits",
        "4,w4a8",
        "--held-out-prompts",
        "1",
        "--rows",
        "64",
    ]
    layer_quality.main([*options, "--out", str(tmp_path)])
    rows = list(csv.DictReader((tmp_path / "layers.csv").open()))
    assert len(rows) == 2 * 2 * 30 and list(rows[0]) == list(layer_quality.FIELDS)
    found: dict[tuple[str, str], list[str]] = {}
    for entry in rows:
        found.setdefault((entry["method"], entry["bits"]), []).append(entry["sqnr_db"])
    assert list(found) == [(m, b) for b in ("w4a4", "w4a8") for m in ("rtn-minmax", "rtn-rangeminmax")]
    assert found["rtn-minmax", "w4a4"] == found["rtn-rangeminmax", "w4a4"], "one method under two names"
    assert all(
        float(a) > float(b) for a, b in zip(*(found["rtn-minmax", w] for w in ("w4a8", "w4a4")), strict=True)
    )
    text = (tmp_path / "README.md").read_text()
    assert "## W4A4" in text and "64 input rows a layer, of 1 videos" in text


def test_methods_that_train_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="method lsq: it trains"):
        layer_quality.main(["--methods", "rtn,lsq", "--out", str(tmp_path)])
    with pytest.raises(UserError, match="--seed 1048576"):
        layer_quality.main(["--methods", "rtn", "--seed", "1048576", "--out", str(tmp_path)])


@pytest.fixture(scope="module")
def published() -> dict[str, list[Row]]:
    """The table that ships, by bit width."""
    found: dict[str, list[Row]] = {}
    for e in csv.DictReader(PUBLISHED.open()):
        values: dict[str, Any] = {"seed": int(e["seed"]), "sqnr_db": float(e["sqnr_db"])}
        one = Row(e["method"], e["bits"], layer=e["layer"], stored_bits=None, weights=1, **values)
        found.setdefault(e["bits"], []).append(one)
    return found


@pytest.mark.parametrize("bits", ["w4a4", "w3a3"])
def test_the_published_order(published: dict[str, list[Row]], bits: str) -> None:
    """static < min-max < search <= GPTQ < rotation, low rank; and most layers agree, one by one."""
    rows = published[bits]
    order = ["rtn-static", "rtn-minmax", "rtn", "gptq"]
    medians = {
        name: statistics.median(row.sqnr_db for row in rows if row.method == name)
        for name in {row.method for row in rows}
    }
    for worse, better in [*itertools.pairwise(order), ("gptq", "viditq"), ("gptq", "svdquant")]:
        assert medians[worse] < medians[better]
        wins, count, _ = paired(rows, better, worse)
        assert count == 30 and wins >= 25, (worse, better)
    assert paired(rows, "viditq", "viditq-rotatefalse")[0] == 30, "rotation helps every layer"


def test_eight_bits_are_next_to_exact(published: dict[str, list[Row]]) -> None:
    assert min(row.sqnr_db for row in published["w8a8"] if row.method != "rtn-static") > 37
