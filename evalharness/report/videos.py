"""The videos of the page: embedded byte for byte as they were scored, or linked when too large."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING
from urllib.parse import quote

from evalharness.report.rows import bits_label, number, scale_of
from evalharness.report.selection import Choice

if TYPE_CHECKING:
    from pathlib import Path

    from evalharness.result_schema import CellResult, Results

EMBED_BYTES = 48_000_000


@dataclass(frozen=True, slots=True)
class Clip:
    """One video of the page. ``src`` is None where the run has no such file."""

    method: str
    bits: str
    src: str | None
    score: str
    is_linked: bool = False


@dataclass(frozen=True, slots=True)
class Strip:
    """One prompt with the videos of all shown cells side by side, a group for each bit width."""

    prompt_id: str
    text: str
    dimension: str
    groups: tuple[tuple[Clip, ...], ...]


def strips(
    results: Results, run_folder: Path, cells: Sequence[CellResult], choices: Sequence[Choice]
) -> list[Strip]:
    """Sample 0 of each chosen prompt for every cell, in the order of ``cells``.

    Videos beyond ``EMBED_BYTES`` in all are linked by relative path, so that the page stays small
    enough to open; they show as long as the page lies in the run folder.
    """
    room = EMBED_BYTES
    found = []
    for choice in choices:
        clips = []
        for cell in cells:
            clip, used = _clip(results, run_folder, cell, choice, room)
            room -= used
            clips.append(clip)
        groups = tuple(tuple(group) for _, group in groupby(clips, key=lambda clip: clip.bits))
        text = results.prompts.get(choice.prompt_id, "")
        found.append(Strip(choice.prompt_id, text, choice.dimension, groups))
    return found


def _clip(
    results: Results, run_folder: Path, cell: CellResult, choice: Choice, room: int
) -> tuple[Clip, int]:
    """The clip and how many bytes of ``room`` it takes."""
    path = run_folder / "cells" / cell.id / "videos" / f"{choice.prompt_id}-0.mp4"
    bits = "full precision" if cell.is_reference else bits_label(cell.w_bits, cell.a_bits)
    score = _score(cell, choice, results)
    if not path.is_file():
        return Clip(cell.method, bits, None, score), 0
    size = path.stat().st_size
    if size > room:
        return Clip(cell.method, bits, _relative_url(path, run_folder), score, is_linked=True), 0
    return Clip(cell.method, bits, _data_url(path), score), size


def _score(cell: CellResult, choice: Choice, results: Results) -> str:
    """The score of the very video that is shown."""
    from evalharness.scoretable import ScoreTable

    found = ScoreTable.of(cell.scores[choice.dimension]).score(choice.prompt_id, 0)
    return number(None if found is None else found * scale_of(results), 1 if results.percent else 3)


def _data_url(path: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _relative_url(path: Path, run_folder: Path) -> str:
    return quote(path.relative_to(run_folder).as_posix())
