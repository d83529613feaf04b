"""``results.json``: what is totalled, what is refused, and that it survives the way to disk and back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from evalharness.comparison import resampler_of
from evalharness.errors import UserError
from evalharness.ranking import ranking
from evalharness.report.wording import ranking_sentences
from evalharness.results import (
    CellRecord,
    Estimate,
    Results,
    ScoreRow,
    build_results,
    read_results,
    write_results,
)
from evalharness.stats import Resampler
from tests.evalharness.conftest import without_sum
from tests.evalharness.test_report import full

DIMENSIONS = ["color", "scene"]


def cell(
    method: str,
    bits: int,
    values: dict[str, list[float]],
    *,
    seed: int = 0,
    expected: int | None = None,
    **changes: Any,
) -> CellRecord:
    """A cell that scores prompts 0000, 0001 ... with the given values."""
    is_reference = method == "bf16"
    n = {d: expected or max(map(len, values.values())) for d in DIMENSIONS}
    fields: dict[str, Any] = {
        "cell_id": f"{method}-s{seed}" if is_reference else f"{method}-w{bits}a{bits}-s{seed}",
        "model": "toy",
        "protocol": "toy",
        "method": method,
        "w_bits": bits,
        "a_bits": bits,
        "seed": seed,
        "source": "reference" if is_reference else "trained",
        "execution": "fake",
        "n_expected": n,
        "scores": {d: [ScoreRow(f"{i:04d}", 0, v) for i, v in enumerate(vs)] for d, vs in values.items()},
        "n_videos_expected": n["color"],
        "n_videos_ok": n["color"],
        "n_failed": 0,
    }
    return CellRecord(**(fields | changes))


def ends(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    assert estimate is not None
    return estimate.value, estimate.lo, estimate.hi


def build(*cells: CellRecord, **changes: Any) -> Results:
    arguments: dict[str, Any] = {
        "protocol": "toy",
        "dimensions": DIMENSIONS,
        "percent": True,
        "label": "toy scores",
        "manifest": {"git": {"commit": "abc"}},
        "prompts": {"0000": "a red ball", "0001": "a blue box"},
        "resampler": Resampler(),  # percentiles of two prompts can be worked out by hand
    }
    return build_results(cells, **(arguments | changes))


BF16 = cell("bf16", 16, {"color": [0.9, 0.7], "scene": [1.0, 0.8]})
LSQ = cell("lsq", 3, {"color": [0.5, 0.5], "scene": [0.6, 0.2]})
RTN = cell("rtn", 3, {"color": [0.1, 0.3], "scene": [0.4, 0.0]})


def test_intervals_end_where_the_metric_says_that_scores_end(tmp_path: Path) -> None:
    """A cosine of about zero has an interval on both sides of it; a share has not. SciPy's t as the judge."""
    near = [0.03, -0.02, 0.04, -0.03, 0.005]
    made = cell("bf16", 16, {"color": near, "scene": [0.0, 0.0, 0.0, 0.0, 0.4]})
    bound = build(made, resampler=None)
    results = build(made, resampler=None, ranges={"color": (-1.0, 1.0), "scene": (0.0, 1.0)})
    assert bound.cells[0].dimensions["color"].lo == 0.0 == results.cells[0].dimensions["scene"].lo
    least, _ = scipy_stats.t.interval(0.95, 4, np.mean(near), scipy_stats.sem(near))
    for row in (results.cells[0], results.pooled[0]):
        assert row.dimensions["color"].lo == pytest.approx(least, rel=1e-6) and least < -0.02
        assert row.mean is not None and row.mean.lo is not None and row.mean.lo < 0
    write_results(results, tmp_path / "r.json")
    again = read_results(tmp_path / "r.json")
    assert again.ranges == {"color": (-1.0, 1.0)}, "what is 0..1 is not repeated"
    assert resampler_of(again).of("color").bounds == (-1.0, 1.0)


def test_values_by_hand() -> None:
    results = build(BF16, LSQ)
    lsq = results.cell("lsq-w3a3-s0")
    assert lsq.dimensions["color"].value == 0.5
    assert (lsq.dimensions["color"].lo, lsq.dimensions["color"].hi) == (0.5, 0.5)
    scene = lsq.dimensions["scene"]
    assert ends(scene) == pytest.approx((0.4, 0.2, 0.6))
    assert (scene.n, scene.prompts, scene.expected, scene.coverage) == (2, 2, 2, 1.0)
    # Each resample draws prompts once for both dimensions: 0000 twice gives (0.5 + 0.6) / 2.
    assert ends(lsq.mean) == pytest.approx((0.45, 0.35, 0.55))
    assert (lsq.mean.n, lsq.mean.prompts) == (2, 2)


def test_difference_from_the_reference_by_hand() -> None:
    (difference,) = build(BF16, LSQ).differences
    assert (difference.cell, difference.reference) == ("lsq-w3a3-s0", "bf16-s0")
    color = difference.dimensions["color"]  # 0.5 - 0.9 and 0.5 - 0.7
    assert ends(color) == pytest.approx((-0.3, -0.4, -0.2))
    # prompts: (-0.4 - 0.4) / 2 and (-0.2 - 0.6) / 2
    assert ends(difference.mean) == pytest.approx((-0.4, -0.4, -0.4))


def test_the_reference_of_another_seed_does_not_count() -> None:
    results = build(BF16, LSQ, cell("rtn", 3, {"color": [0.1, 0.2], "scene": [0.1, 0.2]}, seed=1))
    assert [difference.cell for difference in results.differences] == ["lsq-w3a3-s0"]
    by_method = {row.method: row for row in results.pooled}
    assert by_method["rtn"].minus_reference is None
    assert by_method["lsq"].minus_reference is not None


def test_seeds_are_pooled_with_prompts_as_clusters() -> None:
    second = cell("lsq", 3, {"color": [0.7, 0.7], "scene": [0.8, 0.4]}, seed=1)
    other = cell("bf16", 16, {"color": [0.9, 0.7], "scene": [1.0, 0.8]}, seed=1)
    row = next(row for row in build(BF16, LSQ, second, other).pooled if row.method == "lsq")
    assert (row.seeds, row.cells) == ([0, 1], ["lsq-w3a3-s0", "lsq-w3a3-s1"])
    assert row.seed_means == pytest.approx([0.45, 0.65])
    scene = row.dimensions["scene"]  # prompt 0000: 0.6 and 0.8, prompt 0001: 0.2 and 0.4
    assert ends(scene) == pytest.approx((0.5, 0.3, 0.7))
    assert (scene.n, scene.prompts, scene.expected) == (4, 2, 4)
    assert row.mean is not None and row.mean.value == pytest.approx(0.55)
    assert row.minus_reference is not None and row.minus_reference.value == pytest.approx(-0.3)


@pytest.mark.parametrize(
    "changes",
    [{"expected": 3}, {"n_videos_expected": 3, "n_videos_ok": 2, "n_failed": 1}],
    ids=["a score is missing", "a video is missing"],
)
def test_no_total_without_full_coverage(changes: dict[str, int]) -> None:
    partial = cell("lsq", 3, {"color": [0.5, 0.5], "scene": [0.6, 0.2]}, **changes)  # type: ignore[arg-type]
    results = build(BF16, partial)
    lsq = results.cell("lsq-w3a3-s0")
    assert lsq.coverage == pytest.approx(2 / 3)
    assert lsq.mean is None and not lsq.is_complete and not results.is_complete
    assert lsq.dimensions["color"].value == 0.5
    assert results.differences[0].mean is None
    assert [row.mean is None for row in results.pooled] == [False, True]


def test_a_cell_without_any_score_is_a_row_without_values() -> None:
    empty = build(cell("lsq", 3, {"color": [], "scene": []}, expected=2)).cell("lsq-w3a3-s0")
    assert (empty.coverage, empty.mean) == (0.0, None)
    assert (empty.dimensions["color"].value, empty.dimensions["color"].n) == (None, 0)


def test_ranking_by_hand() -> None:
    qvgen = cell("qvgen", 3, {"color": [0.8, 0.5], "scene": [0.7, 0.1]})
    partial = cell("half", 3, {"color": [0.9], "scene": [0.9]}, expected=2)
    two_bits = cell("lsq", 2, {"color": [0.2, 0.1], "scene": [0.2, 0.1]})
    first, second = ranking(build(RTN, BF16, two_bits, partial, LSQ, qvgen))
    assert (first.w_bits, second.w_bits) == (3, 2)
    assert [row.result.method for row in first.rows] == ["qvgen", "lsq", "rtn"]
    assert first.unranked == ("half",)
    over_lsq, over_rtn = first.rows[0].leads
    # Per prompt, over both dimensions: 0.3 and 0.1 -> 0.2; 0.0 and -0.1 -> -0.05.
    assert over_lsq.over == "lsq" and not over_lsq.is_clear
    assert ends(over_lsq.by) == pytest.approx((0.075, -0.05, 0.2))
    # 0.5 and 0.15: the bootstrap's interval is above zero, but two prompts cannot carry a t test.
    assert over_rtn.over == "rtn" and not over_rtn.is_clear
    assert ends(over_rtn.by) == pytest.approx((0.325, 0.15, 0.5))
    assert first.rows[2].leads == ()


def test_ranking_corrects_for_all_pairs_of_a_width() -> None:
    rng = np.random.default_rng(3)
    level = rng.uniform(0.4, 0.6, 40)
    shifts = {"a": 0.115, "b": 0.03, "c": 0.0}
    values = {name: level + shift + rng.normal(0, 0.1, 40) for name, shift in shifts.items()}
    cells = [cell(name, 3, {"color": v.tolist(), "scene": v.tolist()}) for name, v in values.items()]
    (group,) = ranking(build(*cells))
    leads = {(row.result.method, lead.over): lead for row in group.rows for lead in row.leads}
    raw = {(x, y): scipy_stats.ttest_rel(values[x], values[y]).pvalue for x, y in leads}
    by_size = sorted(raw, key=lambda pair: raw[pair])
    worst = 0.0
    for rank, pair in enumerate(by_size):
        worst = max(worst, min(1.0, raw[pair] * (3 - rank)))
        assert leads[pair].p == pytest.approx(worst)
    assert leads["a", "c"].is_clear and leads["a", "b"].is_clear
    assert not leads["b", "c"].is_clear


def test_ranking_interval_resamples_prompts_once_for_all_dimensions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 2, 40))  # method, dimension, prompt
    cells = [
        cell(name, 3, dict(zip(DIMENSIONS, x.tolist(), strict=True))) for name, x in (("a", a), ("b", b))
    ]
    (group,) = ranking(build(*cells))
    top, below = (a, b) if group.rows[0].result.method == "a" else (b, a)
    draws = rng.integers(0, 40, size=(20_000, 40))
    differences = (top - below)[:, draws].mean(axis=(0, 2))
    lead = group.rows[0].leads[0].by
    assert lead.value == pytest.approx((top - below).mean())
    expected = np.quantile(differences, [0.025, 0.975])
    assert (lead.lo, lead.hi) == pytest.approx(tuple(expected), abs=0.1 * (expected[1] - expected[0]))


def test_order_of_cells_and_rows_changes_nothing() -> None:
    backwards = {d: rows[::-1] for d, rows in LSQ.scores.items()}
    shuffled = cell("lsq", 3, {"color": [0.5, 0.5], "scene": [0.6, 0.2]}, scores=backwards)
    assert build(RTN, shuffled, BF16) == build(BF16, LSQ, RTN)


def test_the_way_to_disk_and_back_changes_nothing(tmp_path: Path) -> None:
    third = cell("lsq", 4, {"color": [1 / 3, 0.1], "scene": [2 / 3, 0.7]}, profile={"step_ms": 1.5, "new": 7})
    results = build(BF16, LSQ, RTN, third)
    path = tmp_path / "results.json"
    write_results(results, path)
    assert read_results(path) == results
    assert json.loads(path.read_text())["schema_version"] == 5
    profile = read_results(path).cell("lsq-w4a4-s0").profile
    assert profile is not None and profile.step_ms == 1.5 and profile.model_extra == {"new": 7}


def test_what_json_cannot_say_becomes_null(tmp_path: Path) -> None:
    log = [{"step": 0, "loss": float("nan"), "phase": "warm-up"}, {"step": 1, "loss": float("inf")}]
    record = cell(
        "lsq", 3, {"color": [0.5], "scene": [0.5]}, train_log=log, profile={"step_ms": float("nan")}
    )
    path = tmp_path / "results.json"
    write_results(build(record), path)
    read = read_results(path).cell("lsq-w3a3-s0")
    assert read.train_log == [{"step": 0, "loss": None, "phase": "warm-up"}, {"step": 1, "loss": None}]
    assert read.profile is not None and read.profile.step_ms is None


@pytest.mark.parametrize("length", [0, 1, 399, 400, 401, 1234])
def test_a_long_training_log_is_thinned_evenly_and_keeps_its_end(length: int) -> None:
    log = [{"step": step} for step in range(length)]
    record = cell("lsq", 3, {"color": [0.5], "scene": [0.5]}, train_log=log)
    steps = [entry["step"] for entry in build(record).cell("lsq-w3a3-s0").train_log]
    assert len(steps) <= 400 and len(steps) >= min(length, 200)
    assert not length or steps[-1] == length - 1
    assert len(set(np.diff(steps).tolist())) <= 1
    if length <= 400:
        assert steps == list(range(length))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            cell("lsq", 3, {"color": [0.5], "scene": [0.5]}, protocol="other"),
            "protocol 'other', expected 'toy'",
        ),
        (cell("lsq", 3, {"color": [0.5], "taste": [0.5]}), r"unknown dimensions \['taste'\]"),
        (cell("lsq", 3, {"color": [0.5]}, n_expected={"color": 1}), r"n_expected lacks \['scene'\]"),
        (cell("lsq", 3, {"color": [float("nan")]}), "color: a score is not a finite number"),
        (cell("lsq", 3, {"color": [0.1, 0.2]}, expected=1), "color: 2 scores, 1 expected"),
        (
            cell("lsq", 3, {"color": [0.1, 0.2]}, scores={"color": [ScoreRow("0000", 0, 0.1)] * 2}),
            "color: a video is scored twice",
        ),
    ],
)
def test_contradictory_cells_are_refused(record: CellRecord, message: str) -> None:
    with pytest.raises(ValueError, match=f"lsq-w3a3-s0.*{message}"):
        build(record)


def test_two_cells_of_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="cell lsq-w3a3-s0: given twice"):
        build(LSQ, LSQ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "not a JSON file"),
        ("[]", "schema version None, this evalharness reads 1, 2, 3, 4"),
        ('{"schema_version": 6}', "schema version 6, this evalharness reads 1, 2, 3, 4, 5"),
        ('{"schema_version": true}', "schema version True, this evalharness reads 1, 2, 3, 4"),
        ('{"schema_version": 1, "protocol": 3}', "protocol: Input should be a valid string"),
    ],
)
def test_foreign_files_are_refused_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_imports_stay_light() -> None:
    code = """if True:
        import sys
        import evalharness.report.html, evalharness.report.tables
        heavy = {"torch", "pandas", "numpy", "pydantic", "matplotlib", "jinja2", "tabulate"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        import evalharness.results, evalharness.ranking
        heavy = {"torch", "pandas", "matplotlib", "jinja2", "scipy"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_lead_that_only_these_seeds_have_is_called_that() -> None:
    rng = np.random.default_rng(5)
    level, noise = rng.uniform(0.3, 0.6, 40), rng.normal(0, 0.01, (2, 40))
    cells = []
    for seed, shift in enumerate([0.02, 0.2]):  # seeds tell 2 points and 20
        ours = (level + shift + noise[seed]).tolist()
        cells.append(cell("a", 3, {"color": ours, "scene": ours}, seed=seed))
        cells.append(cell("b", 3, {"color": level.tolist(), "scene": level.tolist()}, seed=seed))
    results = build(*cells)
    (group,) = ranking(results)
    (lead,) = group.rows[0].leads
    assert lead.p_here == pytest.approx(scipy_stats.ttest_1samp(noise.mean(0) + 0.11, 0).pvalue)
    assert lead.p is not None and lead.p > 0.3
    assert (lead.is_clear, lead.is_clear_here) == (False, True)
    (sentence,) = ranking_sentences([group], results)
    assert "a " in sentence and ", with these seeds ahead of b by " in sentence


def test_of_many_methods_the_best_alone_is_compared_in_words() -> None:
    """Five methods: ten pairs are told. Six: the five of the best, an order, and where to find the rest."""
    level = np.random.default_rng(6).uniform(0.3, 0.6, 40)
    cells = [
        cell(name, 3, dict.fromkeys(("color", "scene"), (level + 0.05 * place).tolist()))
        for place, name in enumerate("fedcba")
    ]
    (five,) = ranking_sentences(ranking(build(*cells[1:])), build(*cells[1:]))
    assert five.count(" by ") + five.count("+") == 10
    results = build(*cells)
    six, hint = ranking_sentences(ranking(results), results)
    assert six.count(" by ") + six.count("+") == 5 and six.startswith("At W3A3: a 70.")
    order = [part.split()[0] for part in six.split("in this order ")[1].replace(" and ", ", ").split("], ")]
    assert order == list("bcdef") and "leaderboard against METHOD RUN" in hint


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('["0000", 0, 0.96]', '["0000", 0, NaN]', "not a finite number"),
        ('["0000", 0, 0.96]', '["0000", 0, 1e999]', "not a finite number"),
        ('["0000", 0, 0.96]', '["0000", 0, 5.0]', "not within -1 to 1"),
        ('["0000", 0, 0.96]', '["0000", 0, 0.96], ["0000", 0, 0.1]', "scored twice"),
        ('"weights_mb": 8.0', '"weights_mb": NaN', "weights_mb: Input should be a finite number"),
        ('"id": "rtn-w4a4-s0"', '"id": "bf16-s0"', "bf16-s0: given twice"),
        ('"id": "rtn-w4a4-s0"', '"id": "other"', "it names cell 'rtn-w4a4-s0', which is not there"),
        ('"cells": ["rtn-w4a4-s0"]', '"cells": ["x"]', "it names cell 'x', which is not there"),
        ('"scores": {"subject_consistency"', '"scores": {"x"', "dimension 'subject_consistency' is missing"),
    ],
)
def test_results_that_no_run_makes_are_refused(old: str, new: str, words: str, tmp_path: Path) -> None:
    """Each would pass a gate otherwise: NaN is beyond no bound, and of two scores the last one wins."""
    path = tmp_path / "results.json"
    write_results(full(), path)
    text = without_sum(path.read_text())
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(words)):
        read_results(path)


def test_a_negative_cosine_of_an_older_file_is_read(tmp_path: Path) -> None:
    """Files of schema 2 did not say which dimensions may be negative."""
    path = tmp_path / "results.json"
    write_results(full(), path)
    path.write_text(without_sum(path.read_text()).replace('["0000", 0, 0.96]', '["0000", 0, -0.2]', 1))
    assert read_results(path).cell("bf16-s0").scores["subject_consistency"][0].value == -0.2
