"""Scores, and what was found of long and broken runs: figures in the documents are those of the records."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from evalharness.report.against import against
from evalharness.results import read_results
from tests.records import ROOT, record, row


@pytest.mark.parametrize("method", ["bf16", "qvgen"])
def test_the_full_table(method: str) -> None:
    """Every row of what the command prints stands in the documents, character for character."""
    printed = against(read_results(ROOT / "results" / "tinyworld" / "results.json"), method)
    rows = [re.sub(r" {2,}", " ", line) for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == (12 if method == "bf16" else 11)
    for document in ("docs/methods/README.md", "README.md")[: 2 if method == "bf16" else 1]:
        text = (ROOT / document).read_text()
        assert all(line in text for line in rows), document


def test_the_full_table_is_made_of_its_two_runs() -> None:
    folder = ROOT / "results" / "tinyworld"
    whole, *parts = (
        {
            cell["id"]: cell["scores"]
            for cell in json.loads((folder / name / "results.json").read_text())["cells"]
        }
        for name in ("", "calibrated", "trained")
    )
    assert len(whole) == 201 and whole.keys() == parts[0].keys() | parts[1].keys()
    assert parts[0].keys() & parts[1].keys() == {"bf16-s0", "bf16-s1", "bf16-s2"}
    for part in parts:
        assert all(whole[cell] == scores for cell, scores in part.items())


def test_author_mode() -> None:
    results = json.loads((ROOT / "results" / "tinyworld" / "author" / "results.json").read_text())
    found = {r["method"]: r for r in results["pooled"] if r["w_bits"] == 4}
    for method in found:
        [line] = [
            line
            for line in (ROOT / "docs" / "methods" / "README.md").read_text().splitlines()
            if re.match(rf"\| {method} \| \d", line)
        ]
        mean, minus = line.strip("| ").split(" | ")[1:3]
        assert float(mean) == pytest.approx(100 * found[method]["mean"]["value"], abs=0.0501)
        shown = [float(x) for x in re.findall(r"-?[\d.]+", minus)]
        expected = [100 * found[method]["minus_reference"][key] for key in ("value", "lo", "hi")]
        assert shown == pytest.approx(expected, abs=0.0501)


def test_what_each_mode_stores_and_executes() -> None:
    text = (ROOT / "docs" / "methods" / "README.md").read_text()
    table = text.split("## What each mode stores and executes")[1].split("## ")[0]
    shown = {}
    for line in table.splitlines():
        if line.startswith("| `"):
            names, *cells = line.strip("| ").split(" | ")
            shown |= {name.strip("` "): cells[:5] for name in names.split(",")}
    profiles = {}
    for folder in ("", "author"):
        results = json.loads((ROOT / "results" / "tinyworld" / folder / "results.json").read_text())
        first = (c for c in results["cells"] if (c["w_bits"], c["a_bits"], c["seed"]) == (4, 4, 0))
        profiles |= {c["method"]: c["profile"] for c in first}
    assert shown.keys() == profiles.keys()
    fields = ("quantized_weight_bits", "weight_bits", "act_bits", "low_bit_macs_pct", "stored_mb")
    for method, cells in shown.items():
        found = [f"{profiles[method][key]:.{1 if key.endswith('pct') else 2}f}" for key in fields]
        assert cells == found, method


def test_the_rate_that_was_chosen_for_the_table() -> None:
    """The grid holds the best of the four that were tried, and the trainings used it."""
    folder = ROOT / "results" / "tinyworld" / "trained"
    tried = [json.loads(path.read_text()) for path in sorted(folder.glob("rates/*/record.json"))]
    best = min(tried, key=lambda record: record["final"]["distill"])
    rate = best["options"]["lr_adapter"]
    grid = yaml.safe_load((ROOT / "configs" / "tinyworld-table-training.yaml").read_text())
    assert len(tried) == 4 and grid["arms"]["efficientdm"]["options"]["lr_adapter"] == rate
    used = [json.loads(path.read_text()) for path in sorted(folder.glob("arms/efficientdm*/record.json"))]
    assert len(used) == 7 and {record["options"]["lr_adapter"] for record in used} == {rate}


_LARGE = ("aggregate and report", "resume, nothing to do", "report", "compare", "check", "leaderboard merge")


@pytest.mark.parametrize("size", record("large.json")["sizes"], ids=lambda size: str(size["samples"]))
def test_large_runs(size: Any) -> None:
    found = [size["new"][verb] for verb in _LARGE]
    shown = row("reliability.md", f"{size['samples']:,}")
    assert shown == [
        f"{each['quiet_seconds']:.1f} s ({each['cpu_seconds']:.1f} s), {each['peak_mb']} MB" for each in found
    ]
    assert not any(each["torch"] for each in found)
    assert all(each["quiet_seconds"] < 30 for each in found), "what is asked of 100,000 samples"
    assert len(size["same bytes"]) == 5, "tables and results.json without its manifest"


def test_the_shipped_table_against_itself() -> None:
    before, after = (record("large.json")["shipped table"][side] for side in ("base", "new"))
    text = " ".join((ROOT / "docs" / "reliability.md").read_text().split())
    for verb, words in (
        ("check", "`check` {:.1f} s before and {:.1f} s after ({:.1f} and {:.1f} s of the processor)"),
        ("compare", "`compare` {:.1f} s and {:.1f} s ({:.1f} and {:.1f} s)"),
    ):
        figures = [side[verb][key] for key in ("quiet_seconds", "cpu_seconds") for side in (before, after)]
        assert words.format(*figures) in text
        assert figures[1] < 3


@pytest.mark.parametrize("size", record("report_page.json")["sizes"], ids=lambda size: str(size["videos"]))
def test_pages_of_many_videos(size: Any) -> None:
    steps = ("open_ms", "order_ms", "bits_ms", "dimension_ms", "words_ms")
    sizes = ("elements", "videos_at_once", "process_mb")
    for side, word in (("base", "before"), ("new", "after")):
        shown = row("report.md", f"{size['rows']} rows, {size['videos']:,} videos, {word}")
        assert shown == [f"{size[side][step]:,.0f}" for step in (*steps, *sizes)]


def test_the_data_pipeline() -> None:
    found = record("data_pipeline.json")
    kinds, became = found["found"], found["real_clips_became"]
    kept = sum(count for kind, count in kinds.items() if kind[0].isdigit()) - sum(became.values())
    text = " ".join((ROOT / "docs" / "models" / "README.md").read_text().split())
    assert f"small Wan pipeline on {sum(found['wanted'].values()):,} clips" in text
    assert (
        f"{kept:,} wide, vertical, sounding and varying ones and the four real ones in their buckets, "
        f"{kinds['damaged']} damaged, {kinds['too short']} too short, "
        f"{kinds['no caption']} without a caption; "
        f"killed {found['ways']['killed']['killed']} times on the way"
    ) in text
    assert found["real_clips"] == 4
    assert found["same_bytes"] and found["every_clip_where_its_kind_says"]


@pytest.mark.parametrize("engine", ["local", "torchrun", "ray"])
def test_every_engine_leaves_the_same_bytes(engine: str) -> None:
    found = json.loads((ROOT / "results" / "reliability" / "engines.json").read_text())
    workers, kills = (found[part]["engines"][engine] for part in ("workers", "kills"))
    assert workers["workers"] == 4 and workers["same_bytes"] and kills["same_bytes"]
    counts = [str(kills[key]) for key in ("killed", "commands")]
    shown = ["the same", *counts, "the same", str(kills["done_twice"])]
    assert row("models/README.md", f"`{engine}`") == shown and kills["killed"] == 20
