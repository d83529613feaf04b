"""The videos inside the page: byte for byte as they were scored, of the prompts that a rule chose.

All others are read from the run folder, as long as the page lies in it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evalharness.report.selection import Choice

if TYPE_CHECKING:
    from pathlib import Path

    from evalharness.result_schema import CellResult

EMBED_BYTES = 48_000_000


@dataclass(frozen=True, slots=True)
class Clip:
    """Sample 0 of a prompt for the page's row of that place, as base64."""

    row: int
    prompt_id: str
    data: str


def embedded(run_folder: Path, cells: Sequence[CellResult], choices: Sequence[Choice]) -> list[Clip]:
    """Of each chosen prompt every cell's video that is there, as long as ``EMBED_BYTES`` hold in all."""
    room = EMBED_BYTES
    found = []
    for choice in choices:
        for row, cell in enumerate(cells):
            path = run_folder / "cells" / cell.id / "videos" / f"{choice.prompt_id}-0.mp4"
            if path.is_file() and (size := path.stat().st_size) <= room:
                room -= size
                data = base64.b64encode(path.read_bytes()).decode("ascii")
                found.append(Clip(row, choice.prompt_id, data))
    return found
