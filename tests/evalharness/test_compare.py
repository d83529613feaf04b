"""``compare``: differences by hand, what stands against what, three formats, mistakes, no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from scipy import stats as scipy_stats

from evalharness.compare.comparison import compare
from evalharness.compare.page import page
from evalharness.compare.selection import read_side
from evalharness.compare.text import text, value_text
from evalharness.errors import UserError
from evalharness.results import CellRecord, ScoreRow, build_results, write_results
from tests.processor import run_within

SHIPPED = Path(__file__).parents[2] / "results" / "tinyworld" / "cpu"
DIMENSIONS = ["color", "scene"]
COLOR, SCENE = [0.9, 0.8, 0.7, 0.6], [1.0, 0.9, 0.8, 0.9]


def cell(method: str = "lsq", seed: int = 0, shift: float = 0.0, **changes: Any) -> CellRecord:
    values = {"color": [v + shift * i for i, v in enumerate(COLOR)], "scene": SCENE}
    fields: dict[str, Any] = {
        "cell_id": f"{method}-w3a3-s{seed}",
        "model": "toy",
        "protocol": "toy",
        "method": method,
        "w_bits": 3,
        "a_bits": 3,
        "seed": seed,
        "source": "computed",
        "execution": "fake",
        "n_expected": dict.fromkeys(DIMENSIONS, 4),
        "scores": {d: [ScoreRow(f"{i:04d}", 0, v) for i, v in enumerate(vs)] for d, vs in values.items()},
        "n_videos_expected": 4,
        "n_videos_ok": 4,
        "n_failed": 0,
        "profile": {"step_ms": 100.0, "weights_mb": 4.0},
        "method_config": {"w_bits": 3, "rank": 16},
    }
    return CellRecord(**(fields | changes))


def write(folder: Path, *cells: CellRecord, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "protocol": "toy",
        "dimensions": DIMENSIONS,
        "percent": True,
        "label": "toy scores",
        "manifest": {"config": {"settings.steps": 20}, "git": {"commit": "abc"}},
        "prompts": {"0003": "a <script>alert(1)</script> ball"},
    }
    folder.mkdir()
    write_results(build_results(cells, **(arguments | changes)), folder / "results.json")
    return str(folder)


def test_differences_by_hand(tmp_path: Path) -> None:
    a = write(tmp_path / "a", cell(shift=-0.1))
    b = write(tmp_path / "b", cell(profile={"step_ms": 80.0, "weights_mb": 4.0}))
    [row] = compare(read_side(a), read_side(b)).rows
    color, scene = row.dimensions
    assert color.difference.value == pytest.approx(-0.15)
    assert (color.a, color.b) == pytest.approx((0.6, 0.75))
    assert color.difference.p == pytest.approx(scipy_stats.ttest_1samp([0, -0.1, -0.2, -0.3], 0).pvalue)
    assert (scene.difference.value, scene.difference.p) == (0.0, 1.0)
    assert color.p_holm == pytest.approx(2 * color.difference.p)  # two dimensions
    assert row.mean.value == pytest.approx(-0.075)
    assert (row.wins, row.losses, row.ties) == (0, 3, 1)
    assert [(p.prompt_id, p.most) for p in row.losers] == [
        ("0003", "color"),
        ("0002", "color"),
        ("0001", "color"),
    ]
    assert row.losers[0].difference == pytest.approx(-0.15)
    assert row.winners == []
    assert [(c.name, c.a, c.b, c.relative) for c in row.costs] == [
        ("step_ms", 100.0, 80.0, pytest.approx(0.25)),
        ("weights_mb", 4.0, 4.0, 0.0),
    ]


def test_what_the_two_were_made_with_stands_on_top(tmp_path: Path) -> None:
    a = write(tmp_path / "a", cell(), manifest={"config": {"settings.steps": 10}, "git": {"commit": "abc"}})
    b = write(tmp_path / "b", cell(method_config={"w_bits": 3, "rank": 32}))
    found = compare(read_side(a), read_side(b))
    assert [(c.key, c.a, c.b) for c in found.recipe] == [("settings.steps", 10, 20)]
    assert [(c.key, c.a, c.b) for c in found.rows[0].recipe] == [("rank", 16, 32)]
    assert found.environment == []
    shown = text(found)
    assert shown.index("RECIPE DIFFERS") < shown.index("settings.steps: 10 -> 20") < shown.index("== lsq")


def test_seeds_are_paired_by_number_and_cells_by_name(tmp_path: Path) -> None:
    a = write(tmp_path / "a", cell(), cell(seed=1), cell("rtn"))
    b = write(tmp_path / "b", cell(seed=1), cell(seed=2), cell("qvgen"))
    found = compare(read_side(a), read_side(b))
    assert [row.seeds for row in found.rows] == [[(1, 1)]]
    assert (found.only_a, found.only_b) == (["rtn-w3a3"], ["qvgen-w3a3"])
    two = compare(read_side(f"{a}:lsq-w3a3-s0"), read_side(f"{b}:lsq-w3a3-s2"))
    assert two.rows[0].seeds == [(0, 2)]
    other = compare(read_side(f"{a}:rtn-w3a3"), read_side(f"{a}:lsq-w3a3"))
    assert (other.rows[0].a, other.rows[0].b, other.rows[0].seeds) == ("rtn-w3a3", "lsq-w3a3", [(0, 0)])
    named_once = compare(read_side(f"{a}:lsq-w3a3"), read_side(b))
    assert [row.seeds for row in named_once.rows] == [[(1, 1)]]


def test_a_partial_cell_is_marked_and_compared_on_what_is_common(tmp_path: Path) -> None:
    short = {"color": [ScoreRow("0000", 0, 0.5), ScoreRow("0001", 0, 0.5)], "scene": []}
    a = write(tmp_path / "a", cell(scores=short))
    found = compare(read_side(a), read_side(write(tmp_path / "b", cell())))
    [row] = found.rows
    assert row.is_partial
    assert (row.dimensions[0].difference.n, row.dimensions[0].difference.value) == (2, pytest.approx(-0.35))
    assert (row.dimensions[1].a, row.mean.value) == (None, None)
    assert "PARTIAL" in text(found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": "other"}, "has protocol toy"),
        ({"dimensions": ["color"]}, "scene in one only"),
        ({"prompts": {"0003": "another"}}, "prompt 0003 is"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    record = cell()
    if "protocol" in changes:
        record = replace(record, protocol="other")
    if "dimensions" in changes:
        record = replace(record, scores={"color": record.scores["color"]}, n_expected={"color": 4})
    a, b = write(tmp_path / "a", cell()), write(tmp_path / "b", record, **changes)
    with pytest.raises(UserError, match=words):
        compare(read_side(a), read_side(b))


def test_the_page_escapes_what_it_shows_and_runs_nothing(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", cell(shift=-0.1)), write(tmp_path / "b", cell())
    shown = page(compare(read_side(a), read_side(b)))
    assert "&lt;script&gt;alert(1)" in shown
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

    Tags().feed(shown)
    assert "script" not in tags
    assert tags.count("table") == 3
    assert "-15.00 [-35.54, 5.54]" in shown  # 0.15 -+ 3.182 * 0.1291 / 2, of 100


def test_zero_is_never_written_with_a_minus() -> None:
    assert value_text(-0.00001, True, signed=True) == "+0.00"
    assert value_text(-0.5, False) == "-0.5000"


def test_json_holds_what_the_text_says(tmp_path: Path, call: Callable[..., Any]) -> None:
    write(tmp_path / "a", cell(shift=-0.1))
    write(tmp_path / "b", cell())
    result = call("compare", "a", "b", "--format", "json")
    assert result.code == 0
    record = json.loads(result.out)
    assert record["rows"][0]["dimensions"][0]["difference"]["value"] == pytest.approx(-0.15)
    written = call("compare", "a:lsq-w3a3", "b:lsq-w3a3", "--format", "html", "--output", "c.html")
    assert written.out == "c.html\n"
    page = (tmp_path / "c.html").read_text()
    assert page.startswith("<!doctype html>") and "Of the mean, A and B cannot be told apart: -7.50" in page
    assert page.count("<main>") == 1 and page.count('tabindex="0"') == page.count('role="group" aria-label="')


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "a"], "nowhere: no such run folder"),
        (["a:lsk-w3a3", "a"], "unknown cell of a 'lsk-w3a3'; did you mean 'lsq-w3a3'?"),
        (["a", "empty"], "no such file; `evalharness run` writes it"),
        (["a", "a", "--format", "pdf"], "--format pdf: expected one of text, json, html"),
        (["a", "a", "--prompts", "-1"], "--prompts -1"),
        (["a", "other"], "no row in common"),
        (["a", "late"], "none in common"),
        (["a:lsq-w3a3", "other"], "other: unknown cell"),
    ],
)
def test_mistakes(tmp_path: Path, call: Callable[..., Any], arguments: list[str], words: str) -> None:
    write(tmp_path / "a", cell(), cell(seed=1))
    write(tmp_path / "other", cell("rtn"))
    write(tmp_path / "late", cell(seed=2))
    (tmp_path / "empty").mkdir()
    result = call("compare", *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.errors[0]


def test_the_shipped_table_in_under_three_seconds_and_without_torch() -> None:
    code = (
        "import sys; from evalharness.cli.main import main; "
        "code = main(sys.argv[1:]); print('@' + ','.join(sys.modules)); sys.exit(code)"
    )
    arguments = ["compare", f"{SHIPPED}:qvgen-w3a3", f"{SHIPPED}:rtn-w3a3"]
    result = run_within(3.0, [sys.executable, "-c", code, *arguments])
    assert "+29.24" in result.stdout  # the leaderboard says 29.2
    assert not {"torch", "pandas", "diffusers"} & set(result.stdout.rpartition("@")[2].split(","))
