"""Scoring by metrics that read video files themselves, many in one call (``api.Metric.judge_files``).

Such a metric loads its networks for each call, so files of all cells go together; each call is one
task, and what it found is written before the next begins.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalharness.api import Sample, Verdict
from evalharness.errors import one_line
from evalharness.executor import Outcome, Task
from evalharness.hashing import file_sha256, jsonable
from evalharness.registry import Registry
from evalharness.session import Session
from evalharness.stages.score_rows import checked, sample_of, score_row

__all__ = ["Part", "apart", "parts", "work_files"]

FILES_AT_ONCE = 64
_DAMAGED = "the video file is missing, truncated or changed since it was made"


@dataclass(frozen=True, slots=True)
class Part:
    """What a task's outcome says of one video: its rows, or why there are none.

    Attributes:
        lost: why its scores are lost; None if they are not.
        damaged: whether that is the video's fault.
    """

    payload: Mapping[str, Any]
    rows: list[dict[str, Any]]
    lost: str | None
    damaged: bool

    @property
    def due(self) -> Sequence[Mapping[str, Any]]:
        due: Sequence[Mapping[str, Any]] = self.payload["due"]
        return due

    @property
    def name(self) -> str:
        return f"{self.payload['cell_id']}/{Path(self.payload['path']).stem}"


def parts(outcome: Outcome) -> Iterator[Part]:
    """An outcome of the score stage, video by video."""
    payload = outcome.task.payload
    payloads = payload.get("videos", [payload])
    if outcome.failure is not None:
        yield from (Part(each, [], outcome.error, False) for each in payloads)
        return
    found = outcome.value["videos"] if "videos" in payload else [outcome.value]
    for each, told in zip(payloads, found, strict=True):
        yield Part(each, list(told["rows"]), told["damaged"], told["damaged"] is not None)


def apart(tasks: Sequence[Task], registry: Registry) -> tuple[list[Task], list[Task]]:
    """Tasks of single videos for the metrics that judge those, and of many files for the others."""
    single: list[Task] = []
    files: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        stays = []
        for due in task.payload["due"]:
            if hasattr(registry.get("metrics", due["metric"]), "judge_files"):
                files.setdefault(due["metric"], []).append({**task.payload, "due": [due]})
            else:
                stays.append(due)
        if stays:
            single.append(dataclasses.replace(task, payload={**task.payload, "due": stays}, items=len(stays)))
    return single, [task for metric, videos in files.items() for task in _chunks(metric, videos, registry)]


def _chunks(metric: str, videos: Sequence[Mapping[str, Any]], registry: Registry) -> Iterator[Task]:
    size = max(1, getattr(registry.get("metrics", metric), "files_at_once", FILES_AT_ONCE))
    for start in range(0, len(videos), size):
        payload = {"metric": metric, "videos": list(videos[start : start + size])}
        yield Task(
            kind="score", key=f"{metric}/{start // size + 1}", payload=payload, items=len(payload["videos"])
        )


def work_files(session: Session, payload: Mapping[str, Any]) -> dict[str, Any]:
    """In a worker: one metric over the files of one task; those that changed are not judged."""
    videos = payload["videos"]
    whole = [number for number, video in enumerate(videos) if _is_whole(video)]
    # A sample's id is the same in every cell, so a place in the list tells videos apart.
    samples = {number: sample_of(session, videos[number]) for number in whole}
    found = _judge_files(session, payload["metric"], [(samples[n], Path(videos[n]["path"])) for n in whole])
    answers = dict(zip(whole, found, strict=True))
    told: list[dict[str, Any]] = []
    for number, video in enumerate(videos):
        if number not in answers:
            told.append({"damaged": _DAMAGED, "rows": []})
            continue
        [due] = video["due"]
        row = score_row(samples[number], due, video["sha256"], answers[number])
        told.append({"damaged": None, "rows": [row]})
    return {"videos": told}


def _judge_files(session: Session, name: str, files: list[tuple[Sample, Path]]) -> list[dict[str, Any]]:
    if not files:
        return []
    try:
        metric: Any = session.metric(name)
        verdicts: Sequence[Verdict] = metric.judge_files(files)
        if len(verdicts) != len(files):
            raise ValueError(f"{len(verdicts)} verdicts on {len(files)} files")
    except Exception as error:
        return [{"value": None, "skip": None, "error": one_line(error)} for _ in files]
    return [_found(metric, verdict) for verdict in verdicts]


def _found(metric: Any, verdict: Verdict) -> dict[str, Any]:
    """A verdict as part of a row; a value out of range is that row's error."""
    if verdict.error is not None:
        return {"value": None, "skip": None, "error": verdict.error}
    if verdict.skip is not None or verdict.value is None:
        left_out = {"left_out": True} if verdict.left_out else {}
        return {"value": None, "skip": verdict.skip or "no value and no reason", **left_out}
    try:
        value = checked(metric, verdict.value)
        details = jsonable(verdict.details)
        json.dumps(details, allow_nan=False)
    except (ValueError, TypeError) as error:
        return {"value": None, "skip": None, "error": one_line(error)}
    return {"value": value, "skip": None, **({"details": details} if details else {})}


def _is_whole(video: Mapping[str, Any]) -> bool:
    path = Path(video["path"])
    return path.is_file() and file_sha256(path) == video["sha256"]
