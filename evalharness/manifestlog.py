"""The manifest's entries as the run's log has them: ``begin`` what an entry had then, ``finished`` its end.

A folder that is older than this, or whose log was lost, has entries that the file alone knows; they stay.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal

from evalharness.cells import GIVEN
from evalharness.errors import UserError
from evalharness.linesums import KEY
from evalharness.runfolder import RunFolder
from evalharness.store import can_be_written, read_json, read_record

__all__ = ["State", "configs_of", "held_against", "identity_of", "known_entries"]

State = Literal["whole", "behind", "lost", "older", "newer"]
"""Of a file beside its copy in the log. ``behind``: as it was before the log's last line, since a kill came
between the two writes; ``newer``: as it was written, and the log never had it."""
Entry = dict[str, Any]
_CLOSING = ("finished", "plugins")
"""What an entry gets in the end."""


def held_against(folder: RunFolder, events: Sequence[Mapping[str, Any]]) -> tuple[State, Entry | None]:
    """How the file is, and what it should hold; None if nobody knows."""
    own = _entries(_read(folder))
    if not own:
        told = _logged(events)
        begun = [_begun(entry) for entry in told]  # not by their seconds: two commands may share one
        published = _entries(_published(folder))
        known = [entry for entry in published if _begun(entry) not in begun] + told
        known = _joined(_entries(_read(folder, read_json)), known)  # the log may not have all
        is_first = len(told) == 1 and not published and _is_last(events) and not folder.manifest.exists()
        return "behind" if is_first else "lost", _manifest(known)
    should = _joined(own, _logged(events))
    if _same(own, should):
        return "whole", None
    is_behind = _is_last(events) and _same(own, _joined(own, _logged(events[:-1])))
    return "behind" if is_behind else "older", _manifest(should)


def known_entries(folder: RunFolder) -> list[Entry]:
    """Those of the manifest, or, where it is lost, of the last results."""
    return _entries(_read(folder)) or _entries(_published(folder))


def identity_of(entries: Iterable[Any]) -> Entry | None:
    """Of a folder from before the log had plans: what the first command's entry says.

    A later entry may be of a command that scored with other versions, which is not what the folder is made
    with; and of videos made elsewhere the manifest has no identity at all.
    """
    from evalharness.plan import COMMAND_ONLY

    configs = configs_of(entries)
    if not configs or configs[0].get("model_fingerprint") in (None, GIVEN):
        return None
    return {key: value for key, value in configs[0].items() if key not in COMMAND_ONLY}


def configs_of(entries: Iterable[Any]) -> list[Entry]:
    """The resolved options of each entry of a manifest that has some."""
    found = [entry.get("config") for entry in entries if isinstance(entry, dict)]
    return [config for config in found if isinstance(config, dict)]


def _logged(events: Sequence[Mapping[str, Any]]) -> list[Entry]:
    entries: list[Entry] = []
    for event in events:
        if event["event"] == "begin" and isinstance(event.get("manifest"), dict):
            entries.append(dict(event["manifest"]))
        elif event["event"] == "finished" and entries and _is_of(event, entries[-1]):
            entries[-1] |= {key: event[key] for key in _CLOSING if key in event}
    return entries


def _is_of(event: Mapping[str, Any], entry: Entry) -> bool:
    """Not where the line that began the command is damaged: the last entry is another's then.

    That one has ended already, or began in another second; two commands may share one.
    """
    same_second = event.get("started", entry.get("started")) == entry.get("started")
    return bool(same_second and entry.get("finished") is None)


def _is_last(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the file's own line is the last, so that the file may not have been written yet."""
    return bool(events) and events[-1]["event"] in ("begin", "finished")


def _joined(own: Sequence[Entry], told: Sequence[Entry]) -> list[Entry]:
    """The file's entries with those that the log has in their places, as the log has them."""
    joined: list[Entry] = []
    texts, others = ([json.dumps(_begun(entry)) for entry in entries] for entries in (own, told))
    for kind, first, last, begin, end in SequenceMatcher(None, texts, others, autojunk=False).get_opcodes():
        if kind == "equal":
            pairs = zip(own[first:last], told[begin:end], strict=True)
            joined += [ours if theirs.get("finished") is None else theirs for ours, theirs in pairs]
        else:
            joined += _replaced(own[first:last], told[begin:end])
    return joined


def _replaced(own: Sequence[Entry], told: Sequence[Entry]) -> list[Entry]:
    """Entries of the file that the log does not have like that, with the log's in place of them.

    Each takes the place of one of the same second, or of the last; more of the file's than of the log's are
    there where the log's line is damaged too: the rest stays.
    """
    kept = list(own)
    free = set(range(len(own)))
    late: list[Entry] = []
    for entry in told:
        same = [number for number in sorted(free) if own[number].get("started") == entry.get("started")]
        if same:
            kept[same[0]] = entry
            free.discard(same[0])
        else:
            late.append(entry)
    last = sorted(free)[-len(late) :] if late else []
    for number, entry in zip(last, late, strict=False):
        kept[number] = entry
    return kept + late[len(last) :]


def _same(own: Sequence[Entry], should: Sequence[Entry]) -> bool:
    return json.dumps(own) == json.dumps(should)


def _manifest(entries: Sequence[Entry]) -> Entry | None:
    return {**entries[-1], "history": list(entries[:-1])} if entries else None


def _begun(entry: Mapping[str, Any]) -> Entry:
    """What an entry had when its command began."""
    return {key: value for key, value in entry.items() if key not in _CLOSING}


def _entries(manifest: Mapping[str, Any] | None) -> list[Entry]:
    """A manifest's entries, the oldest first."""
    if manifest is None:
        return []
    history = manifest.get("history")
    before = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    whole = [*before, {key: value for key, value in manifest.items() if key != "history"}]
    return [{key: value for key, value in entry.items() if key != KEY} for entry in whole]


def _read(folder: RunFolder, read: Callable[[Path], Entry | None] = read_record) -> Entry | None:
    """The manifest; with ``read_json`` also what can be read of one that is not as it was written."""
    try:
        manifest = read(folder.manifest)
    except UserError:
        return None
    return manifest if manifest is None or can_be_written(manifest) else None


def _published(folder: RunFolder) -> Entry | None:
    from evalharness.results import read_results

    try:
        return dict(read_results(folder.results).manifest) if folder.results.is_file() else None
    except UserError:
        return None
