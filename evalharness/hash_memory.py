"""Hashes of files, remembered while the files do not change: nothing is read twice to say so.

A file counts as unchanged while its size, its place on the disk and both of its times (the second is the
system's own: a program cannot set it back) are as they were.

The memory is a file of records of equal length in the order of their keys, 80 bytes each, so that 100,000 of
them are read at once, found by halving, and are never 100,000 objects.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
from array import array
from bisect import bisect_left
from pathlib import Path

from evalharness.hashing import file_sha256
from evalharness.store import atomic_write_bytes

__all__ = ["HashMemory"]

# A clock's tick is milliseconds: a file written just now may change again without its time changing.
SETTLED_NS = 2_000_000_000

_MAGIC = b"evalharness hashes of files 1\n\0\0"
_MARK = struct.Struct("<QqqQ")  # size, both times, place on the disk
_KEY, _RECORD = 16, 16 + 32 + 32
_64 = (1 << 64) - 1


class HashMemory:
    """What ``file_sha256`` said of files.

    Args:
        path: file to keep it in. One that cannot be read or written costs readings, nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._root = str(path.absolute().parent) + os.sep
        self._here = str(Path.cwd()) + os.sep
        self._fresh = bytearray()
        self._known = memoryview(_read(path))
        # The first half of each key, to search in; the whole is compared where that is found.
        self._starts = array("Q", (n for (n,) in struct.iter_unpack(f">Q{_RECORD - 8}x", self._known)))

    def sha256(self, path: Path | str) -> str:
        """Hex SHA-256 of the file; it is read only where it is new or changed.

        Raises:
            OSError: it cannot be read.
        """
        found = os.stat(path)  # noqa: PTH116 - 100,000 paths as text take a third of the time
        mark = _MARK.pack(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & _64)
        key = self._key(os.fspath(path))
        known = self._find(key)
        if known is not None and known[:32] == mark:
            return bytes(known[32:]).hex()
        sha256 = file_sha256(path)
        if time.time_ns() - max(found.st_ctime_ns, found.st_mtime_ns) > SETTLED_NS:
            self._fresh += key + mark + bytes.fromhex(sha256)
        return sha256

    def _find(self, key: bytes) -> memoryview | None:
        """Mark and hash of a file; None for one that is not known."""
        start = int.from_bytes(key[:8], "big")
        place = bisect_left(self._starts, start)
        while place < len(self._starts) and self._starts[place] == start:
            record = self._known[place * _RECORD : (place + 1) * _RECORD]
            if record[:_KEY] == key:
                return record[_KEY:]
            place += 1
        return None

    def _key(self, path: str) -> bytes:
        """Of the path within the memory's own folder, so that a folder may move. It tells nobody the name."""
        absolute = path if path.startswith(os.sep) else self._here + path
        within = absolute[len(self._root) :] if absolute.startswith(self._root) else absolute
        return hashlib.blake2b(os.fsencode(within), digest_size=_KEY).digest()

    def save(self) -> None:
        """Write what is new."""
        if self._fresh:
            with contextlib.suppress(OSError):
                atomic_write_bytes(self._path, _MAGIC + _merged(self._known, bytes(self._fresh)))
            self._fresh.clear()


def _read(path: Path) -> bytes:
    """The records of a memory; none of one that is not there or not whole."""
    with contextlib.suppress(OSError):
        data = path.read_bytes()
        if data.startswith(_MAGIC) and (len(data) - len(_MAGIC)) % _RECORD == 0:
            return data[len(_MAGIC) :]
    return b""


def _merged(known: memoryview, fresh: bytes) -> bytes:
    """All records by key; of two of one file the later one."""
    import numpy as np

    records = np.frombuffer(known.tobytes() + fresh, np.uint8).reshape(-1, _RECORD)
    keys = np.ascontiguousarray(records[:, :_KEY]).view(">u8")
    order = np.lexsort((np.arange(len(records)), keys[:, 1], keys[:, 0]))
    is_last = np.append((keys[order][1:] != keys[order][:-1]).any(axis=1), True)
    return bytes(records[order[is_last]].tobytes())
