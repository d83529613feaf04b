"""Native scorers within the score stage: details beside scores, failures as rows, the run's device."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evalharness.api import MetricInfo, Prompt, Sample, Skip, Video
from evalharness.executor import Task, WorkerSpec
from evalharness.native import aesthetic_quality, bf16, compiled
from evalharness.native.base import NativeMetric, at_least
from evalharness.native.temporal_flickering import steadiness
from evalharness.native.weights import FOLDER_VARIABLE, store
from evalharness.session import Session
from evalharness.stages import score
from evalharness.video import encode_video

PROMPT = Prompt(id="0000", text="a still pond", dimensions=("temporal_flickering",))


class Voter:
    name = "voter"
    dimension = "vote"
    summary = "a yes, and why"

    def __init__(self) -> None:
        self.info = MetricInfo()
        self.device = "cpu"

    def score(self, video: Video, sample: Sample) -> float:
        del sample
        if len(video.frames) == 1:
            raise Skip("one frame moves nowhere")
        return 1.0

    def details(self, video: Video, sample: Sample) -> Mapping[str, Any]:
        del sample
        return {"statistic": float(video.frames[0, 0, 0, 0]) or float("nan"), "device": self.device}


class Steadiness(NativeMetric):
    """Temporal flickering without its filter, which takes a network."""

    name = "steadiness"
    dimension = "flicker"
    summary = "of any video"

    def score(self, video: Video, sample: Sample) -> float:
        del sample
        at_least(video, 2, "steadiness")
        return steadiness(video)


class Plugins:
    def get(self, kind: str, name: str) -> type[Any]:
        assert kind == "metrics"
        return {"voter": Voter, "steadiness": Steadiness}[name]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    made = Session(WorkerSpec(model="none", protocol="none", device="cpu:0", skip_layers="none"))
    monkeypatch.setattr(made, "registry", Plugins())
    monkeypatch.setitem(made.__dict__, "prompts", {PROMPT.id: PROMPT})
    return made


def judged(session: Session, path: Path, data: bytes) -> dict[str, dict[str, Any]]:
    path.write_bytes(data)
    due = [{"dimension": d, "metric": m, "hash": "h"} for d, m in (("vote", "voter"), ("flicker", FLICKER))]
    sha256 = hashlib.sha256(data).hexdigest()
    payload = {"prompt_id": "0000", "index": 0, "seed": 1, "path": str(path), "sha256": sha256, "due": due}
    done = score.work(session, payload)
    assert done["damaged"] is None
    return {row["dimension"]: row for row in done["rows"]}


FLICKER = "steadiness"


def grey(level: int, frames: int = 3) -> bytes:
    return encode_video(np.full((frames, 32, 32, 3), level, np.uint8), 8)


def test_details_stand_beside_the_score(session: Session, tmp_path: Path) -> None:
    rows = judged(session, tmp_path / "v.mp4", grey(128))
    assert rows["vote"]["value"] == 1.0
    assert rows["vote"]["details"]["statistic"] == pytest.approx(128, abs=3)
    assert rows["vote"]["details"]["device"] == "cpu:0"  # set by the session
    assert rows["flicker"]["value"] == 1.0
    assert "details" not in rows["flicker"]


def test_details_that_are_no_number_cost_one_row(session: Session, tmp_path: Path) -> None:
    rows = judged(session, tmp_path / "v.mp4", grey(0))
    assert rows["vote"]["value"] is None
    assert "JSON" in rows["vote"]["error"]
    assert rows["flicker"]["value"] == 1.0


def test_one_frame_is_a_skip_in_each_row(session: Session, tmp_path: Path) -> None:
    rows = judged(session, tmp_path / "v.mp4", grey(128, frames=1))
    assert [row["value"] for row in rows.values()] == [None, None]
    assert "frame" in rows["vote"]["skip"]
    assert "at least 2 frames" in rows["flicker"]["skip"]


@pytest.mark.parametrize("data", [b"", b"words, not pictures", grey(128)[:600]], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_video_is_one_failed_row_a_dimension(
    session: Session, tmp_path: Path, data: bytes
) -> None:
    rows = judged(session, tmp_path / "0000-0.mp4", data)
    for row in rows.values():
        assert row["value"] is None
        assert row["skip"] is None
        assert "0000-0.mp4" in row["error"]


def test_on_a_gpu_the_next_video_is_decoded_meanwhile(session: Session, tmp_path: Path) -> None:
    """``cpu:0`` is not ``cpu``: it stands for a device of its own here."""
    (tmp_path / "next.mp4").write_bytes(grey(90))
    data = grey(128)
    (tmp_path / "v.mp4").write_bytes(data)
    due = [{"dimension": "flicker", "metric": FLICKER, "hash": "h"}]
    payload = {"prompt_id": "0000", "index": 0, "seed": 1, "path": str(tmp_path / "v.mp4"), "due": due}
    payload |= {"sha256": hashlib.sha256(data).hexdigest(), "next": str(tmp_path / "next.mp4")}
    score.work(session, payload)
    following = session.ahead
    assert following._path == tmp_path / "next.mp4"
    (tmp_path / "next.mp4").read_bytes()
    item = following.take(tmp_path / "next.mp4")
    assert item.video is not None
    assert item.video.frames.mean() == pytest.approx(90, abs=3)


def test_each_worker_s_likely_next() -> None:
    tasks = [Task(kind="score", key=str(i), payload={"path": f"{i}.mp4"}) for i in range(5)]
    hinted = score._with_next(tasks, 2)
    assert [task.payload["next"] for task in hinted] == ["2.mp4", "3.mp4", "4.mp4", None, None]
    assert [task.payload["next"] for task in score._with_next(tasks[:1], 4)] == [None]


@pytest.mark.parametrize(
    ("device", "executor", "metric", "expected"),
    [
        ("cpu", "local", "voter", 6),
        ("cuda", "local", "voter", 1),
        ("cuda", "local", "without a device", 6),
        ("cuda", "local", "steadiness", 1),
        ("cuda", "torchrun", "steadiness", 6),  # a GPU for each
        ("cuda", "ray", "voter", 6),
    ],
)
def test_one_process_has_the_gpu_s_metrics(device: str, executor: str, metric: str, expected: int) -> None:
    class Registry(Plugins):
        def get(self, kind: str, name: str) -> type[Any]:
            return object if name == "without a device" else super().get(kind, name)

    plan: Any = SimpleNamespace(device=device, executor=executor, workers=6)
    tasks = [Task(kind="score", key="a", payload={"due": [{"metric": metric}]})]
    assert score.workers_at_once(plan, tasks, Registry()) == expected  # type: ignore[arg-type]


def test_a_disk_that_refuses_is_no_damage_of_the_video(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr(Path, "read_bytes", full)
    payload = {"prompt_id": "0000", "index": 0, "seed": 1, "path": str(tmp_path / "v.mp4"), "due": []}
    with pytest.raises(OSError, match="Too many open files"):
        score.work(session, {**payload, "sha256": "0"})


@pytest.mark.slow
def test_memory_for_81_frames_of_720p_is_bounded(tmp_path: Path) -> None:
    """Frames stay bytes, 224 MB, twice while they are stacked; VBench holds them as 0.9 GB of float32."""
    ramp = (np.arange(1280) % 256).astype(np.uint8)[None, None, :, None]
    frames = np.broadcast_to(ramp, (81, 720, 1280, 3))
    (tmp_path / "large.mp4").write_bytes(encode_video(frames, 16))
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), *sys.path])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("large_video.py")), "large.mp4", "weights"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert frames.nbytes / 2**20 < float(done.stdout) < 750


def test_what_a_score_is_known_by(
    folder: Path, networks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, mode, code and prompt; each alone makes an old score stale."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    code = ["a"]

    class Registry:
        def get(self, kind: str, name: str) -> type[Any]:
            modes = {"vbench": aesthetic_quality, "vbench-bf16": bf16, "vbench-compiled": compiled}
            return modes[name].AestheticQuality

        def code_hash(self, kind: str, name: str) -> str:
            return code[0]

    def known(name: str = "vbench", text: str = "a pond") -> str:
        prompt = Prompt(id="0000", text=text, dimensions=("aesthetic_quality",))
        return score.MetricHashes(Registry()).of(name, prompt)  # type: ignore[arg-type]

    first = known()
    found = {first, known("vbench-bf16"), known("vbench-compiled"), known(text="a lake")}
    code[0] = "b"
    found.add(known())
    code[0] = "a"
    assert known() == first
    state = dict(networks["aesthetic-linear"].state_dict())
    store("aesthetic-linear", {**state, "bias": state["bias"] + 1}, folder)
    assert len({*found, known()}) == 6
    store("aesthetic-linear", state, folder)
    assert known() == first
