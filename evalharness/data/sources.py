"""Which clips there are: in a folder, a CSV or JSON-lines file, or tar shards. No torch, no decoding."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalharness.data.suffixes import CAPTION_KEYS, SUFFIXES, VIDEO_KEYS
from evalharness.data.tars import clips_of
from evalharness.errors import UserError
from evalharness.store import parse_json

__all__ = ["MEMBER_LIMIT", "Clip", "read_sources"]

MEMBER_LIMIT = 1 << 29  # bytes of a clip within a shard: it is read whole


@dataclass(frozen=True, slots=True, order=True)
class Clip:
    """A video file and its caption; ``name`` is its path as the source gives it, and identifies it.

    ``place``: offset and size of the clip within the shard ``path``; None: ``path`` is the clip.
    """

    name: str
    path: Path
    caption: str
    place: tuple[int, int] | None = None

    def opened(self) -> str | io.BytesIO:
        """What PyAV opens: the path, or the bytes.

        Raises:
            ValueError: the shard is shorter now than when it was looked through.
        """
        if self.place is None:
            return str(self.path)
        offset, size = self.place
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(min(size, MEMBER_LIMIT))
        if len(data) != size:
            raise ValueError("the shard ends within it, or it is larger than is read")
        return io.BytesIO(data)


def read_sources(source: Path) -> list[Clip]:
    """All clips of ``source``, by name.

    Args:
        source: a folder, in which ``one.mp4`` has its caption in ``one.txt``; or a ``.csv`` with a head
            or a ``.jsonl`` file, with columns ``video`` (or file, path; relative to the file's folder) and
            ``caption`` (or text, prompt); or a WebDataset shard, ``.tar``, or a folder of them.

    Raises:
        UserError: nothing is there, or a row lacks a column.
    """
    if source.is_dir():
        files = sorted(source.rglob("*"))
        clips = [_from_folder(source, path) for path in files if path.suffix.lower() in SUFFIXES]
        for shard in (path for path in files if path.suffix == ".tar"):
            clips += _from_shard(shard, shard.relative_to(source).as_posix())
    elif source.suffix == ".tar":
        clips = _from_shard(source, source.name)
    elif source.suffix in (".csv", ".jsonl"):
        clips = [_from_row(source, number, row) for number, row in enumerate(_rows(source), start=1)]
    else:
        raise UserError(f"{source}: expected a folder of clips, a .csv, a .jsonl or a .tar file")
    if not clips:
        raise UserError(f"{source}: no clip is there ({', '.join(sorted(SUFFIXES))}, within .tar too)")
    twice = next((name for name, count in Counter(clip.name for clip in clips).items() if count > 1), None)
    if twice:
        raise UserError(f"{source}: {twice} is named twice; a clip has one caption")
    return sorted(clips)


def _from_folder(folder: Path, path: Path) -> Clip:
    words = path.with_suffix(".txt")
    caption = words.read_text(encoding="utf-8").strip() if words.is_file() else ""
    return Clip(path.relative_to(folder).as_posix(), path, caption)


def _from_shard(shard: Path, name: str) -> list[Clip]:
    return [
        Clip(f"{name}/{found.name}", shard, found.caption, (found.offset, found.size))
        for found in clips_of(shard)
    ]


def _rows(source: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with source.open(encoding="utf-8", newline="") as file:
            if source.suffix == ".csv":
                yield from csv.DictReader(file)
            else:
                yield from (parse_json(line) for line in file if line.strip())
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{source}: cannot be read ({error})") from error


def _from_row(source: Path, number: int, row: Mapping[str, Any]) -> Clip:
    video = next((row[key] for key in VIDEO_KEYS if isinstance(row, dict) and row.get(key)), None)
    if not isinstance(video, str):
        raise UserError(f"{source}: row {number} names no video (columns {', '.join(VIDEO_KEYS)})")
    caption = next((row[key] for key in CAPTION_KEYS if isinstance(row.get(key), str)), "")
    return Clip(video, source.parent / video, caption.strip())
