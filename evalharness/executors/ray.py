"""Tasks on a Ray cluster. Placing them, trying again, and workers that come and go are Ray's.

    evalharness run ... --executor ray          # a cluster of this machine, or the one of RAY_ADDRESS

Each worker is an actor with one CPU (on cuda: one GPU) that keeps its pipeline between tasks. The run
folder must be reachable under the same path from every node. A worker that dies is started again and
its task is run again, elsewhere if need be.
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
        except ImportError as error:
            raise UserError('--executor ray needs Ray: pip install "evalharness[ray]"') from error
        self._ray: Any = ray
        self._spec = spec
        self._workers = max(1, workers)
        self._actors: list[Any] = []
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
        while len(self._actors) < wanted:
            self._actors.append(self._actor())
        running: dict[Any, tuple[Any, Task]] = {}

        def start(actor: Any) -> None:
            if waiting:
                task = waiting.popleft()
                running[actor.run.remote(task.kind, dict(task.payload))] = (actor, task)

        for actor in self._actors[:wanted]:
            start(actor)
        while running:
            [finished], _ = self._ray.wait(list(running), num_returns=1)
            actor, task = running.pop(finished)
            try:
                outcome = as_outcome(task, self._ray.get(finished))
            except self._ray.exceptions.RayError as error:
                text = " ".join(str(error).split())[:300]
                outcome = Outcome(task=task, failure=Failure.CRASH, error=f"Ray gave up on it: {text}")
            start(actor)
            yield outcome

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        if self._started_ray:
            self._ray.shutdown()

    def _actor(self) -> Any:
        cuda = self._spec.device == "cuda"
        remote = self._ray.remote(
            num_cpus=1, num_gpus=1 if cuda else 0, max_restarts=-1, max_task_retries=_RETRIES
        )(_Worker)
        return remote.remote(self._spec)
