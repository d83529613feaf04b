"""What the stages of one command share, on the parent's side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalharness.cells import Cell
from evalharness.console import Console
from evalharness.errors import StorageError
from evalharness.executor import Executor, Failure, Outcome, Task
from evalharness.manifest import finish_manifest, new_entry, start_manifest
from evalharness.plan import RunPlan
from evalharness.redaction import redact
from evalharness.registry import Registry
from evalharness.runfolder import RunFolder, utc_now
from evalharness.runlog import keep
from evalharness.store import read_record

__all__ = ["Prepared", "RunState", "StageCount"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A cell that can generate: its checkpoint's folder (None: the reference) and its hash."""

    checkpoint: Path | None
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCount:
    """What a stage did: things made now, things found up to date, things that failed."""

    done: int = 0
    kept: int = 0
    failed: int = 0


@dataclass(slots=True, kw_only=True)
class RunState:
    """One command at work on one run folder.

    Attributes:
        identity: of the run folder, as ``plan.json`` records it.
        prepared: filled by the prepare stage; a cell that is missing there failed.
        begun: when this command began to work, as its entry in the manifest says.
        mistakes: of what the stages count as failed, that which the user can mend.
    """

    plan: RunPlan
    registry: Registry
    folder: RunFolder
    executor: Executor
    console: Console
    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    prepared: dict[str, Prepared] = field(default_factory=dict)
    started: bool = False
    begun: str = ""
    mistakes: int = 0

    @property
    def cells(self) -> Sequence[Cell]:
        """Cells that are ready to generate, in the plan's order."""
        return [cell for cell in self.plan.cells if cell.id in self.prepared]

    def begin_work(self) -> None:
        """Record in the manifest that this command changes the folder. Only the first call acts."""
        if not self.started:
            self.started = True
            entry = new_entry(self.config, self.registry)
            self.event(  # the log first: what it has can be written anew (``evalharness.runlog``)
                "begin",
                cells=[cell.id for cell in self.plan.cells],
                identity=dict(self.identity),
                manifest=entry,
            )
            self.begun = str(entry["started"])
            start_manifest(self.folder.manifest, entry)

    def finish_work(self) -> Mapping[str, Any]:
        """Close this command's entry in the manifest, and return the whole."""
        if not self.started:
            return read_record(self.folder.manifest) or {}
        closing = redact({"finished": utc_now(), "plugins": self.registry.provenance()})
        self.event("finished", started=self.begun, **closing)
        return finish_manifest(self.folder.manifest, closing)

    def keep(self, kind: str, cell: Cell, record: Mapping[str, Any]) -> None:
        """Write a cell's record, without secrets, into the log and into its file."""
        keep(self.folder, kind, cell.id, redact(record))

    def event(self, name: str, **facts: Any) -> None:
        """Append one line to ``events.jsonl``."""
        self.folder.events.append([{"time": utc_now(), "event": name, **redact(facts)}])

    def record_failure(self, outcome: Outcome) -> None:
        """Keep a failed task's traceback in the events; a full or forbidden disk ends the run.

        Raises:
            StorageError: the task failed because of the disk.
        """
        if outcome.failure is Failure.STORAGE:
            raise StorageError(
                f"{outcome.task.key}: {outcome.error}; free space or permissions, then run the same "
                "command again: finished work is kept"
            )
        if outcome.failure is not None and outcome.failure.is_final:
            self.mistakes += outcome.task.items
        self.event(
            "failure",
            stage=outcome.task.kind,
            task=outcome.task.key,
            kind=outcome.failure,
            error=outcome.error,
            traceback=outcome.traceback,
        )

    def run_tasks(self, what: str, unit: str, tasks: Sequence[Task], *, width: int | None = None) -> Any:
        """Outcomes of ``tasks`` with a progress bar; announces the work once."""
        self.begin_work()
        self.event("stage", stage=what, tasks=len(tasks))
        with self.console.progress(what, len(tasks), unit) as progress:
            on_event = lambda task, event: progress.step(task.key, event)  # noqa: E731
            for outcome in self.executor.run(tasks, on_event, width=width):
                if outcome.failure is not None:
                    self.record_failure(outcome)
                yield outcome
                progress.advance()
