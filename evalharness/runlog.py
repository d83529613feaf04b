"""What a run folder's log knows of its small files: a copy of each, which is held against the file.

``events.jsonl`` is only ever appended to, and beside what happened it has every record that is also written
into a file of its own: with ``planned`` what ``plan.json`` says, with ``begin`` and ``finished`` an entry of
the manifest (``evalharness.manifestlog``), with ``prepared`` and ``profiled`` a cell's ``prepare.json`` and
``profile.json``. So none of these files is the only one that knows. The log is written first, and both have
checksums: a file that is not as it was written is written anew from the log, and so is one that is older than
the log; one that the log never had is newer than what is left of the log, which gets it again. What the
records say of weights and videos is held against these by hashes, wherever it came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness import manifestlog
from evalharness.errors import UserError
from evalharness.linesums import KEY, is_sound
from evalharness.manifestlog import State
from evalharness.names import is_name
from evalharness.records import PREPARE, Shape, misfit
from evalharness.runfolder import CellFolder, RunFolder, utc_now
from evalharness.store import can_be_written, parse_json, read_json, read_record, write_record

if TYPE_CHECKING:
    from evalharness.console import Console

__all__ = [
    "DISCARDED",
    "PREPARED",
    "PROFILED",
    "TRAINED",
    "Copy",
    "damage_line",
    "keep",
    "log_plan",
    "logged",
    "logged_plan",
    "mend",
    "older_plan",
    "warn_of_damage",
    "warn_of_difference",
]

PLANNED, PREPARED, PROFILED, DISCARDED, TRAINED = "planned", "prepared", "profiled", "discarded", "trained"
_HEAD = 80


def _named(kind: str) -> bytes:
    return f'"event": "{kind}"'.encode()


_LONG = (_named("failure"), _named(TRAINED))
"""Of these there may be one for each of 100,000 videos, or a whole log in a line."""
_LONGEST = 64 << 20
"""Bytes of a line; what is longer comes in pieces, which are no JSON."""


@dataclass(frozen=True, slots=True)
class Copy:
    """What the log knows of a file.

    Attributes:
        record: what the file should hold.
        before: what it held before that, the oldest first.
        is_last: nothing was logged since, so that the file may not have been written yet.
        is_gone: the harness itself threw the file away since.
    """

    record: Mapping[str, Any]
    before: tuple[Mapping[str, Any], ...] = ()
    is_last: bool = True
    is_gone: bool = False


def keep(folder: RunFolder, kind: str, name: str, record: Mapping[str, Any]) -> None:
    """Write a cell's record into the log, and then into its file.

    Args:
        folder: locked.
        kind: ``PREPARED`` or ``PROFILED``.
        name: of the cell.
        record: without secrets.
    """
    folder.events.append([_copied(kind, name, record)])
    write_record(_place(folder.cell(name), kind), record)


def log_plan(folder: RunFolder, record: Mapping[str, Any]) -> None:
    """Before ``plan.json`` is written."""
    folder.events.append([{"time": utc_now(), "event": PLANNED, "record": record}])


def mend(folder: RunFolder, console: Console) -> None:
    """Write manifest and cells' records anew where they are not what the log says; log what it does not have.

    The plan is its reader's (``evalharness.planfile``). Only for the holder of the folder's lock.
    """
    events = [event for event in _events(folder) if event["event"] != PLANNED]
    state, manifest = manifestlog.held_against(folder, events)
    if manifest is not None and state != "whole":
        _write(folder, folder.manifest, manifest, state, console)
    copies = _copies(folder, events)
    for path, copy in copies.items():
        if (state := _state(path, copy)) not in _RIGHT:
            _write(folder, path, copy.record, state, console)
        elif state == "newer":
            warn_of_difference(folder, path, console)
    folder.events.append(_not_logged(folder, copies))


def warn_of_damage(folder: RunFolder, console: Console) -> None:
    """For commands that write nothing: one line for each record of a cell that is not what the log says."""
    for path, copy in _copies(folder, list(_events(folder))).items():
        if (state := _state(path, copy)) in _HOW:
            name = path.relative_to(folder.root).as_posix()
            console.warn(f"{name} {_HOW[state]}; `evalharness run` takes it from {folder.events.path.name}")


def warn_of_difference(folder: RunFolder, path: Path, console: Console) -> None:
    """Of a file that the log never had: without a sum, nobody knows which of the two is right."""
    if KEY not in (read_json(path) or {}):
        name = path.relative_to(folder.root).as_posix()
        console.warn(
            f"{name} is not what {folder.events.path.name} says, and an older version wrote it, without a "
            "checksum; it counts as it is"
        )


def logged_plan(folder: RunFolder) -> Copy | None:
    """What ``plan.json`` holds, by the log; None of a folder from before the log had it.

    An older version may have gone on with the folder, which logs its cells with ``begin`` alone.
    """
    found: Copy | None = None
    for event in _events(folder):
        if event["event"] == PLANNED and isinstance(event.get("record"), dict):
            found = Copy(event["record"], _before(found))
        elif found is not None:
            found = replace(found, record=_with_cells_of(event, found.record), is_last=False)
    return found


def older_plan(folder: RunFolder) -> dict[str, Any] | None:
    """Identity and cells by the ``begin`` of each command and the manifest; None if neither tells.

    A cell of a later command comes again, and counts as it is there. The manifest may know of cells that the
    log does not: those from before the log had plans, or from before it was lost.
    """
    told = [event for event in _events(folder) if event["event"] == "begin" and "identity" in event]
    entries = manifestlog.known_entries(folder)
    identity = told[0]["identity"] if told else manifestlog.identity_of(entries)
    configs = manifestlog.configs_of([*entries, *(event.get("manifest") for event in told)])
    if not isinstance(identity, dict):
        return None
    lists = [config.get("cells") for config in configs]
    cells = [cell for each in lists if isinstance(each, list) for cell in each]
    return {"identity": identity, "cells": cells}


def logged(folder: RunFolder, kind: str) -> Iterator[dict[str, Any]]:
    """The log's events of one kind, in their order."""
    left_out = [each for each in _LONG if each != _named(kind)]
    return (event for event in _events(folder, left_out) if event["event"] == kind)


_RIGHT: Sequence[State] = ("whole", "newer")
_HOW: Mapping[State, str] = {"lost": "was lost or damaged", "older": "is older than the run's log"}


def damage_line(name: str, state: State, source: str) -> str:
    """What a person is told of a file that was written anew."""
    return f"{name} {_HOW[state]}; taken from {source}"


def _write(folder: RunFolder, path: Path, record: Mapping[str, Any], state: State, console: Console) -> None:
    write_record(path, record)
    if state in _HOW:
        name = path.relative_to(folder.root).as_posix()
        console.warn(damage_line(name, state, folder.events.path.name))


def _state(path: Path, copy: Copy) -> State:
    shape: Shape = PREPARE if path.name == "prepare.json" else {}
    record = _readable(path, shape)
    if copy.is_gone and not path.exists():
        return "whole"
    if record is None:
        is_first = copy.is_last and not copy.before and not path.exists()
        return "behind" if is_first else "lost"
    text, earlier = _text(record), [_text(each) for each in copy.before]
    if text == _text(copy.record):
        return "whole"
    if text not in earlier:
        return "newer"
    return "behind" if copy.is_last and text == earlier[-1] else "older"


def _readable(path: Path, shape: Shape) -> dict[str, Any] | None:
    """The record; None of a file that is lost or damaged."""
    try:
        record = read_record(path)
    except UserError:
        return None
    return None if record is None or misfit(record, shape) or not can_be_written(record) else record


def _text(record: Mapping[str, Any]) -> str:
    """To compare by: to Python 1, 1.0 and True are the same."""
    return json.dumps(record)


def _copies(folder: RunFolder, events: Sequence[Mapping[str, Any]]) -> dict[Path, Copy]:
    """File of a cell -> what the log knows of it."""
    found: dict[Path, Copy] = {}
    for number, event in enumerate(events, start=1):
        kind, name, record = event["event"], event.get("cell"), event.get("record")
        if kind not in (PREPARED, PROFILED, DISCARDED) or not isinstance(name, str) or not is_name(name):
            continue
        files = folder.cell(name)
        if kind == DISCARDED:
            gone = [path for path in (files.prepare, files.profile) if path in found]
            found |= {path: replace(found[path], is_gone=True) for path in gone}
        elif isinstance(record, dict) and (kind == PROFILED or misfit(record, PREPARE) is None):
            path = _place(files, kind)
            found[path] = Copy(record, _before(found.get(path)), is_last=number == len(events))
    return found


def _before(copy: Copy | None) -> tuple[Mapping[str, Any], ...]:
    """What a file held before the log's next copy; nothing of what was thrown away in between."""
    return () if copy is None or copy.is_gone else (*copy.before, copy.record)


def _place(files: CellFolder, kind: str) -> Path:
    return files.prepare if kind == PREPARED else files.profile


def _copied(kind: str, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {"time": utc_now(), "event": kind, "cell": name, "record": record}


def _not_logged(folder: RunFolder, copies: Mapping[Path, Copy]) -> Iterator[dict[str, Any]]:
    """Events for the whole files that the log does not have: its end was lost, or it had no copies yet."""
    for root in sorted(folder.root.glob("cells/*")):
        if not root.is_dir() or not is_name(root.name):
            continue
        for kind, shape in ((PREPARED, PREPARE), (PROFILED, {})):
            path = _place(folder.cell(root.name), kind)
            record = _readable(path, shape)
            is_logged = path in copies and _state(path, copies[path]) != "newer"
            if record is not None and not is_logged:
                yield _copied(kind, root.name, record)


def _with_cells_of(event: Mapping[str, Any], plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plan with those cells of a command that it does not have."""
    known = plan.get("cells")
    if event["event"] != "begin" or not isinstance(known, list):
        return plan
    names = {_name(cell) for cell in known}
    lists = [config.get("cells") for config in manifestlog.configs_of([event.get("manifest")])]
    fresh = [cell for each in lists if isinstance(each, list) for cell in each if _name(cell) not in names]
    return {**plan, "cells": [*known, *fresh]} if fresh else plan


def _name(cell: Any) -> str:
    """What a cell's id is made of."""
    told = cell if isinstance(cell, dict) else {}
    label = told.get("label", told.get("method"))
    return _text({"label": label, **{key: told.get(key) for key in ("w_bits", "a_bits", "seed")}})


def _events(folder: RunFolder, leave_out: Sequence[bytes] = _LONG) -> Iterator[dict[str, Any]]:
    """Of the log's lines those that tell something here and are whole; one that is damaged is passed over.

    So is a last one without its end, which the next append takes away.
    """
    try:
        file = folder.events.path.open("rb")
    except OSError:
        return
    with file:
        for line in iter(partial(file.readline, _LONGEST), b""):
            if any(kind in line[:_HEAD] for kind in leave_out) or is_sound(line) is False:
                continue
            if not line.endswith(b"\n"):
                continue
            try:
                event = parse_json(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str) and can_be_written(event):
                event.pop(KEY, None)
                yield event
