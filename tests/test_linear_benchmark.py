"""The scripts of the int8 linears run from end to end in small, and what they say is consistent."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from qvgen.packed.triton_table import Tiles, parse

ROOT = Path(__file__).parents[1]
PARTS = ["cog_2b", "wan_1_3b", "wan_14b", "gemm", "prologue", "expand", "peers"]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


def run_script(name: str, *options: str, interpreted: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *options],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


def test_an_unknown_part_is_refused() -> None:
    done = run_script("linear.py", "--tiny", "--parts", "gemm,attention")
    assert done.returncode == 2 and "'attention' is none of cog_2b" in done.stderr


@pytest.mark.slow
def test_where_kernels_cannot_run_every_part_says_so(tmp_path: Path) -> None:
    if importlib.util.find_spec("triton") is not None:
        pytest.skip("Triton is here")
    path = tmp_path / "out.json"
    done = run_script("linear.py", "--tiny", "--output", str(path))
    assert done.returncode == 0, done.stderr
    parts: dict[str, Any] = json.loads(path.read_text())["parts"]
    assert list(parts) == PARTS
    assert all("needs Triton" in part["skipped"] for part in parts.values())


@needs_triton
@pytest.mark.slow
def test_every_part_in_small(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    done = run_script(
        "linear.py", "--tiny", "--repeats", "1", "--cog-2b-s", "600", "--output", str(path), interpreted=True
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(path.read_text())
    assert list(results["parts"]) == list(results["ratios"]) == PARTS
    block = results["parts"]["cog_2b"]
    times = block["as_graphs"]
    expected = times["bf16"]["median_ms"] / times["w4a4"]["median_ms"]
    assert block["ratios"]["w4a4_as_graph"] == pytest.approx(expected, rel=1e-3)
    # The interpreter cuts to bfloat16 where hardware rounds: twice the error.
    assert 0 < block["ratios"]["worst_error_in_roundings"] <= 2
    assert list(block["each"]) == ["qkv", "out", "ff1", "ff2"]


@needs_triton
@pytest.mark.slow
def test_the_tuner_writes_a_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    done = run_script("tune_int8.py", "--tiny", "--repeats", "1", "--output", str(path), interpreted=True)
    assert done.returncode == 0, done.stderr
    entries, rows = parse(path.read_text())
    assert (6, 128, 64) in {(e.m, e.n, e.k) for e in entries} and len(entries) == 7
    table = json.loads(path.read_text())
    assert all(not e["failed"] for e in [*table["gemm"], *table["rows"]])
    assert set(rows) == {"plain", "plain_groups", "gelu", "norm", "norm_groups"}
    assert set(rows["plain"]) == {32, 64, 96, 128} and set(rows["gelu"]) == {96, 128}
    assert set(rows["norm"]) == set(rows["norm_groups"]) == set(rows["plain_groups"]) == {32, 64}


def test_a_part_that_is_not_tuned_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import tune_int8, tune_rows

    path = tmp_path / "table.json"
    tiles = {"m": 1, "n": 2, "k": 3, "tiles": {"bm": 16, "bn": 16, "bk": 16, "warps": 4, "stages": 2}}
    path.write_text(json.dumps({"device": "a", "gemm": [tiles], "quantize": {"norm": {}}, "rows": [1]}))
    row = {"pieces": [64], "warps": 1, "registers": None, "pairs": True}

    def tune(case: tune_rows.Case, *_: object) -> dict[str, Any]:
        if case.columns == 128:
            raise ValueError("no such way")
        found = {"case": {**vars(case)}, "best": {**row, "tb_per_s": 1.0}, "failed": {}}
        return {**found, "tb_per_s": {"way": 1.0}}

    monkeypatch.setattr(tune_rows, "tune", tune)
    monkeypatch.setattr("qvgen.packed.triton_linear.runs_on", lambda device: False)
    with pytest.raises(SystemExit, match="needs Triton"):
        tune_int8.main(["--tiny", "--parts", "quantize", "--output", str(path)])
    monkeypatch.setattr("qvgen.packed.triton_linear.runs_on", lambda device: True)
    assert tune_int8.main(["--tiny", "--parts", "quantize", "--output", str(path)]) == 1
    table = json.loads(path.read_text())
    assert table["gemm"] == [tiles] and table["device"] == "a" and "device" in table["quantize_on"]
    assert len(table["rows"]) == 10 and set(parse(path.read_text())[1]["plain"]) == {32, 64, 96}
    both = tune_int8.arguments(["--tiny", "--output", str(path)])
    assert tune_int8.kept_table(both)["gemm"] == []


def test_an_older_table_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    """The package would refuse what is kept of it; what is replaced may be of any kind."""
    from benchmarks import tune_int8

    path = tmp_path / "table.json"
    tiles = {**asdict(Tiles(128, 128, 128, 4, 4)), "jobs": True, "bn": 256}
    old_rows, old_tiles = (
        {"gemm": [], "quantize": {"1920": 2}},
        {"gemm": [{"m": 1, "n": 2, "k": 3, "tiles": tiles}]},
    )
    for part, table, line in (("gemm", old_rows, "kinds"), ("quantize", old_tiles, "128 x 256")):
        path.write_text(json.dumps(table))
        with pytest.raises(SystemExit, match=f"table.json: .*{line}"):
            tune_int8.main(["--tiny", "--parts", part, "--output", str(path)])
        other = ({"gemm", "quantize"} - {part}).pop()
        kept = tune_int8.kept_table(tune_int8.arguments(["--tiny", "--parts", other, "--output", str(path)]))
        assert kept[part] == table.get(part, {})
    with pytest.raises(ValueError, match="kinds"):
        parse(json.dumps(old_rows))


def test_candidates_for_rows_of_the_models() -> None:
    """Each fits its rows; the first holds numbers by the rule; the wide ones leave each thread few enough."""
    from benchmarks.tune_rows import candidates, cases

    found = {(case.kind, case.columns): candidates(case) for case in cases(False)}
    assert len(found) == 6 + 3 + 3 + 3 + 3
    for (kind, columns), rows in found.items():
        assert not rows[0].pairs and len(rows) == len(set(rows)) and 3 <= len(rows) <= 8
        assert all(row.sizes(columns) for row in rows)
        assert any(row.pairs for row in rows) != kind.startswith("norm")
        assert all(sum(row.pieces) / (32 * row.warps) <= 128 for row in rows)


def test_what_is_taken_for_the_same_codes() -> None:
    from benchmarks.tune_rows import agree

    codes = torch.arange(4096).view(1, 4, 1024).remainder(16).to(torch.int8) - 8
    made = codes, torch.ones(1, 4), codes.sum(-1, dtype=torch.int32)[None]
    few, many = codes.clone(), codes.clone()
    few[0, :2, 0] += 1
    many[0, :, :3] += 1
    for other, alike in ((few, True), (many, False)):
        theirs = other, made[1] * (1 + 1e-6), other.sum(-1, dtype=torch.int32)[None]
        assert agree(theirs, made, "gelu") is agree(theirs, made, "norm_groups") is alike
        assert not agree(theirs, made, "plain")
    assert agree(made, made, "plain") and agree(made, made, "gelu")
    assert not agree((few, *made[1:]), made, "gelu")  # sums of other codes
    assert not agree((codes, made[1] * 1.001, made[2]), made, "norm")


def test_of_ways_without_jobs_the_table_knows_the_fastest(tmp_path: Path) -> None:
    from benchmarks.tune_int8 import arguments, known_table, known_tiles

    def way(stages: int, ms: float, jobs: bool = False) -> dict[str, Any]:
        return {"tiles": asdict(Tiles(64, 64, 64, 4, stages, jobs=jobs)), "ms": ms}

    entry = {"m": 7, "n": 8, "k": 9, "tried": [way(5, 1.0, True), way(3, 2.5), way(2, 2.0), way(4, 3.0)]}
    alone = {"m": 1, "n": 8, "k": 9, "tried": [way(5, 1.0, True)]}
    assert known_tiles([entry, alone]) == {(7, 8, 9): Tiles(64, 64, 64, 4, 2)}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"gemm": [entry]}))
    given = ["--tiny", "--output", str(path)]  # all parts
    assert known_table(arguments([*given, "--jobs-only"])) == known_tiles([entry])
    assert known_table(arguments(given)) == {}


def test_a_kernel_that_hangs_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process finds one way equal, another not, and then waits for ever: the first is kept."""
    from benchmarks import tune_int8
    from qvgen.packed import triton_product

    first, second, *others = tune_int8.job_candidates()
    script = tmp_path / "hangs.py"
    lines = [f"print({f'{first}: equal'!r}, flush=True)", f"print({f'{second}: differs: 3x4'!r}, flush=True)"]
    script.write_text("\n".join([*lines, "import time", "time.sleep(600)"]))
    monkeypatch.setattr(tune_int8, "__file__", str(script))
    monkeypatch.setattr(tune_int8, "JOBS_LIMIT_S", 8)
    monkeypatch.setattr(triton_product, "has_jobs", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    given = tune_int8.arguments(["--tiny", "--output", str(tmp_path / "table.json")])
    given.tiny = False
    found = tune_int8.jobs_work(given, torch.device("cuda"))
    assert found.pop(str(first)) == "equal" and found.pop(str(second)) == "differs: 3x4"
    assert list(found.values()) == ["not reached"] * len(others)
    kept = tune_int8.candidates(False, True, {str(first): "equal", str(second): "differs: 3x4"})
    assert [tiles for tiles in kept if tiles.jobs] == [first]
    assert all(tiles.stages * (tiles.bm + tiles.bn) * tiles.bk <= 227 * 1024 for tiles in kept)


def test_normal_and_uniform_codes() -> None:
    """A range of 6.5 sigma on 16 codes: 2.3 codes a sigma, the ends seldom; uniform ones all alike often."""
    from benchmarks.int8_layers import drawn_codes

    torch.manual_seed(0)
    normal, uniform = (drawn_codes(200, 320, 4, torch.device("cpu"), u).float() for u in (False, True))
    assert normal.shape == uniform.shape == (200, 320)
    assert float(normal.std()) == pytest.approx(15 / 6.5, rel=0.05) and float(normal.mean()) == pytest.approx(
        7.5, abs=0.1
    )
    assert float(uniform.std()) == pytest.approx((255 / 12) ** 0.5, rel=0.02)
    assert {0.0, 15.0} <= set(normal.unique().tolist()) and float((normal == 0).float().mean()) < 0.005
