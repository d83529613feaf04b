"""Tasks on a Ray cluster. Placing them, trying again, and workers that come and go are Ray's.

    evalharness run ... --executor ray          # a cluster of this machine, or the one of RAY_ADDRESS

Each worker is an actor with one CPU (on cuda: one GPU) that keeps its pipeline between tasks. The run
folder must be reachable under the same path from every node. A worker that dies is started again and
its task is run again, elsewhere if need be. Tasks go to workers that have a place; those for which the
cluster has none yet join when it grows, and nothing waits for them meanwhile.

A worker gets tasks once it has told that it can do some: that its node has the plugins and the run's weights.
One that cannot is put elsewhere, three times in all; then the run goes on without it, and if there is no
other it ends. A task that such a worker was given after a restart goes back to the others.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evalharness.errors import UserError, one_line
from evalharness.executor import EventHandler, Failure, Outcome, Task, WorkerSpec, as_outcome, failed_reply

__all__ = ["RayExecutor"]

_RETRIES = 3
_STARTS = 3
_NO_PLACE_S = 60.0


class _Worker:
    """Lives in a process of Ray's. Its constructor never raises: Ray would not tell in one line."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._runner: Any = None
        self._unready: dict[str, str] = {}
        self._checked: set[str] = set()
        try:
            from evalharness.worker import TaskRunner

            self._runner = TaskRunner(spec)
        except Exception as error:
            self._unready = failed_reply(error)

    def ready(self, kind: str) -> dict[str, str]:
        """What is in the way of tasks of this kind; empty: nothing."""
        if not self._unready and kind not in self._checked:
            try:
                self._runner.check(kind)
            except Exception as error:
                self._unready = failed_reply(error)
            self._checked.add(kind)
        return self._unready

    def run(self, kind: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """As ``TaskRunner.run``; ``{"unready": ...}`` from one that Ray moved to where it cannot work."""
        if self.ready(kind):
            return {"unready": self._unready}
        return dict(self._runner.run(kind, payload, lambda event: None))


class RayExecutor:
    """Satisfies ``evalharness.executor.Executor``. Progress within a task is not shown."""

    def __init__(self, spec: WorkerSpec, workers: int) -> None:
        try:
            import ray

            ray.init  # noqa: B018  # any folder called ray can be imported
        except (ImportError, AttributeError) as error:
            raise UserError('--executor ray needs Ray: pip install "evalharness[ray]"') from error
        self._ray: Any = ray
        self._spec = spec
        self._workers = max(1, workers)
        self._actors: list[Any] = []
        # An answer that tells that a worker has a place: the worker, and how many before it could not work.
        self._coming: dict[Any, tuple[Any, int]] = {}
        self._lost, self._cause, self._kind = 0, "", ""  # workers given up; why; what they are to do
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            # The workers must see the modules that this process sees, however it was started.
            path = os.pathsep.join(os.path.abspath(entry or ".") for entry in sys.path)  # noqa: PTH100
            variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            options: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self._workers}
            try:
                ray.init(
                    logging_level="ERROR",
                    log_to_driver=False,
                    include_dashboard=False,
                    runtime_env={"env_vars": variables},
                    **options,
                )
            except Exception as error:  # of many kinds, its own and plain ones
                where = os.environ.get("RAY_ADDRESS") or "on this machine"
                raise UserError(f"--executor ray: no cluster {where}: {one_line(error)}") from error
        if spec.device == "cuda" and not os.environ.get("RAY_ADDRESS"):
            # An actor without a GPU would wait for ever, and its task with it; on a cluster one may come.
            self._workers = max(1, min(self._workers, int(ray.cluster_resources().get("GPU", 0))))

    def run(
        self, tasks: Sequence[Task], on_event: EventHandler, *, width: int | None = None
    ) -> Iterator[Outcome]:
        """Outcomes as they come.

        Raises:
            UserError: no worker could be started.
        """
        waiting = deque(tasks)
        self._kind = tasks[0].kind if tasks else ""
        wanted = min(len(waiting), self._workers, width or self._workers)
        while len(self._actors) + len(self._coming) < min(wanted, self._workers - self._lost):
            self._start()
        running: dict[Any, tuple[Any, Task]] = {}
        while running or waiting:
            busy = [actor for actor, _ in running.values()]
            for actor in self._actors:
                if waiting and len(running) < wanted and actor not in busy:
                    task = waiting.popleft()
                    running[actor.run.remote(task.kind, dict(task.payload))] = (actor, task)
                    busy.append(actor)
            if not (running or self._coming):
                raise UserError(f"--executor ray: no worker could be started: {self._cause}")
            finished = self._next([*running, *self._coming], busy)
            if finished in self._coming:
                self._came(finished)
                continue
            actor, task = running.pop(finished)
            outcome = self._ended(finished, actor, task)
            if outcome is None:
                waiting.appendleft(task)
            else:
                yield outcome

    def _ended(self, answer: Any, actor: Any, task: Task) -> Outcome | None:
        """How a task ended; None: it was not tried, for its worker cannot work, and gives up its place."""
        try:
            reply = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            text = _line(error)
            self._drop(actor)
            if getattr(error, "actor_init_failed", False):
                self._start(1, text)
                return None
            self._start()
            return Outcome(task=task, failure=Failure.CRASH, error=f"Ray gave up on it: {text}")
        if "unready" in reply:
            self._drop(actor)
            self._start(1, reply["unready"]["error"])
            return None
        return as_outcome(task, reply)

    def _start(self, failed: int = 0, cause: str = "") -> None:
        """A worker more, after ``failed`` others in its stead that could not work for ``cause``."""
        self._cause = cause or self._cause
        if failed < _STARTS:
            actor = self._actor()
            self._coming[actor.ready.remote(self._kind)] = (actor, failed)
            return
        self._lost += 1
        line = f"--executor ray: a worker could not be started {_STARTS} times and is given up: {cause}"
        sys.stderr.write(f"warning: {line}\n")

    def _came(self, answer: Any) -> None:
        """A worker has a place, and tells whether it can work there."""
        actor, failed = self._coming.pop(answer)
        try:
            cause = self._ray.get(answer).get("error", "")
        except self._ray.exceptions.RayError as error:
            cause = _line(error)
        if not cause:
            self._actors.append(actor)
            return
        self._ray.kill(actor)
        self._start(failed + 1, cause)

    def _drop(self, actor: Any) -> None:
        self._actors.remove(actor)
        self._ray.kill(actor)

    def _next(self, answers: Sequence[Any], busy: Sequence[Any]) -> Any:
        """The first that comes; after a while without any it asks who lacks a place.

        No worker is ready: it says so, for there may be no place for any; or weights are being hashed. A node
        is gone, whose workers start again where there is a place: idle ones give up theirs, one by one.
        """
        told = False
        while True:
            idle = [actor for actor in self._actors if actor not in busy]
            patience = _NO_PLACE_S if idle or not (self._actors or told) else None
            came, _ = self._ray.wait(answers, num_returns=1, timeout=patience)
            if came:
                return came[0]
            if not idle:
                has = {name: self._ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
                needs = "a GPU and a CPU" if self._spec.device == "cuda" else "a CPU"
                line = f"--executor ray: no worker is ready yet; each needs {needs}, the cluster has {has}"
                sys.stderr.write(f"warning: {line}\n")
                told = True
            elif not all(node["Alive"] for node in self._ray.nodes()):
                self._ray.kill(idle[0])
                self._actors.remove(idle[0])

    def close(self) -> None:
        for actor in [*self._actors, *(actor for actor, _ in self._coming.values())]:
            self._ray.kill(actor)
        self._actors.clear()
        self._coming.clear()
        if self._started_ray:
            self._ray.shutdown()

    def _actor(self) -> Any:
        cuda = self._spec.device == "cuda"
        remote = self._ray.remote(
            num_cpus=1, num_gpus=1 if cuda else 0, max_restarts=-1, max_task_retries=_RETRIES
        )(_Worker)
        return remote.remote(self._spec)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
