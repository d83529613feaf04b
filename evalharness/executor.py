"""Runs tasks somewhere else: the contract, and the two local ways.

A task is plain JSON, so that any launcher can carry it. The local workers are processes that talk
JSON lines over their pipes. Each keeps its pipeline and its quantized module between tasks, uses one torch
thread (so that bytes do not depend on how many workers there are), and ends by itself the moment
its parent is gone, because its input then ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Protocol

from evalharness.errors import is_storage_error, one_line
from evalharness.modeloptions import ModelOptions
from evalharness.redaction import redact_text

__all__ = [
    "EventHandler",
    "Executor",
    "Failure",
    "InlineExecutor",
    "Outcome",
    "SubprocessExecutor",
    "Task",
    "WorkerSpec",
    "as_outcome",
    "build_executor",
    "failed_reply",
    "local_executor",
]

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Failure(StrEnum):
    """Why a task has no value."""

    USER = "user"  # a ValueError: something that the user can mend
    DIVERGED = "diverged"  # a FloatingPointError: a training that ends so again from where it stands
    STORAGE = "storage"  # the disk is full or refuses
    ERROR = "error"  # any other exception
    CRASH = "crash"  # the worker process died

    @property
    def is_final(self) -> bool:
        """Whether the same task would end the same way until the user changes something."""
        return self in (Failure.USER, Failure.DIVERGED)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What a worker needs to know once.

    ``model_fingerprint``: of the weights that a worker on another machine must have; empty: any.
    """

    model: str
    protocol: str
    device: str
    skip_layers: str
    track: str = "none"
    plugin_files: tuple[str, ...] = ()
    execution: str = "fake"
    attention: str = "default"
    model_fingerprint: str = ""
    model_options: ModelOptions = field(default_factory=ModelOptions)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> WorkerSpec:
        """The inverse of ``dataclasses.asdict`` and a trip through JSON."""
        options = ModelOptions(**record["model_options"])
        return cls(**{**record, "plugin_files": tuple(record["plugin_files"]), "model_options": options})


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One unit of work: ``kind`` names a stage, ``key`` the task to people; it counts for ``items``."""

    kind: str
    key: str
    payload: Mapping[str, Any]
    items: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a task ended: a value, or an error line with its kind and traceback."""

    task: Task
    value: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    error: str = ""
    traceback: str = ""


EventHandler = Callable[[Task, Mapping[str, Any]], None]


class Executor(Protocol):
    """Runs tasks in any order, on any number of workers."""

    def run(
        self, tasks: Sequence[Task], on_event: EventHandler, *, width: int | None = None
    ) -> Iterator[Outcome]:
        """Outcomes as they come; at most ``width`` tasks at a time. A failed task never raises."""
        ...

    def close(self) -> None:
        """End all workers now; what they were doing is lost."""
        ...


def build_executor(name: str, spec: WorkerSpec, workers: int) -> Executor:
    """``local``, ``torchrun`` or ``ray``.

    Raises:
        UserError: the engine is not installed, or this process is none of its own.
    """
    if name == "torchrun":
        from evalharness.executors.torchrun import TorchrunExecutor

        return TorchrunExecutor(spec)
    if name == "ray":
        from evalharness.executors.ray import RayExecutor

        return RayExecutor(spec, workers)
    return local_executor(spec, workers)


def local_executor(spec: WorkerSpec, workers: int) -> Executor:
    """In this process for ``workers == 0``, else in that many processes."""
    if workers == 0:
        return InlineExecutor(spec)
    return SubprocessExecutor(spec, workers)


class InlineExecutor:
    """All in this process, one after the other: for debugging."""

    def __init__(self, spec: WorkerSpec) -> None:
        from evalharness.worker import TaskRunner

        self._runner = TaskRunner(spec)

    def run(
        self, tasks: Sequence[Task], on_event: EventHandler, *, width: int | None = None
    ) -> Iterator[Outcome]:
        for task in tasks:
            reply = self._runner.run(task.kind, task.payload, partial(on_event, task))
            yield as_outcome(task, reply)

    def close(self) -> None:
        pass


class SubprocessExecutor:
    """Local worker processes, started when first needed and kept for all stages."""

    def __init__(self, spec: WorkerSpec, workers: int) -> None:
        self._spec = spec
        self._workers = workers
        self._pool: list[_Worker] = []
        self._replies: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()

    def run(
        self, tasks: Sequence[Task], on_event: EventHandler, *, width: int | None = None
    ) -> Iterator[Outcome]:
        waiting = deque(tasks)
        running: dict[_Worker, Task] = {}
        wanted = min(len(waiting), self._workers, width or self._workers)
        while len(self._pool) < wanted:
            self._pool.append(_Worker(self._spec, self._replies))
        self._pool = [
            worker if worker.alive() else _Worker(self._spec, self._replies) for worker in self._pool
        ]
        for worker in self._pool[:wanted]:
            running[worker] = waiting.popleft()
            worker.send(running[worker])
        while running:
            worker, reply = self._replies.get()
            if worker not in running:
                continue  # the end of a worker that was already replaced
            if reply is not None and "event" in reply:
                on_event(running[worker], reply["event"])
                continue
            task = running.pop(worker)
            if reply is None:
                outcome = Outcome(task=task, failure=Failure.CRASH, error=worker.cause_of_death())
                worker = self._replace(worker)
            else:
                outcome = as_outcome(task, reply)
            if waiting:
                running[worker] = waiting.popleft()
                worker.send(running[worker])
            yield outcome

    def close(self) -> None:
        for worker in self._pool:
            worker.kill()
        self._pool.clear()

    def _replace(self, dead: _Worker) -> _Worker:
        dead.kill()
        fresh = _Worker(self._spec, self._replies)
        self._pool[self._pool.index(dead)] = fresh
        return fresh


class _Worker:
    """One process and the thread that reads its replies."""

    def __init__(self, spec: WorkerSpec, replies: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        # The worker must see the modules that this process sees, however it was started.
        path = os.pathsep.join([os.path.abspath(entry or ".") for entry in sys.path])  # noqa: PTH100
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evalharness.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
        )
        self._write({"spec": asdict(spec)})
        threading.Thread(target=self._read, args=(replies,), daemon=True).start()

    def send(self, task: Task) -> None:
        self._write({"kind": task.kind, "payload": task.payload})

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def cause_of_death(self) -> str:
        code = self._process.wait()
        if code == -9:
            return "worker process was killed (signal 9; often: out of memory)"
        return f"worker process died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; the reading thread reports that
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _read(self, replies: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            replies.put((self, json.loads(line)))
        replies.put((self, None))


def failed_reply(error: Exception) -> dict[str, str]:
    """What a worker answers instead of a value; to be called where ``error`` is handled."""
    failure = Failure.USER if isinstance(error, ValueError) else Failure.ERROR
    if isinstance(error, FloatingPointError):
        failure = Failure.DIVERGED
    if is_storage_error(error):
        failure = Failure.STORAGE
    text = redact_text(str(error)) if failure.is_final else one_line(error)
    return {"failure": failure.value, "error": text, "traceback": traceback.format_exc()}


def as_outcome(task: Task, reply: Mapping[str, Any]) -> Outcome:
    """What a worker's ``reply`` says about ``task``."""
    if "value" in reply:
        return Outcome(task=task, value=reply["value"])
    return Outcome(
        task=task, failure=Failure(reply["failure"]), error=reply["error"], traceback=reply["traceback"]
    )
