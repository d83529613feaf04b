"""What the page's browser of prompts works on: scores by prompt, row and sample, and where the videos lie.

The page holds numbers and texts only; a video is fetched from the run folder when it comes on screen, so that
thousands of them cost nothing until they are looked at.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from evalharness.report.rows import bits_label, scale_of
from evalharness.report.selection import shown_cells

if TYPE_CHECKING:
    from pathlib import Path

    from evalharness.result_schema import CellResult, Results

MOST_PROMPTS = 2000
"""More are cut to those on which the rows differ most, and the page says so."""

_LINE_SEPARATORS = {"\u2028": "\\u2028", "\u2029": "\\u2029"}


def browser_data(results: Results, run_folder: Path) -> dict[str, Any]:
    """JSON values: ``dimensions``, ``rows``, ``prompts``, and how a score is shown.

    Each prompt has ``scores[dimension][row]``, a list by sample number (None where there is none), shown
    values, so times 100 with ``percent``.
    """
    cells = shown_cells(results)
    tables = [_by_prompt(cell, results) for cell in cells]
    scored = {prompt for table in tables for prompt in table}
    identifiers = [prompt for prompt in results.prompts if prompt in scored] or sorted(scored)
    kept = _most_different(identifiers, tables)
    return {
        "digits": 1 if results.percent else 3,
        "dimensions": list(results.dimensions),
        "rows": [_row(cell, run_folder) for cell in cells],
        "all": len(identifiers),
        "prompts": [
            {
                "id": prompt,
                "text": results.prompts.get(prompt, ""),
                "scores": {
                    name: [table.get(prompt, {}).get(name) for table in tables]
                    for name in results.dimensions
                    if any(name in table.get(prompt, {}) for table in tables)
                },
            }
            for prompt in kept
        ],
    }


def inert_json(value: Any) -> str:
    """JSON that can stand inside a ``script`` element of that type: without ``<``, ``>`` and ``&``."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", **_LINE_SEPARATORS}.items():
        text = text.replace(character, escape)
    return text


def _row(cell: CellResult, run_folder: Path) -> dict[str, Any]:
    folder = run_folder / "cells" / cell.id / "videos"
    return {
        "id": cell.id,
        "method": cell.method,
        "bits": "full precision" if cell.is_reference else bits_label(cell.w_bits, cell.a_bits),
        "reference": cell.is_reference,
        "videos": quote(f"cells/{cell.id}/videos/") if folder.is_dir() else None,
    }


def _by_prompt(cell: CellResult, results: Results) -> dict[str, dict[str, list[float | None]]]:
    """Prompt -> dimension -> shown values by sample number."""
    scale, digits = scale_of(results), 2 if results.percent else 4
    table: dict[str, dict[str, list[float | None]]] = {}
    for name in results.dimensions:
        for prompt, sample, value in cell.scores.get(name, ()):
            values = table.setdefault(prompt, {}).setdefault(name, [])
            values.extend([None] * (sample + 1 - len(values)))
            values[sample] = round(value * scale, digits)
    return table


def _most_different(
    identifiers: list[str], tables: list[dict[str, dict[str, list[float | None]]]]
) -> list[str]:
    """At most ``MOST_PROMPTS``, in their own order."""
    if len(identifiers) <= MOST_PROMPTS:
        return identifiers
    spread = {prompt: _spread([table.get(prompt, {}) for table in tables]) for prompt in identifiers}
    kept = set(sorted(identifiers, key=lambda prompt: (-spread[prompt], prompt))[:MOST_PROMPTS])
    return [prompt for prompt in identifiers if prompt in kept]


def _spread(rows: list[dict[str, list[float | None]]]) -> float:
    """The largest difference between two rows' means of one dimension."""
    widest = 0.0
    for name in {name for row in rows for name in row}:
        known = [[v for v in row.get(name, ()) if v is not None] for row in rows]
        means = [sum(values) / len(values) for values in known if values]
        widest = max(widest, max(means, default=0.0) - min(means, default=0.0))
    return widest
