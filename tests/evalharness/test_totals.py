"""VBench's totals: hand-worked numbers and published rows of its leaderboard."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from evalharness.api import Total, TotalTerm
from evalharness.protocols.vbench_suite import DIMENSIONS
from evalharness.protocols.vbench_totals import QUALITY, SEMANTIC, TOTALS
from evalharness.report.html import render
from evalharness.report.rows import leaderboard_columns, leaderboard_rows
from evalharness.report.tables import markdown
from evalharness.result_schema import DimensionEstimate
from evalharness.results import CellRecord, ScoreRow, build_results, read_results, write_results
from evalharness.stats import Key, Resampler
from evalharness.totals import total_estimates
from tests.evalharness.conftest import without_sum

LEADERBOARD = json.loads((Path(__file__).parent / "golden" / "vbench_leaderboard.json").read_text())
ROWS = LEADERBOARD["rows"]
TOTAL_BY_NAME = {total.name: total for total in TOTALS}


def total_of(name: str, raw: Mapping[str, float | None]) -> float | None:
    """The total of a model that has one video, with these raw scores; None: its video has none."""
    scores = {dimension: {} if value is None else {Key("p", 0): value} for dimension, value in raw.items()}
    dimensions = {
        dimension: DimensionEstimate(
            value=value, lo=None, hi=None, n=len(scores[dimension]), prompts=1, expected=1
        )
        for dimension, value in raw.items()
    }
    estimates = total_estimates([TOTAL_BY_NAME[name]], scores, dimensions, Resampler(resamples=1))
    estimate = estimates[name]
    return None if estimate is None else estimate.value


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_a_published_row_comes_out_equal(row: dict) -> None:
    raw = {name: value / 100 for name, value in row["dimensions"].items()}
    for name in ("quality", "semantic", "total"):
        total = TOTAL_BY_NAME[name]
        value = total_of(name, raw)
        assert value is not None
        weights = sum(term.weight for term in total.terms.values())
        slopes = sum(term.weight / (term.high - term.low) for term in total.terms.values()) / weights
        rounding = 0.005 * slopes + 0.005  # both sides are printed with two decimals
        assert abs(100 * value - row[name]) <= rounding < 0.015, name


def test_a_row_comes_out_equal_to_the_last_digit() -> None:
    [row] = [row for row in ROWS if row["model"] == "HunyuanVideo"]
    raw = {name: value / 100 for name, value in row["dimensions"].items()}
    for name in TOTAL_BY_NAME:
        assert f"{100 * (total_of(name, raw) or 0):.2f}" == f"{row[name]:.2f}"


def test_a_published_quality_comes_out_of_its_seven_dimensions() -> None:
    row = LEADERBOARD["quality_row"]
    raw = {name: value / 100 for name, value in row["dimensions"].items()}
    assert f"{100 * (total_of('quality', raw) or 0):.2f}" == f"{row['quality']:.2f}"
    assert (4 * row["quality"] + row["semantic"]) / 5 == pytest.approx(row["total"], abs=0.005)


def test_the_table_of_normalisation() -> None:
    assert tuple(QUALITY) + tuple(SEMANTIC) == DIMENSIONS
    assert sum(term.weight for term in QUALITY.values()) == 6.5
    assert sum(term.weight for term in SEMANTIC.values()) == 9
    assert sum(term.weight for term in TOTAL_BY_NAME["total"].terms.values()) == pytest.approx(1)


# What +0.01 raw adds to the total, in points of 100.
GAINS = {"subject_consistency": 0.144, "temporal_flickering": 0.332, "motion_smoothness": 0.422}
GAINS |= {"background_consistency": 0.167, "aesthetic_quality": 0.123, "dynamic_degree": 0.062}
GAINS |= {"object_class": 0.022, "scene": 0.027, "appearance_style": 0.078, "temporal_style": 0.061}


@pytest.mark.parametrize(("name", "gain"), GAINS.items())
def test_what_a_hundredth_adds(name: str, gain: float) -> None:
    base = dict.fromkeys(DIMENSIONS, 0.5)
    more, less = total_of("total", base | {name: 0.51}), total_of("total", base)
    assert more is not None and less is not None
    assert 100 * (more - less) == pytest.approx(gain, abs=5e-4)


def test_a_missing_dimension_is_missing_and_nothing_is_clipped() -> None:
    raw: dict[str, float | None] = dict.fromkeys(DIMENSIONS, 0.0)
    assert total_of("quality", raw) == pytest.approx(
        (-0.1462 / 0.8538 - 0.2615 / 0.7385 - 0.6293 / 0.3707 - 0.706 / 0.2915) / 6.5
    )
    assert total_of("quality", raw | {"dynamic_degree": None}) is None
    del raw["color"]
    assert total_of("quality", raw) is not None
    assert total_of("semantic", raw) is total_of("total", raw) is None


HALF = Total(name="half", terms={"a": TotalTerm(low=0.5, weight=3), "b": TotalTerm(high=2)})
ONLY_B = Total(name="b", terms={"b": TotalTerm()})


def record(seed: int, **scores: list[float]) -> CellRecord:
    rows = {name: [ScoreRow(f"p{i}", 0, value) for i, value in enumerate(of)] for name, of in scores.items()}
    return CellRecord(
        cell_id=f"bf16-s{seed}",
        model="m",
        protocol="toy",
        method="bf16",
        w_bits=16,
        a_bits=16,
        seed=seed,
        source="reference",
        execution="real",
        n_expected={"a": 3, "b": 3},
        scores=rows,
        n_videos_expected=3,
        n_videos_ok=3,
        n_failed=0,
    )


def results(*records: CellRecord, totals: tuple[Total, ...] = (HALF, ONLY_B)):
    return build_results(
        records,
        protocol="toy",
        dimensions=["a", "b"],
        percent=True,
        label="toy",
        manifest={},
        totals=totals,
        resampler=Resampler(),
    )


FULL = record(0, a=[0.6, 0.8, 1.0], b=[0.0, 1.0, 0.5])
PART = record(1, a=[0.6, 0.8], b=[0.0, 1.0, 0.5])


def test_totals_have_intervals_and_need_their_own_dimensions_only() -> None:
    made = results(FULL, PART)
    half = made.cell("bf16-s0").totals["half"]
    assert half is not None and half.value is not None and half.lo is not None and half.hi is not None
    assert half.value == pytest.approx((3 * (0.8 - 0.5) / 0.5 + 0.5 / 2) / 4)
    assert half.lo < half.value < half.hi
    partial = made.cell("bf16-s1")
    assert partial.totals["half"] is None
    assert partial.totals["b"] is not None and partial.totals["b"].value == pytest.approx(0.5)
    assert made.pooled[0].totals["half"] is None
    assert made.pooled[0].totals["b"] is not None


def test_a_total_equals_the_arithmetic_on_the_dimensions_means() -> None:
    cell = results(FULL).cell("bf16-s0")
    means = {name: estimate.value for name, estimate in cell.dimensions.items()}
    assert cell.totals["half"] is not None
    assert cell.totals["half"].value == pytest.approx((3 * (means["a"] - 0.5) / 0.5 + means["b"] / 2) / 4)


def test_totals_are_written_read_and_shown(tmp_path: Path) -> None:
    made = results(FULL, PART)
    write_results(made, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == made
    assert {"half_score", "half_score_lo", "b_score_hi"} <= set(leaderboard_columns(made))
    whole, partial = leaderboard_rows(made)
    assert whole["half_score"] == pytest.approx(100 * (3 * 0.6 + 0.25) / 4)
    assert partial["half_score"] is None
    text, page = markdown(made), render(made, tmp_path)
    assert "51.2" in text and "half_score" in text and "weighted means of the dimensions" in text
    assert "51.2" in page and "half_<wbr>score" in page


def test_without_totals_no_column_and_no_legend() -> None:
    made = results(FULL, totals=())
    assert not any("score" in column for column in leaderboard_columns(made))
    assert "weighted means" not in markdown(made)


def test_results_from_before_there_were_totals_are_read(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(results(FULL, totals=()), path)
    old = json.loads(without_sum(path.read_text()))
    del old["totals"]
    for row in (*old["cells"], *old["pooled"]):
        del row["totals"]
    path.write_text(json.dumps(old))
    assert read_results(path).cell("bf16-s0").totals == {}


def test_a_total_over_an_unknown_dimension_is_refused() -> None:
    wrong = dataclasses.replace(HALF, terms={"c": TotalTerm()})
    with pytest.raises(ValueError, match="total half: no dimension"):
        results(FULL, totals=(wrong,))
