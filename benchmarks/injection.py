"""Faults at the file operations of this process: kill, disk full, permission lost, a jumping clock, and more.

``install`` replaces what writes go through (``os.replace``, ``os.fsync``, ``Path.open`` and so on) and
counts each
use within one folder; at the chosen one the fault happens. For a process that is about to end: nothing
is put back.
"""

from __future__ import annotations

import datetime
import errno
import os
import pathlib
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = (
    "kill",
    "disk full",
    "permission lost",
    "input/output error",
    "clock jumps, then kill",
    "worker lost",
    "out of GPU memory",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at which operation.

    Attributes:
        kind: one of ``KINDS``, or ``count``: nothing, the operations are counted.
        operation: number of the file operation, from 0.
        when: of a kill: ``before`` the operation, ``within`` (half a write is on the disk), or ``after``.
        length: of a refusing disk: for how many operations it refuses.
        seed: of what else is random.
    """

    kind: str
    operation: int
    when: str = "before"
    length: int = 1
    seed: int = 0


class _Injector:
    def __init__(self, fault: Fault, folder: Path) -> None:
        self.fault, self.folder, self.count = fault, str(folder), 0

    def concerns(self, path: object) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.folder + os.sep)

    def reach(self, name: str, half: Callable[[], object] | None = None) -> bool:
        """Before an operation; whether to die right after it."""
        number, self.count = self.count, self.count + 1
        fault = self.fault
        if fault.kind == "count":
            _note(Path(self.folder).with_suffix(".operations"), str(self.count))
            return False
        if fault.kind in ("kill", "clock jumps, then kill") and number == fault.operation:
            if fault.when == "within" and half is not None:
                half()
            if fault.when != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return True
        if fault.operation <= number < fault.operation + fault.length:
            if fault.kind == "disk full" and name in ("write", "create", "mkdir", "fsync"):
                if half is not None:
                    half()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.folder)
            if fault.kind == "permission lost" and name in ("create", "mkdir", "replace"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self.folder)
            if fault.kind == "input/output error":
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.folder)
        return False


class _File:
    """A file open for writing whose writes are operations."""

    def __init__(self, file: Any, injector: _Injector) -> None:
        self._file, self._injector = file, injector

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        die = self._injector.reach("write", half)
        written = self._file.write(data)
        if die:
            self._file.flush()
            _die()
        return written

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def install(fault: Fault, folder: Path) -> None:
    """From now on this process suffers ``fault`` in ``folder``."""
    if fault.kind == "worker lost":
        _lose_worker(fault)
    elif fault.kind == "out of GPU memory":
        _run_out_of_memory(fault)
    else:
        if fault.kind.startswith("clock"):
            _jump(fault)
        _watch(_Injector(fault, folder))


def _watch(injector: _Injector) -> None:
    def wrapped(name: str, plain: Callable[..., Any], place: int = 0) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if name != "fsync" and not injector.concerns(arguments[place] if arguments else None):
                return plain(*arguments, **named)
            die = injector.reach(name)
            try:
                return plain(*arguments, **named)
            finally:
                if die:
                    _die()

        return call

    os.replace = wrapped("replace", os.replace, 1)
    os.rename = wrapped("replace", os.rename, 1)
    os.fsync = wrapped("fsync", os.fsync)
    os.mkdir = wrapped("mkdir", os.mkdir)
    os.unlink = wrapped("unlink", os.unlink)
    plain_open, plain_fdopen = pathlib.Path.open, os.fdopen

    def path_open(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if "r" in mode or not injector.concerns(self):
            return plain_open(self, mode, *arguments, **named)
        die = injector.reach("create")
        file = plain_open(self, mode, *arguments, **named)
        if die:
            _die()
        return _File(file, injector)

    def fdopen(handle: int, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        file = plain_fdopen(handle, mode, *arguments, **named)
        return file if "r" in mode else _File(file, injector)

    pathlib.Path.open = path_open  # type: ignore[method-assign, assignment]
    os.fdopen = fdopen


def _note(path: Path, text: str) -> None:
    """Write without any of the watched functions."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(handle, text.encode())
    os.close(handle)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _jump(fault: Fault) -> None:
    """The wall clock goes years back and forth at every look."""
    from evalharness import runfolder

    rng = random.Random(fault.seed)  # noqa: S311 - repeatable, no secrets
    plain_time, plain_datetime = time.time, datetime.datetime

    class Jumping(plain_datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return plain_datetime.now(tz) + datetime.timedelta(days=rng.randint(-9000, 9000))

    class Module:
        UTC = datetime.UTC  # before the next line hides the module
        datetime = Jumping

    runfolder.datetime = Module  # type: ignore[attr-defined]
    time.time = lambda: plain_time() + rng.uniform(-3e8, 3e8)


def _lose_worker(fault: Fault) -> None:
    """The tasks' worker dies at one of them: as the executor reports it."""
    from evalharness import executor

    plain, seen = executor.InlineExecutor.run, [0]
    target = fault.operation % 20

    def run(self: Any, tasks: Any, on_event: Any, *, width: int | None = None) -> Any:
        for task in tasks:
            seen[0] += 1
            if seen[0] - 1 == target:
                yield executor.Outcome(task=task, failure=executor.Failure.CRASH, error="worker was killed")
            else:
                yield from plain(self, [task], on_event, width=width)

    executor.InlineExecutor.run = run  # type: ignore[method-assign]


def _run_out_of_memory(fault: Fault) -> None:
    """Batches of up to four videos on a GPU that has room for fewer."""
    import dataclasses

    import torch
    from toybench.model import LoadedToy

    from evalharness.cli import run as verb

    room, plan, plain = 1 + fault.seed % 3, verb.build_plan, LoadedToy.generate

    def build(*arguments: Any) -> Any:
        return dataclasses.replace(plan(*arguments), batch_size=4)

    def generate(self: Any, prompts: Any, seeds: Any) -> Any:
        if len(prompts) > room:
            raise torch.OutOfMemoryError("injected: out of memory")
        return plain(self, prompts, seeds)

    verb.build_plan = build
    LoadedToy.generate = generate  # type: ignore[method-assign]
