"""Results of older versions keep loading and keep their meaning. A golden file is never written again."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from evalharness.records import read_prepare, read_samples, read_scores
from evalharness.report.html import render
from evalharness.report.tables import CsvReporter, markdown
from evalharness.report.wording import coverage_line, warnings
from evalharness.result_schema import READABLE_VERSIONS, SCHEMA_VERSION
from evalharness.results import read_results, write_results
from evalharness.runfolder import RunFolder
from evalharness.store import write_record
from tests.evalharness.test_report import build, record

GOLDEN = Path(__file__).parent / "golden"
RECORDS = [record(m, b, s) for m, b in (("bf16", 16), ("rtn", 4), ("qvgen", 3)) for s in (0, 1)]


@pytest.mark.parametrize("version", READABLE_VERSIONS)
def test_a_golden_file_loads_and_reports(version: int, tmp_path: Path) -> None:
    path = GOLDEN / f"results_v{version}.json"
    assert json.loads(path.read_text())["schema_version"] == version
    results = read_results(path)
    assert results.schema_version == SCHEMA_VERSION
    assert [cell.id for cell in results.cells if cell.is_reference] == ["bf16-s0", "bf16-s1"]
    assert results.cell("qvgen-w3a3-s1").scores["color"] == [("0000", 0, 0.88), ("0001", 0, 0.48)]
    assert "qvgen 70.5" in markdown(results)
    assert "qvgen" in render(results, tmp_path)
    assert CsvReporter().write(results, tmp_path)


def test_the_first_version_had_percentiles_and_still_says_so() -> None:
    results = read_results(GOLDEN / "results_v1.json")
    assert results.bootstrap.kind == "percentile"
    assert "percentile bootstrap, 2000 resamples" in markdown(results)
    assert results.cells == build(RECORDS).cells, "and today's percentiles are the same"


def test_the_second_version_names_the_kind_of_interval() -> None:
    results = read_results(GOLDEN / "results_v2.json")
    assert results == build(RECORDS, resampler=None) and results.bootstrap.kind == "skew-t"
    assert "corrected for skewness" in markdown(results)


def test_files_with_ranges_are_of_the_third_version() -> None:
    results = read_results(GOLDEN / "results_v3.json")
    assert results.ranges == {"color": (-1.0, 1.0)}
    assert results == build(RECORDS, resampler=None, ranges={"color": (-1.0, 1.0)})


def test_the_fifth_version_is_what_is_written_today_and_says_nothing_else(tmp_path: Path) -> None:
    """What the second one said, and a sum that zlib gives of all before it."""
    golden = GOLDEN / "results_v5.json"
    write_results(build(RECORDS, resampler=None), tmp_path / "results.json")
    assert (tmp_path / "results.json").read_bytes() == golden.read_bytes()
    assert read_results(golden) == read_results(GOLDEN / "results_v2.json")
    body, mark, end = golden.read_bytes().rpartition(b',\n "crc": "')
    assert mark and end == b'%08x"\n}\n' % zlib.crc32(body)


def test_files_with_a_damaged_training_log_are_of_the_fourth_version(tmp_path: Path) -> None:
    golden = GOLDEN / "results_v4.json"
    told = "train.jsonl has 3 lines where 5 were written"
    records = [
        replace(each, train_log_damage=told) if each.cell_id == "qvgen-w3a3-s0" else each for each in RECORDS
    ]
    assert read_results(golden) == build(records, resampler=None)
    results = read_results(golden)
    assert [cell.id for cell in results.cells if cell.train_log_damage] == ["qvgen-w3a3-s0"]
    assert [line for line in warnings(results) if told in line and "qvgen-w3a3-s0" in line]
    assert told in render(results, tmp_path) and told in markdown(results)
    assert "1 training log damaged" in coverage_line(results)
    assert "damaged" not in coverage_line(read_results(GOLDEN / "results_v3.json"))


@pytest.mark.parametrize("version", [1, 2])
def test_records_of_both_versions_are_read_the_same(version: int, tmp_path: Path) -> None:
    """1 had no sums; 2 has one at the end of each line and file."""
    shutil.copytree(GOLDEN / f"records_v{version}", tmp_path / "cells" / "a")
    files = RunFolder(tmp_path).cell("a")
    samples, scores = read_samples(files), read_scores(files)
    assert [(each["sample"], each["status"]) for each in samples] == [("0000-0", "ok"), ("0001-0", "failed")]
    assert [(each["sample"], each["value"]) for each in scores] == [("0000-0", 0.8125), ("0001-0", None)]
    assert not any("crc" in each for each in [*samples, *scores])
    raw = files.scores.path.read_bytes()
    assert (b'"crc": "' in raw) == (version == 2)
    files.scores.rewrite(scores)
    written = (GOLDEN / "records_v2" / "scores.jsonl").read_bytes()
    assert files.scores.path.read_bytes() == written, "what is written today"
    prepared = read_prepare(files)
    assert prepared is not None and "crc" not in prepared
    assert (prepared["source"], prepared["config"]["lr"], prepared["train_minutes"]) == (
        "trained",
        0.0001,
        1.25,
    )
    assert (b'"crc": "' in files.prepare.read_bytes()) == (version == 2)
    write_record(files.prepare, prepared)
    assert files.prepare.read_bytes() == (GOLDEN / "records_v2" / "prepare.json").read_bytes()


def test_every_readable_version_has_its_golden_file() -> None:
    assert {path.name for path in GOLDEN.glob("results_v*.json")} == {
        f"results_v{version}.json" for version in READABLE_VERSIONS
    }
