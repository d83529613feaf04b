"""Stage 1: every cell gets its quantized weights: loaded, trained or computed.

Writes ``prepare.json`` (where the weights came from, their hash) and, unless they were loaded from a
published checkpoint, ``checkpoint/`` and ``train.jsonl``.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalharness import trainlog
from evalharness.api import Method, Needs
from evalharness.calibration import VERSION as CALIBRATION_VERSION
from evalharness.cells import Cell, build_method
from evalharness.checkpoints import (
    CARD_NAME,
    card_for,
    display_path,
    find_checkpoints,
    read_card,
    training_clips,
)
from evalharness.cost import executed_as
from evalharness.device import synchronize
from evalharness.errors import UserError
from evalharness.executor import Failure, Outcome, Task
from evalharness.executors.group import is_first, ready, together
from evalharness.hashing import digest, jsonable, tree_sha256
from evalharness.modeloptions import build_model
from evalharness.records import read_prepare
from evalharness.redaction import redact
from evalharness.registry import Registry
from evalharness.runfolder import CellFolder, utc_now
from evalharness.runlog import DISCARDED, PREPARED, TRAINED
from evalharness.runstate import Prepared, RunState, StageCount
from evalharness.session import Session
from evalharness.stages.context import StageContext
from evalharness.store import TEMP_PREFIX, atomic_write_json, replace_folder

__all__ = ["VERSION", "inputs_hash", "run", "work"]

VERSION = 1


def run(state: RunState) -> StageCount:
    """Prepare what is missing or stale; fills ``state.prepared``.

    Raises:
        UserError: a checkpoint that was to be loaded is corrupt or foreign.
    """
    sources = find_checkpoints(state.plan, state.registry)
    due = []
    for cell in state.plan.cells:
        source = sources.get(cell.id)
        published = None if source is None else tree_sha256(source)
        wanted = inputs_hash(state.registry, state.identity, cell, published)
        if not _is_current(state, cell, source, wanted):
            _discard(state, cell)
            due.append((cell, source, wanted))
    kept = len(state.prepared)
    _check_trainings(state, [cell for cell, source, _ in due if source is None])
    _write_references(state, [(cell, wanted) for cell, _, wanted in due if cell.is_reference])
    _run_tasks(state, [(cell, source, wanted) for cell, source, wanted in due if not cell.is_reference])
    done = len(state.prepared) - kept
    return StageCount(done=done, kept=kept, failed=len(state.plan.cells) - done - kept)


def work(session: Session, payload: Mapping[str, Any]) -> dict[str, Any]:
    """In a worker: load a checkpoint, to see that it is whole, or apply the method and save."""
    cell = Cell.from_json(payload["cell"])
    if payload["source"] is not None:
        loaded = session.activate(cell, Path(payload["source"]), key=f"check {payload['cell']}")
        return {"seconds": None, "execution": executed_as(loaded.transformer)}
    train_log, target = Path(payload["train_log"]), Path(payload["target"])
    state_folder = Path(payload["state_folder"]) if payload.get("state_folder") else None
    first = is_first(payload)
    if first and (state_folder is None or not state_folder.is_dir()):
        trainlog.forget(train_log)
    with ready(payload):
        method = build_method(session.registry, cell)
        calibration = Path(payload["calibration_folder"]) if payload.get("calibration_folder") else None
        context = StageContext(session, cell.seed, train_log, state_folder, calibration)
        _seed_libraries(cell.seed)
        start = time.monotonic()
        fresh = [session.fresh_transformer()]
    with contextlib.closing(context), together(payload, session.spec.device):
        module = method.apply(fresh.pop(), context)  # nobody else holds it: it may be let go of on the way
        synchronize(session.spec.device)
    seconds = time.monotonic() - start
    if first:
        method.save(module, target)
    return {"seconds": seconds, "execution": executed_as(session.executable(method, module))}


def inputs_hash(
    registry: Registry, identity: Mapping[str, Any], cell: Cell, published_sha256: str | None
) -> str:
    """Hash of all that a cell's weights depend on.

    Args:
        registry: the plugins as they are now.
        identity: of the run folder.
        cell: what is prepared.
        published_sha256: tree hash of the checkpoint that is loaded; None when none is.

    Raises:
        UserError: the method is not installed, or refuses the cell's options.
    """
    inputs: dict[str, Any] = {
        "stage": ["prepare", VERSION],
        "model_fingerprint": identity["model_fingerprint"],
        "model_code": registry.code_hash("models", cell.model),
        "method": cell.method,
    }
    if not cell.is_reference:
        method = build_method(registry, cell)
        inputs |= {
            "config": redact(jsonable(method), environment=False),
            "method_code": registry.code_hash("methods", cell.method),
            "seed": cell.seed,
            "skip_layers": identity["skip_layers"],
            "device": identity["device"],
            "published": published_sha256,
        }
        if published_sha256 is None and method.needs == Needs.TRAINING:
            inputs["training_clips"] = training_clips(registry, cell.model, identity["device"])
            if "training_data" in identity:
                inputs["training_data"] = identity["training_data"]
        if published_sha256 is None and method.needs != Needs.TRAINING:  # any other may ask for it
            inputs["calibration"] = CALIBRATION_VERSION
    return digest(inputs)


def _is_current(state: RunState, cell: Cell, source: Path | None, wanted: str) -> bool:
    """Whether ``prepare.json`` and the checkpoint fit; if so the cell counts as prepared."""
    files = state.folder.cell(cell.id)
    record = read_prepare(files)
    if record is None:
        return False
    if record["hash"] != wanted:
        state.console.warn(f"{cell.id}: made with other options, weights or code before; making it again")
        return False
    folder = _folder(record, files, source)
    if folder is not None and (not folder.is_dir() or tree_sha256(folder) != record["checkpoint_sha256"]):
        state.console.warn(f"{cell.id}: its checkpoint is damaged; making it again")
        return False
    state.prepared[cell.id] = Prepared(checkpoint=folder, key=_module_key(record))
    return True


def _discard(state: RunState, cell: Cell) -> None:
    """Before the work, not after: were it to fail or be killed, the old numbers would pass for new ones."""
    files = state.folder.cell(cell.id)
    if files.prepare.exists() or files.profile.exists():
        state.event(DISCARDED, cell=cell.id)
    files.prepare.unlink(missing_ok=True)
    files.profile.unlink(missing_ok=True)


def _model_key(state: RunState, cell: Cell) -> str:
    """The same for the same full-precision weights, made to sample by the same code."""
    return digest([state.identity["model_fingerprint"], state.registry.code_hash("models", cell.model)])


def _module_key(record: Mapping[str, Any]) -> str:
    """The same for cells that run the same module, so that a worker keeps it (other seeds)."""
    return digest([record["method"], record["config"], record["checkpoint_sha256"]])


def _folder(record: Mapping[str, Any], files: CellFolder, source: Path | None) -> Path | None:
    if record["source"] == "reference":
        return None
    return source if record["source"] == "loaded" else files.checkpoint


def _write_references(state: RunState, cells: Sequence[tuple[Cell, str]]) -> None:
    for cell, wanted in cells:
        state.begin_work()
        record = _record(cell, wanted, source="reference", execution="real")
        state.keep(PREPARED, cell, record)
        state.prepared[cell.id] = Prepared(checkpoint=None, key=_module_key(record))


def _run_tasks(state: RunState, due: Sequence[tuple[Cell, Path | None, str]]) -> None:
    if not due:
        return
    by_id = {cell.id: (cell, source, wanted) for cell, source, wanted in due}
    tasks = [_task(state, cell, source, wanted) for cell, source, wanted in due]
    try:
        for outcome in state.run_tasks("prepare", "cell", tasks, width=state.plan.model_workers):
            cell, source, wanted = by_id[outcome.task.key]
            if outcome.failure is None:
                _finish(state, cell, source, wanted, outcome)
            elif outcome.failure is Failure.USER and source is not None:
                raise _refusal(cell, source, outcome)
            else:
                if outcome.failure is Failure.DIVERGED:  # it would again from where it stands
                    _discard_trainings(state.folder.cell(cell.id))
                state.console.warn(f"{cell.id}: could not be prepared: {outcome.error}")
    finally:
        for task in tasks:
            if task.payload["target"] is not None:
                shutil.rmtree(task.payload["target"], ignore_errors=True)


def _check_trainings(state: RunState, cells: Sequence[Cell]) -> None:
    """Refuse at once what would run out of memory hours later, where the model can tell."""
    check = getattr(
        build_model(state.registry, state.plan.model, state.plan.model_options), "check_training", None
    )
    if check is None or state.plan.device != "cuda":
        return
    gpus = state.plan.workers if state.plan.executor == "torchrun" else 1
    for cell in cells:
        if cell.is_reference:
            continue
        method = build_method(state.registry, cell)
        if method.needs == Needs.TRAINING:
            config = _own_config(method)
            observed = int(getattr(method, "observed_samples", 0))  # others' methods may not tell
            check(config.get("recipe", config), int(config.get("rank") or 0), gpus, observed=observed)


def _task(state: RunState, cell: Cell, source: Path | None, wanted: str) -> Task:
    files = state.folder.cell(cell.id)
    files.root.mkdir(parents=True, exist_ok=True)
    # An unfinished training of the same inputs is resumed; one of other inputs is of no use.
    _discard_trainings(files, keep=None if source else files.training(wanted))
    payload = {
        "cell": cell.to_json(),
        "source": None if source is None else str(source),
        "target": None if source else tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=files.root),
        "train_log": str(files.train_log),
        "state_folder": None if source else str(files.training(wanted)),
        "joint": _is_joint(state, cell, source),
        "calibration_folder": str(state.folder.calibration(_model_key(state, cell))),
    }
    return Task(kind="prepare", key=cell.id, payload=payload)


def _is_joint(state: RunState, cell: Cell, source: Path | None) -> bool:
    """Whether all ranks of a torchrun do it together: a training."""
    if state.plan.executor != "torchrun" or source is not None:
        return False
    return build_method(state.registry, cell).needs == Needs.TRAINING


def _finish(state: RunState, cell: Cell, source: Path | None, wanted: str, outcome: Outcome) -> None:
    files = state.folder.cell(cell.id)
    method = build_method(state.registry, cell)
    seconds = outcome.value["seconds"]
    trained = source is None and method.needs == Needs.TRAINING
    if source is None:
        target = Path(outcome.task.payload["target"])
        if not any(target.iterdir()):
            raise UserError(f"{cell.title}: save() wrote nothing into its folder")
        atomic_write_json(
            target / CARD_NAME, card_for(cell, state.plan, redact(_own_config(method)), _clips(state, method))
        )
        target.chmod(0o755)
        replace_folder(target, files.checkpoint)
    else:
        trainlog.forget(files.train_log)
    log = trainlog.seal(files.train_log)
    if log is not None:
        state.event(TRAINED, cell=cell.id, log=trainlog.copied(files.train_log))
        if log["lost"]:
            state.console.warn(f"{cell.id}: {trainlog.damage(files, {'train_log': log})}")
    folder = source or files.checkpoint
    record = _record(
        cell,
        wanted,
        source="loaded" if source else "trained" if trained else "computed",
        execution=str(outcome.value.get("execution") or getattr(method, "execution", "fake")),
        config=redact(_own_config(method)) if source is None else _published_config(source, cell),
        checkpoint=display_path(folder) if source else "checkpoint",
        checkpoint_sha256=tree_sha256(folder),
        train_minutes=round(seconds / 60, 4) if trained else None,
        train_log=log,
    )
    state.keep(PREPARED, cell, record)
    _discard_trainings(files)
    state.prepared[cell.id] = Prepared(checkpoint=folder, key=_module_key(record))


def _discard_trainings(files: CellFolder, keep: Path | None = None) -> None:
    for folder in files.trainings():
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)


def _clips(state: RunState, method: Method) -> int | None:
    if method.needs != Needs.TRAINING:
        return None
    return training_clips(state.registry, state.plan.model, state.plan.device)


def _refusal(cell: Cell, source: Path | None, outcome: Outcome) -> UserError:
    where = f"checkpoint {display_path(source)}" if source else cell.title
    advice = "; to make it instead: --load never" if source else ""
    return UserError(f"{cell.id}: {where}: {outcome.error}{advice}")


def _record(cell: Cell, wanted: str, *, source: str, execution: str, **rest: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "hash": wanted,
        "source": source,
        "execution": execution,
        "config": {},
        "checkpoint": None,
        "checkpoint_sha256": None,
        "train_minutes": None,
        "finished": utc_now(),
    }
    return {"cell": cell.id, "method": cell.method, "label": cell.label, **record, **rest}


def _own_config(method: Method) -> dict[str, Any]:
    config: dict[str, Any] = jsonable(method)
    return config


def _published_config(folder: Path, cell: Cell) -> dict[str, Any]:
    """As the checkpoint's card tells; the method's present defaults say nothing about it."""
    card = read_card(folder)
    return {"w_bits": cell.bits.w, "a_bits": cell.bits.a} if card is None else dict(card["config"])


def _seed_libraries(seed: int) -> None:
    """For methods that draw from the global generators."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
