"""``plan.json``: what a run folder is about. Cells are added by each command; the rest never changes.

Secrets in options are not written (``evalharness.redaction``); the command that is given holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from evalharness.api import Bits
from evalharness.cells import GIVEN, REFERENCE, Cell
from evalharness.config import MAX_SEED
from evalharness.console import Console
from evalharness.errors import UserError
from evalharness.names import check_name
from evalharness.records import Shape, misfit
from evalharness.redaction import redact
from evalharness.runfolder import RunFolder
from evalharness.runlog import (
    Copy,
    damage_line,
    log_plan,
    logged_plan,
    older_plan,
    warn_of_difference,
)
from evalharness.store import can_be_written, read_record, write_record

__all__ = ["PlanFile", "check_identity", "mended_plan", "read_plan_file", "record_cells"]

SCHEMA_VERSION = 1
_RESTORE = "restore it from a copy, or use another --output"

_FILE: Shape = {"identity": (dict,), "cells": (list,)}
_IDENTITY: Shape = dict.fromkeys(
    ("model", "model_fingerprint", "protocol", "prompts_sha256", "skip_layers", "device"), (str,)
)
_CELL: Shape = {
    "model": (str,),
    "method": (str,),
    "w_bits": (int,),
    "a_bits": (int,),
    "seed": (int,),
    "options": (dict,),
}


@dataclass(frozen=True, slots=True)
class PlanFile:
    """Identity of the folder and its cells by id, in table order."""

    identity: Mapping[str, Any]
    cells: Mapping[str, Cell]


class _LostError(UserError):
    """No plan is there, or none that can be read."""


def read_plan_file(folder: RunFolder, console: Console | None = None) -> PlanFile:
    """Read it; where it is not what the run's log says, the log's copy counts, with a warning.

    Args:
        folder: of the run.
        console: for the warning; without, it goes to standard error all the same.

    Raises:
        UserError: the folder is no run folder, or of another version, or the file is damaged and the log
            does not tell what it said.
    """
    return _found(folder, console).plan


def mended_plan(folder: RunFolder, console: Console) -> PlanFile:
    """As ``read_plan_file``, for the holder of the folder's lock: file and log say the same after it."""
    found = _found(folder, console)
    _store(folder, found.plan, is_whole=found.is_whole, is_logged=found.is_logged)
    return found.plan


def record_cells(
    folder: RunFolder,
    identity: Mapping[str, Any],
    cells: Sequence[Cell],
    console: Console,
    is_ours: Callable[[Cell], bool | None] = lambda _: None,
) -> None:
    """Add the cells of a command; writes only what is new. A cell with other options replaces the old.

    Options are written without their secrets, into the log first. A plan that is not as the log says is
    written anew: from the log, or, where that does not tell, as the command says, unless videos that are
    there say otherwise.

    Args:
        folder: locked.
        identity: of the command.
        cells: of the command.
        console: for warnings.
        is_ours: whether a cell's videos were made as ``identity`` says; None where that cannot be told.

    Raises:
        UserError: the folder belongs to a different run; names the keys that differ.
    """
    known: dict[str, Cell] = {}
    is_whole = is_logged = False
    if folder.is_run:
        try:
            found = _found(folder, console)
        except _LostError:
            told = {is_ours(cell) for cell in cells}
            if False in told and True not in told:
                raise
            line = damage_line(folder.plan.name, "lost", "this command, no other cell")
            console.warn(line)
        else:
            check_identity(folder, found.plan.identity, identity)
            known = dict(found.plan.cells)
            is_whole, is_logged = found.is_whole, found.is_logged
    shown = (replace(cell, options=redact(cell.options)) for cell in cells)
    merged = known | {cell.id: cell for cell in shown}
    is_new = merged != known
    plan = PlanFile(identity, merged)
    _store(folder, plan, is_whole=is_whole and not is_new, is_logged=is_logged and not is_new)


def _store(folder: RunFolder, plan: PlanFile, *, is_whole: bool, is_logged: bool) -> None:
    """Into the log and then into the file, where it is not there yet."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "identity": dict(plan.identity),
        "cells": [cell.to_json() for cell in plan.cells.values()],
    }
    if not is_logged:
        log_plan(folder, record)
    if not is_whole:
        write_record(folder.plan, record)


@dataclass(frozen=True, slots=True)
class _Found:
    """A folder's plan, whether its file says the same, and whether its log has a copy."""

    plan: PlanFile
    is_whole: bool
    is_logged: bool


def _found(folder: RunFolder, console: Console | None) -> _Found:
    copy = logged_plan(folder)
    logged = None if copy is None else _checked(folder, copy.record)
    try:
        plan = _read(folder)
    except UserError as error:
        if copy is not None and logged is not None:
            if not _is_behind(folder, copy, None):
                _warn(folder, "lost", console)
            return _Found(logged, is_whole=False, is_logged=True)
        older = older_plan(folder) if isinstance(error, _LostError) else None
        if older is None:
            raise
        plan = _plan(folder, older)
        _warn(folder, "lost", console)
        return _Found(plan, is_whole=False, is_logged=False)
    if copy is None or logged is None or _is_same(plan, logged):
        return _Found(plan, is_whole=True, is_logged=logged is not None)
    if _is_older(folder, copy, plan):
        if not _is_behind(folder, copy, plan):
            _warn(folder, "older", console)
        return _Found(logged, is_whole=False, is_logged=True)
    warn_of_difference(folder, folder.plan, console or Console())
    return _Found(plan, is_whole=True, is_logged=False)  # the end of the log is lost


def _warn(folder: RunFolder, how: Literal["lost", "older"], console: Console | None) -> None:
    (console or Console()).warn(damage_line(folder.plan.name, how, "the run's log"))


def _is_behind(folder: RunFolder, copy: Copy, plan: PlanFile | None) -> bool:
    """Whether a kill came between the log and the file, which is as it was before."""
    if not copy.is_last:
        return False
    if plan is None:
        return not copy.before and not folder.plan.exists()
    return _is_older(folder, replace(copy, before=copy.before[-1:]), plan)


def _is_older(folder: RunFolder, copy: Copy, plan: PlanFile) -> bool:
    """Whether the log had this plan before it had another."""
    earlier = (_checked(folder, record) for record in copy.before)
    return any(each is not None and _is_same(plan, each) for each in earlier)


def _is_same(one: PlanFile, other: PlanFile) -> bool:
    """In their order too."""
    return one.identity == other.identity and list(one.cells.items()) == list(other.cells.items())


def _checked(folder: RunFolder, record: Mapping[str, Any]) -> PlanFile | None:
    """A plan of the log; None for what no plan of this version can be."""
    try:
        return _plan(folder, record) if record.get("schema_version") == SCHEMA_VERSION else None
    except UserError:
        return None


def _read(folder: RunFolder) -> PlanFile:
    try:
        record = read_record(folder.plan)
    except NotADirectoryError as error:
        raise UserError(f"{folder.root} is a file, not a run folder") from error
    except UserError as error:
        raise _LostError(f"{folder.plan}: not valid JSON, or not as it was written; {_RESTORE}") from error
    if record is None:
        if folder.is_run:
            raise _LostError(f"{folder.plan} is gone; {_RESTORE}")
        raise _LostError(
            f"{folder.root} is not a run folder (it has no plan.json); make one with: evalharness run"
        )
    if not isinstance(record.get("schema_version"), int):
        raise _LostError(f"{folder.plan}: it has no schema version; {_RESTORE}")
    if record["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{folder.plan}: schema version {repr(record.get('schema_version'))[:80]}, this evalharness "
            f"writes {SCHEMA_VERSION}; use another --output"
        )
    return _plan(folder, record)


def _plan(folder: RunFolder, record: Mapping[str, Any]) -> PlanFile:
    problem = misfit(record, _FILE) or misfit(record["identity"], _IDENTITY)
    if not problem and not can_be_written(record):
        problem = "a number or a letter that JSON does not have"
    if problem:
        raise _LostError(f"{folder.plan}: {problem}; {_RESTORE}")
    cells = [_cell(folder, cell) for cell in record["cells"]]
    return PlanFile(identity=record["identity"], cells={cell.id: cell for cell in cells})


def check_identity(folder: RunFolder, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        UserError: the folder belongs to a different run; names the keys that differ.
    """
    differences = [
        f"{key}: {_short(old.get(key))} there, {_short(new.get(key))} asked"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise UserError(
            f"{folder.root} belongs to a different run ({'; '.join(differences)}); choose another --output"
        )


def _cell(folder: RunFolder, record: Any) -> Cell:
    """Checked, since its id becomes the name of a folder."""
    problem = misfit(record, _CELL) if isinstance(record, dict) else f"{record!r} is no cell"
    if problem is None:
        try:
            check_name(record["method"], "method")
            check_name(str(record.get("label", record["method"])), "label")
            if record["method"] not in (REFERENCE, GIVEN):
                Bits.parse(f"w{record['w_bits']}a{record['a_bits']}")
        except ValueError as error:
            problem = str(error)
    if problem is None and (record["seed"] is True or not 0 <= record["seed"] <= MAX_SEED):
        problem = f"'seed' is {repr(record['seed'])[:40]}"
    if problem:
        raise UserError(f"{folder.plan}: cells: {problem}; {_RESTORE}")
    return Cell.from_json(record)


def _short(value: Any) -> str:
    text = str(value)
    is_hash = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:12] + "..." if is_hash else text
