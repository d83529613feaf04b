"""The files that people read: what stands in them, what must not, and that no number is invented."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from evalharness.report import videos
from evalharness.report.drawing import look_of
from evalharness.report.html import HtmlReporter, render
from evalharness.report.plots import plots
from evalharness.report.rows import coverage_text, leaderboard_columns, leaderboard_rows, number, sorted_cells
from evalharness.report.selection import Choice, choose_prompts, shown_cells
from evalharness.report.tables import CsvReporter, MarkdownReporter, markdown
from evalharness.report.wording import legend, warnings
from evalharness.results import CellRecord, Results, ScoreRow, build_results, write_results
from evalharness.stats import Resampler

GOLDEN = Path(__file__).parent / "golden"
DIMENSIONS = ["subject_consistency", "color"]
LABEL = "toy scores: VBench's dimension names, not VBench scores"
SCRIPT = "<script>document.title='pwned'</script>"

# method, bits -> scores of prompts 0000 and 0001 in each dimension; a seed adds 0.02.
TABLE = {
    ("bf16", 16): ([0.96, 0.90], [1.0, 0.8]),
    ("rtn", 4): ([0.80, 0.70], [0.9, 0.7]),
    ("lsq", 3): ([0.70, 0.66], [0.8, 0.6]),
    ("qvgen", 3): ([0.74, 0.72], [0.9, 0.5]),
    ("rtn", 3): ([0.30, 0.20], [0.3, 0.1]),
}


def record(method: str, bits: int, seed: int = 0, **changes: Any) -> CellRecord:
    is_reference = method == "bf16"
    trained = method in ("lsq", "qvgen")
    rows = {
        name: [ScoreRow(f"{i:04d}", 0, value - 0.02 * seed) for i, value in enumerate(values)]
        for name, values in zip(DIMENSIONS, TABLE[method, bits], strict=True)
    }
    log = [{"step": s, "loss": 0.5 / (s + 1), "grad_norm": 1.0 / (s + 1)} for s in range(5)]
    fields: dict[str, Any] = {
        "cell_id": f"bf16-s{seed}" if is_reference else f"{method}-w{bits}a{bits}-s{seed}",
        "model": "toy",
        "protocol": "toy",
        "method": method,
        "w_bits": bits,
        "a_bits": bits,
        "seed": seed,
        "source": "reference" if is_reference else "trained" if trained else "computed",
        "execution": "real" if is_reference else "fake",
        "n_expected": dict.fromkeys(DIMENSIONS, 2),
        "scores": rows,
        "n_videos_expected": 2,
        "n_videos_ok": 2,
        "n_failed": 0,
        "profile": {
            "step_ms": 12.5,
            "peak_mem_mb": 900.0,
            "weights_mb": bits / 2,
            "weight_bits": bits + 0.25,
            "act_bits": float(bits),
            "low_bit_macs_pct": 0.0 if is_reference else 62.5,
            "stored_mb": bits / 2,
            "macs": {"attention": 8},
        },
        "train_minutes": 3.25 if trained else None,
        "train_log": log if trained else [],
        "method_config": {"granularity": "per_token"},
    }
    return CellRecord(**(fields | changes))


def build(cells: list[CellRecord], **changes: Any) -> Results:
    arguments: dict[str, Any] = {
        "protocol": "toy",
        "dimensions": DIMENSIONS,
        "percent": True,
        "label": LABEL,
        "manifest": {"git": {"commit": "0123abc", "dirty": False}, "note": SCRIPT},
        "prompts": {"0000": "a red ball", "0001": f"{SCRIPT} & a blue box"},
        "resampler": Resampler(),  # percentiles of two prompts can be worked out by hand
    }
    return build_results(cells, **(arguments | changes))


def full(seeds: tuple[int, ...] = (0,), **changes: Any) -> Results:
    return build([record(method, bits, seed) for method, bits in TABLE for seed in seeds], **changes)


def partial() -> Results:
    """lsq lacks one video and one score."""
    cells = [record(method, bits) for method, bits in TABLE]
    scores = {"subject_consistency": [ScoreRow("0000", 0, 0.7)], "color": [ScoreRow("0000", 0, 0.8)]}
    cells[2] = replace(cells[2], scores=scores, n_videos_ok=1, n_failed=1)
    return build(cells)


def test_a_speedup_is_a_column_where_a_row_has_one() -> None:
    """The second number of each row's costs; rows without one show a dash, and the words say what it is."""
    plain = full()
    assert not any("speedup" in name for name in leaderboard_columns(plain))
    cells = [record(method, bits) for method, bits in TABLE]
    ratio = {**(cells[1].profile or {}), "step_speedup": 1.3456}
    results = build([cells[0], replace(cells[1], execution="real", profile=ratio), *cells[2:]])
    columns = leaderboard_columns(results)
    assert columns.index("step_speedup") == columns.index("step_ms") + 1
    row = next(row for row in leaderboard_rows(results) if row["method"] == cells[1].method)
    assert row["step_speedup"] == 1.3456
    text = markdown(results)
    assert "| step_ms   | step_speedup   |" in text and "| 12.50     | 1.35           |" in text
    assert "`step_speedup`: time of a step at full precision" in text
    assert "step_speedup" not in markdown(plain)


class Page(HTMLParser):
    """What a browser would find: start tags with attributes, and the text inside each kind of tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "wbr", "br", "input"):
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.text[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def with_videos(run: Path) -> Path:
    """A run folder with small distinct files in place of videos; qvgen lacks one."""
    for cell in full().cells:
        folder = run / "cells" / cell.id / "videos"
        folder.mkdir(parents=True)
        for prompt in ("0000", "0001"):
            if (cell.method, prompt) != ("qvgen", "0001"):
                (folder / f"{prompt}-0.mp4").write_bytes(f"{cell.id} {prompt}".encode())
    return run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return with_videos(tmp_path)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of ``full()``, drawn once."""
    return render(full(), with_videos(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize("name", ["leaderboard.md", "leaderboard.csv", "scores.csv"])
def test_tables_equal_the_golden_files(tmp_path: Path, name: str) -> None:
    results = full(seeds=(0, 1))
    written = CsvReporter().write(results, tmp_path) + MarkdownReporter().write(results, tmp_path)
    assert sorted(path.name for path in written) == ["leaderboard.csv", "leaderboard.md", "scores.csv"]
    assert (tmp_path / name).read_text() == (GOLDEN / name).read_text()


def test_leaderboard_csv_has_the_promised_columns() -> None:
    header = (GOLDEN / "leaderboard.csv").read_text().splitlines()[0]
    assert header == (
        "model,protocol,method,bits_w,bits_a,seed,source,execution,coverage,"
        "subject_consistency,subject_consistency_lo,subject_consistency_hi,color,color_lo,color_hi,"
        "mean,mean_lo,mean_hi,step_ms,peak_mem_mb,weights_mb,"
        "weight_bits,act_bits,low_bit_macs_pct,stored_mb,train_minutes"
    )


def test_leaderboard_follows_from_the_long_form(tmp_path: Path) -> None:
    scores_path, leaderboard_path = CsvReporter().write(full(seeds=(0, 1)), tmp_path)
    keys = ["method", "bits_w", "seed"]
    scores = pd.read_csv(scores_path, dtype={"prompt_id": str})
    leaderboard = pd.read_csv(leaderboard_path).set_index(keys)
    means = scores.groupby([*keys, "dimension"])["value"].mean().unstack() * 100
    assert set(scores["prompt_id"]) == {"0000", "0001"}
    for dimension in DIMENSIONS:
        pd.testing.assert_series_equal(
            leaderboard[dimension].sort_index(), means[dimension].sort_index(), atol=1e-4
        )
    pd.testing.assert_series_equal(
        leaderboard["mean"].sort_index(), means.mean(axis=1), atol=1e-4, check_names=False
    )


def test_rows_are_sorted_reference_first_then_bits_then_mean() -> None:
    ids = [cell.id for cell in sorted_cells(full())]
    assert ids == ["bf16-s0", "rtn-w4a4-s0", "qvgen-w3a3-s0", "lsq-w3a3-s0", "rtn-w3a3-s0"]


def test_a_sixteen_bit_method_stands_below_the_reference_and_partial_rows_last() -> None:
    better = replace(record("bf16", 16), cell_id="same", method="same", source="computed", scores={
        name: [ScoreRow(f"{i:04d}", 0, 1.0) for i in range(2)] for name in DIMENSIONS
    })  # fmt: skip
    half = replace(record("lsq", 3), cell_id="half", scores={"color": [ScoreRow("0000", 0, 1.0)]})
    cells = [half, better, record("bf16", 16), record("rtn", 3)]
    assert [cell.id for cell in sorted_cells(build(cells))] == ["bf16-s0", "same", "rtn-w3a3-s0", "half"]


def test_an_empty_run_gives_tables_without_rows(tmp_path: Path) -> None:
    scores, leaderboard = CsvReporter().write(build([]), tmp_path)
    assert len(scores.read_text().splitlines()) == len(leaderboard.read_text().splitlines()) == 1
    assert "No cell has results." in markdown(build([]))
    assert "No cell has results." in render(build([]), tmp_path)


def test_a_partial_run_says_so_everywhere(tmp_path: Path) -> None:
    results = partial()
    notes = warnings(results)
    assert notes[0].startswith("PARTIAL RUN: 1 of 5 cells lack scores.")
    assert notes[1] == (
        "lsq-w3a3-s0: coverage 50.0 %, 1 of 2 videos, 1 failed; scores: subject_consistency 1/2, color 1/2."
    )
    text = markdown(results)
    assert text.index("PARTIAL RUN") < text.index("## Ranking")
    assert "not ranked, for want of full coverage: lsq" in text
    assert re.search(r"\| lsq +\| W3A3 +\| 0 +\| trained +\| fake +\| 50\.0 % +\| - +\| - +\|", text)
    assert "70.0 (1/2)" in text
    page = render(results, tmp_path)
    assert page.index("PARTIAL RUN") < page.index("<h2")
    leaderboard = pd.read_csv(CsvReporter().write(results, tmp_path)[1])
    lsq = leaderboard[leaderboard["method"] == "lsq"].iloc[0]
    assert lsq["coverage"] == 0.5 and pd.isna(lsq["mean"]) and pd.isna(lsq["color_lo"])
    assert warnings(full()) == []


def test_cells_that_lack_the_same_share_one_warning() -> None:
    limited = [replace(record(*key), n_expected=dict.fromkeys(DIMENSIONS, 8)) for key in list(TABLE)[:3]]
    notes = warnings(build(limited))
    assert len(notes) == 2 and notes[0].startswith("PARTIAL RUN: 3 of 3 cells")
    assert notes[1].startswith("bf16-s0, rtn-w4a4-s0, lsq-w3a3-s0: coverage 25.0 %")


def test_unequal_training_is_said_once_for_each_width() -> None:
    """samples seen = steps * batch_size * accumulate; methods without a recipe do not matter."""
    cells = [record(method, bits) for method, bits in TABLE]
    recipes = {"lsq": {"steps": 10, "batch_size": 8}, "qvgen": {"steps": 5, "batch_size": 8, "accumulate": 2}}

    def notes(**change: int) -> list[str]:
        made = [
            replace(cell, method_config={"recipe": {**recipes[cell.method], **change}})
            if cell.method in recipes
            else cell
            for cell in cells
        ]
        made[0] = replace(made[0], method_config={"recipe": "no mapping"})
        return warnings(build(made))

    assert notes() == []
    [note] = notes(accumulate=2)
    assert note.startswith("UNEQUAL TRAINING at W3A3: samples seen: lsq 160, qvgen 80.")


@pytest.mark.parametrize(
    ("coverage", "text"), [(1.0, "100 %"), (0.99999, "99.9 %"), (0.5, "50.0 %"), (0.0, "0.0 %")]
)
def test_coverage_never_rounds_up_to_everything(coverage: float, text: str) -> None:
    assert coverage_text(coverage) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(-0.04, 1, "0.0"), (0.05, 1, "0.1"), (-0.06, 1, "-0.1"), (None, 1, "-")]
)
def test_numbers_have_no_negative_zero(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_without_percent_scores_stay_raw(tmp_path: Path) -> None:
    results = full(percent=False)
    assert "0.930 [0.900, 0.960]" in markdown(results)
    assert "Values are in raw scores" in markdown(results)
    leaderboard = pd.read_csv(CsvReporter().write(results, tmp_path)[1])
    assert leaderboard["subject_consistency"][0] == pytest.approx(0.93)


def test_the_legend_explains_what_occurs_and_nothing_else() -> None:
    text = " ".join(legend(full()))
    assert "`fake`" in text and "no speed-up" in text and "`computed`" in text
    assert "`emulated`" not in text and "`loaded`" not in text
    assert "speed-up" not in " ".join(legend(build([record("bf16", 16)])))


def test_a_pipe_in_a_name_does_not_break_the_table() -> None:
    odd = replace(record("lsq", 3), method="a|b")
    line = next(line for line in markdown(build([odd])).splitlines() if line.startswith("| a"))
    assert line.startswith(r"| a\|b")


def test_page_is_one_file_that_asks_nothing_of_the_network(run_folder: Path) -> None:
    (path,) = HtmlReporter().write(full(), run_folder)
    text = path.read_text()
    page = Page(text)
    sources = [str(a[k]) for _, a in page.tags for k in ("src", "href", "poster", "srcset") if k in a]
    assert sources and all(source.startswith("#") for source in sources)
    assert len(clips(text)) == 9
    assert not page.all("link") and "url(http" not in text and "@import" not in text


def clips(text: str) -> list[tuple[str, int, bytes]]:
    """Prompt, place of the row and bytes of every video inside the page."""
    page = Page(text)
    found = zip(page.all("script"), page.text["script"], strict=True)
    return [
        (str(tag["data-prompt"]), int(str(tag["data-row"])), base64.b64decode(inner))
        for tag, inner in found
        if tag.get("class") == "clip-data"
    ]


def test_page_holds_the_very_bytes_that_were_scored(rendered: str) -> None:
    cells = ["bf16-s0", "rtn-w4a4-s0", "lsq-w3a3-s0", "qvgen-w3a3-s0", "rtn-w3a3-s0"]
    # Prompt 0001 comes first: its rows differ by 0.70, those of 0000 by 0.66.
    wanted = [("0001", cell) for cell in cells if cell != "qvgen-w3a3-s0"] + [
        ("0000", cell) for cell in cells
    ]
    assert clips(rendered) == [
        (prompt, cells.index(cell), f"{cell} {prompt}".encode()) for prompt, cell in wanted
    ]
    assert not Page(rendered).all("video"), "made by the page's script when it comes near the screen"
    data = json.loads(Page(rendered).text["script"][0])
    assert [name for name, _ in data["chosen"]] == ["0001", "0000"] and data["inside"] == 9
    assert [row["id"] for row in data["rows"]] == cells


def test_videos_too_large_to_embed_stay_in_the_run_folder(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (run_folder / "cells/bf16-s0/videos/0001-0.mp4").stat().st_size
    monkeypatch.setattr(videos, "EMBED_BYTES", first)
    text = render(full(), run_folder)
    assert [clip[:2] for clip in clips(text)] == [("0001", 0)]
    data = json.loads(Page(text).text["script"][0])
    assert data["inside"] == 1 and data["rows"][1]["videos"] == "cells/rtn-w4a4-s0/videos/"


def test_text_from_outside_is_inert(run_folder: Path) -> None:
    results = full(label=f"label {SCRIPT}", protocol="toy", prompts={"0000": '" onload=x', "0001": SCRIPT})
    cells = [replace(record("lsq", 3), method=f'"><img src=x onerror=alert(1)>{SCRIPT}')]
    for text in (render(results, run_folder), render(build(cells), run_folder)):
        page = Page(text)
        assert "pwned" in text and not page.all("img")
        data, *inside, code = page.all("script")
        assert all(tag["type"] == "text/plain" for tag in inside)
        assert data == {"type": "application/json", "id": "browse-data"} and code == {}
        assert "<" not in page.text["script"][0] and json.loads(page.text["script"][0])["prompts"]
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
        digest = hashlib.sha256(page.text["script"][-1].encode()).digest()
        policy = next(str(a["content"]) for a in page.all("meta") if "http-equiv" in a)
        assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
        assert policy.startswith("default-src 'none'")


def test_page_shows_ranking_tables_recipe_and_manifest(run_folder: Path, rendered: str) -> None:
    page = Page(render(full(seeds=(0, 1)), run_folder))
    assert page.text["h1"] == ["Leaderboard: toy"]
    assert len(page.all("table")) == 4, "at a glance, all seeds, every cell, published numbers"
    headers = [head for head in page.text["th"] if head in ("method", "mean", "mean of each seed")]
    assert headers == ["method", "method", "mean", "mean of each seed", "method", "mean", "method", "mean"]
    assert any(item.startswith("At W3A3: qvgen 70.5") for item in page.text["li"])
    *recipes, manifest = page.text["pre"]
    assert len(recipes) == 5, "both seeds have the same recipe"
    assert page.text["dd"][0] == "bf16-s0, bf16-s1" and all(
        '"granularity": "per_token"' in recipe for recipe in recipes
    )
    assert '"commit": "0123abc"' in manifest
    one_seed = Page(rendered)
    assert len(one_seed.all("table")) == 3


def test_page_sorts_by_numbers_not_by_what_is_printed(rendered: str) -> None:
    page = Page(rendered)
    _, board, after = [place for place, (tag, _) in enumerate(page.tags) if tag == "table"]
    inside = page.tags[board:after]
    cells = [attributes for tag, attributes in inside if tag in ("th", "td") and "data-sort" in attributes]
    columns = sum(tag == "th" and a.get("scope") == "col" for tag, a in inside)
    mean = [cells[row * columns + 6]["data-sort"] for row in range(5)]
    assert [float(str(value)) for value in mean] == pytest.approx([0.915, 0.775, 0.715, 0.69, 0.225])


def test_prompts_are_spread_over_dimensions_by_largest_difference() -> None:
    def with_scores(method: str, color: list[float], scene: list[float]) -> CellRecord:
        scores = {
            "color": [ScoreRow(f"c{i}", 0, v) for i, v in enumerate(color)],
            "scene": [ScoreRow(f"s{i}", 0, v) for i, v in enumerate(scene)],
        }
        sizes = {"color": len(color), "scene": len(scene)}
        return replace(record("lsq", 3), cell_id=method, method=method, n_expected=sizes, scores=scores)

    a = with_scores("a", [0.5, 0.9, 0.1, 0.5], [0.5, 0.5])
    b = with_scores("b", [0.5, 0.2, 0.6, 0.5], [0.5, 0.6])
    cells = shown_cells(build([a, b], dimensions=["color", "scene"]))
    chosen = choose_prompts(cells, ["color", "scene"], 10)
    # Differences: c1 0.7, c2 0.5, c0 and c3 0; s1 0.1, s0 0. Turns alternate while both have some left.
    assert chosen == [Choice("c1", "color"), Choice("s1", "scene"), Choice("c2", "color"),
                      Choice("s0", "scene"), Choice("c0", "color"), Choice("c3", "color")]  # fmt: skip
    assert choose_prompts(cells, ["color", "scene"], 3) == chosen[:3]
    assert choose_prompts([], ["color"], 3) == []


def test_a_dimension_that_every_prompt_serves_still_gets_its_turns() -> None:
    def with_offset(name: str, offset: float) -> CellRecord:
        scores = {
            "color": [ScoreRow(f"c{i}", 0, 0.5 + offset * (9 - i)) for i in range(9)],
            "smoothness": [ScoreRow(f"{k}{i}", 0, 0.5 + offset * (k == "p")) for k in "cp" for i in range(9)],
        }
        sizes = {"color": 9, "smoothness": 18}
        return replace(record("lsq", 3), cell_id=name, method=name, n_expected=sizes, scores=scores)

    names = ["color", "smoothness"]
    cells = shown_cells(build([with_offset("a", 0.0), with_offset("b", 0.01)], dimensions=names))
    assert [choice.dimension for choice in choose_prompts(cells, names, 4)] == names * 2


def test_videos_come_from_the_first_seed_of_each_method() -> None:
    results = full(seeds=(0, 1))
    assert [cell.id for cell in shown_cells(results)] == [
        "bf16-s0", "rtn-w4a4-s0", "lsq-w3a3-s0", "qvgen-w3a3-s0", "rtn-w3a3-s0"
    ]  # fmt: skip


def test_plots_are_well_formed_repeatable_and_themed() -> None:
    drawn = plots(full())
    assert [plot.caption.split()[0] for plot in drawn] == ["Mean", "Quality", "Every", "Training"]
    assert [plot.svg for plot in plots(full())] == [plot.svg for plot in drawn]
    identifiers: list[str] = []
    for plot in drawn:
        root = ElementTree.parse(io.StringIO(plot.svg)).getroot()
        own = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        links = re.findall(r'(?:href="|url\()#([^")]+)', plot.svg)
        assert set(links) <= set(own)
        identifiers += own
        assert "currentColor" in plot.svg and "#000000" not in plot.svg
    assert len(identifiers) == len(set(identifiers))
    looks = look_of(f"method {number}" for number in range(30)).values()
    assert len({(look.color, look.marker) for look in looks}) == 30, "no two methods look alike"
    assert "qvgen W3A3: 71.5 [61.0, 82.0]" in drawn[0].alt


def test_plots_leave_out_what_has_no_data() -> None:
    lone = replace(record("lsq", 3), scores={}, train_log=())
    assert plots(build([lone])) == []
    untrained = build([record("bf16", 16), record("rtn", 3)])
    assert [plot.caption.split()[0] for plot in plots(untrained)] == ["Mean", "Quality", "Every"]
    dollars = replace(record("rtn", 3), method="$x^")
    assert len(plots(build([dollars]))) == 3


def test_a_missing_or_infinite_loss_is_a_gap_not_a_crash() -> None:
    log = [{"step": 0, "loss": float("inf")}, {"step": 1}, {"step": 2, "loss": 0.0}, {"step": 3, "loss": 0.5}]
    results = build([replace(record("lsq", 3), train_log=log)])
    assert [plot.caption.split()[0] for plot in plots(results)] == ["Mean", "Quality", "Every", "Training"]


def test_every_report_is_written_without_torch(run_folder: Path) -> None:
    write_results(full(), run_folder / "results.json")
    code = """if True:
        import sys
        from pathlib import Path
        sys.modules["torch"] = None
        from evalharness.report.html import HtmlReporter
        from evalharness.report.tables import CsvReporter, MarkdownReporter
        from evalharness.results import read_results
        folder = Path(sys.argv[1])
        results = read_results(folder / "results.json")
        for reporter in (CsvReporter(), MarkdownReporter(), HtmlReporter()):
            for path in reporter.write(results, folder):
                print(path.name)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_folder)], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["scores.csv", "leaderboard.csv", "leaderboard.md", "report.html"]
