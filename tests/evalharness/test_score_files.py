"""Metrics that judge files, the package vbench among them, in runs; kills; files that are no videos."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from evalharness.frames import FrameStore
from evalharness.interchange.submission import submittable
from evalharness.results import read_results
from evalharness.upstream.environment import RECORD, pins_hash
from evalharness.upstream.metrics import ENVIRONMENT_VARIABLE, Scene
from evalharness.video import write_video

PLUGIN = Path(__file__).with_name("file_judges.py")
FAKE = Path(__file__).with_name("fake_upstream")
SCORE = ("score", "clips", "--protocol", "files-like", "--plugin", str(PLUGIN), "--output", "out")
INLINE = (*SCORE, "--workers", "0")
OWN = ("--dimensions", "mean,span")
PATIENCE = 300.0

Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "absent"))
    folder = tmp_path / "clips"
    folder.mkdir()
    ramp = np.linspace(0, 1, 3 * 32 * 32 * 3).reshape(3, 32, 32, 3)
    for number in range(8):
        write_video(folder / f"clip {number}-0.mp4", (ramp * (40 + 25 * number)).astype(np.uint8), 8)
    return folder


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ``fetch vbench`` leaves, with a stand-in for the package."""
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{FAKE}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / RECORD).write_text(json.dumps({"pins": pins_hash()}))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(folder))
    return folder


def rows(tmp_path: Path, dimension: str | None = None) -> list[dict[str, Any]]:
    [path] = (tmp_path / "out" / "cells").glob("*/scores.jsonl")
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in read if dimension in (None, row["dimension"])]


def test_the_package_judges_within_a_run(call: Call, tmp_path: Path, environment: Path, clips: Path) -> None:
    (clips / "clip 3-0.mp4").write_bytes(b"")
    done = call(*INLINE)
    assert done.code == 1
    judged = rows(tmp_path, "temporal_flickering")
    assert [row["sample"] for row in judged] == [f"{n:04d}-0" for n in range(8)]
    assert {row["metric"] for row in judged} == {"held.temporal_flickering"}
    for number, row in enumerate(judged):
        if number == 3:
            assert row["value"] is None and row["error"] == "0 frames can be read, 2 are needed"
        else:
            assert row["value"] == pytest.approx((40 + 25 * number) / 255 / 6, abs=0.02)
            assert row["details"]["versions"]["python"] == sys.version.split()[0]
    assert len({row["metric_hash"] for row in judged}) == 8  # a prompt is part of it
    again = call(*INLINE)
    assert "score 3" not in again.err and "held.temporal_flickering" in again.err  # tried again, alone
    write_video(clips / "clip 3-0.mp4", np.full((3, 32, 32, 3), 99, np.uint8), 8)
    assert call(*INLINE).code == 0
    assert "nothing to do" in call(*INLINE).err


def test_what_is_missing_is_a_skip_with_its_command(
    call: Call, tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "absent"))
    assert call(*INLINE).code == 0
    [reason] = {row["skip"] for row in rows(tmp_path, "temporal_flickering")}
    assert reason.endswith("make it with: python -m evalharness fetch vbench")
    [cell] = read_results(tmp_path / "out/results.json").cells
    assert cell.dimensions["temporal_flickering"].n == 0 < cell.dimensions["temporal_flickering"].expected
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(environment))
    assert call(*INLINE).code == 0
    assert all(row["value"] is not None for row in rows(tmp_path, "temporal_flickering"))


def test_missing_weights_and_detectron2_name_their_commands(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    metric = Scene()
    assert "tag2text_swin_14m.pth" in metric.missing
    reason = metric._reason()
    assert reason is not None and reason.endswith("evalharness fetch weights --only scene")
    before = metric.info
    target = tmp_path / "cache" / "caption_model" / "tag2text_swin_14m.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"weights")
    assert Scene().info != before  # so that the skips go stale
    from evalharness.upstream.metrics import Color

    reason = Color()._reason()
    assert reason is not None and "fetch vbench --env" in reason and "--detectron2" in reason
    assert f"--env {environment} --detectron2" in reason


def test_chosen_metrics(call: Call, tmp_path: Path) -> None:
    assert call(*INLINE, *OWN).code == 0
    plain = {row["sample"]: row["value"] for row in rows(tmp_path, "span")}
    assert call(*INLINE, *OWN, "--metric", "toy.span").code == 1
    told = rows(tmp_path, "span")
    assert {row["metric"] for row in told} == {"toy.span"}
    assert "outside the declared range" in told[0]["error"]
    assert told[1]["skip"] == "no" and "left_out" not in told[1]
    assert told[2]["left_out"] is True
    assert told[3]["skip"] == "no value and no reason"
    assert "JSON" in told[4]["error"]
    assert told[5]["value"] == 0.25
    [cell] = read_results(tmp_path / "out/results.json").cells
    assert [row.value for row in cell.scores["span"]] == [0.25]
    assert call(*INLINE, *OWN).code == 0  # the protocol's own again
    assert {row["sample"]: row["value"] for row in rows(tmp_path, "span")} == plain


def test_a_family_and_mistakes(call: Call, tmp_path: Path) -> None:
    done = call(*INLINE, *OWN, "--metric", "few.*")
    assert done.code == 1 and "0 verdicts on 3 files" in done.err
    cases = {"nothing.*": "no metric of that family", "toy.spam": "did you mean 'toy.span'"}
    cases["tinyworld.action"] = "dimension of metric tinyworld.action"
    for name, words in cases.items():
        done = call(*INLINE, "--metric", name)
        assert done.code == 2 and words in done.err, name


# ---- kills


def finished(tmp_path: Path) -> list[dict[str, Any]]:
    found = rows(tmp_path)
    assert len({(row["sample"], row["dimension"]) for row in found}) == len(found) == 16
    return found


def started(tmp_path: Path, **variables: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, "-m", "evalharness", *SCORE, *OWN, "--workers", "1"]
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def written(tmp_path: Path) -> int:
    """Whole lines, while another process writes."""
    return sum(path.read_text().count("\n") for path in (tmp_path / "out" / "cells").glob("*/scores.jsonl"))


@pytest.mark.parametrize("place", ["mean 0005-0", "span 0000-0", "span 0007-0"])
def test_killed_while_it_judges(tmp_path: Path, call: Call, place: str) -> None:
    """What was written is not judged again, what was not is; nothing is there twice."""
    log = tmp_path / "judged"
    log.touch()
    process = started(tmp_path, JUDGED=str(log), STOP_AT=place)
    deadline = time.monotonic() + PATIENCE
    while place not in log.read_text().splitlines():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    first = log.read_text().splitlines()  # it has stopped at the last of them
    while len(first) - written(tmp_path) > 3:  # no more than one call is not on disk, if only after a while
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {(row["sample"], row["dimension"]) for row in rows(tmp_path)}
    log.write_text("")
    os.environ["JUDGED"] = str(log)
    try:
        assert call(*INLINE, *OWN).code == 0
    finally:
        del os.environ["JUDGED"]
    second = {tuple(line.split()) for line in log.read_text().splitlines()}
    assert second == {(d, s) for d in ("mean", "span") for s in SAMPLES} - {(d, s) for s, d in kept}
    finished(tmp_path)


SAMPLES = [f"{number:04d}-0" for number in range(8)]


def test_a_write_that_was_cut_off_anywhere(tmp_path: Path, call: Call) -> None:
    """The file ends in the middle of a line: whole lines stay, the rest is scored again."""
    assert call(*INLINE, *OWN).code == 0
    [path] = (tmp_path / "out" / "cells").glob("*/scores.jsonl")
    whole = path.read_bytes()
    results = (tmp_path / "out" / "scores.csv").read_bytes()
    for cut in [0, 1, len(whole) // 3, len(whole) // 2, whole.rindex(b"\n", 0, -1) + 1, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        assert call(*INLINE, *OWN).code == 0
        assert path.read_bytes() == whole, cut
        assert (tmp_path / "out" / "scores.csv").read_bytes() == results
    path.write_bytes(whole + whole)  # as if two had written
    assert call(*INLINE, *OWN).code == 0
    assert path.read_bytes() == whole


# ---- files that are no videos


def test_each_odd_file_is_one_failure(call: Call, tmp_path: Path, clips: Path, monkeypatch: Any) -> None:
    good = (clips / "clip 0-0.mp4").read_bytes()
    (clips / "clip 1-0.mp4").write_bytes(b"")
    (clips / "clip 2-0.mp4").write_bytes(b"no video at all" * 50)
    (clips / "clip 3-0.mp4").write_bytes(good[: len(good) // 2])
    write_video(clips / "clip 4-0.mp4", np.zeros((1, 32, 32, 3), np.uint8), 8)
    write_video(clips / "clip 5-0.mp4", np.zeros((60, 256, 256, 3), np.uint8), 8)
    (clips / "clip 6-0.mp4").rename(clips / "Clip the sixth.mp4")
    monkeypatch.setattr(FrameStore.__init__, "__kwdefaults__", {**DEFAULTS, "limit": 4 << 20})
    done = call(*INLINE, "--dimensions", "mean")
    assert done.code == 1
    found = {row["sample"]: row for row in rows(tmp_path, "mean")}
    assert sorted(found) == [sample for sample in SAMPLES if sample != "0006-0"]
    errors = {sample: row["error"] for sample, row in found.items() if row.get("error")}
    assert sorted(errors) == ["0001-0", "0002-0", "0003-0", "0005-0"]
    assert "too large" in errors["0005-0"]
    assert found["0004-0"]["value"] == pytest.approx(0, abs=0.01)  # one frame has a mean
    assert "left out: Clip the sixth.mp4" in done.err
    assert all(found[sample]["value"] is not None for sample in ("0000-0", "0007-0"))
    [cell] = read_results(tmp_path / "out/results.json").cells
    assert cell.dimensions["mean"].n == 3 and cell.mean is None


DEFAULTS = dict(FrameStore.__init__.__kwdefaults__)


def test_the_package_s_own_scores_may_be_submitted() -> None:
    class Cell:
        dimensions: ClassVar = {n: type("E", (), {"n": 5, "expected": 5}) for n in ("scene", "color")}

    assert submittable(Cell, {"scene": "upstream.scene", "color": "tinyworld.color"}) == ["scene"]
