"""What a command does first in a run folder: mend what is lost or damaged, and say what cannot be mended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evalharness.errors import UserError
from evalharness.records import read_prepare
from evalharness.runfolder import CellFolder, RunFolder, utc_now
from evalharness.runlog import TRAINED, damage_line, logged, mend
from evalharness.store import JsonLines, atomic_write_text
from evalharness.trainlog import copy_of, damage, is_whole

if TYPE_CHECKING:
    from evalharness.console import Console

__all__ = ["recover"]

DAMAGED = "damaged"
_SHOWN = 5


def recover(folder: RunFolder, console: Console) -> None:
    """Small files are written anew from the run's log, and damaged lines of records dropped.

    Only for the holder of the folder's lock.
    """
    mend(folder, console)
    _look_at_log(folder, console)
    for files in _cells(folder):
        for records in (files.samples, files.scores):
            _drop_damaged(folder, records, console)
        _mend_train_log(folder, files, console)


def _look_at_log(folder: RunFolder, console: Console) -> None:
    """The log keeps its damaged lines, which are passed over; each is told of once."""
    if damaged := folder.events.damaged():
        told = [event for event in logged(folder, DAMAGED) if event.get("file") == folder.events.path.name]
        lists = [event.get("lines") for event in told]
        known = {
            number for each in lists if isinstance(each, list) for number in each if isinstance(number, int)
        }
        if fresh := [number for number in damaged if number not in known]:
            _tell(folder, folder.events, fresh)
            console.warn(f"events.jsonl: {_listed(fresh)}; passed over")


def _drop_damaged(folder: RunFolder, records: JsonLines, console: Console) -> None:
    if damaged := records.damaged():
        _tell(folder, records, damaged)
        records.drop_damaged()
        name = records.path.relative_to(folder.root).as_posix()
        console.warn(f"{name}: {_listed(damaged)}; dropped, what was said there is made again")


def _tell(folder: RunFolder, records: JsonLines, lines: list[int]) -> None:
    name = records.path.relative_to(folder.root).as_posix()
    folder.events.append([{"time": utc_now(), "event": DAMAGED, "file": name, "lines": lines}])


def _listed(lines: list[int]) -> str:
    shown = ", ".join(str(line) for line in lines[:_SHOWN])
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"line{'' if len(lines) == 1 else 's'} {shown}{more} not as written"


def _mend_train_log(folder: RunFolder, files: CellFolder, console: Console) -> None:
    record = _prepared(files)
    if record is None or is_whole(files, record) or (problem := damage(files, record)) is None:
        return
    name = files.root.relative_to(folder.root).as_posix()
    copies = (event.get("log") for event in logged(folder, TRAINED) if event.get("cell") == files.root.name)
    text = copy_of(record, copies)
    if text is None:
        console.warn(f"{name}: {problem}, and there is no copy; its curves show what is left")
    else:
        atomic_write_text(files.train_log, text)
        console.warn(damage_line(f"{name}/train.jsonl", "lost", folder.events.path.name))


def _prepared(files: CellFolder) -> dict[str, Any] | None:
    try:
        return read_prepare(files)
    except UserError:  # said so by whoever needs it
        return None


def _cells(folder: RunFolder) -> list[CellFolder]:
    return [folder.cell(path.name) for path in sorted(folder.root.glob("cells/*")) if path.is_dir()]
