"""Which videos of a folder are which of a protocol: by VBench's names, by sample ids, or by a manifest."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from evalharness.api import Sample
from evalharness.errors import UserError
from evalharness.interchange.names import split_stem
from evalharness.store import parse_json

__all__ = ["SUFFIXES", "Found", "by_manifest", "by_name"]

SUFFIXES = (".mp4", ".gif", ".avi", ".mov", ".mkv", ".webm")
_SHOWN = 3
_MANIFEST_BYTES = 64 << 20
_DIGITS = 9  # of a sample's number; Python refuses to convert thousands


@dataclass(slots=True)
class Found:
    """What was recognised.

    Attributes:
        files: sample id -> file.
        extra: names that belong to no video of the protocol.
        doubled: names of second files for a video that has one.
        absent: names that the manifest gives and the folder lacks.
        missing: ids of the samples without a file.
    """

    files: dict[str, Path] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """One line for each kind of trouble."""
        total = len(self.files) + len(self.missing)
        return [
            f"{what.format(count=len(names), total=total)}: {_some(names)}"
            for what, names in (
                ("{count} of {total} videos are missing", self.missing),
                ("{count} files that the manifest names are not there", self.absent),
                ("{count} files belong to no video of the protocol and are left out", self.extra),
                ("{count} files are left out, as their video has another file", self.doubled),
            )
            if names
        ]


def by_name(folder: Path, samples: Sequence[Sample]) -> Found:
    """Read ``{prompt}-{number}`` or ``{sample id}`` from the names of the files directly in ``folder``.

    A prompt that the protocol has twice takes the same file twice, as VBench does. Links are followed:
    ``export`` makes such folders.

    Raises:
        UserError: the folder cannot be read.
    """
    wanted: dict[tuple[str, int] | str, list[str]] = {}
    for sample in samples:
        wanted[sample.id] = [sample.id]
        wanted.setdefault((sample.prompt.text, sample.index), []).append(sample.id)
    found = Found()
    for path in _videos(folder):
        key = path.stem if path.stem in wanted else split_stem(path.stem)
        ids = wanted.get(key, []) if key is not None else []
        _take(found, path.name, path, ids)
    return _finish(found, samples)


def by_manifest(
    folder: Path, manifest: Path, samples: Sequence[Sample], *, follow_links: bool = False
) -> Found:
    """Read which file is which from a table in CSV or JSON.

    Columns (CSV) or keys (JSON: a list of objects, or ``{"videos": [...]}``): ``file``, relative to
    ``folder``; ``sample``, the number from 0 (0 by default); and ``prompt_id`` or ``prompt``. A link in the
    folder that leads out of it is somebody else's word on which of the user's files are shown, so it is
    followed only with ``follow_links``.

    Raises:
        UserError: the table cannot be read, a row lacks something, or a file lies outside of ``folder``, also
            by a link.
    """
    inside = folder.resolve()
    by_id = {(sample.prompt.id, sample.index): sample.id for sample in samples}
    by_text: dict[tuple[str, int], list[str]] = {}
    for sample in samples:
        by_text.setdefault((sample.prompt.text, sample.index), []).append(sample.id)
    found = Found()
    for number, row in enumerate(_rows(manifest), start=1):
        name, index = _file_and_number(manifest, number, row)
        if row.get("prompt_id"):
            sample_id = by_id.get((str(row["prompt_id"]), index))
            ids = [] if sample_id is None else [sample_id]
        else:
            ids = by_text.get((str(row["prompt"]), index), [])
        path = folder / name
        if not _is_there(path):
            found.absent.append(name)
        elif not follow_links and not path.resolve().is_relative_to(inside):
            raise UserError(
                f"{manifest}: video {number}: file {name!r} is a link to outside of the folder; copy the "
                "video there, or add --follow-links if the links are your own"
            )
        else:
            _take(found, name, path, ids)
    return _finish(found, samples)


def _is_there(path: Path) -> bool:
    """Whether it is a file; a name that no file system takes is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _videos(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; expected a folder of videos") from error


def _take(found: Found, name: str, path: Path, ids: Iterable[str]) -> None:
    ids = list(ids)
    free = [sample_id for sample_id in ids if sample_id not in found.files]
    if not ids:
        found.extra.append(name)
    elif not free:
        found.doubled.append(name)
    found.files |= dict.fromkeys(free, path)


def _finish(found: Found, samples: Sequence[Sample]) -> Found:
    found.missing = [sample.id for sample in samples if sample.id not in found.files]
    return found


def _rows(manifest: Path) -> list[Mapping[str, Any]]:
    try:
        if manifest.stat().st_size > _MANIFEST_BYTES:
            raise UserError(f"{manifest}: larger than {_MANIFEST_BYTES >> 20} MiB; that is no manifest")
        text = manifest.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{manifest}: cannot be read ({error})") from error
    if manifest.suffix.lower() == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"{manifest}: neither .csv nor JSON ({error})") from error
    rows = value.get("videos") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f'{manifest}: expected a list of objects, or {{"videos": [...]}}')
    return rows


def _file_and_number(manifest: Path, number: int, row: Mapping[str, Any]) -> tuple[str, int]:
    where = f"{manifest}: video {number}"
    name = row.get("file")
    if not isinstance(name, str) or not name or not (row.get("prompt_id") or row.get("prompt")):
        raise UserError(f"{where}: expected file, and prompt_id or prompt (and sample), got {dict(row)}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\x00" in name:
        raise UserError(f"{where}: file {name!r} lies outside of the folder")
    text = str(row.get("sample") or 0)
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise UserError(f"{where}: sample {text[:40]!r}: expected a whole number from 0")
    return name, int(text)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
