"""``train.jsonl``: whether all that a training said of itself is still there.

No score depends on it, so it is not worth training again; but half a curve must not pass for a whole one.

- While a training is under way, each line's CRC-32 is added to ``.train.crc``. One that goes on after a kill
  keeps the lines that its state knows of; where one is gone or changed there is ``LOST`` in its place.
- When it ends, ``prepare.json`` gets the number of lines and their SHA-256, and the run's log a copy of them,
  from which ``evalharness.recovery`` writes a lost or damaged file anew.
- Where no copy is left, each command warns, and so do report and tables.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalharness.errors import named
from evalharness.hashing import file_sha256
from evalharness.records import Shape, misfit
from evalharness.redaction import redact
from evalharness.runfolder import CellFolder
from evalharness.store import atomic_write_text, parse_json

__all__ = [
    "add_line",
    "copied",
    "copy_of",
    "damage",
    "forget",
    "is_whole",
    "read_train_log",
    "rewind",
    "seal",
]

LOST = '{"event": "lost"}\n'
"""Stands where a line was that was gone when its training went on."""
_SEAL: Shape = {"lines": (int,), "sha256": (str,)}
COPY_BYTES = 8 << 20
"""A longer log is not copied into the run's log."""


def add_line(log: Path, record: Mapping[str, Any], *, sums: bool) -> None:
    """Append a record; with ``sums``, its CRC to the file beside, for ``rewind``.

    Texts go without secrets: the log is copied and published. Not fsynced: what a power cut may lose is the
    log of a training that is cut short as well.
    """
    texts = {key: value for key, value in record.items() if isinstance(value, str)}
    line = json.dumps({**record, **redact(texts)}) + "\n"
    with log.open("a", encoding="utf-8") as file:
        file.write(line)
    if sums:
        with _sums(log).open("a", encoding="utf-8") as file:
            file.write(_crc(line) + "\n")


def rewind(log: Path, lines: int) -> int:
    """Keep the first ``lines`` lines, which a resumed training will not write again; how many are lost."""
    kept = _kept(_lines(log), _lines(_sums(log)), lines)
    if kept or log.exists():
        atomic_write_text(log, "".join(kept))
        atomic_write_text(_sums(log), "".join(_crc(line) + "\n" for line in kept))
    return kept.count(LOST)


def forget(log: Path) -> None:
    """Remove the log and its sums, of a training that begins anew or was none."""
    log.unlink(missing_ok=True)
    _sums(log).unlink(missing_ok=True)


def seal(log: Path) -> dict[str, Any] | None:
    """What ``prepare.json`` keeps of the log of a training that has ended; None where there is none."""
    lines, sums = _lines(log), _lines(_sums(log))
    if sums and lines != (kept := _kept(lines, sums, max(len(lines), len(sums)))):
        atomic_write_text(log, "".join(kept))
    _sums(log).unlink(missing_ok=True)
    if not log.is_file():
        return None
    lines = _lines(log)
    return {"lines": len(lines), "sha256": file_sha256(log), "lost": lines.count(LOST)}


def copied(log: Path) -> str | None:
    """The log's text to the byte, as the run's log takes it; None of one that is too long or no text."""
    if log.stat().st_size > COPY_BYTES:
        return None
    try:
        return log.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None


def copy_of(record: Mapping[str, Any], texts: Iterable[object]) -> str | None:
    """That of the texts which is the cell's sealed log, to the byte."""
    wanted = _sealed(record)
    whole = (text for text in texts if isinstance(text, str) and wanted is not None and _is(text, wanted))
    return next(whole, None)


def _is(text: str, wanted: Mapping[str, Any]) -> bool:
    return bool(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() == wanted["sha256"])


def _sealed(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a ``prepare.json`` says of the log; None of one from before it did, or without a log."""
    told = record.get("train_log")
    is_whole = isinstance(told, Mapping) and misfit(told, _SEAL) is None
    return told if is_whole else None


def is_whole(files: CellFolder, record: Mapping[str, Any]) -> bool:
    """Whether the log is the very one that was sealed; not if the disk refuses it, which ``damage`` says."""
    wanted = _sealed(record)
    log = files.train_log
    try:
        return wanted is not None and log.is_file() and file_sha256(log) == wanted["sha256"]
    except OSError:
        return False


def damage(files: CellFolder, record: Mapping[str, Any]) -> str | None:
    """What is wrong with a cell's log, by its ``prepare.json``; None where nothing is, or nobody can tell."""
    return read_train_log(files, record)[1]


def read_train_log(files: CellFolder, record: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    """The records that are left, and what is wrong with the log; never an error."""
    wanted = _sealed(record)
    try:
        lines = _lines(files.train_log)
        is_there = wanted is not None and files.train_log.is_file()
        sha256 = file_sha256(files.train_log) if is_there else None
    except OSError as error:
        return [], f"train.jsonl cannot be read ({error.strerror})"
    parsed = [_record(line) for line in lines if line != LOST]
    records = [record for record in parsed if record is not None]
    if wanted is None or sha256 == wanted["sha256"]:
        return records, _lost(lines.count(LOST), len(parsed) - len(records))
    if not is_there:
        return [], f"train.jsonl is gone ({wanted['lines']} lines were written)"
    if len(lines) != wanted["lines"]:
        return records, f"train.jsonl has {len(lines)} lines where {wanted['lines']} were written"
    return records, "train.jsonl was changed since its training ended"


def _lost(lost: int, broken: int) -> str | None:
    if lost:
        return f"train.jsonl lost {_count(lost)} before the training went on"
    return f"train.jsonl has {_count(broken)} that cannot be read" if broken else None


def _count(lines: int) -> str:
    return f"{lines} line{'' if lines == 1 else 's'}"


def _kept(lines: Sequence[str], sums: Sequence[str], count: int) -> list[str]:
    """The first ``count`` lines as they were written; ``LOST`` for each that is not there any more."""
    there: defaultdict[str, deque[int]] = defaultdict(deque)
    for at, line in enumerate(lines):
        there[_crc(line)].append(at)
    place, kept = 0, []
    for number in range(count):
        if number < len(sums):
            found = _next(there[sums[number].strip()], place)
        else:  # the next whole record
            found = next((at for at in range(place, len(lines)) if _record(lines[at]) is not None), None)
        kept.append(LOST if found is None else lines[found])
        place = place if found is None else found + 1
    return kept


def _next(places: deque[int], least: int) -> int | None:
    while places and places[0] < least:
        places.popleft()
    return places[0] if places else None


def _record(line: str) -> dict[str, Any] | None:
    try:
        value = parse_json(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _crc(line: str) -> str:
    return f"{zlib.crc32(line.encode('utf-8', 'replace')):08x}"


def _sums(log: Path) -> Path:
    return log.with_name(f".{log.stem}.crc")


def _lines(path: Path) -> list[str]:
    """Split at line feeds alone, without the CRs of a copy; what is no text becomes what no record has."""
    if not path.is_file():
        return []
    with named(path):
        text = path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
    return [line for line in re.split("(?<=\n)", text) if line]
