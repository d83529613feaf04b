"""Figures in the documents are those of the records beside them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalharness.report.against import against
from evalharness.results import read_results
from qvgen.fused.rotate import Launch, usual_launch

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "results" / "benchmarks"


def record(name: str) -> Any:
    return json.loads((RECORDS / name).read_text())


def row(document: str, first: str) -> list[str]:
    """The cells of the one table row of ``document`` that begins with ``first``."""
    lines = (ROOT / "docs" / document).read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def over(sides: Any, side: str, base: str) -> float:
    return float(sides[side]["median_ms"] / sides[base]["median_ms"])


@pytest.mark.parametrize("setting", record("qat_cpu.json")["settings"])
def test_training_on_a_cpu(setting: str) -> None:
    found = record("qat_cpu.json")["settings"][setting]
    *ratios, plain_ms = row("benchmarks.md", setting)
    assert plain_ms == f"{found['sides']['plain']['median_ms']:.0f}"
    for side, cell in zip(("qvgen", "lsq", "qvgen_reference"), ratios, strict=True):
        median, turns = cell.split(" ", 1)
        assert median == f"{over(found['sides'], side, 'plain'):.2f}"
        least, largest = map(float, turns.strip("()").split(" to "))
        kept = found["ratios_of_turns"][f"{side}_to_plain"]  # to four digits
        assert least == pytest.approx(kept["min"], abs=0.00501)
        assert largest == pytest.approx(kept["max"], abs=0.00501)


def test_packed_layers_on_a_cpu() -> None:
    settings = record("packed_cpu.json")["settings"]
    found = [settings[f"{bits}, threads 1"] for bits in ("w4a4", "w3a3", "w2a2")]
    assert row("packed.md", "float32, ms") == [f"{s['times']['fp32']['median_ms']:.1f}" for s in found]
    for first, side in (
        ("fake-quantized / float32", "fake"),
        ("packed, `cpu` / float32", "packed_cpu"),
        ("packed, `reference` / float32", "packed_reference"),
    ):
        shown = [cell.strip("*") for cell in row("packed.md", first)]
        assert shown == [f"{over(s['times'], side, 'fp32'):.2f}" for s in found]
    held = "all tensors held, MB: float32 20.4, fake 23.9, packed `cpu`"
    assert row("packed.md", held) == [f"{s['held_mb']['packed_cpu']:.1f}" for s in found]
    assert {(f"{s['held_mb']['fp32']:.1f}", f"{s['held_mb']['fake']:.1f}") for s in found} == {
        ("20.4", "23.9")
    }
    shown = row("packed.md", "packed weights of quantized linears, MB")
    assert shown == [f"{s['packed_mb']:.2f}" for s in found]


def test_training_on_a_gpu() -> None:
    found = record("qat_step-h100.json")
    parts = found["parts"]
    sides, phi = parts["step"]["sides"], parts["phi"]
    linears = record("qat_linears-h100.json")["parts"]["linears"]  # measured again later
    plain, fused, again = (sides[name] for name in ("plain", "fused", "plain again"))

    def measured(first: str) -> str:
        return row("benchmarks.md", first)[0]

    ratio = 2 * fused["median_ms"] / (plain["median_ms"] + again["median_ms"])
    assert measured("QAT step over plain bf16 distillation, time") == (
        f"{ratio:.3f} ({fused['median_ms']:.0f} ms over {plain['median_ms']:.0f} and "
        f"{again['median_ms']:.0f} ms)"
    )
    assert measured("the same, peak memory") == (
        f"{fused['peak_mb'] / plain['peak_mb']:.3f} ({fused['peak_mb'] / 1e3:.2f} GB over "
        f"{plain['peak_mb'] / 1e3:.2f} GB)"
    )
    for how, times in (("as CUDA graphs", "as_graphs"), ("launched from Python", "variants")):
        ours, theirs = (linears[times][side]["median_ms"] for side in ("fused", "plain"))
        shown = measured(f"linears of a block over plain `nn.Linear`, {how}")
        assert shown == f"{ours / theirs:.2f} ({ours:.1f} ms over {theirs:.1f} ms)"
    times = linears["variants"]
    assert measured("released arithmetic over ours, launched from Python") == (
        f"{over(times, 'official', 'fused'):.1f} ({times['official']['median_ms']:.1f} ms over "
        f"{times['fused']['median_ms']:.1f} ms)"
    )
    assert measured("unfused over plain") == f"{over(times, 'unfused', 'plain'):.1f}"
    assert measured("released arithmetic over plain") == f"{over(times, 'official', 'plain'):.1f}"
    halving = phi["ratios"]["halving_s"]
    svds = phi["full_svds_all_layers_s"] / halving
    assert measured("full SVDs of all 245 layers over one rank halving") == (
        f"{round(svds, -2):.0f} ({halving:.3f} s)"
    )
    assert measured("error of a re-factorised product") == (
        f"{phi['ratios']['reconstruction_error']:.0e}".replace("e-0", "e-")
    )
    assert measured("range search and leading factors of all layers") == f"{phi['ratios']['init_s']:.0f} s"
    least = math.floor(min(phi["captured_energy"].values()) * 1e8) / 1e8
    assert measured("energy that Phi captures over the best of its rank") == f"{least:.8f} at least"
    assert found["commit"] == "30ccfe6"
    assert "set by hand" in found["note"]
    assert "Two runs are merged" in found["note"]


def test_packed_linears_on_a_gpu() -> None:
    parts = record("linear-h100.json")["parts"]
    for name, part in (("CogVideoX-2B", "cog_2b"), ("Wan2.1-1.3B", "wan_1_3b"), ("Wan2.1-14B", "wan_14b")):
        graphs, eager = parts[part]["as_graphs"], parts[part]["eager"]
        faster = [over(graphs, "bf16", side) for side in ("w4a4", "w3a3", "w4a4_shared_clips")]
        faster.append(over(eager, "bf16", "w4a4"))
        assert row("benchmarks.md", name)[:4] == [f"{times:.2f}" for times in faster]
    document = (ROOT / "docs" / "benchmarks.md").read_text()
    shapes = parts["gemm"]["shapes_m_n_k"]
    shown = [shape for shape in shapes if f"| {shape.replace('x', ' x ')} |" in document]
    assert len(shown) == 9
    for shape in shown:  # "1.21 PFLOP/s times K / (K + 340), to 4 %"
        inputs = int(shape.split("x")[2])
        assert shapes[shape]["int8"]["pflop_per_s"] == pytest.approx(
            1.21 * inputs / (inputs + 340), rel=0.045
        )
    for shape in shown:
        found = shapes[shape]
        figures = [f"{found['int8']['pflop_per_s']:.2f}", f"{over(found, 'bf16', 'int8'):.2f}"]
        assert row("benchmarks.md", shape.replace("x", " x "))[:2] == figures


def test_rotation_on_a_gpu() -> None:
    linears = record("hadamard-h100.json")["parts"]["shares"]["linears"]
    rotating, plain = "rotate and quantize", "quantize"
    for name, found in linears.items():
        times = {side: entry["median_ms"] for side, entry in found["times"].items()}
        added = [
            100 * (times[ours] - times[theirs]) / times["linear"]
            for ours, theirs in (
                (f"{rotating}, fastest launch", plain),
                (f"{rotating} to integers", f"{plain} to integers"),
                (f"{rotating}, long kernel", plain),
            )
        ]
        shown = row("benchmarks.md", name.replace("->", "to"))
        alone = f"{100 * times[plain] / times['linear']:.0f} %"
        assert shown[:3] == [f"{times['linear']:.3f} ms", alone, f"{added[0]:.1f} %"]
        assert shown[4:] == [f"{added[1]:.1f} %", f"{added[2]:.0f} %"]
        assert added[0] < float(shown[3].removesuffix(" %"))


def test_the_fastest_launches_of_the_rotation_are_the_shipped_ones() -> None:
    tried = record("hadamard-h100.json")["parts"]["launches"]["launches"]
    for width, table in (("1920", 2048), ("7680", 8192)):
        fastest = min(tried[width], key=lambda one: one["median_ms"])
        fastest.pop("median_ms")
        assert Launch(**fastest) == usual_launch(table, chained=True)


def test_a_step_with_packed_weights_on_a_gpu() -> None:
    part = record("step-h100.json")["parts"]["cog_2b"]
    for name in ("w4a4", "w3a3"):
        found = part["variants"][name]
        times = {side: entry["ms"] for side, entry in found["times"].items()}
        milliseconds, eager, best, weights = row("benchmarks.md", f"`{name}`")
        assert (milliseconds, weights) == (f"{times[name]:.1f}", f"{found['weights_mb']:.0f}")
        assert eager.split()[0] == f"{times['bf16_eager'] / times[name]:.2f}"
        assert best.split()[0] == f"{times['bf16_best'] / times[name]:.2f}"
        assert found["execution"] == "real" and not part["skipped"]


def test_weights_on_the_device() -> None:
    found = record("memory-h100.json")["parts"]["weights"]["ratios"]
    for name, model in (("CogVideoX-2B", "cog_2b"), ("Wan2.1-1.3B", "wan_1_3b"), ("Wan2.1-14B", "wan_14b")):
        sides = [found[f"{model} {width}"] for width in ("w4", "w3")]
        wanted = [f"{side[part]:.2f}" for side in sides for part in ("quantized", "whole_model")]
        assert row("benchmarks.md", f"{name}, weights") == wanted


def test_quantizing_after_training_on_a_cpu() -> None:
    for name, found in record("ptq_cpu.json")["methods"].items():
        first, again, target = row("benchmarks.md", f"`{name}`")
        assert (first, again) == (f"{found['seconds']:.1f}", f"{found['seconds_calibrated']:.1f}")
        assert target == ("" if found["target_s"] is None else f"{found['target_s']:.0f}")


@pytest.mark.parametrize("method", ["viditq", "svdquant"])
def test_calibrating_and_quantizing_at_full_size(method: str) -> None:
    found = record("ptq_time-h100.json")["parts"][method]
    seconds = {name: phase["seconds"] for name, phase in found["phases"].items()}
    peak = max(phase["peak_gb"] for phase in found["phases"].values())
    total, calibration, rest, shown_peak, target = row("benchmarks.md", f"`{method}`, CogVideoX-2B")
    assert found["complete"] and found["groups_done"] == found["groups"]
    assert total == f"{sum(seconds.values()):.1f}" and calibration == f"{seconds.pop('calibration'):.1f}"
    assert rest == f"{sum(seconds.values()):.1f}" and shown_peak == f"{peak:.1f}"
    assert float(target) == found["ratios"]["target_s"] > found["ratios"]["seconds"]


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
    for side, word in (("base", "before"), ("new", "after")):
        shown = row("reliability.md", f"{size['samples']:,}, {word}")
        found = [size[side][verb] for verb in _LARGE]
        assert shown == [f"{each['cpu_seconds']:.1f} s, {each['peak_mb']} MB" for each in found]
        assert not any(each["torch"] for each in found)
    assert len(size["same bytes"]) == 5, "tables and results.json without its manifest"


@pytest.mark.parametrize("size", record("report_page.json")["sizes"], ids=lambda size: str(size["videos"]))
def test_pages_of_many_videos(size: Any) -> None:
    steps = ("open_ms", "order_ms", "bits_ms", "dimension_ms", "words_ms")
    for side, word in (("base", "before"), ("new", "after")):
        shown = row("report.md", f"{size['videos']:,}, {word}")
        assert shown == [f"{size[side][step]:.0f}" for step in steps]


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
