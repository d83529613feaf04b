"""Hashes of large files, remembered while the files do not change: a cache of 10 GB is not read twice."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from evalharness.hashing import file_sha256
from evalharness.store import atomic_write_json, read_json

__all__ = ["remembered_sha256"]


def remembered_sha256(path: Path, memory: Path) -> str:
    """Hex SHA-256 of ``path``; read again only if its size, time of change or place on the disk differ.

    Args:
        path: an existing file.
        memory: JSON file of what was read before; made if absent. A memory that cannot be written, or
            is no JSON, costs a reading and nothing else.
    """
    found = path.stat()
    mark = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    known = _read(memory)
    entry = known.get(str(path.resolve()))
    if isinstance(entry, dict) and entry.get("mark") == mark:
        return str(entry["sha256"])
    sha256 = file_sha256(path)
    with contextlib.suppress(OSError):
        atomic_write_json(memory, {**known, str(path.resolve()): {"mark": mark, "sha256": sha256}})
    return sha256


def _read(memory: Path) -> dict[str, Any]:
    try:
        return read_json(memory) or {}
    except ValueError:
        return {}
