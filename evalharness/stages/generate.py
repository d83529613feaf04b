"""Stage 2: the videos, and ``samples.jsonl`` with one line for each attempt (the last one counts)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness.api import GenerationSettings, LoadedModel, Sample
from evalharness.cells import Cell
from evalharness.executor import Outcome, Task
from evalharness.hash_memory import HashMemory
from evalharness.hashing import file_sha256
from evalharness.runstate import RunState, StageCount
from evalharness.sampling import Videos
from evalharness.session import Session
from evalharness.stages.made import Made, is_whole
from evalharness.stages.samples import cell_hash, sample_hash
from evalharness.store import atomic_write_bytes
from evalharness.video import encode_video

if TYPE_CHECKING:
    import numpy as np

__all__ = ["run", "work"]


def run(state: RunState) -> StageCount:
    """Make the videos that are missing, stale, damaged or failed before."""
    tasks: list[Task] = []
    kept = 0
    size = state.plan.batch_size
    videos, memory = state.plan.videos(), HashMemory(state.folder.hashes)
    for cell in state.cells:
        due = list(_due(state, cell, videos, memory))
        kept += len(videos) - len(due)
        tasks += [_task(state, cell, due[start : start + size]) for start in range(0, len(due), size)]
    memory.save()
    if not tasks:
        return StageCount(kept=kept)
    done = failed = 0
    reduced: int | None = None
    errors: Counter[str] = Counter()
    for outcome in state.run_tasks("generate", "video", tasks, width=state.plan.model_workers):
        records = _records(outcome)
        state.folder.cell(outcome.task.payload["cell_id"]).samples.append(records)
        if outcome.failure is None:
            done += len(records)
            smaller = records[0].get("batch")
            if smaller is not None and smaller != reduced:
                reduced = smaller
                state.console.warn(f"{outcome.task.key}: out of GPU memory; going on with {smaller} a call")
        else:
            failed += len(records)
            errors[outcome.error] += len(records)
            if errors[outcome.error] == len(records):
                state.console.warn(f"{outcome.task.key}: {outcome.error}")
    for error, count in errors.items():
        if count > state.plan.batch_size:
            state.console.warn(f"{count} videos in all: {error}")
    return StageCount(done=done, kept=kept, failed=failed)


def work(session: Session, payload: Mapping[str, Any]) -> dict[str, Any]:
    """In a worker: make and write one batch of videos, padded to its full size.

    Out of GPU memory, the batch is halved, for this worker's later ones too; each record then has ``batch``,
    since the arithmetic of some GPUs depends on it.
    """
    cell = Cell.from_json(payload["cell"])
    folder = None if payload["checkpoint"] is None else Path(payload["checkpoint"])
    loaded = session.activate(cell, folder, payload["key"])
    samples = payload["samples"]
    start = time.monotonic()
    frames, size = _frames(session, loaded, samples, payload["batch_size"])
    reduced = {} if size == payload["batch_size"] else {"batch": size}
    milliseconds = (time.monotonic() - start) * 1000 / len(samples)
    made = []
    for sample, video in zip(samples, frames, strict=False):
        path = Path(sample["path"])
        data = encode_video(video, session.model.settings.fps)
        atomic_write_bytes(path, data)
        facts = {"sha256": file_sha256(path), "bytes": len(data), "ms": round(milliseconds, 1)}
        made.append({**facts, **reduced})
    return {"videos": made}


def _frames(
    session: Session, loaded: LoadedModel, samples: Sequence[Mapping[str, Any]], batch_size: int
) -> tuple[list[np.ndarray], int]:
    """The videos of all samples, and how many a call it took them from."""
    import torch

    size = min(batch_size, session.batch_limit or batch_size)
    frames: list[np.ndarray] = []
    while len(frames) < len(samples):
        part = list(samples[len(frames) : len(frames) + size])
        padded = part + [part[-1]] * (size - len(part))
        try:
            made = loaded.generate([each["text"] for each in padded], [each["seed"] for each in padded])
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = session.batch_limit = size // 2
            frames.clear()  # so that one task is of one batch size
            torch.cuda.empty_cache()  # nothing to do without a GPU
            continue
        _check_frames(made, len(padded), session.model.settings)
        frames += list(made[: len(part)])
    return frames, size


def _due(state: RunState, cell: Cell, videos: Videos, memory: HashMemory) -> Iterator[Sample]:
    """Those that are not there as they were made; an unchanged file is not read again to say so."""
    files = state.folder.cell(cell.id)
    made, folder = Made(state.identity, files, videos), str(files.videos)
    for place, sample in enumerate(videos.of(cell.seed)):
        if not made.is_valid(place, sample):
            yield sample
        elif not is_whole(f"{folder}/{sample.id}.mp4", place, made, memory):
            state.console.warn(f"{cell.id}/{sample.id}.mp4: missing, truncated or changed; making it again")
            yield sample


def _task(state: RunState, cell: Cell, samples: Sequence[Sample]) -> Task:
    files, prepared = state.folder.cell(cell.id), state.prepared[cell.id]
    shared = cell_hash(state.identity, files)
    assert shared is not None, "prepared cells have a hash"
    payload = {
        "cell": cell.to_json(),
        "cell_id": cell.id,
        "checkpoint": None if prepared.checkpoint is None else str(prepared.checkpoint),
        "key": prepared.key,
        "batch_size": state.plan.batch_size,
        "samples": [
            {
                "sample": sample.id,
                "prompt_id": sample.prompt.id,
                "index": sample.index,
                "seed": sample.seed,
                "text": state.plan.texts.get(sample.prompt.id, sample.prompt.text),
                "path": str(files.video(sample.id)),
                "hash": sample_hash(shared, sample),
            }
            for sample in samples
        ],
    }
    return Task(kind="generate", key=f"{cell.id}/{samples[0].id}", payload=payload, items=len(samples))


def _records(outcome: Outcome) -> list[dict[str, Any]]:
    samples = outcome.task.payload["samples"]
    ok = outcome.failure is None
    made = outcome.value["videos"] if ok else [{"sha256": None, "bytes": None, "ms": None}] * len(samples)
    return [
        {
            **{key: sample[key] for key in ("sample", "prompt_id", "index", "seed", "hash")},
            "status": "ok" if ok else "failed",
            "error": None if ok else outcome.error,
            **facts,
        }
        for sample, facts in zip(samples, made, strict=True)
    ]


def _check_frames(frames: np.ndarray, count: int, settings: GenerationSettings) -> None:
    wanted = (count, settings.frames, settings.height, settings.width, 3)
    if frames.shape != wanted or str(frames.dtype) != "uint8":
        raise RuntimeError(
            f"generate() of the model returned {frames.dtype} {list(frames.shape)}, "
            f"expected uint8 {list(wanted)}"
        )
