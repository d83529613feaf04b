"""Tasks on a Ray cluster. Placing them, trying again, and workers that come and go are Ray's.

    evalharness run ... --executor ray          # a cluster of this machine, or the one of RAY_ADDRESS

Each worker is an actor with one CPU (on cuda: one GPU) that keeps its pipeline between tasks. The run
folder must be reachable under the same path from every node. A worker that dies is started again and
its task is run again, elsewhere if need be. Tasks go to workers that have a place; those for which the
cluster has none yet join when it grows, and nothing waits for them meanwhile.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evalharness.errors import UserError, one_line
from evalharness.executor import EventHandler, Failure, Outcome, Task, WorkerSpec, as_outcome

__all__ = ["RayExecutor"]

_RETRIES = 3
_NO_PLACE_S = 60.0


class _Worker:
    """Lives in a process of Ray's."""

    def __init__(self, spec: WorkerSpec) -> None:
        from evalharness.worker import TaskRunner

        self._runner = TaskRunner(spec)

    def process(self) -> int:
        """Number of the operating system's process."""
        return os.getpid()

    def run(self, kind: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        return self._runner.run(kind, payload, lambda event: None)


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
        self._coming: dict[Any, Any] = {}  # an answer that tells that a worker has a place: the worker
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
        """Outcomes as they come."""
        waiting = deque(tasks)
        wanted = min(len(waiting), self._workers, width or self._workers)
        while len(self._actors) + len(self._coming) < wanted:
            actor = self._actor()
            self._coming[actor.process.remote()] = actor
        running: dict[Any, tuple[Any, Task]] = {}

        def start(actor: Any) -> None:
            if waiting and len(running) < wanted:
                task = waiting.popleft()
                running[actor.run.remote(task.kind, dict(task.payload))] = (actor, task)

        for actor in self._actors:
            start(actor)
        while running or waiting:
            finished = self._next([*running, *self._coming], [actor for actor, _ in running.values()])
            if finished in self._coming:  # one that could not start says so at its first task
                self._actors.append(self._coming.pop(finished))
                start(self._actors[-1])
                continue
            actor, task = running.pop(finished)
            try:
                outcome = as_outcome(task, self._ray.get(finished))
            except self._ray.exceptions.RayError as error:
                text = " ".join(str(error).split())[:300]
                outcome = Outcome(task=task, failure=Failure.CRASH, error=f"Ray gave up on it: {text}")
            start(actor)
            yield outcome

    def _next(self, answers: Sequence[Any], busy: Sequence[Any]) -> Any:
        """The first that comes; after a while without any it asks who lacks a place.

        No worker has one: it says so. A node is gone, whose workers start again where there is a place: idle
        workers give up theirs, one after the other.
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
                line = f"--executor ray: no worker has a place yet, each needs {needs}; the cluster has {has}"
                sys.stderr.write(f"warning: {line}\n")
                told = True
            elif not all(node["Alive"] for node in self._ray.nodes()):
                self._ray.kill(idle[0])
                self._actors.remove(idle[0])

    def close(self) -> None:
        for actor in [*self._actors, *self._coming.values()]:
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
