"""``run`` from end to end with the toy plugins: what it makes, keeps, refuses and makes again."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

Call = Callable[..., Any]
NOTHING = "nothing to do"


def table(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of ``leaderboard.csv`` by method and bits."""
    with (folder / "leaderboard.csv").open(newline="") as file:
        return {f"{row['method']}-{row['bits_w']}-{row['seed']}": row for row in csv.DictReader(file)}


def samples(folder: Path, cell: str) -> list[dict[str, Any]]:
    lines = (folder / "cells" / cell / "samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def stamps(folder: Path) -> dict[str, int]:
    """Modification time of every file, to see what was written again."""
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_run_makes_every_file_and_a_full_table(toy_run: Call, tmp_path: Path) -> None:
    result = toy_run("--methods", "toy-round,toy-train", "--bits", "4")
    out = tmp_path / "out"
    assert result.code == 0, result.err
    for name in ("manifest", "plan", "results"):
        assert json.loads((out / f"{name}.json").read_text())
    assert {p.name for p in (out / "cells").iterdir()} == {
        "bf16-s0",
        "toy-round-w4a4-s0",
        "toy-train-w4a4-s0",
    }
    rows = table(out)
    assert [row["source"] for row in rows.values()] == ["reference", "computed", "trained"]
    assert [row["execution"] for row in rows.values()] == ["real", "fake", "fake"]
    assert {float(row["coverage"]) for row in rows.values()} <= {1.0, 100.0}
    log = (out / "cells" / "toy-train-w4a4-s0" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [0, 1, 2, 3, 4]


def test_scores_are_those_of_the_files(toy_run: Call, tmp_path: Path) -> None:
    """Brightness, worked out again from the videos by another decoder."""
    toy_run("--no-profile")
    cell = tmp_path / "out" / "cells" / "bf16-s0"
    rows = [json.loads(line) for line in (cell / "scores.jsonl").read_text().splitlines()]
    brightness = {row["sample"]: row["value"] for row in rows if row["dimension"] == "brightness"}
    assert len(brightness) == 6
    for sample, value in brightness.items():
        capture = cv2.VideoCapture(str(cell / "videos" / f"{sample}.mp4"))
        frames = []
        while (step := capture.read())[0]:
            frames.append(step[1])
        assert value == pytest.approx(np.mean(frames) / 255, abs=2e-3)
    assert {row["sample"] for row in rows if row["dimension"] == "motion"} == {"p01-0", "p03-0", "p05-0"}


def test_the_second_run_does_nothing_and_writes_nothing(toy_run: Call, tmp_path: Path) -> None:
    command = ("--methods", "toy-round", "--bits", "4,2", "--seeds", "0,1")
    toy_run(*command)
    before = stamps(tmp_path / "out")
    again = toy_run(*command)
    assert again.code == 0
    assert "nothing to do: 6 cells, 36 videos, 54 scores up to date" in again.err
    after = stamps(tmp_path / "out")
    for name in (".lock", ".hashes"):  # the second only spares reading videos again
        before.pop(name, None), after.pop(name, None)
    assert after == before


def test_cells_accumulate_in_one_folder(toy_run: Call, tmp_path: Path) -> None:
    toy_run("--methods", "toy-round", "--bits", "4")
    first = table(tmp_path / "out")
    videos = stamps(tmp_path / "out" / "cells" / "toy-round-w4a4-s0" / "videos")
    toy_run("--methods", "toy-train", "--bits", "2")
    second = table(tmp_path / "out")
    assert list(second) == ["bf16-16-0", "toy-round-4-0", "toy-train-2-0"]
    assert {name: second[name] for name in first} == first
    assert stamps(tmp_path / "out" / "cells" / "toy-round-w4a4-s0" / "videos") == videos


def test_a_limited_run_is_partial_and_the_full_one_builds_on_it(toy_run: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    toy_run("--limit", "2")
    row = table(out)["bf16-16-0"]
    assert row["mean"] == ""
    assert 0 < float(row["coverage"].rstrip("%")) < 100
    early = stamps(out / "cells" / "bf16-s0" / "videos")
    assert len(early) == 2
    toy_run()
    late = stamps(out / "cells" / "bf16-s0" / "videos")
    assert len(late) == 6
    assert early.items() <= late.items()
    assert len(samples(out, "bf16-s0")) == 6
    assert table(out)["bf16-16-0"]["mean"] != ""


def test_dimensions_may_be_added_later(toy_run: Call, tmp_path: Path) -> None:
    toy_run("--dimensions", "motion")
    assert len(samples(tmp_path / "out", "bf16-s0")) == 3
    row = table(tmp_path / "out")["bf16-16-0"]
    assert row["brightness"] == ""
    assert row["motion"] != ""
    toy_run()
    assert table(tmp_path / "out")["bf16-16-0"]["mean"] != ""


def test_a_failed_sample_is_recorded_and_retried(
    toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("TOY_FAIL", "generate/two,score/p03")
    result = toy_run("--methods", "toy-round")
    assert result.code == 1
    assert "RuntimeError: asked to fail at generate/two" in result.err
    assert "toy.brightness: RuntimeError: asked to fail at score/p03 (2 videos)" in result.err
    [failed] = [record for record in samples(out, "bf16-s0") if record["status"] == "failed"]
    assert failed["prompt_id"] == "p01"
    assert failed["error"] == "RuntimeError: asked to fail at generate/two"
    row = table(out)["bf16-16-0"]
    assert row["mean"] == ""
    assert float(row["coverage"].rstrip("%")) < 100
    tracebacks = [
        json.loads(line).get("traceback", "") for line in (out / "events.jsonl").read_text().splitlines()
    ]
    assert any("in reach" in text for text in tracebacks)

    monkeypatch.delenv("TOY_FAIL")
    assert toy_run("--methods", "toy-round").code == 0
    healed = (out / "scores.csv").read_bytes()
    toy_run("--methods", "toy-round", "--output", "undisturbed")
    assert healed == (tmp_path / "undisturbed" / "scores.csv").read_bytes()


def test_a_cell_that_cannot_be_prepared_does_not_stop_the_others(
    toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", "prepare/toy-train")
    result = toy_run("--methods", "toy-train,toy-round")
    assert result.code == 1
    assert "toy-train-w3a3-s0: could not be prepared: RuntimeError" in result.err
    rows = table(tmp_path / "out")
    assert rows["toy-round-3-0"]["mean"] != ""
    assert float(rows["toy-train-3-0"]["coverage"].rstrip("%")) == 0


def test_changed_options_redo_the_cell_aloud(toy_run: Call, tmp_path: Path) -> None:
    toy_run("--methods", "toy-round", "--bits", "2")
    out = tmp_path / "out"
    reference = stamps(out / "cells" / "bf16-s0")
    before = {record["sample"]: record["sha256"] for record in samples(out, "toy-round-w2a2-s0")}
    result = toy_run("--methods", "toy-round", "--bits", "2", "--set", "toy-round.shrink=0.3")
    assert "toy-round-w2a2-s0: made with other options, weights or code before; making it again" in result.err
    after = {record["sample"]: record["sha256"] for record in samples(out, "toy-round-w2a2-s0")}
    assert before.keys() == after.keys()
    assert all(before[sample] != after[sample] for sample in before)
    assert stamps(out / "cells" / "bf16-s0") == reference


def cells_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {cell["id"]: cell for cell in json.loads((folder / "results.json").read_text())["cells"]}


def test_a_redo_that_fails_leaves_no_old_numbers(
    toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    toy_run("--methods", "toy-train")
    assert cells_of(out)["toy-train-w3a3-s0"]["coverage"] == 1
    monkeypatch.setenv("TOY_FAIL", "prepare/toy-train")
    assert toy_run("--methods", "toy-train", "--set", "toy-train.steps=3").code == 1
    cell = cells_of(out)["toy-train-w3a3-s0"]
    assert cell["coverage"] == 0
    assert cell["mean"] is None
    assert cell["profile"] is None
    assert cell["train_log"] == []
    assert not any(cell["scores"].values())
    assert cell["n_videos_ok"] == 0
    monkeypatch.delenv("TOY_FAIL")
    assert toy_run("--methods", "toy-train", "--set", "toy-train.steps=3").code == 0
    assert cells_of(out)["toy-train-w3a3-s0"]["coverage"] == 1
    assert len(cells_of(out)["toy-train-w3a3-s0"]["train_log"]) == 3


MINE = """
from toybench.methods import ToyRound
class Mine(ToyRound):
    name = 'mine'
    summary = 'mine'
PLUGINS = {'methods': {'mine': Mine}}
"""


def test_edited_code_leaves_no_old_row_of_an_earlier_command(toy_run: Call, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "mine.py"
    file.write_text(MINE)
    toy_run("--methods", "mine", "--plugin", "mine.py")
    result = toy_run("--methods", "toy-round", "--plugin", "mine.py")
    assert "left out" not in result.err
    assert cells_of(out)["mine-w3a3-s0"]["coverage"] == 1
    file.write_text(MINE + "# edited")
    result = toy_run("--methods", "toy-round", "--plugin", "mine.py")
    assert (
        result.err.count("mine-w3a3-s0: left out of the table, made with other options, weights or code") == 1
    )
    cells = cells_of(out)
    assert cells["mine-w3a3-s0"]["coverage"] == 0
    assert cells["mine-w3a3-s0"]["profile"] is None
    assert cells["toy-round-w3a3-s0"]["coverage"] == cells["bf16-s0"]["coverage"] == 1
    assert "nothing to do" in toy_run("--methods", "toy-round", "--plugin", "mine.py").err
    assert toy_run("--methods", "mine", "--plugin", "mine.py").code == 0
    assert cells_of(out)["mine-w3a3-s0"]["coverage"] == 1


def test_a_profile_of_other_weights_is_not_shown(toy_run: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    toy_run("--methods", "toy-round")
    assert cells_of(out)["toy-round-w3a3-s0"]["profile"]["step_ms"] > 0
    path = out / "cells" / "toy-round-w3a3-s0" / "profile.json"
    record = {**json.loads(path.read_text()), "hash": "ab" * 32}
    del record["crc"]  # else it would be mended
    path.write_text(json.dumps(record))
    toy_run("--methods", "toy-round", "--no-profile")
    assert cells_of(out)["toy-round-w3a3-s0"]["profile"] is None
    assert cells_of(out)["bf16-s0"]["profile"]["step_ms"] > 0


def test_other_code_of_the_harness_renews_the_reports(
    toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalharness.stages import aggregate

    toy_run("--methods", "toy-round", "--no-profile")
    before = stamps(tmp_path / "out")
    monkeypatch.setattr(aggregate, "harness_sha256", lambda: "ab" * 32)
    toy_run("--methods", "toy-round", "--no-profile")
    after = stamps(tmp_path / "out")
    changed = {name for name in before if before[name] != after[name]}
    assert {"results.json", "leaderboard.csv"} <= changed
    assert not any(name.startswith("cells/") for name in changed)


def test_a_run_without_methods_says_what_it_plans(toy_run: Call) -> None:
    words = "warning: no --methods given: only full precision is planned"
    assert words in toy_run("--dry-run").err
    assert words in toy_run("--no-profile").err
    assert words not in toy_run("--methods", "toy-round", "--dry-run").err


def test_the_number_of_training_clips_is_recorded_and_counts(
    toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_model = importlib.import_module("toybench.model").ToyModel

    def card(method: str) -> dict[str, Any]:
        path = tmp_path / "out" / "cells" / f"{method}-w3a3-s0" / "checkpoint" / "evalharness.json"
        record: dict[str, Any] = json.loads(path.read_text())
        return record

    both = ("--methods", "toy-train,toy-round", "--limit", "1", "--no-profile")
    toy_run(*both)
    assert "training_clips" not in card("toy-train")
    monkeypatch.setattr(
        toy_model, "training_clips", lambda self, device: {"cpu": 192, "cuda": 16384}[device], raising=False
    )
    result = toy_run(*both)
    assert "toy-train-w3a3-s0: made with other options, weights or code before" in result.err
    assert "toy-round-w3a3-s0" not in result.err
    assert card("toy-train")["training_clips"] == 192
    assert "training_clips" not in card("toy-round")
    monkeypatch.setattr(toy_model, "training_clips", 7)
    toy_run(*both)
    assert card("toy-train")["training_clips"] == 7


def test_score_without_workers_uses_one_thread(call: Call, toy_run: Call, tmp_path: Path) -> None:
    import torch

    toy_run("--no-profile")
    (tmp_path / "out" / "cells" / "bf16-s0" / "scores.jsonl").unlink()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        call("score", "out", "--workers", "0", "--device", "cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_folder_of_a_different_run_is_refused_untouched(toy_run: Call, tmp_path: Path) -> None:
    toy_run("--no-profile")
    before = stamps(tmp_path / "out")
    result = toy_run("--methods", "toy-round", "--skip-layers", "none")
    assert result.code == 2
    [line] = result.errors
    assert "different run (skip_layers: std there, none asked); choose another --output" in line
    after = stamps(tmp_path / "out")
    for name in (".lock", ".hashes"):  # the second only spares reading videos again
        before.pop(name, None), after.pop(name, None)
    assert after == before


def test_a_dry_run_tells_the_work_and_writes_nothing(toy_run: Call, tmp_path: Path) -> None:
    result = toy_run("--methods", "toy-train", "--bits", "4,2", "--seeds", "0,1", "--limit", "3", "--dry-run")
    assert result.code == 0
    # 2 references and 4 trained cells, 3 prompts each; 5 training steps a cell
    assert "6 cells, 18 videos to make" in result.out
    assert "20 training steps" in result.out
    assert "estimated time:" in result.out
    assert not (tmp_path / "out").exists()
    toy_run("--methods", "toy-train", "--bits", "4")
    result = toy_run("--methods", "toy-train", "--bits", "4", "--dry-run")
    assert "2 cells, 0 videos to make, 0 scores, 0 training steps" in result.out


def test_a_yaml_recipe_runs(toy_run: Call, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "methods: [toy-train]\nbits: [w2a3]\nmethod_options: {toy-train: {steps: 2}}\nlimit: 1\n"
    )
    result = toy_run("--config", "recipe.yaml")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "cells" / "toy-train-w2a3-s0" / "prepare.json").read_text())
    assert record["config"] == {"w_bits": 2, "a_bits": 3, "steps": 2}


def test_a_plugin_file_adds_a_method(toy_run: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from toybench.methods import ToyRound\n"
        "class Mine(ToyRound):\n    name = 'mine'\n    summary = 'mine'\n"
        "PLUGINS = {'methods': {'mine': Mine}}\n"
    )
    result = toy_run("--methods", "mine", "--plugin", "mine.py", "--limit", "1")
    assert result.code == 0, result.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    [used] = [plugin for plugin in manifest["plugins"] if plugin["name"] == "mine"]
    assert used["source"] == "mine.py"
    assert len(used["sha256"]) == 64
    edited = (tmp_path / "mine.py").read_text() + "# edited\n"
    (tmp_path / "mine.py").write_text(edited)
    assert "making it again" in toy_run("--methods", "mine", "--plugin", "mine.py", "--limit", "1").err


def test_the_profile_counts_bytes(toy_run: Call, tmp_path: Path) -> None:
    toy_run("--methods", "toy-round")
    record = json.loads((tmp_path / "out" / "cells" / "toy-round-w3a3-s0" / "profile.json").read_text())
    # Two linears, 16 -> 32 -> 16, with biases: float32 in memory, two bytes each where nothing is quantized.
    numbers = 16 * 32 + 32 + 32 * 16 + 16
    assert record["executed_mb"] == pytest.approx(numbers * 4 / 1e6, abs=1e-3)
    reference = json.loads((tmp_path / "out" / "cells" / "bf16-s0" / "profile.json").read_text())
    assert reference["weights_mb"] == pytest.approx(numbers * 2 / 1e6, abs=1e-3)
    files = list((tmp_path / "out" / "cells" / "toy-round-w3a3-s0" / "checkpoint").iterdir())
    weights = [file.stat().st_size for file in files if file.suffix == ".safetensors"]
    assert record["weights_mb"] == pytest.approx(sum(weights) / 1e6, abs=1e-3)
    assert record["checkpoint_mb"] == pytest.approx(sum(f.stat().st_size for f in files) / 1e6, abs=1e-3)
    # Counted, not measured: the toy's layers stay nn.Linear, so nothing of it is low-bit.
    assert (record["weight_bits"], record["act_bits"], record["low_bit_macs_pct"]) == (16.0, 16.0, 0.0)
    assert record["stored_mb"] == pytest.approx(numbers * 2 / 1e6, abs=1e-3)
    assert record["step_ms"] > 0
    assert record["steps_timed"] > 1
    assert record["process_mem_mb"] > 50  # a process with torch loaded
    assert record["peak_mem_mb"] == pytest.approx(record["executed_mb"] + record["step_mem_mb"], abs=2e-3)
    assert record["peak_mem_mb"] < 5  # the toy alone


def test_the_manifest_tells_what_ran_and_nothing_private(
    toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_secret")
    toy_run("--methods", "toy-round", "--limit", "1")
    toy_run("--methods", "toy-round", "--limit", "2")
    text = (tmp_path / "out" / "manifest.json").read_text()
    manifest = json.loads(text)
    import torch

    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["finished"] >= manifest["started"]
    assert manifest["config"]["prompts"] == 2
    assert [entry["config"]["prompts"] for entry in manifest["history"]] == [1]
    assert {plugin["name"] for plugin in manifest["plugins"]} >= {"toy", "toy-round", "toy.motion", "csv"}
    assert manifest["hardware"]["cores"] >= 1
    assert "hf_secret" not in text
    assert str(tmp_path) not in text
    assert str(Path.home()) + "/" not in text
