"""What a set of trainings is said to show, on hand-made records whose answers are known."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evalharness.errors import UserError
from evalharness.tinyworld.claims import report
from evalharness.tinyworld.claims.document import as_markdown
from evalharness.tinyworld.claims.estimates import Estimate, mean_estimate, paired, relative, verdict_below
from evalharness.tinyworld.claims.findings import findings
from evalharness.tinyworld.claims.grid import Grid, read_grid
from evalharness.tinyworld.claims.heat_map import _place, heat_maps
from evalharness.tinyworld.claims.runs import Run, Setting, from_published, read_runs
from qvgen.auxiliary import Phi
from qvgen.training.measures import spectrum
from tests.archives import unpack

PUBLISHED = Path(__file__).parents[2] / "results" / "tinyworld" / "training"
T2 = 4.302652729911275  # 97.5 % point of Student's t with two degrees of freedom, from a table


# -- estimates


def test_interval_of_three_by_hand() -> None:
    # 1, 2, 3: mean 2, standard deviation 1, standard error 1 / sqrt(3)
    found = mean_estimate([1.0, 2.0, 3.0])
    half = T2 / math.sqrt(3)
    assert (found.value, found.n) == (2.0, 3)
    assert (found.lo, found.hi) == (pytest.approx(2 - half), pytest.approx(2 + half))


def test_fewer_than_two_values_have_no_interval() -> None:
    assert mean_estimate([0.5]) == Estimate(0.5, None, None, 1)
    assert mean_estimate([]) == Estimate(None, None, None, 0)
    assert mean_estimate([0.5, 0.5]) == Estimate(0.5, 0.5, 0.5, 2)
    with pytest.raises(ValueError, match=r"finite numbers, got .*nan.*diverged"):
        mean_estimate([1.0, math.nan])


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=8))
def test_paired_interval_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    a, b = (dict(enumerate(column)) for column in zip(*pairs, strict=True))
    found = paired(a, b)
    difference = np.subtract(*np.array(pairs).T)
    if np.ptp(difference) < 1e-6:
        return  # SciPy's own interval is nan where all differences are equal
    test = stats.ttest_rel(list(a.values()), list(b.values()))
    interval = test.confidence_interval(0.95)
    assert (found.lo, found.hi) == (pytest.approx(interval.low), pytest.approx(interval.high))
    # the interval and the p value agree about zero
    if abs(test.pvalue - 0.05) > 1e-6:
        assert found.excludes_zero == (test.pvalue < 0.05)


def test_pairs_are_made_by_seed() -> None:
    a, b = {1: 1.1, 2: 2.0, 3: 5.0}, {3: 4.0, 1: 1.0, 9: 7.0}
    assert paired(a, b).value == pytest.approx((0.1 + 1.0) / 2) and paired(a, b).n == 2
    assert relative(a, b).value == pytest.approx((0.1 + 0.25) / 2)


@pytest.mark.parametrize(("lo", "hi", "bound", "verdict"), [
    (-2, -1, 0, "reproduced"), (1, 2, 0, "not reproduced"), (-1, 1, 0, "undecided"),
    (-1, 0.5, 1, "reproduced"), (0.5, 1.5, 1, "undecided"), (None, None, 0, "undecided"),
])  # fmt: skip
def test_verdicts(lo: float | None, hi: float | None, bound: float, verdict: str) -> None:
    assert verdict_below(Estimate(0.0, lo, hi, 3), bound) == verdict


def test_negated_estimate() -> None:
    assert Estimate(1.0, -1.0, 3.0, 4).negated == Estimate(-1.0, -3.0, 1.0, 4)
    assert Estimate(1.0, None, None, 1).negated == Estimate(-1.0, None, None, 1)


# -- hand-made trainings

LOSSES = {  # arm -> seed -> held-out loss at the end
    "kd-qat": {1: 1.0, 2: 2.0, 3: 4.0},
    "qvgen": {1: 0.9, 2: 1.84, 3: 3.52},  # 10, 8 and 12 % lower
    "drop": {1: 2.0, 2: 2.0, 3: 2.0},
}


def log(arm: str, seed: int) -> list[dict[str, Any]]:
    """Six lines; loss 6, 5, ... of kd-qat; of the others half of it in the first third, else the same."""
    rows: list[dict[str, Any]] = []
    for place in range(6):
        factor = 0.5 if arm != "kd-qat" and place < 2 else 1.0
        rows.append({"step": 10 * (place + 1), "loss": factor * (6 - place) * seed, "grad_norm": 3.0 * seed})
    rows[2]["val_loss"] = 3.0 * seed
    rows[5] |= {"val_loss": 1.0 * seed}
    if arm != "kd-qat":
        rows[5]["val_loss_end"] = {"qvgen": 1.004, "drop": 1.5}[arm] * seed
        # two layers: 1 of 4 values is more than 14 times smaller in both, then 3 and 1 of 4
        rows[0] |= {"phi_sigma/a": "14.5 2 1.1 1", "phi_sigma/b": "29 4 3 2"}
        rows[4] |= {"phi_sigma/a": "28 1 1 1", "phi_sigma/b": "29 4 3 2"}
        rows[5] |= {"phi_sigma/a": "0 0 0 0", "phi_sigma/b": "0 0 0 0"}
    return rows


def make(folder: Path, losses: dict[str, dict[int, float | None]], **extra: Any) -> None:
    for arm, seeds in losses.items():
        for seed, loss in seeds.items():
            one = folder / "arms" / f"{arm}{extra.get('suffix', '')}-w3a3-s{seed}"
            one.mkdir(parents=True)
            record = {
                "arm": arm, "label": f"{arm}{extra.get('suffix', '')}", "seed": seed,
                "w_bits": 3, "a_bits": 3,
                "skip_layers": "std", "axes": extra.get("axes", {}), "seconds": 30.0,
                "options": {"recipe": {"steps": 60, "batch_size": 8, "accumulate": 2, "lr_weights": 1e-4,
                                       "loss": "distill"}},
                "validation": {"batch": 4, "clips": 5}, "versions": {"torch": "2.13"},
                "hardware": {"gpus": ["A GPU"]},
                "git": None, "method": "qvgen", "method_code": "0123456789abcdef",
                "error": None if loss else "ValueError: diverged",
                "final": None if loss is None else {"distill": loss, "task": 2 * loss},
            }  # fmt: skip
            (one / "record.json").write_text(json.dumps(record))
            (one / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log(arm, seed)))


def grid_file(folder: Path, **changes: Any) -> Path:
    data = {
        "compare": ["qvgen", "kd-qat"],
        "kept": "drop",
        "hypotheses": [{"lower": "drop", "than": "kd-qat"}],
        "arms": {"kd-qat": {"method": "kd-qat"}, "qvgen": {"method": "qvgen"}, "drop": {"method": "qvgen"}},
        "blocks": {"core": {"bits": [3], "seeds": [1, 2, 3]}},
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**data, **changes}))
    return path


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    make(tmp_path, LOSSES)
    return findings(read_runs(tmp_path), read_grid(grid_file(tmp_path)))


def only(rows: Sequence[dict[str, Any]], **want: Any) -> dict[str, Any]:
    [row] = [row for row in rows if all(row[key] == value for key, value in want.items())]
    return row


def test_final_losses_over_the_baseline(found: dict[str, Any]) -> None:
    row = only(found["finals"], arm="qvgen")
    # relative differences -0.10, -0.08, -0.12: mean -0.1, standard deviation 0.02
    half = T2 * 0.02 / math.sqrt(3)
    assert row["over_baseline"] == pytest.approx(
        {"value": -0.1, "lo": -0.1 - half, "hi": -0.1 + half, "n": 3}
    )
    assert row["distill"]["value"] == pytest.approx((0.9 + 1.84 + 3.52) / 3)
    assert row["task"]["value"] == pytest.approx(2 * (0.9 + 1.84 + 3.52) / 3)
    assert only(found["finals"], arm="kd-qat")["difference"]["value"] == 0


def test_each_hypothesis_gets_its_verdict(found: dict[str, Any]) -> None:
    assert only(found["hypotheses"], lower="qvgen", than="kd-qat")["verdict"] == "reproduced"
    row = only(found["hypotheses"], lower="drop")  # +100, 0 and -50 %: all over the place
    assert row["verdict"] == "undecided" and row["difference"]["value"] == pytest.approx(1 / 6)


def test_training_is_compared_as_a_whole_and_in_thirds(found: dict[str, Any]) -> None:
    # loss 6 5 4 3 2 1 against 3 2.5 4 3 2 1, the same factor for all seeds: no width
    whole, first, last = (
        only(found["training"], measure="training loss", steps=steps)
        for steps in ("all steps", "first third", "last third")
    )
    assert whole["difference"]["value"] == pytest.approx(15.5 / 21 - 1) and whole["verdict"] == "reproduced"
    assert first["difference"] == pytest.approx({"value": -0.5, "lo": -0.5, "hi": -0.5, "n": 3})
    assert last["difference"]["value"] == 0 and last["verdict"] == "undecided"
    norms = [row for row in found["training"] if row["measure"] == "gradient norm"]
    assert [row["verdict"] for row in norms] == ["undecided"] * 3, "they are the same"


def test_the_cost_of_removal_is_over_the_arm_that_kept_phi(found: dict[str, Any]) -> None:
    assert {row["arm"] for row in found["removal"]} == {"qvgen", "drop"}, "kd-qat had nothing to remove"
    decayed, dropped = (only(found["removal"], arm=arm) for arm in ("qvgen", "drop"))
    assert decayed["cost"]["value"] == pytest.approx(0.004) and decayed["verdict"] == "reproduced"
    assert dropped["cost"]["value"] == pytest.approx(0.5) and dropped["verdict"] == "not reproduced"
    assert dropped["at_once"] and not decayed["at_once"]


def test_the_spectrum_counts_what_is_fourteen_times_below(found: dict[str, Any]) -> None:
    # layer a: 14.5 / 14 = 1.04 > 1 only; b: 29 / 14 = 2.07 > 2 only: 1/4. Then a: 28 / 14 = 2 > 1, 1, 1: 3/4.
    [row] = found["spectrum"]
    assert (row["first"]["value"], row["last"]["value"]) == (0.25, 0.5), "what is gone altogether is left out"
    assert row["growth"]["value"] == 0.25 and row["verdict"] == "reproduced"


def spectra(folder: Path, first: str, last: str) -> dict[str, Any]:
    """The row about the spectrum, of trainings whose layers all have these singular values."""
    make(folder, LOSSES)
    for path in (folder / "arms").glob("drop-*/train.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for place, row in enumerate(lines):
            values = {key: first if place < 3 else last for key in row if key.startswith("phi_sigma/")}
            lines[place] = {**row, **values}
        path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    [row] = findings(read_runs(folder), read_grid(grid_file(folder)))["spectrum"]
    return dict(row)


def test_a_measure_that_is_nothing_at_both_ends_decides_nothing(tmp_path: Path) -> None:
    row = spectra(tmp_path, "3 2.5 2 1.5", "3 2.5 2 1.2")
    assert row["growth"] == {"value": 0.0, "lo": 0.0, "hi": 0.0, "n": 3}
    assert row["verdict"] == "undecided: none at either step"


def test_small_values_that_vanish_in_every_seed_are_decided(tmp_path: Path) -> None:
    row = spectra(tmp_path, "28 2 1 1", "3 2.5 2 1")
    assert (row["first"]["value"], row["last"]["value"]) == (0.75, 0.0)
    assert row["verdict"] == "not reproduced"


def test_the_last_singular_value_over_the_first_says_how_steep(tmp_path: Path) -> None:
    row = spectra(tmp_path, "4 3 2 2", "4 3 2 1")
    assert (row["ratio_first"]["value"], row["ratio_last"]["value"]) == (0.5, 0.25)
    assert row["ratio_difference"] == {"value": -0.25, "lo": -0.25, "hi": -0.25, "n": 3}
    assert (row["first_steps"], row["last_steps"]) == ([10], [60])
    page = as_markdown({**found_nothing(), "spectrum": [row]}, [], {})
    assert (
        "| W3A3 | 10 to 60 | 0.500 [0.500, 0.500] | 0.250 [0.250, 0.250] | -0.2500 [-0.2500, -0.2500] | 3 |"
        in page
    )


def found_nothing() -> dict[str, Any]:
    parts: dict[str, Any] = dict.fromkeys(("training", "finals", "hypotheses", "removal"), ())
    return {**parts, "compare": ["a", "b"], "kept": "drop", "confidence": 0.95, "removal_margin": 0.01}


def test_a_value_just_fourteen_times_smaller_counts_here_and_in_the_training_log(tmp_path: Path) -> None:
    row = spectra(tmp_path, "14 7 1 0.5", "14 7 1 0.5")
    phi = Phi(torch.diag(torch.tensor([14.0, 7.0, 1.0, 0.5])), torch.eye(4))
    assert row["first"]["value"] == spectrum([phi])["phi_negligible"] == 0.5


def test_normalised_spectrum_is_a_mean_over_layers(tmp_path: Path) -> None:
    make(tmp_path, {"qvgen": {1: 1.0}})
    [run] = read_runs(tmp_path)
    assert list(run.spectrum()) == [10, 50]
    assert run.spectrum()[10] == pytest.approx([1, 4 / 29, 2.6 / 29, 2 / 29])


def test_diverged_trainings_are_counted_and_left_out_of_pairs(tmp_path: Path) -> None:
    make(tmp_path, {**LOSSES, "qvgen": {1: 0.9, 2: None, 3: 3.52}})
    found = findings(read_runs(tmp_path), read_grid(grid_file(tmp_path)))
    row = only(found["finals"], arm="qvgen")
    assert row["diverged"] == [2] and row["over_baseline"]["n"] == 2
    assert row["over_baseline"]["value"] == pytest.approx(-0.11)
    assert only(found["training"], measure="training loss", steps="all steps")["difference"]["n"] == 2


def test_one_diverged_seed_costs_its_own_pair_only(tmp_path: Path) -> None:
    make(tmp_path, {**LOSSES, "qvgen": {1: 0.9, 2: None, 3: 3.52}, "drop": {1: None, 2: 2.0, 3: 2.0}})
    path = tmp_path / "arms" / "qvgen-w3a3-s2" / "train.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])  # it never got to its end
    arguments = ["--grid", str(grid_file(tmp_path)), "--records", str(tmp_path), "--out", str(tmp_path / "o")]
    assert report.main(arguments) == 0
    found = json.loads((tmp_path / "o" / "claims.json").read_text())
    row = only(found["removal"], arm="qvgen")
    assert (row["cost"]["n"], row["diverged"]) == (1, [1, 2]), "a pair needs both: seed 3 is left"
    assert only(found["removal"], arm="drop")["cost"]["n"] == 2
    page = (tmp_path / "o" / "claims.md").read_text()
    assert "| W3A3 | qvgen | by decay | +0.40 | 1; diverged: seed 1, 2 | undecided |" in page
    assert "- 9 trainings, 2 of them diverged: drop W3A3 seed 1; qvgen W3A3 seed 2\n" in page
    assert only(found["hypotheses"], lower="qvgen")["diverged"] == [2]


def test_trainings_of_another_loss_have_no_cost_of_removal(tmp_path: Path) -> None:
    make(tmp_path, LOSSES)
    path = tmp_path / "arms" / "qvgen-w3a3-s1" / "record.json"
    path.write_text(path.read_text().replace('"loss": "distill"', '"loss": "task"'))
    found = findings(read_runs(tmp_path), read_grid(grid_file(tmp_path)))
    assert [row["arm"] for row in found["removal"]] == ["drop"]


# -- the map


def draw_map(tmp_path: Path, lying: str = "steps") -> Any:
    """Three points: all seeds agree, they disagree, and one seed only."""
    for rate, steps, losses in (
        ("1e-4", "200", {"kd-qat": {1: 1.0, 2: 1.0, 3: 1.0}, "qvgen": {1: 1.1, 2: 1.1, 3: 1.1}}),
        ("3e-5", "200", {"kd-qat": {1: 1.0, 2: 1.0, 3: 1.0}, "qvgen": {1: 0.5, 2: 1.0, 3: 1.2}}),
        ("3e-5", "1600", {"kd-qat": {1: 1.0}, "qvgen": {1: 0.8}}),
    ):  # fmt: skip
        make(tmp_path, losses, suffix=f"-{rate}-{steps}", axes={"lr": rate, lying: steps})  # type: ignore[arg-type]
    grid: Grid = read_grid(grid_file(tmp_path))
    return heat_maps(findings(read_runs(tmp_path), grid), grid)


def test_heat_map_marks_what_excludes_zero(tmp_path: Path) -> None:
    figure, _ = draw_map(tmp_path)
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["3e-5", "1e-4"], "by size, not by letters"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["200", "1600"]
    # -50, 0 and 20 %: mean -10, deviation 36.06, half-width 4.3027 x 36.06 / sqrt(3) = 89.6
    texts = {text.get_text(): text.get_position() for text in axes.texts}
    assert texts == {"+10.0*\n\u00b10.0": (0, 1), "-10.0\n\u00b189.6": (0, 0), "-20.0\nn = 1": (1, 0)}
    [frame] = axes.patches
    assert frame.get_x() < 0 < frame.get_x() + frame.get_width() < 1, "around the field with the star"
    assert frame.get_y() < 1 < frame.get_y() + frame.get_height()
    image = axes.images[0].get_array()
    np.testing.assert_allclose(image.filled(np.nan), [[-10, -20], [10, np.nan]])


def test_heat_map_says_where_the_paper_lies(tmp_path: Path) -> None:
    figure, caption = draw_map(tmp_path)
    # 3e-5 is the first row; 2000 steps are beyond 1600, the last of two columns
    [mark] = figure.axes[0].collections
    assert mark.get_offsets().tolist() == [[1.5, 0.0]]
    assert "Diamond: where the paper trained (lr 3e-05, steps 2000); on the edge: beyond the map." in caption


def test_heat_map_of_other_axes_has_no_place_for_the_paper(tmp_path: Path) -> None:
    figure, caption = draw_map(tmp_path, lying="width")
    assert not figure.axes[0].collections and "Diamond" not in caption


def test_places_between_points_go_by_logarithms() -> None:
    points = [1e-5, 1e-4, 4e-4]
    assert [_place(value, points) for value in (1e-5, 2e-4, 9e-6, 5e-4)] == pytest.approx([0, 1.5, -0.5, 2.5])
    assert _place(1e-5, [1e-5]) == 0


# -- files


def test_the_report_is_the_same_for_the_same_records(tmp_path: Path) -> None:
    make(tmp_path, LOSSES)
    arguments = ["--grid", str(grid_file(tmp_path)), "--records", str(tmp_path), "--out"]
    for out in ("a", "b"):
        assert report.main([*arguments, str(tmp_path / out)]) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["claims.json", "claims.md", "curves.png", "finals.png", "spectrum.png"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    page = (tmp_path / "a" / "claims.md").read_text()
    assert "| W3A3 | qvgen | kd-qat | -10.00 [-14.97, -5.03] | 3 | reproduced |" in page
    assert "| W3A3 | drop | at once, after training | +50.00 [+50.00, +50.00] | 3 | not reproduced |" in page
    assert "- 9 trainings, 0 of them diverged\n- 4.5 minutes of training on A GPU" in page
    assert "\n- steps 60, batch 16, learning rate of weights 0.0001\n" in page
    assert "\n- code qvgen with sources 0123456789ab; torch 2.13\n" in page
    assert json.loads((tmp_path / "a" / "claims.json").read_text())["runs"][0]["distill"] == 2.0


def test_missing_and_foreign_arms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, {**LOSSES, "kd-qat": {1: 1.0, 2: 2.0, 8: 9.0}})
    caplog.set_level(logging.INFO)
    arguments = ["--grid", str(grid_file(tmp_path)), "--records", str(tmp_path), "--out", str(tmp_path / "a")]
    report.main(arguments)
    assert caplog.messages == ["1 of 9 arms are not finished: kd-qat-w3a3-s3"]
    runs = json.loads((tmp_path / "a" / "claims.json").read_text())["runs"]
    assert len(runs) == 8 and all(run["seed"] != 8 for run in runs)


def test_no_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no arms/\*/record.json; train some first"):
        read_runs(tmp_path)
    make(tmp_path, {"qvgen": {1: 1.0}})
    (tmp_path / "arms" / "qvgen-w3a3-s1" / "record.json").write_text('{"axes": {}}')
    with pytest.raises(UserError, match="has no 'arm'; delete its folder"):
        read_runs(tmp_path)


@pytest.mark.parametrize("name", ["main", "map"])
def test_the_shipped_findings_are_those_of_the_shipped_records(tmp_path: Path, name: str) -> None:
    """Records of today's making or of an older one, without what was recorded later."""
    root = PUBLISHED.parents[2]
    unpack(root / "results" / "claims" / name / "records.tar.gz", tmp_path)
    grid = read_grid(root / "configs" / f"claims-{name}.yaml")
    again, shipped = (
        json.loads(text, parse_float=lambda digits: round(float(digits), 9))
        for text in (
            json.dumps(findings(report.wanted(tmp_path, grid), grid)),
            (root / "results" / "claims" / name / "claims.json").read_text(),
        )
    )
    assert again == shipped


@pytest.mark.parametrize(("file", "old", "new"), [
    ("record.json", '"distill": 1.0', '"distill": NaN'),
    ("train.jsonl", '"val_loss": 3.0', '"val_loss": NaN'),
])  # fmt: skip
def test_a_number_that_is_none_is_named(tmp_path: Path, file: str, old: str, new: str) -> None:
    make(tmp_path, {"kd-qat": {1: 1.0}})
    path = tmp_path / "arms" / "kd-qat-w3a3-s1" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(
        UserError, match=rf"{file}: (distill|val_loss) is nan, of a training without an error"
    ):
        read_runs(tmp_path)


def test_no_published_logs_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    arguments = ["--grid", str(grid_file(tmp_path)), "--out", str(tmp_path / "o"), "--published"]
    with pytest.raises(UserError, match=r"--published .*nowhere: no qvgen- or kd-qat-w3a3\.train\.jsonl"):
        report.main([*arguments, str(tmp_path / "nowhere")])
    (tmp_path / "qvgen-w3a3.train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"qvgen-w3a3\.train\.jsonl: no whole line"):
        report.main([*arguments, str(tmp_path)])
    (tmp_path / "qvgen-w3a3.train.jsonl").rename(tmp_path / "qvgen-best.train.jsonl")
    (tmp_path / "qvgen-best.train.jsonl").write_text('{"step": 1, "val_loss": 1.0}\n')
    with pytest.raises(UserError, match="bits 'best'"):
        report.main([*arguments, str(tmp_path)])
    assert not (tmp_path / "o").exists()


def test_published_logs_are_read_with_their_last_validation() -> None:
    runs = {(run.arm, run.setting): run for run in from_published(PUBLISHED, ["qvgen", "kd-qat"])}
    assert len(runs) == 6
    run = runs["kd-qat", Setting(2, 2, "std")]
    last = json.loads((PUBLISHED / "kd-qat-w2a2.train.jsonl").read_text().splitlines()[-1])
    assert run.distill == last["val_loss"] and isinstance(run, Run)
    assert run.curve("val_loss")[1600] == last["val_loss"] and len(run.curve("loss")) == 80
