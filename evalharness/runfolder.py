"""The run folder: where everything lies, and the lock against a second writer."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evalharness.errors import StorageError
from evalharness.store import TEMP_PREFIX, JsonLines, remove_temporaries

__all__ = ["CellFolder", "RunFolder", "utc_now"]


LOCK_NAME = ".lock"
TRAINING_PREFIX = "training-"


def utc_now() -> str:
    """The time as ``2026-01-31T12:00:00Z``."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class CellFolder:
    """The files of one cell. ``<run>/cells/<cell-id>``."""

    root: Path

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def train_log(self) -> Path:
        return self.root / "train.jsonl"

    def training(self, key: str) -> Path:
        """Where a training saves its state; ``key`` tells trainings with other inputs apart."""
        return self.root / f"{TRAINING_PREFIX}{key[:16]}"

    def trainings(self) -> list[Path]:
        """The folders of all unfinished trainings."""
        return sorted(self.root.glob(f"{TRAINING_PREFIX}*"))

    @property
    def videos(self) -> Path:
        return self.root / "videos"

    @property
    def prepare(self) -> Path:
        return self.root / "prepare.json"

    @property
    def profile(self) -> Path:
        return self.root / "profile.json"

    @property
    def samples(self) -> JsonLines:
        return JsonLines(self.root / "samples.jsonl", sums=True)

    @property
    def scores(self) -> JsonLines:
        return JsonLines(self.root / "scores.jsonl", sums=True)

    def video(self, sample_id: str) -> Path:
        return self.videos / f"{sample_id}.mp4"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run: cells of one model under one protocol, added to by each command."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def report_state(self) -> Path:
        return self.root / ".aggregate.json"

    @property
    def hashes(self) -> Path:
        """What videos hashed to, see ``evalharness.hash_memory``; it may be deleted."""
        return self.root / ".hashes"

    @property
    def events(self) -> JsonLines:
        return JsonLines(self.root / "events.jsonl", sums=True)

    def calibration(self, model_key: str) -> Path:
        """What methods learnt of this full-precision model; may be deleted, it is made again."""
        return self.root / "calibration" / model_key[:16]

    def cell(self, cell_id: str) -> CellFolder:
        return CellFolder(self.root / "cells" / cell_id)

    @property
    def is_run(self) -> bool:
        """Whether it holds a run, be it one whose plan was lost."""
        if self.plan.exists() or any(self.root.glob("cells/*/samples.jsonl")):
            return True
        return _was_locked(self.root / LOCK_NAME) and bool(self._names())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone; the system frees the lock when the process ends, however it ends.

        Raises:
            StorageError: another process holds it, it is no run folder and not empty, it leads elsewhere by
                a link, or it cannot be written.
        """
        self.refuse_foreign()
        self._refuse_links()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StorageError(
                f"cannot write the run folder {self.root}: {error.strerror}; choose another with --output"
            ) from error
        try:
            self._take(handle)
            remove_temporaries(self.root)
            yield
        finally:
            os.close(handle)

    def refuse_foreign(self) -> None:
        """Nothing is touched in a folder that holds other things.

        Raises:
            StorageError: it is a file, or it is no run folder and not empty.
        """
        if self.root.exists() and not self.root.is_dir():
            raise StorageError(f"{self.root} is a file; choose a folder with --output")
        if not self.root.is_dir() or self.is_run:
            return
        if self._names():
            raise StorageError(f"{self.root} is not empty and no run folder; choose another with --output")

    def _refuse_links(self) -> None:
        """A folder that a stranger made must not let anything be written elsewhere.

        Single videos may be links: they are replaced, never written through.
        """
        inside = self.root.resolve()
        for pattern in ("*", "cells/*", "cells/*/*"):
            for path in self.root.glob(pattern):
                if path.is_symlink() and not path.resolve().is_relative_to(inside):
                    raise StorageError(
                        f"{path} is a link out of the run folder; put there what it leads to, or delete it"
                    )

    def _names(self) -> set[str]:
        """Of what is there, but the lock and what a killed writer left."""
        names = {path.name for path in self.root.iterdir()}
        return {name for name in names if name != LOCK_NAME and not name.startswith(TEMP_PREFIX)}

    def _take(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"{self.root} is in use by {_holder(handle)}; wait for it to end, or choose another --output"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "started": utc_now()}).encode(), 0)


def _was_locked(path: Path) -> bool:
    """Whether it is a lock that a run took, not some other program's file of that name."""
    try:
        record = json.loads(path.read_bytes()[:4096])
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and set(record) == {"pid", "started"}


def _holder(handle: int) -> str:
    try:
        record = json.loads(os.pread(handle, 4096, 0))
        return f"process {record['pid']} (since {record['started']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
