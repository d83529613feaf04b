"""Stage 3: one row in ``scores.jsonl`` for each video and dimension.

A video is read and decoded once for all its metrics; one that cannot be decoded is one failed row in
each of its dimensions. A metric that has ``details(video, sample)`` gets them kept in its row. When
the stage ends, the file holds the latest rows in a fixed order, so that its bytes do not depend on
interruptions or workers.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evalharness.api import LeftOut, Metric, Prompt, Sample, Skip, Video
from evalharness.cells import Cell
from evalharness.errors import one_line
from evalharness.executor import Task
from evalharness.hash_memory import HashMemory
from evalharness.hashing import digest, jsonable
from evalharness.plan import RunPlan
from evalharness.records import read_scores
from evalharness.registry import Registry
from evalharness.runfolder import CellFolder
from evalharness.runstate import RunState, StageCount
from evalharness.sampling import Videos
from evalharness.session import Session
from evalharness.stages.made import CURRENT, Made, is_whole, scored
from evalharness.stages.score_files import Part, apart, parts, work_files
from evalharness.stages.score_rows import checked, sample_of, score_row
from evalharness.stages.tidying import tidy
from evalharness.versions import package_version

__all__ = ["MetricHashes", "latest_scores", "run", "work", "workers_at_once"]

VERSION = 1
_PACKAGES = ("torch", "numpy", "opencv-python-headless", "av")


class MetricHashes:
    """Hash of all that a score depends on besides the video: the metric and the prompt."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._versions = [package_version(name) for name in _PACKAGES]
        self._metrics: dict[str, str] = {}
        self._latest: dict[str, tuple[Prompt, str]] = {}

    def of(self, metric: str, prompt: Prompt) -> str:
        if metric not in self._metrics:
            info = self._registry.get("metrics", metric)().info
            code = self._registry.code_hash("metrics", metric)
            self._metrics[metric] = digest(["score", VERSION, metric, jsonable(info), code, self._versions])
        latest = self._latest.get(metric)
        if latest is None or latest[0] is not prompt:  # rows come by prompt, and all of one ask for the same
            found = digest([self._metrics[metric], prompt.text, prompt.labels])
            latest = self._latest[metric] = (prompt, found)
        return latest[1]


def latest_scores(files: CellFolder) -> dict[tuple[str, str], dict[str, Any]]:
    """(sample id, dimension) -> its last row."""
    return {(row["sample"], row["dimension"]): row for row in read_scores(files)}


def run(state: RunState) -> StageCount:
    """Score what is missing or stale among the command's videos that are there."""
    hashes = MetricHashes(state.registry)
    tasks: list[Task] = []
    kept = 0
    untidy = []
    videos, memory = state.plan.videos(), HashMemory(state.folder.hashes)
    for cell in state.cells:
        found = _cell_tasks(state, cell, videos, hashes, memory)
        tasks += found.tasks
        kept += found.kept
        if found.tasks or not found.is_tidy:
            untidy.append(cell)
    memory.save()
    one_by_one, by_files = apart(tasks, state.registry)
    done = failed = 0
    if tasks:
        width = workers_at_once(state.plan, tasks, state.registry)
        tasks = [*_with_next(one_by_one, width), *by_files]
        done, failed = _run_tasks(state, tasks, width)
    for cell in untidy:
        tidy(state.folder.cell(cell.id))
    return StageCount(done=done, kept=kept, failed=failed)


def work(session: Session, payload: Mapping[str, Any]) -> dict[str, Any]:
    """In a worker: all due metrics of one video, or one metric of many files."""
    if "videos" in payload:
        return work_files(session, payload)
    sample = sample_of(session, payload)
    decoded = session.ahead.take(Path(payload["path"]))
    if decoded.refused is not None:
        raise decoded.refused
    if decoded.sha256 != payload["sha256"]:
        return {"damaged": "the video file is missing, truncated or changed since it was made", "rows": []}
    if payload.get("next") and session.spec.device != "cpu":
        session.ahead.start(Path(payload["next"]))
    video = decoded.video
    unread = {"value": None, "skip": None, "error": decoded.error}
    rows = []
    for due in payload["due"]:
        found = unread if video is None else _judge(session, due["metric"], video, sample)
        rows.append(score_row(sample, due, payload["sha256"], found))
    return {"damaged": None, "rows": rows}


def _judge(session: Session, name: str, video: Video, sample: Sample) -> dict[str, Any]:
    try:
        metric = session.metric(name)
        value = checked(metric, metric.score(video, sample))
        return {"value": value, "skip": None, **_details(metric, video, sample)}
    except LeftOut as skip:
        return {"value": None, "skip": str(skip), "left_out": True}
    except Skip as skip:
        return {"value": None, "skip": str(skip)}
    except Exception as error:
        return {"value": None, "skip": None, "error": one_line(error)}


def _details(metric: Metric, video: Video, sample: Sample) -> dict[str, Any]:
    """What lies behind the score, such as the number behind a yes or no, of a metric that tells it."""
    tell = getattr(metric, "details", None)
    if tell is None:
        return {}
    details = jsonable(tell(video, sample))
    json.dumps(details, allow_nan=False)  # a number that is none is this row's error, not the file's
    return {"details": details}


class _Found(NamedTuple):
    """Of one cell: what is due, how many scores are current, and whether their file is in order."""

    tasks: list[Task]
    kept: int
    is_tidy: bool


def _cell_tasks(
    state: RunState, cell: Cell, videos: Videos, hashes: MetricHashes, memory: HashMemory
) -> _Found:
    files, metrics = state.folder.cell(cell.id), state.plan.metrics
    made = Made(state.identity, files, videos)
    rows = scored(files, videos, made, metrics, hashes)
    tasks, kept, folder = [], 0, str(files.videos)
    for place, sample in enumerate(videos.of(cell.seed)):
        if not made.is_valid(place, sample):
            continue
        due = []
        # A score is no better than its video: what was damaged since then is found out here.
        whole = is_whole(f"{folder}/{sample.id}.mp4", place, made, memory)
        for dimension, metric in metrics.items():
            if dimension not in sample.prompt.dimensions:
                continue
            if whole and rows.flags[dimension][place] & CURRENT:
                kept += 1
            else:
                wanted = hashes.of(metric, sample.prompt)
                due.append({"dimension": dimension, "metric": metric, "hash": wanted})
        if due:
            tasks.append(_task(cell, files, sample, made.record(place), due))
    return _Found(tasks, kept, rows.is_tidy)


def _task(
    cell: Cell, files: CellFolder, sample: Sample, record: Mapping[str, Any], due: Sequence[Mapping[str, Any]]
) -> Task:
    payload = {
        "cell_id": cell.id,
        "path": str(files.video(sample.id)),
        "sha256": record["sha256"],
        "prompt_id": sample.prompt.id,
        "index": sample.index,
        "seed": sample.seed,
        "due": list(due),
        "record": dict(record),
    }
    return Task(kind="score", key=f"{cell.id}/{sample.id}", payload=payload, items=len(due))


def _with_next(tasks: Sequence[Task], workers: int) -> list[Task]:
    """Each with the video that its worker likely gets next; a wrong guess costs a decoding."""
    following = [*(task.payload["path"] for task in tasks[workers:]), *([None] * workers)]
    return [
        dataclasses.replace(task, payload={**task.payload, "next": path})
        for task, path in zip(tasks, following, strict=False)
    ]


def workers_at_once(plan: RunPlan, tasks: Sequence[Task], registry: Registry) -> int:
    """All; but one where metrics run on the one GPU of this machine: each process would hold their networks.

    torchrun and Ray give each worker a GPU of its own.
    """
    names = {due["metric"] for task in tasks for due in task.payload["due"]}
    shared = plan.device != "cpu" and plan.executor == "local"
    if shared and any(hasattr(registry.get("metrics", name)(), "device") for name in names):
        return 1
    return max(1, plan.workers)


def _run_tasks(state: RunState, tasks: Sequence[Task], width: int) -> tuple[int, int]:
    done = failed = 0
    errors: Counter[str] = Counter()
    for outcome in state.run_tasks("score", "video", tasks, width=width):
        for part in parts(outcome):
            rows = _keep(state, part)
            bad = [row for row in rows if row.get("error") is not None]
            errors.update(f"{row['metric']}: {row['error']}" for row in bad)
            lost = len(part.due) if part.lost else 0
            done += len(rows) - len(bad)
            failed += len(bad) + lost
    for text, count in errors.most_common():
        state.console.warn(f"{text} ({count} video{'' if count == 1 else 's'})")
    return done, failed


def _keep(state: RunState, part: Part) -> list[dict[str, Any]]:
    """Write the rows of one video; a damaged one is marked failed, so that ``run`` makes it again."""
    files = state.folder.cell(part.payload["cell_id"])
    if part.lost:
        state.console.warn(f"{part.name}: {part.lost}")
    if part.damaged:
        files.samples.append([{**part.payload["record"], "status": "failed", "error": part.lost}])
    files.scores.append(part.rows)
    return part.rows
