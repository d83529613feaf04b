"""Damage and bad luck: one clear line, a non-zero exit code, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evalharness.conftest import without_sum

Call = Callable[..., Any]
CELL = Path("out/cells/toy-round-w3a3-s0")


@pytest.fixture
def made(toy_run: Call, tmp_path: Path) -> tuple[Path, bytes]:
    """A finished run's folder and its scores."""
    assert toy_run("--methods", "toy-round").code == 0
    return tmp_path / "out", (tmp_path / "out" / "scores.csv").read_bytes()


def again(toy_run: Call) -> Any:
    return toy_run("--methods", "toy-round")


def test_a_truncated_video_is_made_again(made: tuple[Path, bytes], toy_run: Call, tmp_path: Path) -> None:
    video = tmp_path / CELL / "videos" / "p02-0.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2])
    result = again(toy_run)
    assert result.code == 0
    assert "toy-round-w3a3-s0/p02-0.mp4: missing, truncated or changed; making it again" in result.err
    assert video.read_bytes() == whole
    assert (made[0] / "scores.csv").read_bytes() == made[1]


def test_score_refuses_a_truncated_video_and_run_mends_it(
    made: tuple[Path, bytes], toy_run: Call, call: Call, tmp_path: Path
) -> None:
    cell = tmp_path / CELL
    video = cell / "videos" / "p02-0.mp4"
    video.write_bytes(video.read_bytes()[:500])
    (cell / "scores.jsonl").unlink()
    result = call("score", "out", "--workers", "0")
    assert result.code == 1
    assert "p02-0: the video file is missing, truncated or changed since it was made" in result.err
    rows = [json.loads(line) for line in (cell / "scores.jsonl").read_text().splitlines()]
    assert {row["sample"] for row in rows} == {"p00-0", "p01-0", "p03-0", "p04-0", "p05-0"}
    assert again(toy_run).code == 0
    assert (made[0] / "scores.csv").read_bytes() == made[1]


def test_score_sees_damage_done_after_scoring(
    made: tuple[Path, bytes], toy_run: Call, call: Call, tmp_path: Path
) -> None:
    for name, damage in (("p02-0", lambda p: p.write_bytes(p.read_bytes()[:500])), ("p03-0", Path.unlink)):
        damage(tmp_path / CELL / "videos" / f"{name}.mp4")
    result = call("score", "out", "--workers", "0")
    assert result.code == 1
    for name in ("p02-0", "p03-0"):
        assert f"{name}: the video file is missing, truncated or changed since it was made" in result.err
    assert again(toy_run).code == 0
    assert (made[0] / "scores.csv").read_bytes() == made[1]


def test_a_damaged_checkpoint_is_made_again(made: tuple[Path, bytes], toy_run: Call, tmp_path: Path) -> None:
    weights = tmp_path / CELL / "checkpoint" / "w.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\0\0\1")
    result = again(toy_run)
    assert result.code == 0
    assert "toy-round-w3a3-s0: its checkpoint is damaged; making it again" in result.err
    assert weights.read_bytes() == whole
    assert (made[0] / "scores.csv").read_bytes() == made[1]


def test_deleted_reports_come_back(made: tuple[Path, bytes], toy_run: Call) -> None:
    for name in ("scores.csv", "leaderboard.csv", "report.html", "results.json"):
        (made[0] / name).unlink()
    assert again(toy_run).code == 0
    assert (made[0] / "scores.csv").read_bytes() == made[1]
    assert (made[0] / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (
            "cells/bf16-s0/samples.jsonl",
            "{}\n",
            "samples.jsonl: line 1: 'sample' is missing; remove that line",
        ),
        ("cells/bf16-s0/scores.jsonl", '{"sample": 3}\n', "scores.jsonl: line 1: 'sample' is 3; remove"),
        ("cells/bf16-s0/samples.jsonl", "nonsense\n{}\n", "samples.jsonl: line 1 is not a JSON record"),
        ("cells/bf16-s0/scores.jsonl", '{"a": 1\n{}\n', "scores.jsonl: line 1 is not a JSON record"),
    ],
)
def test_a_corrupt_record_is_one_line_that_names_it(
    made: tuple[Path, bytes], toy_run: Call, file: str, content: str, words: str
) -> None:
    (made[0] / file).write_text(content)
    result = again(toy_run)
    assert result.code == 2
    [line] = [line for line in result.errors if line.startswith("error:")]
    assert words in line


RECORDS = [
    ("plan.json", "{", "plan.json: not valid JSON, or not as it was written; restore it from a copy"),
    ("plan.json", "{}", "plan.json: it has no schema version; restore it"),
    ("plan.json", '{"schema_version": 99}', "plan.json: schema version 99"),
    ("plan.json", '{"schema_version": 1}', "plan.json: 'identity' is missing; restore it"),
    ("plan.json", '{"schema_version": 1, "identity": {}, "cells": []}', "plan.json: 'model' is missing"),
    ("cells/bf16-s0/prepare.json", "{}", "prepare.json: 'hash' is missing; delete it"),
    ("cells/bf16-s0/prepare.json", "nonsense", "prepare.json: not valid JSON"),
    (
        "cells/bf16-s0/prepare.json",
        '{"hash": "1", "crc": "00000000"}',
        "prepare.json: not as it was written, by its checksum; delete it to have it made again, or its 'crc'",
    ),
]


@pytest.mark.parametrize(("file", "content", "words"), RECORDS)
def test_a_corrupt_record_that_the_log_has_is_mended_else_named(
    made: tuple[Path, bytes], toy_run: Call, call: Call, file: str, content: str, words: str
) -> None:
    whole = (made[0] / file).read_bytes()
    (made[0] / file).write_text(content)
    result = again(toy_run)
    assert result.code == 0 and "lost or damaged; taken from" in result.err
    assert (made[0] / file).read_bytes() == whole and (made[0] / "scores.csv").read_bytes() == made[1]
    (made[0] / file).write_text(content)
    for name in ("events.jsonl", "manifest.json", "results.json"):
        (made[0] / name).unlink()
    result = call("score", "out", "--workers", "0", "--device", "cpu")
    assert result.code == 2
    [line] = [line for line in result.errors if line.startswith("error:")]
    assert words in line


def test_a_full_disk_stops_with_one_line_and_nothing_is_lost(
    made: tuple[Path, bytes], toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def full_after_a_while(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_a_while)
        result = toy_run("--methods", "toy-round", "--output", "full")
    assert result.code == 2
    [line] = [line for line in result.errors if line.startswith("error:")]
    assert "No space left on device" in line
    assert "finished work is kept" in line
    finished = len(list((tmp_path / "full").rglob("*.mp4")))
    assert 0 < finished < 12
    result = toy_run("--methods", "toy-round", "--output", "full")
    assert result.code == 0
    assert (tmp_path / "full" / "scores.csv").read_bytes() == made[1]


def test_no_write_permission(toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "out")

    monkeypatch.setattr(os, "mkdir", refuse)
    result = toy_run("--methods", "toy-round")
    assert result.code == 2
    [line] = result.errors
    assert line == "error: cannot write the run folder out: Permission denied; choose another with --output"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_read_only_parent(toy_run: Call, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        result = toy_run("--methods", "toy-round")
    finally:
        tmp_path.chmod(0o700)
    assert result.code == 2
    assert "Permission denied" in result.errors[0]


def test_an_output_that_is_not_ours(toy_run: Call, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    assert "out is not empty and no run folder" in toy_run().err
    (tmp_path / "file").write_text("")
    assert "file is a file; choose a folder" in toy_run("--output", "file").err


def test_a_dry_run_refuses_what_the_run_would_refuse(toy_run: Call, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    result = toy_run("--dry-run")
    assert result.code == 2
    assert "out is not empty and no run folder" in result.err
    (tmp_path / "file").write_text("")
    assert "file is a file; choose a folder" in toy_run("--dry-run", "--output", "file").err


def test_a_file_in_place_of_a_run_folder(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = call("score", "file")
    assert result.code == 2
    assert result.errors == ["error: file is a file, not a run folder"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("method", "../../elsewhere", "'../../elsewhere': only letters, digits"),
        ("seed", "../1", "'seed' is '../1'"),
        ("seed", -1, "'seed' is -1"),
        ("seed", True, "'seed' is True"),
        ("seed", 10**3000, "'seed' is 1000"),
        ("label", "a" * 300, "longer than 200 letters"),
        ("w_bits", 99, "99"),
    ],
)
def test_a_plan_that_would_lead_out_of_the_folder_is_refused(
    made: tuple[Path, bytes], call: Call, key: str, value: object, words: str
) -> None:
    """A stranger's folder: its log says the same, or it has none."""
    plan = json.loads((made[0] / "plan.json").read_text())
    del plan["crc"]
    plan["cells"][1][key] = value
    (made[0] / "plan.json").write_text(json.dumps(plan))
    for log in (json.dumps({"event": "planned", "record": plan}) + "\n", ""):
        (made[0] / "events.jsonl").write_text(log)
        result = call("score", "out", "--workers", "0")
        assert result.code == 2
        [line] = result.errors
        assert "plan.json: cells: " in line
        assert words in line


def test_results_that_would_lead_out_of_the_folder_are_refused(made: tuple[Path, bytes], call: Call) -> None:
    text = without_sum((made[0] / "results.json").read_text())
    name = json.loads(text)["cells"][1]["id"]
    (made[0] / "results.json").write_text(
        text.replace(f'"{name}"', '"../../elsewhere"')
    )  # wherever it is named
    result = call("report", "out")
    assert result.code == 2
    assert "results.json: id '../../elsewhere': only letters, digits" in result.err


def test_a_report_of_numbers_by_other_code_says_so(made: tuple[Path, bytes], call: Call) -> None:
    assert call("report", "out").errors == []
    results = json.loads(without_sum((made[0] / "results.json").read_text()))
    results["manifest"]["code_sha256"] = "ab" * 32
    (made[0] / "results.json").write_text(json.dumps(results))
    result = call("report", "out")
    assert result.code == 0
    assert "made by other code of evalharness" in result.err
    assert "evalharness score out" in result.err


class TestPublishedCheckpoints:
    @pytest.fixture
    def published(self, toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder with toy-train-w3a3 as the model's publisher would ship it."""
        toy_run("--methods", "toy-train", "--output", "maker")
        folder = tmp_path / "published"
        shutil.copytree(
            tmp_path / "maker" / "cells" / "toy-train-w3a3-s0" / "checkpoint", folder / "toy-train-w3a3"
        )
        monkeypatch.setenv("TOY_PUBLISHED", str(folder))
        return folder

    def record(self, tmp_path: Path) -> dict[str, Any]:
        path = tmp_path / "out" / "cells" / "toy-train-w3a3-s0" / "prepare.json"
        record: dict[str, Any] = json.loads(path.read_text())
        return record

    def test_is_loaded_for_every_seed_and_gives_the_trained_scores(
        self, published: Path, toy_run: Call, tmp_path: Path
    ) -> None:
        assert toy_run("--methods", "toy-train", "--seeds", "0,1").code == 0
        record = self.record(tmp_path)
        assert record["source"] == "loaded"
        assert record["train_minutes"] is None
        assert record["config"]["steps"] == 5
        assert not (tmp_path / "out" / "cells" / "toy-train-w3a3-s0" / "checkpoint").exists()
        ours, maker = (
            (tmp_path / run / "cells" / "toy-train-w3a3-s0" / "scores.jsonl").read_bytes()
            for run in ("out", "maker")
        )
        assert ours == maker

    def test_train_and_never_make_their_own(self, published: Path, toy_run: Call, tmp_path: Path) -> None:
        toy_run("--methods", "toy-train", "--train")
        assert self.record(tmp_path)["source"] == "trained"
        result = toy_run("--methods", "toy-train", "--load", "never")
        assert "nothing to do" in result.err

    def test_is_not_loaded_for_options_it_was_not_made_with(
        self, published: Path, toy_run: Call, tmp_path: Path
    ) -> None:
        toy_run("--methods", "toy-train", "--set", "toy-train.steps=3")
        assert self.record(tmp_path)["source"] == "trained"
        assert self.record(tmp_path)["config"]["steps"] == 3
        toy_run("--methods", "toy-train", "--set", "toy-train.steps=5", "--output", "same")
        same = tmp_path / "same" / "cells" / "toy-train-w3a3-s0" / "prepare.json"
        assert json.loads(same.read_text())["source"] == "loaded"

    def test_load_path_takes_a_folder_of_them_or_one(
        self, published: Path, toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TOY_PUBLISHED")
        for path in (published, published / "toy-train-w3a3"):
            toy_run("--methods", "toy-train", "--load", str(path), "--output", f"from-{path.name}")
            record = tmp_path / f"from-{path.name}" / "cells" / "toy-train-w3a3-s0" / "prepare.json"
            assert json.loads(record.read_text())["source"] == "loaded"
        result = toy_run("--methods", "toy-train,toy-round", "--bits", "3,2", "--load", str(published))
        assert result.code == 2
        assert "has no toy-train-w2a2" in result.err

    def test_load_path_refuses_folders_that_hold_no_checkpoint(
        self, published: Path, toy_run: Call, tmp_path: Path
    ) -> None:
        result = toy_run("--methods", "toy-train", "--load", "")
        assert result.code == 2
        assert "--load is empty" in result.err
        (tmp_path / "photos").mkdir()
        for method in ("toy-train", "toy-round"):
            result = toy_run("--methods", method, "--load", "photos")
            assert result.code == 2
            assert f"--load photos: has no {method}-w3a3; expected one folder for each" in result.err
        (published / "toy-train-w3a3" / "evalharness.json").rename(tmp_path / "card")
        single = str(published / "toy-train-w3a3")
        assert "has no toy-train-w3a3" in toy_run("--methods", "toy-train", "--load", single).err
        (published / "toy-train-w3a3" / "quantization_config.json").write_text("{}")
        assert toy_run("--methods", "toy-train", "--load", single).code == 0

    def test_a_replaced_one_leaves_no_old_row(self, published: Path, toy_run: Call, tmp_path: Path) -> None:
        """The cell was loaded by an earlier command; the present one does not ask for it."""

        def coverage() -> dict[str, float]:
            results = json.loads((tmp_path / "out" / "results.json").read_text())
            return {cell["id"]: cell["coverage"] for cell in results["cells"]}

        toy_run("--methods", "toy-train")
        toy_run("--methods", "toy-train", "--set", "toy-train.steps=1", "--output", "other")
        made = tmp_path / "other" / "cells" / "toy-train-w3a3-s0" / "checkpoint" / "w.safetensors"
        shutil.copy(made, published / "toy-train-w3a3" / "w.safetensors")
        result = toy_run("--methods", "toy-round")
        words = "toy-train-w3a3-s0: left out of the table, made with other options, weights or code"
        assert words in result.err
        assert coverage() == {"bf16-s0": 1, "toy-train-w3a3-s0": 0, "toy-round-w3a3-s0": 1}
        assert toy_run("--methods", "toy-train").code == 0
        assert coverage()["toy-train-w3a3-s0"] == 1

    @pytest.mark.parametrize("damage", ["truncate", "other method", "empty"])
    def test_corrupt_or_foreign_is_one_line(
        self, published: Path, toy_run: Call, tmp_path: Path, damage: str
    ) -> None:
        folder = published / "toy-train-w3a3"
        (folder / "evalharness.json").unlink()
        if damage == "truncate":
            weights = folder / "w.safetensors"
            weights.write_bytes(weights.read_bytes()[:-100])
        elif damage == "other method":
            (folder / "toy.json").write_text('{"method": "toy-round", "w_bits": 3}')
        else:
            (folder / "w.safetensors").unlink()
        result = toy_run("--methods", "toy-train")
        assert result.code == 2
        [line] = [line for line in result.errors if line.startswith("error:")]
        assert "toy-train-w3a3-s0: checkpoint published/toy-train-w3a3: " in line
        assert line.endswith("to make it instead: --load never")

    @pytest.mark.parametrize("content", ["no json", "[]", "{}", '{"config": 3}'])
    def test_a_card_that_is_none_is_refused(self, published: Path, toy_run: Call, content: str) -> None:
        (published / "toy-train-w3a3" / "evalharness.json").write_text(content)
        for load in ("auto", str(published)):
            result = toy_run("--methods", "toy-train", "--load", load)
            assert result.code == 2
            [line] = [line for line in result.errors if line.startswith("error:")]
            assert "checkpoint published/toy-train-w3a3: evalharness.json is damaged or foreign" in line
            assert "make one with --load never" in line

    def test_made_for_another_model_is_refused(self, published: Path, toy_run: Call) -> None:
        card = published / "toy-train-w3a3" / "evalharness.json"
        facts = json.loads(card.read_text())
        card.write_text(json.dumps({**facts, "model_fingerprint": "ab" * 32}))
        result = toy_run("--methods", "toy-train")
        assert result.code == 2
        assert "was made for model_fingerprint abababababab" in result.err
