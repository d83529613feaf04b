"""Runs a plan: lock, stages in order, summary. The same command again does only what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evalharness.console import Console
from evalharness.executor import WorkerSpec, build_executor
from evalharness.plan import RunPlan
from evalharness.planfile import record_cells
from evalharness.recovery import recover
from evalharness.registry import Registry
from evalharness.runfolder import RunFolder
from evalharness.runstate import RunState, StageCount
from evalharness.stages import aggregate, generate, prepare, profile, score
from evalharness.stages.samples import made_as

__all__ = ["Summary", "run_plan", "run_stages", "worker_spec"]

STAGES: Mapping[str, Callable[[RunState], StageCount]] = {
    "prepare": prepare.run,
    "generate": generate.run,
    "score": score.run,
    "profile": profile.run,
    "aggregate": aggregate.run,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What each stage did, how long all took, and how many of the failures were mistakes of the user."""

    counts: Mapping[str, StageCount]
    seconds: float
    mistakes: int = 0

    @property
    def failed(self) -> int:
        return sum(count.failed for count in self.counts.values())

    @property
    def is_final(self) -> bool:
        """Whether the same command would end the same way: nothing failed but by the user's mistakes."""
        return self.failed == self.mistakes

    @property
    def nothing_done(self) -> bool:
        return not any(count.done or count.failed for count in self.counts.values())

    def line(self) -> str:
        """One line for the person who ran it."""
        if self.nothing_done:
            kept = {name: count.kept for name, count in self.counts.items()}
            parts = [
                f"{kept[stage]} {unit}"
                for stage, unit in (("prepare", "cells"), ("generate", "videos"), ("score", "scores"))
                if stage in kept
            ]
            return f"nothing to do: {', '.join(parts)} up to date"
        parts = [
            f"{name} {count.done}" + (f" ({count.failed} failed)" if count.failed else "")
            for name, count in self.counts.items()
            if count.done or count.failed
        ]
        return f"done in {self.seconds:.0f} s: {', '.join(parts)}"


def run_plan(plan: RunPlan, registry: Registry, console: Console) -> Summary:
    """All stages of ``evalharness run``, under the folder's lock.

    Raises:
        UserError: the folder is in use, of a different run or not writable; a checkpoint is bad.
        KeyboardInterrupt: after the workers have ended.
    """
    folder = RunFolder(plan.output)
    with folder.lock():
        identity = plan.identity()
        record_cells(
            folder,
            identity,
            plan.cells,
            console,
            lambda cell: made_as(identity, folder.cell(cell.id), plan.samples(cell)),
        )
        recover(folder, console)
        executor = build_executor(plan.executor, worker_spec(plan), plan.workers)
        state = RunState(
            plan=plan,
            registry=registry,
            folder=folder,
            executor=executor,
            console=console,
            identity=identity,
            config=plan.record(),
        )
        return run_stages(state, tuple(STAGES))


def run_stages(state: RunState, names: tuple[str, ...]) -> Summary:
    """Run the named stages in order; always ends the workers."""
    start = time.monotonic()
    try:
        counts = {name: STAGES[name](state) for name in names}
    finally:
        state.executor.close()
    summary = Summary(counts=counts, seconds=time.monotonic() - start, mistakes=state.mistakes)
    if state.started:
        state.event("end", summary=summary.line())
    return summary


def worker_spec(plan: RunPlan) -> WorkerSpec:
    """What the workers of a plan need to know."""
    return WorkerSpec(
        model=plan.model,
        protocol=plan.protocol,
        device=plan.device,
        skip_layers=plan.skip_layers,
        track=plan.track,
        execution=plan.execution,
        attention=plan.attention,
        # Workers of this machine have the very files that the plan has read.
        model_fingerprint="" if plan.executor == "local" else plan.model_fingerprint,
        plugin_files=plan.plugin_files,
        model_options=plan.model_options,
    )
