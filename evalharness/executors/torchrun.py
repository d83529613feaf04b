"""The ranks of a ``torchrun``: rank 0 runs the command, the others run the tasks that it hands out.

    torchrun --nproc-per-node 8 -m evalharness run ... --executor torchrun

Rank 0 holds the run folder and writes its records; its own share runs in a process beside it, so that
it is always free to write down what others finished. Tasks and answers are JSON in the key-value store
that torchrun keeps anyway. Nothing is scheduled here: a rank that is free takes the next task that is
missing. Only a training is done by all ranks together, as one process group. A rank that dies ends the
job; torchrun starts all anew (``--max-restarts``), and the same command goes on with what is missing. After
a user's mistake each of those attempts ends at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol

from evalharness.errors import UserError
from evalharness.executor import (
    EventHandler,
    Outcome,
    SubprocessExecutor,
    Task,
    WorkerSpec,
    as_outcome,
)
from evalharness.executors.group import told_failure

__all__ = ["LostRankError", "Store", "TorchrunExecutor", "once", "rank", "serve", "world_size"]

_PATIENCE = timedelta(days=7)
_POLL_SECONDS = 0.02
_GRACE_SECONDS = 10.0  # that ranks have to answer once one has failed
# The same where they come to that answer by themselves, a diverged training, say: one may be writing a state.
_FINAL_GRACE_SECONDS = 300.0
_STOP = "stop"


class LostRankError(UserError):
    """A rank was lost in what all do together: the same command may well succeed."""


class Store(Protocol):
    """What is used of a ``torch.distributed.Store``."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def add(self, key: str, amount: int) -> int: ...
    def check(self, keys: list[str]) -> bool: ...
    def delete_key(self, key: str) -> bool: ...


def rank() -> int:
    """Number of this process among those of the job.

    Raises:
        UserError: this process was not started by torchrun.
    """
    return _variable("RANK")


def world_size() -> int:
    """Processes of the job.

    Raises:
        UserError: this process was not started by torchrun.
    """
    return _variable("WORLD_SIZE")


def _variable(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise UserError(
            "--executor torchrun: this command was not started by torchrun; start it as: "
            "torchrun --nproc-per-node N -m evalharness run ... --executor torchrun"
        )
    return int(value)


def connect(*, master: bool = True) -> Store:
    """The store of the job, under names of this attempt alone.

    ``master``: whether rank 0 may have to keep it, where torchrun does not.
    """
    from torch import distributed

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    made: Store = distributed.PrefixStore(  # type: ignore[attr-defined]
        f"evalharness/{attempt}", _tcp_store(master=master)
    )
    return made


def _tcp_store(*, master: bool) -> Any:
    from torch import distributed

    host, port = os.environ.get("MASTER_ADDR", ""), _variable("MASTER_PORT")
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return distributed.TCPStore(  # type: ignore[attr-defined]
        host,
        port,
        world_size(),
        is_master=master and rank() == 0 and not agent,
        timeout=_PATIENCE,
        wait_for_workers=False,
    )


def once(command: Callable[[], tuple[int, bool]]) -> int:
    """Run ``command`` in rank 0, and in the others what it hands out; returns the exit code.

    torchrun cannot be told that trying again is of no use. So a mistake of the user is kept in the store,
    which lives as long as torchrun; the attempts that follow end at once with the same line.

    Args:
        command: returns an exit code, and whether the same command would end the same way.

    Raises:
        UserError: as ``command``, now or in an attempt before this one.
    """
    job = _Job()
    verdict = job.verdict()
    if verdict is not None:
        code, line = verdict
        if line and rank() == 0:
            raise UserError(line)
        return code
    if rank() > 0:
        return serve()
    try:
        code, is_final = command()
    except UserError as error:
        if not isinstance(error, LostRankError):
            job.end(2, str(error))
        raise
    if code and is_final:
        job.end(code)
    return code


class _Job:
    """What is known of a torchrun's job in all of its attempts; nothing where there is but one."""

    _KEY = "evalharness/verdict"

    def __init__(self) -> None:
        self._attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        limit = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
        lasts = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._store = _tcp_store(master=False) if limit and lasts else None

    def verdict(self) -> tuple[int, str] | None:
        """Exit code and line of an attempt before this one that was final."""
        if self._store is None or not self._attempt or not self._store.check([self._KEY]):
            return None
        code, line = json.loads(self._store.get(self._KEY))
        return code, line

    def end(self, code: int, line: str = "") -> None:
        """Those that follow need not try."""
        if self._store is not None:
            self._store.set(self._KEY, json.dumps([code, line]))


def own_device() -> None:
    """Let this process see the one GPU that its local rank names."""
    local = os.environ.get("LOCAL_RANK", "0")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else None
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(local) % len(devices)] if devices else local


def _grace_seconds(cause: Outcome) -> float:
    return _FINAL_GRACE_SECONDS if cause.failure is not None and cause.failure.is_final else _GRACE_SECONDS


class TorchrunExecutor:
    """Rank 0's side. Satisfies ``evalharness.executor.Executor``."""

    def __init__(self, spec: WorkerSpec, store: Store | None = None, ranks: int | None = None) -> None:
        own_device()
        self._store = store or connect()
        self._others = list(range(1, ranks or world_size()))
        self._own = SubprocessExecutor(spec, 1)
        self._sent = dict.fromkeys(self._others, 0)
        self._read = 0
        self._groups = 0
        self._closed = False
        self._store.set("spec", json.dumps(dataclasses.asdict(spec)))

    def run(
        self, tasks: Sequence[Task], on_event: EventHandler, *, width: int | None = None
    ) -> Iterator[Outcome]:
        """Outcomes as they come. Tasks that all ranks do together (trainings) come last, one by one."""
        together = [task for task in tasks if task.payload.get("joint")]
        yield from self._run_apart([task for task in tasks if task not in together], on_event, width)
        for task in together:
            yield self._run_together(task, on_event)

    def _run_apart(
        self, tasks: Sequence[Task], on_event: EventHandler, width: int | None
    ) -> Iterator[Outcome]:
        """Each task by one rank; rank 0's own share is one lane among the others'."""
        waiting = deque(tasks)
        lanes = len(self._others) + 1 if width is None else min(width, len(self._others) + 1)
        running: dict[int, Task] = {}
        done: deque[tuple[int, Outcome]] = deque()

        def start(lane: int) -> None:
            if waiting:
                running[lane] = waiting.popleft()
                if lane == 0:
                    threading.Thread(target=self._run_here, args=(running[0], on_event, done)).start()
                else:
                    self._send(lane, {"kind": running[lane].kind, "payload": running[lane].payload})

        for lane in range(lanes):
            start(lane)
        while running:
            self._collect(running, on_event, done)
            if not done:
                time.sleep(_POLL_SECONDS)
                continue
            lane, outcome = done.popleft()
            del running[lane]
            start(lane)
            yield outcome

    def _run_together(self, task: Task, on_event: EventHandler) -> Outcome:
        """One task by all ranks as one process group; what rank 0 answers counts."""
        self._groups += 1
        world = len(self._others) + 1
        parts = {}
        for lane in range(world):
            group = {"name": str(self._groups), "rank": lane, "world": world}
            parts[lane] = dataclasses.replace(task, payload={**task.payload, "group": group})

        def quiet(part: Task, event: Mapping[str, Any]) -> None:
            if part is parts[0]:
                on_event(task, event)

        done: deque[tuple[int, Outcome]] = deque()
        for lane in self._others:
            self._send(lane, {"kind": task.kind, "payload": parts[lane].payload})
        threading.Thread(target=self._run_here, args=(parts[0], quiet, done)).start()
        answers: dict[int, Outcome] = {}
        failed: list[Outcome] = []  # the first one is the cause of the others
        failed_at = None
        while len(answers) < world:
            if failed_at is None and (told := told_failure(self._store, str(self._groups))) is not None:
                lane, reply = told  # it may hang on the way to its answer
                failed.append(as_outcome(parts[lane], reply))
            self._collect(parts, quiet, done)
            while done:
                lane, outcome = done.popleft()
                answers[lane] = outcome
                if outcome.failure is not None:
                    failed.append(outcome)
            if failed and failed_at is None:
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > _grace_seconds(failed[0]):
                break  # the others wait for one that will not come
            time.sleep(_POLL_SECONDS)
        if len(answers) < world:
            text = f"{task.key}: one rank failed, the others were left waiting: {failed[0].error}"
            failure = failed[0].failure
            raise UserError(text) if failure is not None and failure.is_final else LostRankError(text)
        return dataclasses.replace(failed[0] if failed else answers[0], task=task)

    def close(self) -> None:
        """The other ranks end by themselves."""
        if not self._closed:
            self._closed = True
            self._own.close()
            for lane in self._others:
                self._send(lane, {_STOP: True})

    def _run_here(self, task: Task, on_event: EventHandler, done: deque[tuple[int, Outcome]]) -> None:
        for outcome in self._own.run([task], on_event):
            done.append((0, outcome))

    def _send(self, lane: int, message: Mapping[str, Any]) -> None:
        self._sent[lane] += 1
        self._store.set(f"task/{lane}/{self._sent[lane]}", json.dumps(message))

    def _collect(
        self, running: Mapping[int, Task], on_event: EventHandler, done: deque[tuple[int, Outcome]]
    ) -> None:
        """Take in what the other ranks have answered since."""
        while self._store.check([f"answer/{self._read + 1}"]):
            self._read += 1
            key = f"answer/{self._read}"
            message = json.loads(self._store.get(key))
            self._store.delete_key(key)
            task = running[message["rank"]]
            if "event" in message:
                on_event(task, message["event"])
            else:
                done.append((message["rank"], as_outcome(task, message["reply"])))


def serve(store: Store | None = None, number: int | None = None) -> int:
    """The other ranks' side: run what rank 0 hands out until it says stop. Returns the exit code."""
    own_device()
    store = store or connect()
    number = rank() if number is None else number
    from evalharness.worker import TaskRunner

    runner = TaskRunner(WorkerSpec.from_json(json.loads(store.get("spec"))))

    def answer(message: Mapping[str, Any]) -> None:
        place = store.add("answers", 1)
        store.set(f"answer/{place}", json.dumps({"rank": number, **message}))

    received = 0
    while True:
        received += 1
        key = f"task/{number}/{received}"
        task = json.loads(store.get(key))
        store.delete_key(key)
        if _STOP in task:
            return 0
        reply = runner.run(task["kind"], task["payload"], lambda event: answer({"event": dict(event)}))
        answer({"reply": reply})
