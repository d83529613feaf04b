"""``manifest.json`` of a folder of encoded clips. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evalharness.errors import UserError
from evalharness.store import read_json

__all__ = ["MANIFEST", "read_manifest"]

MANIFEST = "manifest.json"
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
    wrong = [key for key, kind in _KEYS.items() if not isinstance(record.get(key), kind)]
    if wrong or record["schema_version"] != 1:
        raise UserError(f"--data {folder}: {MANIFEST} is damaged or of another version; encode again")
    return record
