"""Hashes of large files, remembered while the files do not change: nothing is read twice to say so.

A file counts as unchanged while its size, its place on the disk and both of its times (the second is the
system's own: a program cannot set it back) are as they were.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from evalharness.hashing import file_sha256
from evalharness.store import atomic_write_json, read_json

__all__ = ["HashMemory"]

# A clock's tick is milliseconds: a file written just now may change again without its time changing.
SETTLED_NS = 2_000_000_000


class HashMemory:
    """What ``file_sha256`` said of files.

    Args:
        path: JSON file to keep it in. One that cannot be read or written costs readings, nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False
        try:
            self._known: dict[str, Any] = read_json(path) or {}
        except (ValueError, OSError):
            self._known = {}

    def sha256(self, path: Path) -> str:
        """Hex SHA-256 of the file; it is read only where it is new or changed.

        Raises:
            OSError: it cannot be read.
        """
        found = path.stat()
        mark = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        key = self._key(path)
        entry = self._known.get(key)
        if isinstance(entry, dict) and entry.get("mark") == mark and isinstance(entry.get("sha256"), str):
            return str(entry["sha256"])
        sha256 = file_sha256(path)
        if time.time_ns() - max(found.st_ctime_ns, found.st_mtime_ns) > SETTLED_NS:
            self._known[key] = {"mark": mark, "sha256": sha256}
            self._changed = True
        return sha256

    def _key(self, path: Path) -> str:
        """Relative within the memory's own folder, so that a run folder says nothing of where it lies."""
        absolute, root = path.absolute(), self._path.absolute().parent
        return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)

    def save(self) -> None:
        """Write what is new."""
        if self._changed:
            with contextlib.suppress(OSError):
                atomic_write_json(self._path, self._known)
            self._changed = False
