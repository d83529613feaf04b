"""A cell's records, read with a check of their keys: damage is one clear line, never a traceback."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evalharness.errors import UserError
from evalharness.runfolder import CellFolder
from evalharness.store import JsonLines, read_record

__all__ = ["Shape", "each_sample", "each_score", "misfit", "read_prepare", "read_samples", "read_scores"]

Shape = Mapping[str, tuple[type, ...]]

_TEXT, _MAYBE_TEXT = (str,), (str, type(None))
_MAYBE_NUMBER = (int, float, type(None))

PREPARE: Shape = {
    "hash": _TEXT,
    "method": _TEXT,
    "source": _TEXT,
    "execution": _TEXT,
    "config": (dict,),
    "checkpoint": _MAYBE_TEXT,
    "checkpoint_sha256": _MAYBE_TEXT,
    "train_minutes": _MAYBE_NUMBER,
}
SAMPLE: Shape = {
    "sample": _TEXT,
    "status": _TEXT,
    "hash": _TEXT,
    "sha256": _MAYBE_TEXT,
    "ms": _MAYBE_NUMBER,
}
SCORE: Shape = {
    "sample": _TEXT,
    "dimension": _TEXT,
    "metric": _TEXT,
    "value": _MAYBE_NUMBER,
    "video_sha256": _TEXT,
    "metric_hash": _TEXT,
}


def read_prepare(files: CellFolder) -> dict[str, Any] | None:
    """``prepare.json``; None when the cell is not prepared.

    Raises:
        UserError: the file is damaged.
    """
    record = read_record(files.prepare)
    if record is not None and (problem := misfit(record, PREPARE)):
        raise UserError(f"{files.prepare}: {problem}; delete it to have the cell made again")
    return record


def read_samples(files: CellFolder) -> list[dict[str, Any]]:
    """The lines of ``samples.jsonl``.

    Raises:
        UserError: a line is damaged.
    """
    return [record for _, record in each_sample(files)]


def each_sample(files: CellFolder) -> Iterator[tuple[int, dict[str, Any]]]:
    """One by one, each with its place in the file (``JsonLines.at``).

    Raises:
        UserError: a line is damaged; when it is reached.
    """
    return _lines(files.samples, SAMPLE)


def read_scores(files: CellFolder) -> list[dict[str, Any]]:
    """The lines of ``scores.jsonl``.

    Raises:
        UserError: a line is damaged.
    """
    return [record for _, record in each_score(files)]


def each_score(files: CellFolder) -> Iterator[tuple[int, dict[str, Any]]]:
    """As ``each_sample``."""
    return _lines(files.scores, SCORE)


_MISSING = object()
"""Of no type that a shape names."""


def misfit(record: Mapping[str, Any], shape: Shape) -> str | None:
    """What is wrong with the first key that is missing or of another type; None when all fit."""
    for key, types in shape.items():
        value = record.get(key, _MISSING)
        if type(value) in types and type(value) is not float:  # hundreds of thousands of lines pass here
            continue
        if value is _MISSING:
            return f"{key!r} is missing"
        if not isinstance(value, types) or (isinstance(value, float) and not math.isfinite(value)):
            return f"{key!r} is {repr(value)[:200]}"
    return None


def _lines(file: JsonLines, shape: Shape) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, (place, record) in enumerate(file.each(), start=1):
        if problem := misfit(record, shape):
            raise UserError(_damaged(file.path, number, problem))
        yield place, record


def _damaged(path: Path, number: int, problem: str) -> str:
    return f"{path}: line {number}: {problem}; remove that line (its work is then done again)"
