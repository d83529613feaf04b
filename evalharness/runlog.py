"""What a run folder's log gives back when one of its small files is lost or damaged.

``events.jsonl`` is only ever appended to, and beside what happened it has every record that is also written
into a file of its own: with ``begin`` the run's identity and the manifest's entry, which has the cells, with
``finished`` what the entry gets in the end, with ``prepared`` and ``profiled`` a cell's ``prepare.json`` and
``profile.json``. So none of these files is the only one that knows. What they say of weights and videos is
held against these by hashes, wherever it came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness.cells import GIVEN
from evalharness.errors import UserError
from evalharness.linesums import KEY, is_sound
from evalharness.names import is_name
from evalharness.records import PREPARE, Shape, misfit
from evalharness.runfolder import RunFolder
from evalharness.store import atomic_write_json, parse_json, read_json

if TYPE_CHECKING:
    from evalharness.console import Console

__all__ = ["DISCARDED", "LOST", "PREPARED", "PROFILED", "TRAINED", "logged", "logged_plan", "mend"]

PREPARED, PROFILED, DISCARDED, TRAINED = "prepared", "profiled", "discarded", "trained"
_HEAD = 80


def _named(kind: str) -> bytes:
    return f'"event": "{kind}"'.encode()


_LONG = (_named("failure"), _named(TRAINED))
"""Of these there may be one for each of 100,000 videos, or a whole log in a line."""
_LONGEST = 64 << 20
"""Bytes of a line; what is longer comes in pieces, which are no JSON."""
LOST = "was lost or damaged; taken from"


def mend(folder: RunFolder, console: Console) -> None:
    """Write anew the manifest and the cells' records where they are lost and the log has them.

    Only for the holder of the folder's lock.
    """
    events = list(_events(folder))
    if _is_damaged(folder.manifest) and (manifest := _logged_manifest(folder, events)) is not None:
        atomic_write_json(folder.manifest, manifest)
        console.warn(f"{folder.manifest.name} {LOST} {folder.events.path.name}")
    for path, record in _records(folder, events).items():
        if record is not None and _is_damaged(path, PREPARE if path.name == "prepare.json" else None):
            atomic_write_json(path, record)
            console.warn(f"{path.relative_to(folder.root).as_posix()} {LOST} {folder.events.path.name}")


def logged_plan(folder: RunFolder) -> dict[str, Any] | None:
    """Identity and cells by log and manifest, as ``plan.json`` has them; None if neither tells.

    A cell of a later command comes again, and counts as it is there. The manifest may know of cells that the
    log does not: those from before the log had plans, or from before it was lost.
    """
    told = [event for event in _events(folder) if event["event"] == "begin" and "identity" in event]
    entries = _manifest_entries(folder)
    identity = told[0]["identity"] if told else _identity(entries)
    configs = _configs([*entries, *(event.get("manifest") for event in told)])
    if not isinstance(identity, dict):
        return None
    lists = [config.get("cells") for config in configs]
    cells = [cell for each in lists if isinstance(each, list) for cell in each]
    return {"identity": identity, "cells": cells}


def _logged_manifest(folder: RunFolder, events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """All entries that the last results and the log have, the last on top."""
    entries: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == "begin" and isinstance(event.get("manifest"), dict):
            entries.append(dict(event["manifest"]))
        elif event["event"] == "finished" and entries:
            entries[-1] |= {key: event[key] for key in ("finished", "plugins") if key in event}
    begun = [_begun(entry) for entry in entries]  # not by their seconds: two commands may share one
    published = _entries(_published_manifest(folder))
    entries = [entry for entry in published if _begun(entry) not in begun] + entries
    return {**entries[-1], "history": entries[:-1]} if entries else None


def _begun(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry had when its command began."""
    return {key: value for key, value in entry.items() if key not in ("finished", "plugins")}


def _entries(manifest: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A manifest's entries, the oldest first."""
    if manifest is None:
        return []
    history = manifest.get("history")
    before = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    return [*before, {key: value for key, value in manifest.items() if key != "history"}]


def _manifest_entries(folder: RunFolder) -> list[dict[str, Any]]:
    """Those of the manifest, or, where it is lost, of the last results."""
    if _is_damaged(folder.manifest):
        return _entries(_published_manifest(folder))
    return _entries(read_json(folder.manifest))


def _identity(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of a folder from before the log had plans: what the first command's entry says.

    A later entry may be of a command that scored with other versions, which is not what the folder is made
    with; and of videos made elsewhere the manifest has no identity at all.
    """
    from evalharness.plan import COMMAND_ONLY

    configs = _configs(entries)
    if not configs or configs[0].get("model_fingerprint") in (None, GIVEN):
        return None
    return {key: value for key, value in configs[0].items() if key not in COMMAND_ONLY}


def _configs(entries: list[Any]) -> list[dict[str, Any]]:
    """The resolved options of each entry of a manifest that has some."""
    found = [entry.get("config") for entry in entries if isinstance(entry, dict)]
    return [config for config in found if isinstance(config, dict)]


def _published_manifest(folder: RunFolder) -> dict[str, Any] | None:
    from evalharness.results import read_results

    try:
        return dict(read_results(folder.results).manifest) if folder.results.is_file() else None
    except UserError:
        return None


def _records(folder: RunFolder, events: list[dict[str, Any]]) -> Mapping[Path, dict[str, Any] | None]:
    """File -> its last record; None where the harness itself threw it away since."""
    found: dict[Path, dict[str, Any] | None] = {}
    for event in events:
        kind, name, record = event["event"], event.get("cell"), event.get("record")
        if kind not in (PREPARED, PROFILED, DISCARDED) or not isinstance(name, str):
            continue
        if not is_name(name):
            continue
        files = folder.cell(name)
        if kind == DISCARDED:
            found |= {files.prepare: None, files.profile: None}
        elif isinstance(record, dict) and (kind == PROFILED or misfit(record, PREPARE) is None):
            found[files.prepare if kind == PREPARED else files.profile] = record
    return found


def _is_damaged(path: Path, shape: Shape | None = None) -> bool:
    try:
        record = read_json(path)
    except UserError:
        return True
    return record is None or misfit(record, shape or {}) is not None


def logged(folder: RunFolder, kind: str) -> Iterator[dict[str, Any]]:
    """The log's events of one kind, in their order."""
    left_out = [each for each in _LONG if each != _named(kind)]
    return (event for event in _events(folder, left_out) if event["event"] == kind)


def _events(folder: RunFolder, leave_out: Sequence[bytes] = _LONG) -> Iterator[dict[str, Any]]:
    """Of the log's lines those that tell something here and are whole; one that is damaged is passed over."""
    try:
        file = folder.events.path.open("rb")
    except OSError:
        return
    with file:
        for line in iter(partial(file.readline, _LONGEST), b""):
            if any(kind in line[:_HEAD] for kind in leave_out) or is_sound(line) is False:
                continue
            try:
                event = parse_json(line)
                json.dumps(event, ensure_ascii=False, allow_nan=False).encode()
            except (ValueError, RecursionError):  # not JSON, or none that can be written into a file again
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                event.pop(KEY, None)
                yield event
