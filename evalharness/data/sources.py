"""Which clips there are and what they show: a folder, a CSV or a JSON-lines file. No torch, no decoding."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalharness.errors import UserError
from evalharness.store import parse_json

__all__ = ["Clip", "read_sources"]

SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v"})
_VIDEO_KEYS = ("video", "file", "path")
_CAPTION_KEYS = ("caption", "text", "prompt")


@dataclass(frozen=True, slots=True, order=True)
class Clip:
    """A video file and its caption; ``name`` is its path as the source gives it, and identifies it."""

    name: str
    path: Path
    caption: str


def read_sources(source: Path) -> list[Clip]:
    """All clips of ``source``, by name.

    Args:
        source: a folder, in which ``one.mp4`` has its caption in ``one.txt``; or a ``.csv`` with a head
            or a ``.jsonl`` file, with columns ``video`` (or file, path; relative to the file's folder) and
            ``caption`` (or text, prompt).

    Raises:
        UserError: nothing is there, or a row lacks a column.
    """
    if source.is_dir():
        clips = [_from_folder(source, path) for path in sorted(source.rglob("*")) if path.suffix in SUFFIXES]
    elif source.suffix in (".csv", ".jsonl"):
        clips = [_from_row(source, number, row) for number, row in enumerate(_rows(source), start=1)]
    else:
        raise UserError(f"{source}: expected a folder of clips, a .csv or a .jsonl file")
    if not clips:
        raise UserError(f"{source}: no clip is there ({', '.join(sorted(SUFFIXES))})")
    names = [clip.name for clip in clips]
    twice = (
        next((name for name in names if names.count(name) > 1), None)
        if len(set(names)) < len(names)
        else None
    )
    if twice:
        raise UserError(f"{source}: {twice} is named twice; a clip has one caption")
    return sorted(clips)


def _from_folder(folder: Path, path: Path) -> Clip:
    words = path.with_suffix(".txt")
    caption = words.read_text(encoding="utf-8").strip() if words.is_file() else ""
    return Clip(path.relative_to(folder).as_posix(), path, caption)


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
    video = next((row[key] for key in _VIDEO_KEYS if isinstance(row, dict) and row.get(key)), None)
    if not isinstance(video, str):
        raise UserError(f"{source}: row {number} names no video (columns {', '.join(_VIDEO_KEYS)})")
    caption = next((row[key] for key in _CAPTION_KEYS if isinstance(row.get(key), str)), "")
    return Clip(video, source.parent / video, caption.strip())
