"""Scores an existing run folder again: its own plan, the present metrics."""

from __future__ import annotations

import dataclasses

from evalharness.cells import GIVEN
from evalharness.config import RunConfig
from evalharness.console import Console
from evalharness.errors import UserError
from evalharness.executor import build_executor
from evalharness.plan import build_plan
from evalharness.planfile import PlanFile, mended_plan, read_plan_file
from evalharness.recovery import recover
from evalharness.registry import Registry
from evalharness.runfolder import RunFolder
from evalharness.runner import Summary, run_stages, worker_spec
from evalharness.runstate import Prepared, RunState

__all__ = ["rescore"]

_NO_MODULE = Prepared(checkpoint=None, key="")


def rescore(folder: RunFolder, config: RunConfig, registry: Registry, console: Console) -> Summary:
    """Score what is stale in every cell of ``folder``, then aggregate.

    The videos stay valid as the folder's own record says, whatever is installed now; neither the
    methods nor torch in the version of then are needed.

    Args:
        folder: made by ``run``.
        config: of it, ``dimensions``, ``metric``, ``device``, ``workers``, ``executor`` and ``plugin`` count.
        registry: the plugins.
        console: for progress.

    Raises:
        UserError: not a run folder; its protocol has other prompts now; a plugin is missing.
    """
    if not folder.is_run:
        read_plan_file(folder)  # says so, before anything is locked
    with folder.lock():
        stored = mended_plan(folder, console)
        recover(folder, console)
        if stored.identity["model_fingerprint"] == GIVEN:
            raise UserError(
                f"{folder.root} was made from a folder of videos; give that folder again: "
                f"evalharness score FOLDER --protocol {stored.identity['protocol']} --output {folder.root}"
            )
        model, protocol = str(stored.identity["model"]), str(stored.identity["protocol"])
        plan = build_plan(
            dataclasses.replace(config, model=model, protocol=protocol),
            registry,
            fingerprint=str(stored.identity["model_fingerprint"]),
        )
        _refuse_other_prompts(folder, stored, plan.identity()["prompts_sha256"])
        plan = dataclasses.replace(plan, cells=tuple(stored.cells.values()))
        prepared = {cell.id: _NO_MODULE for cell in plan.cells if folder.cell(cell.id).prepare.exists()}
        state = RunState(
            plan=plan,
            registry=registry,
            folder=folder,
            executor=build_executor(plan.executor, worker_spec(plan), plan.workers),
            console=console,
            identity=stored.identity,
            config=plan.record(),
            prepared=prepared,
        )
        return run_stages(state, ("score", "aggregate"))


def _refuse_other_prompts(folder: RunFolder, stored: PlanFile, prompts_sha256: str) -> None:
    if stored.identity["prompts_sha256"] != prompts_sha256:
        raise UserError(
            f"{folder.root}: its protocol {stored.identity['protocol']} has other prompts now; "
            "its videos cannot be judged by them. Make a new run with another --output"
        )
