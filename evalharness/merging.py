"""Runs of several people as one leaderboard: the cells of all, with the run that each came from.

What may differ is who ran it, when, on what and with which versions; all of that is kept. What may not is the
recipe: model, weights, prompts, settings, how videos are stored, and the options of a method that two
runs share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalharness.api import Total
from evalharness.compare.recipes import cell_recipe, changes, environment, run_recipe
from evalharness.comparison import differences, pool, resampler_of
from evalharness.errors import UserError
from evalharness.hashing import file_sha256
from evalharness.result_schema import CellResult, Results
from evalharness.results import read_results

__all__ = ["Part", "merge", "read_part"]


@dataclass(frozen=True, slots=True)
class Part:
    """One run: its name (for people), its results and the hash of the file."""

    name: str
    results: Results
    sha256: str


def read_part(given: str) -> Part:
    """Read ``NAME=RUN`` or ``RUN``; the name of RUN's folder if none is given.

    Raises:
        UserError: no such run, or results that cannot be read.
    """
    name, equals, path = given.partition("=")
    if not equals or Path(given).exists():
        name, path = "", given
    target = Path(path)
    file = target / "results.json" if target.is_dir() else target
    results = read_results(file)
    folder = target if target.is_dir() else target.parent
    return Part(name or folder.resolve().name, results, file_sha256(file))


def merge(parts: Sequence[Part], totals: Sequence[Total] = ()) -> Results:
    """One set of results of all cells.

    A cell that two runs have must have the same scores in both (as the full-precision row has, made by
    one recipe
    on one kind of machine); the first run's is kept. Cells keep their ids, so two machines that round
    differently
    cannot be joined under one id: give one of them another seed.

    Args:
        parts: at least two, with names of their own.
        totals: the protocol's, to be worked out for the rows over all seeds.

    Raises:
        UserError: recipes differ, names repeat, or one cell has other scores in two runs.
    """
    if len(parts) < 2:
        raise UserError(f"{len(parts)} runs given; merging takes at least two")
    names = [part.name for part in parts]
    if len(set(names)) != len(names):
        raise UserError(f"two runs are called alike ({', '.join(names)}); name them: anna=runs/a ben=runs/b")
    first = parts[0].results
    for part in parts[1:]:
        _refuse_mixed(parts[0], part)
    origin: dict[str, Part] = {}
    cells: dict[str, CellResult] = {}
    for part in parts:
        for cell in part.results.cells:
            if cell.id in cells:
                _refuse_other(cells[cell.id], cell, origin[cell.id].name, part.name)
                continue
            cells[cell.id], origin[cell.id] = cell, part
    _refuse_mixed_methods(cells, origin)
    ordered = sorted(cells.values(), key=_order)
    ranges = {name: ends for part in reversed(parts) for name, ends in part.results.ranges.items()}
    resampler = resampler_of(first.model_copy(update={"ranges": ranges}))
    return first.model_copy(
        update={
            "ranges": ranges,
            "prompts": {key: text for part in parts for key, text in part.results.prompts.items()},
            "manifest": _manifest(parts, origin),
            "cells": ordered,
            "differences": differences(ordered, resampler),
            "pooled": pool(ordered, resampler, totals),
        }
    )


def _manifest(parts: Sequence[Part], origin: Mapping[str, Part]) -> dict[str, Any]:
    """The first run's recipe, and for each run what it was and which cells are from it."""
    config = {
        **run_recipe(parts[0].results),
        "prompts": parts[0].results.manifest.get("config", {}).get("prompts"),
    }
    return {
        "config": config,
        "merged": [
            {
                "name": part.name,
                "results_sha256": part.sha256,
                "cells": sorted(cell for cell, owner in origin.items() if owner is part),
                "also_has": sorted(cell.id for cell in part.results.cells if origin[cell.id] is not part),
                "started": part.results.manifest.get("started"),
                "finished": part.results.manifest.get("finished"),
                "environment": environment(part.results),
                "merged_before": part.results.manifest.get("merged", []),
            }
            for part in parts
        ],
    }


def _refuse_mixed(a: Part, b: Part) -> None:
    left, right = a.results, b.results
    facts = [
        {
            **run_recipe(results),
            "percent": results.percent,
            "totals": results.totals,
            "intervals": results.bootstrap.model_dump(),
        }
        for results in (left, right)
    ]
    if found := changes(*facts):
        text = "; ".join(
            f"{change.key} is {change.a!r} in one, {change.b!r} in the other" for change in found[:5]
        )
        raise UserError(
            f"{a.name} and {b.name} were not made by one recipe: {text}; they cannot be one table"
        )
    _refuse_other_modes(a, b)
    common = left.prompts.keys() & right.prompts.keys()
    if other := sorted(key for key in common if left.prompts[key] != right.prompts[key]):
        raise UserError(f"{a.name} and {b.name}: prompt {other[0]} has other words in each; not one table")


def _refuse_other_modes(a: Part, b: Part) -> None:
    """Author mode keeps other layers and other bits than fair mode: they are not one ranking."""
    left, right = (
        {str(cell.method_config.get("mode", "fair")) for cell in part.results.cells if not cell.is_reference}
        for part in (a, b)
    )
    if left and right and (other := sorted(left ^ right)):
        has, lacks = (a, b) if other[0] in left else (b, a)
        raise UserError(
            f"{has.name} has rows of mode {other[0]} and {lacks.name} has none; methods of two modes keep "
            "other layers and bits, and are not one table"
        )


def _refuse_other(a: CellResult, b: CellResult, first: str, second: str) -> None:
    if found := changes(cell_recipe(a), cell_recipe(b)):
        change = found[0]
        raise UserError(
            f"{a.id} was made by two recipes: {change.key} is {change.a!r} in {first}, {change.b!r} "
            f"in {second}"
        )
    if a.scores != b.scores:
        raise UserError(
            f"{a.id} has other scores in {first} than in {second}, by the same recipe: two machines "
            "may round "
            "differently. Leave it out of one of them, or give one of them another seed"
        )


def _refuse_mixed_methods(cells: Mapping[str, CellResult], origin: Mapping[str, Part]) -> None:
    """Seeds of one row are taken together, so their options must be one recipe."""
    rows: dict[tuple[str, str, int, int], CellResult] = {}
    for cell in cells.values():
        first = rows.setdefault((cell.model, cell.method, cell.w_bits, cell.a_bits), cell)
        if found := changes(cell_recipe(first), cell_recipe(cell)):
            change = found[0]
            raise UserError(
                f"{first.id} of {origin[first.id].name} and {cell.id} of {origin[cell.id].name} "
                "would be one row, "
                f"but {change.key} is {change.a!r} in one and {change.b!r} in the other"
            )


def _order(cell: CellResult) -> tuple[Any, ...]:
    return (cell.model, not cell.is_reference, -cell.w_bits, -cell.a_bits, cell.method, cell.seed)
