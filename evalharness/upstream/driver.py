"""Drives the real ``vbench`` package in its own interpreter: one process a dimension, JSON both ways.

A failure costs one dimension, a broken video one score. Values come back per video in the harness's
scale (0..1), with what the package says besides. Names cannot collide, since each video is staged in a
folder of its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalharness.api import Prompt
from evalharness.errors import UserError
from evalharness.interchange.submission import full_info
from evalharness.names import check_name

__all__ = ["Scored", "Upstream", "UpstreamVideo", "VideoScore", "score_dimensions"]

BERT = "bert-base-uncased"
DINO = "dino_model/dino_vitbase16_pretrain.pth"
TORCH_HOME = "torch"
WORKER = Path(__file__).with_name("worker.py")
# The package gives these per video as 0..100.
_HUNDREDFOLD = ("imaging_quality",)
# The released AMT file is a full pickle, which torch refuses by default.
_UNPICKLES = ("motion_smoothness",)
_SCRUBBED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH", "PYTHONHOME")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """Where the package runs.

    Attributes:
        python: interpreter of its environment.
        path: further folders to import from.
        cache: VBench's folder of weights; its own default if None.
        local: load DINO and CLIP from that folder instead of the network.
    """

    python: Path
    path: tuple[str, ...] = ()
    cache: Path | None = None
    local: bool = False

    def environment(self, dimension: str) -> dict[str, str]:
        """Variables of the worker: nothing of a surrounding distributed run, no download of models."""
        env = {key: value for key, value in os.environ.items() if key not in _SCRUBBED}
        env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONNOUSERSITE": "1"}
        if self.path:
            env["PYTHONPATH"] = os.pathsep.join(self.path)
        if self.cache is not None:
            env["VBENCH_CACHE_DIR"] = str(self.cache)
        if dimension in _UNPICKLES:
            env["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        return env


@dataclass(frozen=True, slots=True)
class UpstreamVideo:
    """One file; ``id`` is a sample's, the prompt is the protocol's with its labels."""

    id: str
    path: Path
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class VideoScore:
    """``value`` in 0..1, or None with the reason; ``left_out``: dropped by the dimension's own rule."""

    value: float | None
    error: str | None = None
    left_out: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scored:
    """One dimension: a score for each video, or why the whole dimension has none."""

    dimension: str
    videos: Mapping[str, VideoScore]
    versions: Mapping[str, str]
    error: str | None = None

    @property
    def mean(self) -> float | None:
        """Over the videos with a score; None if one failed, since a partial mean is no score."""
        if self.error or any(video.error for video in self.videos.values()):
            return None
        values = [video.value for video in self.videos.values() if video.value is not None]
        return sum(values) / len(values) if values else None


def score_dimensions(
    upstream: Upstream,
    dimensions: Iterable[str],
    videos: Sequence[UpstreamVideo],
    *,
    device: str = "cpu",
    timeout: float | None = None,
) -> list[Scored]:
    """Score every dimension on the videos whose prompt counts for it, one process after the other.

    Args:
        upstream: the environment.
        dimensions: VBench's names.
        videos: of any dimensions; ids must differ.
        device: ``cpu`` or ``cuda``.
        timeout: seconds for one dimension; None for no limit.

    Raises:
        UserError: ids that repeat or cannot name a folder, or an interpreter that is not there.
    """
    if len({video.id for video in videos}) != len(videos):
        raise UserError("two videos have one id; give each its own")
    for video in videos:
        check_name(video.id, "video id")
    if not upstream.python.is_file():
        raise UserError(f"{upstream.python}: no such interpreter; make it with: evalharness fetch vbench")
    scored = []
    for dimension in dimensions:
        chosen = [video for video in videos if dimension in video.prompt.dimensions]
        scored.append(_score(upstream, dimension, chosen, device, timeout))
    return scored


def _score(
    upstream: Upstream, dimension: str, videos: Sequence[UpstreamVideo], device: str, timeout: float | None
) -> Scored:
    if not videos:
        return Scored(dimension, {}, {}, "no video counts for it")
    with tempfile.TemporaryDirectory(prefix="vbench-") as name:
        folder = Path(name)
        work = folder / "work"
        work.mkdir()
        job = {
            "dimension": dimension,
            "device": device,
            "local": upstream.local,
            "work": str(work),
            "videos": [_job_video(video) for video in videos],
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        _lay_out(upstream, folder)
        error = _run(upstream, dimension, folder, timeout)
        if error is None:
            try:
                return _parse(dimension, (folder / "result.json").read_text(encoding="utf-8"), videos)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
                error = f"no usable result ({type(problem).__name__}: {problem})"
        return Scored(dimension, {}, {}, error)


def _lay_out(upstream: Upstream, folder: Path) -> None:
    """What the package looks for elsewhere than in its cache: BERT beside it, DINO in torch hub's."""
    if upstream.cache is None:
        return
    bert, dino = upstream.cache / BERT, upstream.cache / DINO
    if bert.is_dir():
        (folder / "work" / BERT).symlink_to(bert.resolve())
    if dino.is_file():
        hub = folder / TORCH_HOME / "hub" / "checkpoints"
        hub.mkdir(parents=True)
        (hub / dino.name).symlink_to(dino.resolve())


def _job_video(video: UpstreamVideo) -> dict[str, Any]:
    [entry] = full_info([video.prompt], {})
    return {
        "id": video.id,
        "path": str(video.path.resolve()),
        "prompt": video.prompt.text,
        "auxiliary_info": entry.get("auxiliary_info"),
    }


def _run(upstream: Upstream, dimension: str, folder: Path, timeout: float | None) -> str | None:
    """Run the worker to its end; what went wrong on one line, or None."""
    command = [str(upstream.python), str(WORKER), str(folder / "job.json"), str(folder / "result.json")]
    log = folder / "log"
    # In a folder of its own: the package takes "bert-base-uncased" from the working directory.
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder / "work",
            env={**upstream.environment(dimension), **_torch_home(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"no result after {timeout:g} s; stopped"
        finally:
            _end(process)
    if code == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"the process ended with {code}: {lines[-1][:300] if lines else 'it said nothing'}"


def _torch_home(folder: Path) -> dict[str, str]:
    home = folder / TORCH_HOME
    return {"TORCH_HOME": str(home)} if home.is_dir() else {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the worker may outlive it: it starts downloads."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _parse(dimension: str, text: str, videos: Sequence[UpstreamVideo]) -> Scored:
    """The worker's answer, checked: every video has a score in 0..1 or a reason."""
    data = json.loads(text, parse_constant=_refuse_constant)
    found = {}
    for video in videos:
        record = data["videos"].get(video.id) or {"value": None, "error": data["error"] or "not answered"}
        found[video.id] = _checked(dimension, record)
    return Scored(dimension, found, dict(data["versions"]), data["error"])


def _checked(dimension: str, record: Mapping[str, Any]) -> VideoScore:
    value, error = record["value"], record.get("error")
    if value is not None:
        value = float(value) / (100 if dimension in _HUNDREDFOLD else 1)
        if not (math.isfinite(value) and -1.0 <= value <= 1.0):
            value, error = None, f"vbench returned {record['value']}, outside of its range"
    return VideoScore(value, error, bool(record.get("left_out")), record.get("extras") or {})


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
