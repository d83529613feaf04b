"""What the page's browser of prompts works on: scores by dimension and row, and where the videos lie.

The page holds numbers and texts only; a video is fetched from the run folder when it comes on screen, so that
thousands of them cost nothing until they are looked at. Numbers lie in long lists rather than in an object a
prompt, so that a page opens as quickly with 10,000 prompts as with ten.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from evalharness.report.rows import bits_label, middle_half, scale_of
from evalharness.report.selection import shown_cells, spreads_of
from evalharness.scoretable import ScoreTable
from evalharness.visible import visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evalharness.result_schema import CellResult, Results

MOST_ROWS = 24
"""Videos of one prompt beside each other at first; with more, those of one bit width and full precision."""

MOST_SCORES = 500_000
"""Numbers in the page, some 3 MB. More are cut to the prompts that differ most, and the page says so."""

_LINE_SEPARATORS = {"\u2028": "\\u2028", "\u2029": "\\u2029"}


def browser_data(results: Results, run_folder: Path) -> dict[str, Any]:
    """JSON values: ``rows``, ``prompts`` as ``[id, text]``, the numbers of ``samples``, and ``scores``.

    ``scores[dimension]`` has ``of``, the places in ``prompts`` that have one, and ``rows``: for each row a
    list with a value for each of these prompts and each of ``samples`` (None where there is none), or None
    for a row without any. Values are as shown, so times 100 with ``percent``.
    """
    cells = shown_cells(results)
    tables = {
        name: [ScoreTable.of(cell.scores.get(name, ())) for cell in cells] for name in results.dimensions
    }
    every = [table for several in tables.values() for table in several]
    scored = set().union(*(table.prompts() for table in every)) if every else set()
    identifiers = [prompt for prompt in results.prompts if prompt in scored] or sorted(scored)
    samples = sorted({number for table in every for number in np.unique(table.sample).tolist()})
    kept = _kept(identifiers, cells, results, sum(map(len, every)))
    places = {prompt: place for place, prompt in enumerate(kept)}
    return {
        "digits": 1 if results.percent else 3,
        "dimensions": list(results.dimensions),
        "rows": [_row(cell, run_folder) for cell in cells],
        "focus": _focus(results, len(cells)),
        "all": len(identifiers),
        "samples": samples,
        "prompts": [[visible(name), visible(results.prompts.get(name, ""))] for name in kept],
        "scores": {name: _scores(tables[name], places, samples, results) for name in results.dimensions},
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
        "method": visible(cell.method),
        "bits": "full precision" if cell.is_reference else bits_label(cell.w_bits, cell.a_bits),
        "reference": cell.is_reference,
        "videos": quote(f"cells/{cell.id}/videos/") if folder.is_dir() else None,
    }


def _focus(results: Results, rows: int) -> str:
    """The bit width that a page of many rows opens with: where methods differ most; empty for all."""
    means: dict[str, list[float]] = {}
    for row in results.pooled:  # all seeds, as in the sentence on top of the page
        if not row.is_reference and row.mean is not None and row.mean.value is not None:
            means.setdefault(bits_label(row.w_bits, row.a_bits), []).append(row.mean.value)
    if rows <= MOST_ROWS or not means:
        return ""
    return max(means, key=lambda bits: middle_half(means[bits]))


def _scores(
    tables: Sequence[ScoreTable], places: dict[str, int], samples: Sequence[int], results: Results
) -> dict[str, Any]:
    """One dimension's part of ``browser_data``."""
    where = [np.array([places.get(name, -1) for name in table.names], np.int64) for table in tables]
    rows = [at[table.prompt] for at, table in zip(where, tables, strict=True)]
    of = np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.int64)
    of = of[of >= 0]
    found = [_values(table, row, of, samples, results) for table, row in zip(tables, rows, strict=True)]
    return {"of": of.tolist(), "rows": found}


def _values(
    table: ScoreTable, row: NDArray[np.int64], of: NDArray[np.int64], samples: Sequence[int], results: Results
) -> list[float | None] | None:
    scale, digits = scale_of(results), 2 if results.percent else 4
    shown = row >= 0
    if not shown.any():
        return None
    place = np.searchsorted(of, row[shown]) * len(samples) + np.searchsorted(samples, table.sample[shown])
    values: list[float | None] = [None] * (len(of) * len(samples))
    for at, value in zip(place.tolist(), table.value[shown].tolist(), strict=True):
        values[at] = round(value * scale, digits)
    return values


def _kept(identifiers: list[str], cells: Sequence[CellResult], results: Results, scores: int) -> list[str]:
    """As many as fit, in their own order: all, or those with the widest spread in any dimension."""
    if scores <= MOST_SCORES:
        return identifiers
    names, spreads = spreads_of(cells, results.dimensions)
    widest = dict(zip(names, np.fmax.reduce(spreads).tolist(), strict=True))
    most = max(1, len(identifiers) * MOST_SCORES // scores)
    kept = set(sorted(identifiers, key=lambda prompt: (-widest[prompt], prompt))[:most])
    return [prompt for prompt in identifiers if prompt in kept]
