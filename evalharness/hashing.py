"""Content hashes. A stage's output carries one over everything that it depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from evalharness.errors import named

__all__ = ["digest", "file_sha256", "jsonable", "plain_digest", "tree_sha256"]

_CHUNK = 1 << 20
_PLAIN = (str, int, float, bool)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


def jsonable(value: Any) -> Any:
    """Turn dataclasses, enums, paths, tuples and sets into plain JSON values.

    Raises:
        TypeError: for a value that has no obvious JSON form.
    """
    if value is None or type(value) in _PLAIN:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return jsonable(value.value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(jsonable(item) for item in value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def digest(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    return plain_digest(jsonable(value)).hex()


def plain_digest(value: Any) -> bytes:
    """The bytes of ``digest`` of what is plain JSON already."""
    return hashlib.sha256(_CANONICAL(value).encode()).digest()


def file_sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        OSError: with the file's name, also where it can be opened but not read.
    """
    sha = hashlib.sha256()
    with named(path), open(path, "rb") as file:  # noqa: PTH123 - of 100,000 files a Path takes longer than the reading
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def tree_sha256(folder: Path, pattern: str = "*", *, recursive: bool = True) -> str:
    """Hex SHA-256 over the names and bytes of a folder's files, in name order.

    ``__pycache__`` is left out, so that running code does not change its hash.
    """
    found = folder.rglob(pattern) if recursive else folder.glob(pattern)
    files = sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)
    return digest([(path.relative_to(folder).as_posix(), file_sha256(path)) for path in files])
