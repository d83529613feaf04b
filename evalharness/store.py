"""Files that survive a crash: atomic writes and append-only JSON lines.

A file written here is either whole or absent. A record appended here is on the disk when the
call returns, and a record cut short by a crash is dropped by the next reader.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evalharness.errors import StorageError, UserError, named
from evalharness.linesums import KEY, is_sound, sum_of, summed

__all__ = [
    "TEMP_PREFIX",
    "JsonLines",
    "atomic_write_blocks",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_pieces",
    "atomic_write_text",
    "can_be_written",
    "parse_json",
    "read_json",
    "read_record",
    "remove_temporaries",
    "replace_folder",
    "temporary_folder",
    "write_record",
]

TEMP_PREFIX = ".tmp-"
BLOCK = 1 << 20
_DECODE = json.JSONDecoder().raw_decode


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one, never a part.

    Raises:
        OSError: disk full, no permission; the old file is then untouched.
    """
    _write(path, [data])


def atomic_write_blocks(path: Path, blocks: Iterable[bytes]) -> None:
    """``atomic_write_bytes`` of data that comes in blocks and is never whole in memory.

    Raises:
        OSError: as ``atomic_write_bytes``; whatever the iterator raises. The old file is then untouched.
    """
    _write(path, blocks)


def atomic_write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """``atomic_write_text`` of a text that comes in pieces and is never whole in memory.

    Raises:
        OSError: as ``atomic_write_bytes``; whatever the iterator raises. The old file is then untouched.
    """
    _write(path, _blocks(pieces))


def _write(path: Path, blocks: Iterable[bytes]) -> None:
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe is written to, not replaced
        with path.open("wb") as file:
            file.writelines(blocks)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=path.parent)
    temp = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        temp.chmod(0o666 & ~_umask())
        temp.replace(path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def _blocks(pieces: Iterable[str]) -> Iterator[bytes]:
    """The pieces as UTF-8, put together until there is something to write."""
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= BLOCK:
            yield "".join(held).encode("utf-8")
            held, size = [], 0
    yield "".join(held).encode("utf-8")


def atomic_write_text(path: Path, data: str) -> None:
    """``atomic_write_bytes`` for text, as UTF-8 with the line ends as given."""
    atomic_write_bytes(path, data.encode("utf-8"))


def atomic_write_json(path: Path, value: Any) -> None:
    """``atomic_write_text`` of indented JSON, keys in the order given. NaN is refused."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """``atomic_write_json`` with a checksum as the last key, for ``read_record``."""
    atomic_write_json(path, {**record, KEY: sum_of(record)})


def can_be_written(record: Mapping[str, Any]) -> bool:
    """Whether what was read is JSON that can be written again: no NaN, no half a character, not too deep."""
    try:
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def parse_json(text: str | bytes) -> Any:
    """``json.loads`` whose every failure is a ValueError, also of a file that is nested without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from ``path``, or None when there is no such file.

    Raises:
        UserError: the file is not a JSON object.
    """
    try:
        with named(path):
            value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it to have it made again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; delete it to have it made again")
    return value


def read_record(path: Path) -> dict[str, Any] | None:
    """As ``read_json``, of a file that ``write_record`` wrote, or an older version without a sum.

    Raises:
        UserError: the file is not a JSON object, or not as it was written.
    """
    record = read_json(path)
    if record is None or KEY not in record:
        return record
    told = record.pop(KEY)
    if not can_be_written(record) or told != sum_of(record):
        raise UserError(
            f"{path}: not as it was written, by its checksum; delete it to have it made again, or its "
            f"{KEY!r} to have it read as it is"
        )
    return record


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A fresh folder inside ``parent``; removed afterwards unless it was moved away."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=parent))
    folder.chmod(0o777 & ~_umask())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(new: Path, target: Path) -> None:
    """Put folder ``new`` at ``target`` in place of what is there.

    A crash in between can leave no ``target``, never a mixture; the caller's record of the
    folder's hash, written afterwards, says whether it is whole.
    """
    for path in new.rglob("*"):
        if path.is_file():
            _fsync_file(path)
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=target.parent))
        target.replace(old / "old")
        new.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.replace(target)
    _fsync_folder(target.parent)


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed writer left behind. Only for the holder of the folder's lock."""
    for path in sorted(folder.rglob(TEMP_PREFIX + "*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class JsonLines:
    """An append-only file of JSON objects, one a line, each on the disk before ``append`` returns.

    Args:
        path: of the file.
        sums: whether new lines get a checksum (``evalharness.linesums``), which is held against them when
            they are read; records have no key of that name.
    """

    def __init__(self, path: Path, *, sums: bool = False) -> None:
        self.path = Path(path)
        self._sums = sums

    def read(self) -> list[dict[str, Any]]:
        """All whole records; a last line that a crash cut short is left out.

        Raises:
            UserError: a line that is not the last is not a JSON object, or not as it was written.
        """
        return [record for _, record in self.each()]

    def each(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """As ``read``, one by one, each with the place of its first byte, for ``at``.

        Raises:
            UserError: as ``read``, when that line is reached.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with named(self.path), file:
            place = number = 0
            for line in file:
                if not line.endswith(b"\n"):
                    return
                for part in line.splitlines(keepends=True) if b"\r" in line else (line,):
                    number += 1
                    yield place, self._parse(part, number)
                    place += len(part)

    def at(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The records that begin there, in the order given."""
        with self.path.open("rb") as file:
            for place in places:
                file.seek(place)
                yield self._parse(file.readline(), 0)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records in one write and wait until the disk has them.

        A cut-short last line is removed first, so that it never becomes a corrupt middle one.
        """
        text = "".join(map(self._line, records))
        if not text:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with named(self.path), self.path.open("ab") as file:
            if not self._ends_whole():
                file.truncate(self._whole_bytes())
            start = file.seek(0, os.SEEK_END)
            try:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(start)
                raise

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace the whole file atomically."""
        atomic_write_pieces(self.path, map(self._line, records))

    def drop_damaged(self) -> list[int]:
        """Take out, in one atomic write, the lines that are not as they were written; their numbers.

        In a file without a single sum nothing is taken out: ``each`` refuses what is no JSON there.
        """
        damaged = self.damaged()
        if damaged:
            lost = set(damaged)
            with self.path.open("rb") as file:
                kept = (line for number, line in enumerate(file, start=1) if number not in lost)
                atomic_write_blocks(self.path, kept)
        return damaged

    def damaged(self) -> list[int]:
        """Numbers of the lines that ``drop_damaged`` takes out; a last one that was cut is none of them."""
        found, has_sums = [], False
        with contextlib.suppress(FileNotFoundError), named(self.path), self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                sound = is_sound(line)
                has_sums = has_sums or sound is not None
                if sound is False or (sound is None and line.endswith(b"\n") and not _is_record(line)):
                    found.append(number)
        return found if has_sums else []

    def _line(self, record: Mapping[str, Any]) -> str:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        if self._sums:
            assert KEY not in record, "the name of the sum"
            text = summed(text)
        return text + "\n"

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _whole_bytes(self) -> int:
        """What the whole records fill; each is looked at, so that nothing is added to a damaged file.

        Not where lines have sums: damage is found by these, and a run's log goes on whatever happened to it.
        """
        if not self._sums:
            for _ in self.each():
                pass
        data = self.path.read_bytes()
        return data.rfind(b"\n") + 1

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        if self._sums and is_sound(line) is False:
            raise StorageError(
                f"{self.path}: line {number} is not as it was written, by its checksum; "
                "`evalharness run` drops that line, and does its work again"
            )
        try:
            text = line.decode()
            record, end = _DECODE(text)  # a third of the time of one that looks for spaces around it
            if text[end:] != "\n":
                record = _decoded(line)
        except (ValueError, RecursionError):
            record = _decoded(line)
        if not isinstance(record, dict):
            raise StorageError(
                f"{self.path}: line {number} is not a JSON record; remove that line "
                "(its work is then done again) or restore the file"
            )
        if self._sums:
            record.pop(KEY, None)
        return record


def _is_record(line: bytes) -> bool:
    return isinstance(_decoded(line), dict)


def _decoded(line: bytes) -> Any:
    """In any encoding that JSON may have; None for what is no JSON."""
    try:
        return parse_json(line)
    except ValueError:
        return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
