"""Downloads one of VBench's files: resumed where it was cut off, checked, and only then put in place."""

from __future__ import annotations

import io
import os
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import IO

from evalharness.hashing import file_sha256
from evalharness.upstream.files import CacheFile

__all__ = ["download"]

CHUNK = 1 << 20
TIMEOUT = 60.0
_RANGE_REFUSED = 416
_PARTIAL = 206


def download(file: CacheFile, target: Path) -> str | None:
    """Get ``file`` to ``target``; what is half there, in ``target`` with ``.part`` added, is gone on with.

    Returns:
        What went wrong, on one line; None when the file is there and, where its hash is known, whole.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(file.url, part)
    except (OSError, ValueError) as error:
        return f"failed ({error}); the same command goes on from {_size(part)} bytes"
    try:
        if file.url.endswith(".zip"):
            _take_out(part, target.name)
    except (zipfile.BadZipFile, KeyError) as error:
        part.unlink()
        return f"failed: not the archive that was expected ({error})"
    sha256 = file_sha256(part)
    if not sha256.startswith(file.sha256):
        part.unlink()
        return f"refused: sha256 {sha256}, but the published file has {file.sha256}"
    part.replace(target)
    return None


def _fetch(url: str, part: Path) -> None:
    """Append what is missing; a server that cannot resume sends all again.

    Raises:
        OSError: no answer, an error, or fewer bytes than were announced.
    """
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url}: not a web address")
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            resumed = answer.status == _PARTIAL
            announced = answer.headers.get("Content-Length")
            with part.open("ab" if resumed else "wb") as file:
                got = _copy(answer, file)
                file.flush()
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        if error.code != _RANGE_REFUSED or not start:
            raise
        return  # nothing is missing; the hash tells if that is so
    if announced is not None and got < int(announced):
        raise OSError(f"cut off after {got} of {announced} bytes")


def _copy(source: IO[bytes], target: IO[bytes]) -> int:
    got = 0
    while chunk := source.read(CHUNK):
        target.write(chunk)
        got += len(chunk)
    return got


def _take_out(archive: Path, name: str) -> None:
    """Put the archive's member of that name in its place."""
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as file:
        [member] = [entry for entry in file.namelist() if Path(entry).name == name] or [name]
        data = file.read(member)
    archive.write_bytes(data)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
