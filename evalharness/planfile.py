"""``plan.json``: what a run folder is about. Cells are added by each command; the rest never changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalharness.cells import Cell
from evalharness.errors import UserError
from evalharness.runfolder import RunFolder
from evalharness.store import atomic_write_json, read_json

__all__ = ["PlanFile", "check_identity", "read_plan_file", "record_cells"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class PlanFile:
    """Identity of the folder and its cells by id, in table order."""

    identity: Mapping[str, Any]
    cells: Mapping[str, Cell]


def read_plan_file(folder: RunFolder) -> PlanFile:
    """Read it.

    Raises:
        UserError: the folder is no run folder, or of another version.
    """
    record = read_json(folder.plan)
    if record is None:
        raise UserError(
            f"{folder.root} is not a run folder (it has no plan.json); make one with: evalharness run"
        )
    if record.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{folder.plan}: schema version {record.get('schema_version')!r}, this evalharness writes "
            f"{SCHEMA_VERSION}; use another --output"
        )
    cells = [Cell.from_json(cell) for cell in record["cells"]]
    return PlanFile(identity=record["identity"], cells={cell.id: cell for cell in cells})


def record_cells(folder: RunFolder, identity: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """Add the cells of a command; writes only what is new. A cell with other options replaces the old.

    Raises:
        UserError: the folder belongs to a different run; names the keys that differ.
    """
    known: dict[str, Cell] = {}
    if folder.plan.exists():
        old = read_plan_file(folder)
        check_identity(folder, old.identity, identity)
        known = dict(old.cells)
    merged = known | {cell.id: cell for cell in cells}
    if merged != known:
        record = {
            "schema_version": SCHEMA_VERSION,
            "identity": dict(identity),
            "cells": [cell.to_json() for cell in merged.values()],
        }
        atomic_write_json(folder.plan, record)


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


def _short(value: Any) -> str:
    text = str(value)
    is_hash = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:12] + "..." if is_hash else text
