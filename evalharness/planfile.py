"""``plan.json``: what a run folder is about. Cells are added by each command; the rest never changes.

Secrets in options are not written (``evalharness.redaction``); the command that is given holds them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalharness.api import Bits
from evalharness.cells import GIVEN, REFERENCE, Cell
from evalharness.console import Console
from evalharness.errors import UserError
from evalharness.names import check_name
from evalharness.records import Shape, misfit
from evalharness.redaction import redact
from evalharness.runfolder import RunFolder
from evalharness.runlog import LOST, logged_plan
from evalharness.store import atomic_write_json, read_json

__all__ = ["PlanFile", "check_identity", "read_plan_file", "record_cells"]

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
    """Read it; one that is lost or damaged is put together from the run's log, with a warning.

    Args:
        folder: of the run.
        console: for the warning; without, it goes to standard error all the same.

    Raises:
        UserError: the folder is no run folder, or of another version, or the file is damaged and the log
            does not tell what it said.
    """
    return _found(folder, console)[0]


def record_cells(
    folder: RunFolder,
    identity: Mapping[str, Any],
    cells: Sequence[Cell],
    is_ours: Callable[[Cell], bool | None] = lambda _: None,
    console: Console | None = None,
) -> None:
    """Add the cells of a command; writes only what is new. A cell with other options replaces the old.

    Options are written without their secrets. A plan that is lost or damaged is written anew: from the log,
    or, where that does not tell, as the command says, unless videos that are there say otherwise.

    Args:
        folder: locked.
        identity: of the command.
        cells: of the command.
        is_ours: whether a cell's videos were made as ``identity`` says; None where that cannot be told.
        console: as for ``read_plan_file``.

    Raises:
        UserError: the folder belongs to a different run; names the keys that differ.
    """
    known: dict[str, Cell] = {}
    is_whole = False
    if folder.is_run:
        try:
            old, is_whole = _found(folder, console)
        except _LostError:
            told = {is_ours(cell) for cell in cells}
            if False in told and True not in told:
                raise
            (console or Console()).warn(f"{folder.plan.name} {LOST} this command, no other cell")
        else:
            check_identity(folder, old.identity, identity)
            known = dict(old.cells)
    shown = (dataclasses.replace(cell, options=redact(cell.options)) for cell in cells)
    merged = known | {cell.id: cell for cell in shown}
    if merged != known or not is_whole:
        record = {
            "schema_version": SCHEMA_VERSION,
            "identity": dict(identity),
            "cells": [cell.to_json() for cell in merged.values()],
        }
        atomic_write_json(folder.plan, record)


def _found(folder: RunFolder, console: Console | None) -> tuple[PlanFile, bool]:
    """The plan, and whether its file is whole."""
    try:
        return _read(folder), True
    except _LostError:
        logged = logged_plan(folder)
        if logged is None:
            raise
        plan = _plan(folder, logged)
        (console or Console()).warn(f"{folder.plan.name} {LOST} the run's log")
        return plan, False


def _read(folder: RunFolder) -> PlanFile:
    try:
        record = read_json(folder.plan)
    except NotADirectoryError as error:
        raise UserError(f"{folder.root} is a file, not a run folder") from error
    except UserError as error:
        raise _LostError(f"{folder.plan}: not valid JSON; {_RESTORE}") from error
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
    if problem is None and record["seed"] < 0:
        problem = f"'seed' is {record['seed']}"
    if problem:
        raise UserError(f"{folder.plan}: cells: {problem}; {_RESTORE}")
    return Cell.from_json(record)


def _short(value: Any) -> str:
    text = str(value)
    is_hash = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:12] + "..." if is_hash else text
