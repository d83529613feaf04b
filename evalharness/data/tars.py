"""Clips in WebDataset shards: plain tar files whose members ``KEY.mp4`` and ``KEY.txt`` belong together.

Nothing is unpacked: names are names, no paths, and a clip is read from its place in the shard. Headers are
read here and not by ``tarfile``, which takes as much memory as a header says. Members of other kinds
(pickles, links, devices) are stepped over, never opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from evalharness.data.suffixes import CAPTION_KEYS, SUFFIXES
from evalharness.errors import UserError

__all__ = ["Found", "clips_of"]

_BLOCK = 512
_NAME_LIMIT = 1 << 16  # bytes of an extended header
_CAPTION_LIMIT = 1 << 16
_DIGITS = 19  # of a number that is read; Python refuses to convert thousands
_REGULAR = (b"0", b"\0")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstandard"}


@dataclass(frozen=True, slots=True)
class Found:
    """A video within a shard: its name there, where its bytes are, and its caption."""

    name: str
    offset: int
    size: int
    caption: str


@dataclass(slots=True)
class _Member:
    name: str
    offset: int
    size: int


def clips_of(shard: Path) -> Iterator[Found]:
    """The videos of a shard in its order.

    Members of one key follow each other, as WebDataset has it; the key ends at the first dot of a file's
    name. A caption is the text of ``.txt``, else the ``caption`` (text, prompt) of ``.json``.

    Raises:
        UserError: no tar file, a compressed one, or one that ends too early.
    """
    try:
        with shard.open("rb") as file:
            yield from _samples(shard, file)
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror})") from error


def _samples(shard: Path, file: BinaryIO) -> Iterator[Found]:
    key, videos, captions = "", list[_Member](), dict[str, str]()
    for member in _members(shard, file):
        folder, slash, last = member.name.rpartition("/")
        stem, _, kind = last.partition(".")
        if folder + slash + stem != key:
            yield from _found(videos, captions)
            key, videos, captions = folder + slash + stem, [], {}
        suffix = "." + kind.rpartition(".")[2].lower()
        if suffix in SUFFIXES:
            videos.append(member)
        elif suffix in (".txt", ".json") and member.size <= _CAPTION_LIMIT:
            file.seek(member.offset)
            captions[suffix] = _caption(suffix, file.read(member.size))
    yield from _found(videos, captions)


def _found(videos: list[_Member], captions: dict[str, str]) -> Iterator[Found]:
    caption = captions.get(".txt") or captions.get(".json", "")
    return (Found(video.name, video.offset, video.size, caption) for video in videos)


def _caption(suffix: str, data: bytes) -> str:
    """Empty where there is none to be read; such a clip is dropped later, with its reason."""
    try:
        text = data.decode("utf-8")
        if suffix == ".txt":
            return text.strip()
        record: Any = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(record, dict):
        return ""
    return next((record[key].strip() for key in CAPTION_KEYS if isinstance(record.get(key), str)), "")


def _members(shard: Path, file: BinaryIO) -> Iterator[_Member]:
    """Regular files; of a header that speaks of more bytes than there are, an error."""
    end = file.seek(0, 2)
    position, longer = 0, dict[str, str]()
    while position + _BLOCK <= end:
        file.seek(position)
        header = file.read(_BLOCK)
        if not header.strip(b"\0"):
            return
        kind, size = header[156:157], _checked_size(shard, header, position)
        size = int(longer.get("size", size)) if kind in _REGULAR else size
        start = position + _BLOCK
        if start + size > end:
            raise UserError(f"{shard}: ends too early; copy it again")
        if kind in (b"L", b"x"):
            if size > _NAME_LIMIT:
                raise UserError(f"{shard}: a name of {size} bytes at {position}; not read")
            longer |= _extended(kind, file.read(size))
        else:
            if kind in _REGULAR and "sparse" not in longer:
                yield _Member(longer.get("path") or _plain_name(header), start, size)
            longer = {}
        position = start + -(-size // _BLOCK) * _BLOCK
    raise UserError(f"{shard}: ends too early; copy it again")


def _checked_size(shard: Path, header: bytes, position: int) -> int:
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    try:
        if total != int(header[148:156].strip(b"\0 ") or b"x", 8):
            raise ValueError
        field = header[124:136]
        size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b"\0 ") or b"0", 8)
        if size < 0:
            raise ValueError
    except ValueError:
        packed = next((name for magic, name in _COMPRESSED.items() if header.startswith(magic)), None)
        hint = f"it is compressed ({packed}): unpack that first, {shard.stem}.tar" if packed else "damaged"
        raise UserError(f"{shard}: no header of a tar file at byte {position}; {hint}") from None
    return size


def _plain_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _extended(kind: bytes, data: bytes) -> dict[str, str]:
    """``path`` and ``size`` that the next header has no room for; ``sparse`` if its bytes are no file's."""
    if kind == b"L":
        return {"path": data.split(b"\0")[0].decode("utf-8", "replace")}
    found: dict[str, str] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or len(length) > _DIGITS or not 0 < int(length) <= len(data):
            break
        record, data = data[len(length) + 1 : int(length)], data[int(length) :]
        name, _, value = record.rstrip(b"\n").partition(b"=")
        if name == b"path":
            found["path"] = value.decode("utf-8", "replace")
        elif name == b"size" and value.isdigit():
            found["size"] = value.decode() if len(value) <= _DIGITS else "9" * _DIGITS  # beyond any file
        elif name.startswith(b"GNU.sparse"):
            found["sparse"] = "yes"
    return found
