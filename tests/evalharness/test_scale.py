"""Many samples: the same numbers as pandas and plain loops give, from memory that hardly grows."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import large
from evalharness.api import Prompt
from evalharness.columns import Columns, mean_over, together
from evalharness.compare.comparison import compare
from evalharness.compare.selection import Side
from evalharness.comparison import columns_of, scores_of
from evalharness.effects import effect, table
from evalharness.report.rows import score_columns, score_rows
from evalharness.report.selection import choose_prompts
from evalharness.report.tables import CsvReporter
from evalharness.result_reading import read_document
from evalharness.result_schema import Results
from evalharness.results import CellRecord, ScoreRow, build_results, read_results, write_results
from evalharness.sampling import Videos, samples_of
from evalharness.scoretable import ScoreTable
from evalharness.stats import Key, Resampler, bootstrap_ci, joint_mean, paired_joint_difference
from evalharness.store import atomic_write_pieces

DIMENSIONS = ["color", "scene"]
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "a-1", "\u00e9\u2028", 'q"]]', "], ["]),
        st.integers(0, 11),
        st.floats(0, 1),
    ),
    max_size=40,
    unique_by=lambda row: row[:2],
)  # fmt: skip


def record(method: str, seed: int, rng: np.random.Generator, prompts: int) -> CellRecord:
    """A cell with holes: some videos lack a score, one dimension has every second prompt."""
    rows = {
        name: [
            ScoreRow(f"p{i:04d}", number, float(rng.random()))
            for i in range(0, prompts, 1 + place)
            for number in range(12)
            if rng.random() < 0.9
        ]
        for place, name in enumerate(DIMENSIONS)
    }
    reference = method == "bf16"
    bits = 16 if reference else 3
    return CellRecord(
        cell_id=f"{method}-w{bits}a{bits}-s{seed}", model="toy", protocol="toy", method=method, w_bits=bits,
        a_bits=bits, seed=seed, source="reference" if reference else "computed",
        execution="real" if reference else "fake", n_expected={n: len(r) for n, r in rows.items()},
        scores=rows, n_videos_expected=prompts, n_videos_ok=prompts, n_failed=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results() -> Results:
    rng = np.random.default_rng(0)
    cells = [record(method, seed, rng, 40) for method in ("bf16", "rtn", "lsq") for seed in (0, 1)]
    return build_results(
        cells, protocol="toy", dimensions=DIMENSIONS, percent=True, label="toy", manifest={},
        prompts={f"p{i:04d}": f"prompt {i}" for i in range(40)},
    )  # fmt: skip


def frame(results: Results) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (c.id, c.method, c.seed, name, *row)
            for c in results.cells
            for name, rows in c.scores.items()
            for row in rows
        ],
        columns=["cell", "method", "seed", "dimension", "prompt", "sample", "value"],
    )


def test_columns_give_the_very_numbers_of_a_mapping(results: Results) -> None:
    """Video by video in dictionaries, the plain way: equal to the last bit."""
    for kind in ("skew-t", "percentile"):
        resampler = Resampler(kind=kind, resamples=200)  # type: ignore[arg-type]
        for method in ("rtn", "lsq"):
            ours = [cell for cell in results.cells if cell.method == method]
            theirs = [cell for cell in results.cells if cell.method == "bf16"]
            columns, mapping = columns_of(ours), scores_of(ours)
            others, other = columns_of(theirs), scores_of(theirs)
            for name in DIMENSIONS:
                assert bootstrap_ci(columns[name], resampler) == bootstrap_ci(mapping[name], resampler)
            assert joint_mean([*columns.values()], resampler) == joint_mean([*mapping.values()], resampler)
            assert paired_joint_difference(
                [*columns.values()], [*others.values()], resampler
            ) == paired_joint_difference([*mapping.values()], [*other.values()], resampler)


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS)
def test_any_two_sets_of_rows(left: list[Any], right: list[Any]) -> None:
    a, b = (Columns.of([(7, ScoreTable.of(rows))]) for rows in (left, right))
    x, y = ({Key(p, (7, s)): v for p, s, v in rows} for rows in (left, right))
    resampler = Resampler(kind="skew-t")
    assert bootstrap_ci(a, resampler) == bootstrap_ci(x, resampler)
    assert joint_mean([a, b], resampler) == joint_mean([x, y], resampler)
    found, plain = a.minus(b), {key: value - y[key] for key, value in x.items() if key in y}
    assert sorted(found.value.tolist()) == sorted(plain.values()) and len(found) == len(plain)
    mine, theirs = (Columns.of([(None, ScoreTable.of(rows))]) for rows in (left, right))
    by_number = [{Key(p, s): v for p, s, v in rows} for rows in (left, right)]
    for columns, mappings in (([mine], by_number[:1]), ([mine, theirs], by_number)):
        z, videos = table([{"d": each} for each in columns])
        wanted, count = table([{"d": each} for each in mappings])
        assert np.array_equal(z, wanted) and videos == count
        assert effect([{"d": each} for each in columns]) == effect([{"d": each} for each in mappings])


def test_a_comparison_is_what_pandas_finds(results: Results) -> None:
    found = compare(Side("x", results, "rtn-w3a3"), Side("x", results, "lsq-w3a3"), shown=40)
    [row] = found.rows
    data = frame(results)
    pairs = data[data.method == "rtn"].merge(
        data[data.method == "lsq"], on=["seed", "dimension", "prompt", "sample"], suffixes=("", "_b")
    )
    pairs["difference"] = pairs.value - pairs.value_b
    for told in row.dimensions:
        one = pairs[pairs.dimension == told.name]
        assert (told.a, told.b) == pytest.approx((one.value.mean(), one.value_b.mean()), rel=1e-12)
    by_prompt = pairs.groupby(["prompt", "dimension"]).difference.mean().unstack()
    means = by_prompt.mean(axis=1)
    assert (row.wins, row.losses, row.ties) == ((means > 0).sum(), (means < 0).sum(), (means == 0).sum())
    ranked = means[means > 0].sort_values(ascending=False)
    assert [p.prompt_id for p in row.winners] == ranked.index.tolist()
    assert [p.difference for p in row.winners] == pytest.approx(ranked.tolist(), rel=1e-12)
    most = by_prompt.abs().idxmax(axis=1)
    assert [p.most for p in row.winners] == most[ranked.index].tolist()
    worst = means[means < 0].sort_values()
    assert [p.prompt_id for p in row.losers] == worst.index.tolist()


def test_means_over_seeds_are_pandas_means(results: Results) -> None:
    cells = [cell for cell in results.cells if cell.method == "lsq"]
    found = mean_over([cell.scores["color"] for cell in cells])
    data = frame(results)
    wanted = (
        data[(data.method == "lsq") & (data.dimension == "color")].groupby(["prompt", "sample"]).value.mean()
    )
    keys = [(found.names[p], found.rests[r]) for p, r in zip(found.prompt, found.rest, strict=True)]
    assert dict(zip(keys, found.value, strict=True)) == pytest.approx(wanted.to_dict(), rel=1e-14)


def test_the_prompts_of_the_page_by_plain_loops(results: Results) -> None:
    cells = [cell for cell in results.cells if cell.seed == 0]
    spreads: dict[str, dict[str, float]] = {}
    for name in DIMENSIONS:
        means = []
        for cell in cells:
            values: dict[str, list[float]] = {}
            for prompt, _, value in cell.scores[name]:
                values.setdefault(prompt, []).append(value)
            means.append({prompt: sum(v) / len(v) for prompt, v in values.items()})
        prompts = set().union(*means)
        spreads[name] = {
            p: max(m[p] for m in means if p in m) - min(m[p] for m in means if p in m) for p in prompts
        }
    total = {p: sum(s.get(p, 0.0) for s in spreads.values()) for s in spreads.values() for p in s}
    wanted, picked, shown = [], dict.fromkeys(DIMENSIONS, 0), dict.fromkeys(DIMENSIONS, 0)
    for _ in range(12):
        name = min(DIMENSIONS, key=lambda d: (picked[d], shown[d]))
        left = spreads[name].keys() - {prompt for prompt, _ in wanted}
        prompt = min(left, key=lambda p: (-spreads[name][p], -total[p], p))
        wanted.append((prompt, name))
        picked[name] += 1
        for other in DIMENSIONS:
            shown[other] += prompt in spreads[other]
    assert choose_prompts(cells, DIMENSIONS, 12) == wanted


def test_a_table_of_scores_is_pandas_csv(results: Results, tmp_path: Path) -> None:
    awkward = results.model_copy(deep=True)
    cell = awkward.cells[0]
    cell.scores["color"] = ScoreTable.of([ScoreRow('a "b", c', 0, 1.0), ScoreRow("new\nline", 10, 1e-9)])
    scores, _ = CsvReporter().write(awkward, tmp_path)
    data = pd.DataFrame(list(score_rows(awkward)), columns=score_columns())
    assert scores.read_text() == data.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    assert next(csv.reader(io.StringIO(scores.read_text()))) == score_columns()


def test_what_is_written_is_what_json_writes_and_is_read_back(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(results, path)
    text = path.read_text()
    plain = json.loads(text)
    whole = json.loads(results.model_dump_json())
    assert plain.pop("crc") and plain == whole
    lines = [line.strip().rstrip(",") for line in text.splitlines() if line.startswith("  {")]
    assert lines[0] == json.dumps(plain["cells"][0]), "as json writes it, to the byte"
    again = read_results(path)
    assert again == results and again.cells[0].scores["color"][-1] == results.cells[0].scores["color"][-1]
    assert again.cells[0].scores["color"].names is again.cells[-1].scores["scene"].names


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([None, 1, (",", ":"), (", ", ": ")]))
def test_any_rows_are_read_as_json_reads_them(rows: list[Any], style: Any) -> None:
    document = {
        "cells": [{"id": "a ], [ b", "scores": {"x": rows, "]]": rows[:1]}}, {"scores": {}}],
        "z": [1],
    }
    separators = style if isinstance(style, tuple) else None
    indent = style if isinstance(style, int) else None
    text = json.dumps(document, indent=indent, separators=separators)
    found = read_document(text)
    assert [found["z"], found["cells"][0]["id"], found["cells"][1]] == [[1], "a ], [ b", {"scores": {}}]
    for name, wanted in document["cells"][0]["scores"].items():  # type: ignore[attr-defined]
        read = found["cells"][0]["scores"][name]
        assert [tuple(row) for row in read] == [tuple(row) for row in wanted]
        if indent is None and separators != (",", ":") and '"' not in "".join(row[0] for row in rows):
            assert isinstance(read, ScoreTable) or not wanted, "as it is written, so as columns"


def test_long_tables_come_in_parts() -> None:
    rows = [[f"p{i // 3:05d}", i % 3, i / 7] for i in range(9000)]
    found = read_document(json.dumps({"cells": [{"scores": {"x": rows}}]}))["cells"][0]["scores"]["x"]
    assert isinstance(found, ScoreTable) and list(found) == [tuple(row) for row in rows]
    assert found[8999] == ScoreRow(*rows[8999]) and found[-1].value == rows[-1][2]
    assert found[10:12] == [tuple(row) for row in rows[10:12]] and found != rows[:-1]
    assert found == ScoreTable.of(tuple(row) for row in rows)


def test_the_place_of_a_video_is_its_place_in_the_list() -> None:
    prompts = [
        Prompt(id=name, text="", dimensions=("d",) * n) for name, n in (("a", 1), ("a-1", 0), ("-", 1))
    ]
    videos, listed = Videos(prompts, 2, {"d": 3}), samples_of(prompts, 5, 2, {"d": 3})
    assert list(videos.of(5)) == listed and len(videos) == len(listed) == 8
    assert [videos.find(sample.id)[1] for sample in listed] == list(range(8))
    for odd in (
        "a-3",
        "a-01",
        "a-1-2",
        "b-0",
        "a",
        "",
        "a--1",
        "a-\u0661",
        "a- 1",
        "a-1.0",
        f"a-{'1' * 5000}",
    ):
        assert videos.find(odd) == (-1, -1), odd


def test_pieces_that_break_off_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def broken() -> Iterator[str]:
        yield "n" * 3_000_000
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        atomic_write_pieces(path, broken())
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
    atomic_write_pieces(path, ("\u00e9" * 700_000 for _ in range(3)))
    assert path.read_text(encoding="utf-8") == "\u00e9" * 2_100_000


def test_columns_of_other_names_are_put_together() -> None:
    a, b = (ScoreTable.of([(p, s, 0.5)]) for p, s in (("x", 1), ("b", 2)))
    one, two = together([Columns.of([(0, a)]), Columns.of([(1, b)])])
    assert one.names == two.names == ("b", "x") and one.rests == two.rests == ((0, 1), (1, 2))
    assert one.keys().tolist() == [2] and two.keys().tolist() == [1]


MEMORY = """
    import sys, tracemalloc
    from pathlib import Path
    import scipy.special
    from evalharness.compare.comparison import compare
    from evalharness.compare.selection import read_side
    from evalharness.results import read_results, write_results
    path = Path(sys.argv[1])
    tracemalloc.start()
    side = read_side(str(path))
    compare(side, side)
    write_results(side.results, path.with_name("again.json"))
    print(tracemalloc.get_traced_memory()[1])
"""


def test_reading_comparing_and_writing_take_little_memory(tmp_path: Path) -> None:
    """60,000 scores: 24 MB when each was a tuple, a list and a key of a dictionary."""
    rows = [[f"p{i // 5:05d}", i % 5, (i * 7919 % 1000) / 1000] for i in range(30_000)]
    rng = np.random.default_rng(0)
    small = build_results(
        [record("bf16", 0, rng, 4), record("lsq", 0, rng, 4)], protocol="toy", dimensions=DIMENSIONS,
        percent=True, label="toy", manifest={},
    )  # fmt: skip
    document = json.loads(small.model_dump_json())
    for cell in document["cells"]:
        cell["scores"] = {"color": rows[:15_000], "scene": rows[15_000:]}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 10_000_000
    assert json.loads((tmp_path / "again.json").read_text())["cells"] == document["cells"]


@pytest.mark.slow
def test_a_resumed_run_takes_no_more_memory_with_its_samples(tmp_path: Path) -> None:
    """Whole commands, 600 and 6,000 samples: 15 MB apart when every record was kept."""
    peaks = []
    for samples in (600, 6000):
        folder = tmp_path / str(samples)
        prompts = samples // 10
        large.timed(large.command(folder, "--limit", "1", "--no-profile"), prompts)
        large.fill(folder, prompts)
        large.timed(large.command(folder, "--no-profile"), prompts)
        resumed = large.timed(large.command(folder, "--no-profile"), prompts)
        assert resumed["said"] == [
            f"nothing to do: 2 cells, {samples} videos, {2 * samples} scores up to date"
        ]
        peaks.append(resumed["peak_mb"])
    assert peaks[1] - peaks[0] < 6
