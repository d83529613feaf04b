"""``manifest.json`` of a folder of encoded clips. No torch.

Its ``sha256`` is the training data's: of the model's weights, how clips were encoded, every shard and the
empty caption (which folders from before it was counted in still have apart).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from evalharness.errors import UserError
from evalharness.store import read_json

__all__ = ["MANIFEST", "read_manifest"]

MANIFEST = "manifest.json"
_SHARD = {"file": str, "bucket": str, "sha256": str, "clips": list}
_EMPTY = {"file": str, "sha256": str}
_KEYS = {"schema_version": int, "sha256": str, "model_fingerprint": str, "shards": list, "clips": int}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder.

    Raises:
        UserError: there is none, or it is damaged; says what to do.
    """
    try:
        record = read_json(folder / MANIFEST)
    except OSError as error:
        raise UserError(f"--data {folder}: cannot be read ({error.strerror})") from error
    if record is None:
        raise UserError(
            f"--data {folder}: no encoded clips (it has no {MANIFEST}); make them with: evalharness data, "
            "and if that was interrupted, with the same command again"
        )
    if not _fits(record, _KEYS) or record["schema_version"] != 1:
        raise UserError(f"--data {folder}: {MANIFEST} is damaged or of another version; encode again")
    empty = record.get("empty_caption")
    files = [*record["shards"], *([] if empty is None else [empty])]
    kinds = [_SHARD] * len(record["shards"]) + [_EMPTY]
    for entry, kind in zip(files, kinds, strict=False):
        if not _fits(entry, kind) or not _is_inside(entry["file"]):
            raise UserError(
                f"--data {folder}: {MANIFEST} names {str(entry)[:200]}, no file here; encode again"
            )
    return record


def _fits(entry: object, kinds: Mapping[str, type]) -> bool:
    if not isinstance(entry, Mapping):
        return False
    values = {key: entry.get(key) for key in kinds}
    return all(isinstance(values[key], kind) and values[key] is not True for key, kind in kinds.items())


def _is_inside(name: str) -> bool:
    """Whether it is a path below the folder, for every system."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and not set(name) & set("\\:\0")
    )
