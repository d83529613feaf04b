"""Parts of the page and the tables: trade-offs, published numbers, recipes, LaTeX, the browser's data."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from evalharness.papers import PaperNumber
from evalharness.ranking import BitsRanking, ranking
from evalharness.report import browser
from evalharness.report.browser import browser_data, inert_json
from evalharness.report.glance import glance
from evalharness.report.html_tables import cell_table
from evalharness.report.latex import escape, latex
from evalharness.report.plots import plots
from evalharness.report.published import published, published_table
from evalharness.report.recipes import grouped, row_recipes
from evalharness.report.rows import middle_half
from evalharness.report.summary import summary
from evalharness.report.tables import LatexReporter, markdown
from evalharness.report.tradeoff import COSTS, front, named, points
from evalharness.report.training import curve_of
from evalharness.results import Results, ScoreRow
from tests.evalharness.test_report import DIMENSIONS, SCRIPT, build, full, partial, record


def test_the_front_is_what_no_other_row_beats() -> None:
    """By hand: at 1.5 MB lsq 69.0, qvgen 71.5, rtn 22.5; at 2 MB rtn 77.5; at 8 MB full precision 91.5."""
    megabytes = COSTS[1]
    found = points(full(), megabytes)
    assert {(p.row.method, p.cost) for p in found} == {
        ("bf16", 8.0), ("rtn", 2.0), ("lsq", 1.5), ("qvgen", 1.5), ("rtn", 1.5)
    }  # fmt: skip
    assert [(p.row.method, p.cost) for p in front(found)] == [("qvgen", 1.5), ("rtn", 2.0), ("bf16", 8.0)]
    tied = [p._replace(cost=1.0, mean=50.0) for p in found]
    assert len(front(tied)) == 1


def test_a_simulation_has_no_time_and_a_real_run_has() -> None:
    peak, step = COSTS[2:]
    assert [p.row.method for p in points(full(), step)] == ["bf16"], "the quantized rows are simulated"
    caption = plots(full())[1].caption
    assert "neither its time nor its peak memory is drawn" in caption
    real = [replace(record(*key), execution="real") for key in (("bf16", 16), ("rtn", 4))]
    assert [p.cost for p in points(build(real), step)] == [12.5, 12.5]
    assert [p.cost for p in points(build(real), peak)] == [900.0, 900.0]
    assert "drawn" not in plots(build(real))[1].caption


def test_a_row_without_a_profile_has_its_nominal_bits() -> None:
    bare = [replace(record(*key), profile=None) for key in (("bf16", 16), ("rtn", 4))]
    assert [p.cost for p in points(build(bare), COSTS[0])] == [16.0, 4.0]
    assert points(build(bare), COSTS[1]) == []


def test_rank_is_drawn_down_to_zero() -> None:
    log = [{"step": s, "loss": 0.5, "grad_norm": 1.0, "rank": rank} for s, rank in enumerate((32, 16, 0))]
    plot = plots(build([replace(record("qvgen", 3), train_log=log)]))[-1]
    assert plot.caption.startswith("Training of the quantized weights: loss, gradient norm, rank by step")
    without = plots(build([record("qvgen", 3)]))[-1]
    assert "rank" not in without.caption


@pytest.mark.parametrize(
    "odd",
    [
        {"step": "a", "loss": 0.5}, {"step": None, "loss": 0.5}, {"step": [1], "loss": 0.5},
        {"step": 10**400, "loss": 0.5}, {"step": float("nan"), "loss": 0.5}, {"step": 9, "loss": 10**400},
        {"step": 1e308, "loss": 1e308}, {"step": 9, "loss": 1e-308}, {"step": 9, "loss": "x"},
    ],
)  # fmt: skip
def test_what_no_axis_can_show_is_left_out_of_a_curve(odd: dict[str, object]) -> None:
    """A log is whatever a method says; the page was not written for one such line."""
    [cell] = build([replace(record("qvgen", 3), train_log=[{"step": 1, "loss": 0.5}])]).cells
    cell = cell.model_copy(update={"train_log": [*cell.train_log, odd]})
    assert curve_of(cell, "loss") == [(1.0, 0.5)]


def test_what_a_rank_falls_to_is_marked_once_for_each_step_and_method() -> None:
    """By hand: 32, 16, 16, 0 logged at steps 10 to 40 falls at 20 and 40; two seeds fall alike."""
    ranks = (32, 16, 16, 0)
    log = [{"step": 10 * (at + 1), "loss": 0.5, "rank": rank} for at, rank in enumerate(ranks)]
    rows = [replace(record("qvgen", 3, seed), train_log=log) for seed in (0, 1)]
    [plot] = [each for each in plots(build(rows)) if each.caption.startswith("Training")]
    assert "A dotted upright line" in plot.caption
    assert "qvgen-w3a3-s1: loss 0.5 at step 40, rank 32, 16 from step 20, 0 from step 40." in plot.alt
    dotted = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="[^"]*stroke-dasharray', plot.svg)
    assert len(dotted) == 4, "two falls, in the panels of loss and rank"
    flat = [replace(row, train_log=[{**each, "rank": 8} for each in log]) for row in rows]
    [plot] = [each for each in plots(build(flat)) if each.caption.startswith("Training")]
    assert "dotted" not in plot.caption and "rank 8" in plot.alt


def test_the_shipped_trainings_are_drawn_beside_each_other() -> None:
    """QVGen halves its rank from 32 down to none at every width, as its logs say; the others have none."""
    folder = Path(__file__).parents[2] / "results/tinyworld/training"
    rows = [record("bf16", 16)]
    for method, bits in itertools.product(("qvgen", "lsq", "kd-qat"), (4, 3, 2)):
        lines = (folder / f"{method}-w{bits}a{bits}.train.jsonl").read_text().splitlines()
        log = [json.loads(line) for line in lines]
        scored = replace(record("qvgen", 3), cell_id=f"{method}-w{bits}a{bits}-s0")
        rows.append(replace(scored, method=method, w_bits=bits, a_bits=bits, train_log=log))
    plot = plots(build(rows))[-1]
    assert plot.is_wide and plot.alt.count("loss") == 9
    for bits in (4, 3, 2):
        told = next(part for part in plot.alt.split("; ") if part.startswith(f"qvgen-w{bits}a{bits}"))
        falls = [int(rank) for rank in re.findall(r"(\d+) from step", told)]
        assert falls == [16, 8, 4, 2, 1, 0]
    assert all(f'data-series="{name}"' in plot.svg for name in ("qvgen", "lsq", "kd-qat"))


def test_a_sentence_says_what_the_tables_show() -> None:
    """By hand: at W3A3 71.5, 69.0 and 22.5 of 91.5; rtn at W4A4 77.5, so 85 % and 78 % are kept."""

    def told(results: Results) -> str:
        return summary(ranking(results), results)

    assert told(full()) == (
        "3 methods at 2 bit widths: the best keeps 85 % at W4A4 and 78 % at W3A3 of full precision's mean "
        "of 91.5; they differ most at W3A3: qvgen has the highest mean, 71.5, lsq and rtn cannot be told "
        "from it."
    )
    assert told(partial()).endswith("71.5, ahead of rtn; rtn has the lowest, 22.5."), "lsq has no mean"
    few = build([record("bf16", 16), record("qvgen", 3), record("lsq", 3)])
    assert told(few) == (
        "2 methods at W3A3 against full precision's 91.5: qvgen has the highest mean, 71.5, lsq cannot be "
        "told from it."
    )
    assert told(build([record("rtn", 3)])) == "1 method at W3A3: rtn has 22.5."
    alone = build([record("bf16", 16), record("rtn", 4), record("lsq", 3)])
    assert "differ" not in told(alone) and "; at W4A4 rtn has" in told(alone), "none beside it at its width"
    assert told(build([record("bf16", 16)])) == "Full precision alone: nothing is compared with it."
    assert told(build([])) == ""
    none = replace(record("lsq", 3), scores={})
    assert told(build([none])) == "Nothing is ranked: no quantized row has every score."
    other = [replace(record("rtn", 3), model="other", cell_id="rtn-w3a3-s0-other"), record("rtn", 3)]
    assert told(build(other)) == "other: 1 method at W3A3: rtn has 22.5. toy: 1 method at W3A3: rtn has 22.5."


def test_one_failed_method_does_not_choose_where_methods_differ_most() -> None:
    """By hand, quartiles: 57.5 and 71.25 of the first four, 47.5 and 62.5 of the others."""
    failed, apart = [70.0, 71.0, 72.0, 20.0], [40.0, 50.0, 60.0, 70.0]
    assert middle_half(failed) == pytest.approx(13.75) and middle_half(apart) == pytest.approx(15.0)
    assert middle_half([3.0, 7.0]) == pytest.approx(2.0) and middle_half([7.0]) == middle_half([]) == 0.0
    results = full()
    [group] = [group for group in ranking(results) if group.w_bits == 3]
    best = group.rows[0]
    assert best.result.mean is not None

    def width(bits: int, means: list[float]) -> BitsRanking:
        rows = [
            replace(
                best,
                result=best.result.model_copy(
                    update={
                        "method": f"m{n}",
                        "mean": best.result.mean.model_copy(update={"value": mean / 100}),
                    }
                ),
            )
            for n, mean in enumerate(sorted(means, reverse=True))
        ]
        return replace(group, w_bits=bits, a_bits=bits, rows=tuple(rows))

    text = summary([width(4, failed), width(3, apart)], results)
    assert "they differ most at W3A3" in text and "m0 has the highest mean, 70.0" in text


def test_stars_are_not_called_clear_on_top() -> None:
    """Ahead with these seeds alone: the top says so too, and names no more than three that are level."""
    results = full()
    [group] = [group for group in ranking(results) if group.w_bits == 3]
    best, *rest = group.rows
    leads = tuple(replace(lead, by=best.result.mean, p=0.2, p_here=0.001) for lead in best.leads)
    starred = replace(group, rows=(replace(best, leads=leads), *rest))
    assert "ahead of all others with these seeds; rtn has the lowest" in summary([starred], results)
    level = tuple(replace(best.leads[0], over=f"m{place}") for place in range(4))
    many = replace(group, rows=(replace(best, leads=level), *rest))
    assert "71.5, 4 others cannot be told from it" in summary([many], results)


def test_a_row_without_a_mean_is_in_no_legend() -> None:
    mean = plots(partial())[0]
    assert mean.caption.startswith("Mean by bit width") and 'data-series="lsq"' not in mean.svg
    assert 'data-series="qvgen"' in mean.svg


def test_names_in_drawings_are_escaped() -> None:
    row = replace(record("rtn", 3), method='a"><script>&', cell_id="x-w3a3-s0")
    for plot in plots(build([record("bf16", 16), row])):
        assert "<script" not in plot.svg
        ElementTree.fromstring(plot.svg)


def paper(**changes: object) -> PaperNumber:
    fields = dict.fromkeys(("arxiv", "table", "scheme", "note"), "") | {
        "paper": "P", "model": "Toy", "protocol": "toy", "method": "LSQ of the paper", "row": "lsq",
        "bits_w": 4, "bits_a": 4, "metric": "color", "value": "12.34", "unit": "percent", "hand": "second",
        "read_in": "a note", "reference": "notes 1",
    }  # fmt: skip
    return PaperNumber(**(fields | changes))  # type: ignore[arg-type]


def test_published_numbers_stand_beside_measured_ones_of_the_same_model() -> None:
    numbers = [paper(), paper(metric="mean", value="50"), paper(model="other", value="1")]
    found = published(full(), numbers)
    assert found is not None and found.is_comparable and [r.first.model for r in found.rows] == ["Toy"]
    table = published_table(found, full())
    assert not table.is_folded
    sources = [row.cells[3].text for row in table.rows]
    assert sources == ["measured here"] * 5 + ["paper: P"]
    assert table.rows[-1].cells[3].small == "second-hand, read in: a note"
    assert [cell.text for cell in table.rows[-1].cells[5:]] == ["12.34", "50"]
    assert [cell.text for cell in table.rows[0].cells[5:]] == ["90.00", "91.50"], "bf16, color and mean"


def test_numbers_of_other_protocols_are_shown_as_not_comparable() -> None:
    found = published(full(), [paper(protocol="elsewhere")])
    assert found is not None and not found.is_comparable and found.measured == ()
    table = published_table(found, full())
    assert table.is_folded and "NOT COMPARABLE" in table.note
    assert published(full(), [paper(row="unknown")]) is None
    assert published(full(), [paper(metric="fid")]) is None
    assert "Published numbers" not in markdown(full()), "a text table has no fold to hide them in"


def test_every_row_has_its_recipe_and_says_which_run_it_is_from() -> None:
    results = partial()
    merged = [{"name": "anna", "results_sha256": "ab" * 32, "cells": ["lsq-w3a3-s0"]}, "damage"]
    results = results.model_copy(update={"manifest": {"merged": merged}})
    recipes = {recipe.title: dict(recipe.facts) for recipe in row_recipes(results)}
    assert recipes["lsq-w3a3-s0"]["from run"] == "anna (abababababab)"
    assert recipes["lsq-w3a3-s0"]["failed"] == "1 videos"
    assert recipes["lsq-w3a3-s0"]["coverage"] == "50.0 %, 1 of 2 videos"
    assert "from run" not in recipes["bf16-s0"]


def test_recipes_that_are_alike_stand_once() -> None:
    first, second = full(seeds=(0, 1)), [record("lsq", 3), replace(record("lsq", 3, 1), method_config={})]
    by_method = dict(grouped(row_recipes(first)))
    assert list(by_method) == ["bf16", "rtn", "qvgen", "lsq"] and len(by_method["rtn"]) == 2
    assert by_method["lsq"][0].title == "W3A3, seed 0, 1" and len(by_method["lsq"][0].anchor.split()) == 2
    assert dict(by_method["lsq"][0].facts)["cells"] == "lsq-w3a3-s0, lsq-w3a3-s1"
    [(_, alike)] = grouped(row_recipes(build(second)))
    assert len(alike) == 2, "other options are another recipe"


def test_a_glance_by_hand() -> None:
    """At W3A3 qvgen 71.5, lsq 69.0, rtn 22.5; at W4A4 rtn 77.5 alone; full precision 91.5."""
    results = full()
    rankings = ranking(results)
    found = glance(rankings, results)
    assert found is not None and found.columns == ("W4A4", "W3A3")
    rows = {name: [cell.text for cell in cells] for name, cells in found.rows}
    assert rows == {"rtn": ["77.5", "22.5"], "qvgen": ["-", "71.5"], "lsq": ["-", "69.0"]}
    cells = {name: cells[1] for name, cells in found.rows}
    assert (cells["qvgen"].state, cells["qvgen"].small) == ("best", "best")
    assert cells["qvgen"].fall == pytest.approx(1 - 71.5 / 91.5, abs=1e-3)
    for lead in rankings[1].rows[0].leads:
        state = "behind" if lead.is_clear else "here" if lead.is_clear_here else "level"
        assert cells[lead.over].state == state
        assert cells[lead.over].small.startswith("\u22122.5" if lead.over == "lsq" else "\u221249.0")
    assert "Full precision: bf16 91.5" in found.note
    assert glance(ranking(build([record("bf16", 16), record("rtn", 3)])), results) is None, "one method"


def test_intervals_are_drawn_on_one_scale() -> None:
    results = full()
    rows = cell_table(results, is_folded=False).rows
    drawn = [cell.bar for row in rows for cell in row.cells if cell.bar is not None]
    assert (
        len(drawn) == len(rows)
        and min(bar[0] for bar in drawn) == 0.0
        and max(bar[2] for bar in drawn) == 100.0
    )
    assert all(low <= at <= high for low, at, high in drawn)


def test_names_on_the_front_do_not_meet() -> None:
    found = points(full(), COSTS[1])
    line = front(found)
    assert [p.row.method for p in named(line, (0.0, 0.0))] == ["rtn", "qvgen"], "all but full precision"
    assert [p.row.method for p in named(line, (1.0, 10.0))] == ["rtn"], "77.5 and 71.5, half a MB apart"


def test_a_page_of_many_rows_opens_with_the_width_that_differs_most(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    assert browser_data(full(), tmp_path)["focus"] == ""
    monkeypatch.setattr(browser, "MOST_ROWS", 4)
    assert browser_data(full(), tmp_path)["focus"] == "W3A3"


def test_the_width_that_differs_most_is_told_by_methods_not_by_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence on top goes by a method's mean over its seeds, and the browser must open there too."""
    monkeypatch.setattr(browser, "MOST_ROWS", 3)
    seeds = {("lsq", 4): (0.9, 0.1), ("rtn", 4): (0.1, 0.9), ("lsq", 3): (0.5, 0.5), ("rtn", 3): (0.6, 0.6)}
    records = [
        replace(record("rtn", bits, seed), method=method, cell_id=f"{method}-w{bits}a{bits}-s{seed}",
                scores={d: [ScoreRow("0000", 0, value)] for d in DIMENSIONS},
                n_expected=dict.fromkeys(DIMENSIONS, 1))
        for (method, bits), values in seeds.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    results = build(records)
    assert "they differ most at W3A3" in summary(ranking(results), results)
    assert browser_data(results, tmp_path)["focus"] == "W3A3"


def test_latex_has_the_same_rows_and_escapes_everything(tmp_path) -> None:  # type: ignore[no-untyped-def]
    [path] = LatexReporter().write(full(), tmp_path)
    text = path.read_text()
    assert r"method & bits & mean & subject\_consistency & color \\" in text
    assert r"qvgen & W3A3 & 71.5 {\scriptsize [61.0, 82.0]}" in text
    assert text.count(r"\midrule") == 3 and text.count("\n%") + 1 == 2
    odd = replace(record("lsq", 3), method=r"a_b\input{x}$%&#~^{}")
    assert r"a\_b\textbackslash{}input\{x\}\$\%\&\#\textasciitilde{}\textasciicircum{}\{\}" in latex(
        build([odd])
    )
    assert "PARTIAL RUN" in latex(partial()) and " & -- &" in latex(partial())
    assert escape("two\nlines") == "two lines"


def test_a_label_cannot_leave_its_comment() -> None:
    text = latex(full(label="x\n\\input{evil}"))
    evil = [line for line in text.splitlines() if "evil" in line]
    assert evil and all(line.startswith("%") for line in evil)


def test_the_browsers_data_by_hand(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "cells/lsq-w3a3-s0/videos").mkdir(parents=True)
    data = browser_data(full(), tmp_path)
    assert data["dimensions"] == DIMENSIONS and data["all"] == 2
    assert [row["videos"] for row in data["rows"]] == [None, None, "cells/lsq-w3a3-s0/videos/", None, None]
    assert [prompt[0] for prompt in data["prompts"]] == ["0000", "0001"] and data["samples"] == [0]
    color = data["scores"]["color"]
    assert color["of"] == [0, 1] and [row[0] for row in color["rows"]] == [100.0, 90.0, 80.0, 90.0, 30.0]
    gap = replace(
        record("lsq", 3), scores={"color": [ScoreRow("0000", 2, 0.5), ScoreRow("0001", 10**12, 0.25)]}
    )
    data = browser_data(build([gap]), tmp_path)
    assert data["samples"] == [2, 10**12], "numbers of videos, however large, are columns"
    assert data["scores"]["color"] == {"of": [0, 1], "rows": [[50.0, None, None, 25.0]]}
    others = {name: part for name, part in data["scores"].items() if name != "color"}
    assert all(part == {"of": [], "rows": [None]} for part in others.values())


def test_prompts_beyond_the_limit_are_those_that_differ_least(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(browser, "MOST_SCORES", 2)
    worst = {"color": [ScoreRow("0000", 0, 0.6), ScoreRow("0001", 0, 0.0)]}
    cells = [record("bf16", 16), replace(record("lsq", 3), scores=worst)]
    data = browser_data(build(cells), tmp_path)
    assert data["all"] == 2 and [prompt[0] for prompt in data["prompts"]] == ["0001"], "0.8 against 0.4"
    assert [row for row in data["scores"]["color"]["rows"]] == [[80.0], [0.0]]


def test_inert_json_is_the_same_data_without_markup() -> None:
    value = {"a": f"{SCRIPT} </script><!-- & \u2028 \u2029"}
    text = inert_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)
