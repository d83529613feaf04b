"""The recipe of every row: what was asked for, what came of it, and which run it is from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalharness.report.rows import bits_label, coverage_text, number, sorted_cells

if TYPE_CHECKING:
    from evalharness.result_schema import CellResult, Results


@dataclass(frozen=True, slots=True)
class RowRecipe:
    """One row's, or one of several that are alike.

    Attributes:
        anchor: place on the page; of several rows one after another, with spaces.
        facts: pairs of words.
        options: JSON.
    """

    anchor: str
    title: str
    facts: tuple[tuple[str, str], ...]
    options: str


def anchors(results: Results) -> dict[str, str]:
    """Cell id -> name of its place on the page."""
    return {cell.id: f"recipe-{place}" for place, cell in enumerate(sorted_cells(results))}


def row_recipes(results: Results) -> list[RowRecipe]:
    """In the order of the table."""
    places, origins = anchors(results), origin_of(results)
    return [
        RowRecipe(places[cell.id], cell.id, _facts(cell, origins.get(cell.id)), pretty(cell.method_config))
        for cell in sorted_cells(results)
    ]


def origin_of(results: Results) -> dict[str, str]:
    """Cell id -> the run that it was taken from; empty for a run that was not joined of several."""
    found = {}
    merged = results.manifest.get("merged")
    for entry in merged if isinstance(merged, list) else []:
        cells = entry.get("cells") if isinstance(entry, Mapping) else None
        for cell in cells if isinstance(cells, list) else []:
            found[str(cell)] = f"{entry.get('name')} ({str(entry.get('results_sha256'))[:12]})"
    return found


def grouped(recipes: Sequence[RowRecipe]) -> list[tuple[str, list[RowRecipe]]]:
    """By method, and of its cells those that are alike but for seed and coverage as one."""
    methods: dict[str, dict[tuple[object, ...], list[RowRecipe]]] = {}
    for recipe in recipes:
        facts = dict(recipe.facts)
        key = (facts["model"], facts["bits"], facts.get("from run"), recipe.options)
        methods.setdefault(facts["method"], {}).setdefault(key, []).append(recipe)
    return [(name, [_joined(alike) for alike in rows.values()]) for name, rows in methods.items()]


def _joined(alike: Sequence[RowRecipe]) -> RowRecipe:
    """One of several; what they do not share is listed, each value once."""
    facts = {
        name: ", ".join(dict.fromkeys(dict(recipe.facts).get(name, "-") for recipe in alike))
        for name in dict.fromkeys(name for recipe in alike for name, _ in recipe.facts)
    }
    cells = ", ".join(recipe.title for recipe in alike)
    title = f"{facts['bits']}, seed {facts['seed']}"
    anchor = " ".join(recipe.anchor for recipe in alike)
    return RowRecipe(anchor, title, (("cells", cells), *facts.items()), alike[0].options)


def pretty(value: Any) -> str:
    """Indented JSON with sorted keys."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def _facts(cell: CellResult, origin: str | None) -> tuple[tuple[str, str], ...]:
    asked = ", ".join(f"{key}={value}" for key, value in cell.options.items())
    pairs = {
        "model": cell.model,
        "method": cell.method
        if cell.variant_of is None
        else f"{cell.method}, a variant of {cell.variant_of}",
        "bits": bits_label(cell.w_bits, cell.a_bits),
        "seed": str(cell.seed),
        "source": cell.source,
        "execution": cell.execution,
        "asked for": asked or "no options",
        "coverage": f"{coverage_text(cell.coverage)}, {cell.n_videos_ok} of {cell.n_videos_expected} videos",
        "training": "none in this run"
        if cell.train_minutes is None
        else f"{number(cell.train_minutes, 1)} min",
    }
    if cell.n_failed:
        pairs["failed"] = f"{cell.n_failed} videos"
    if origin is not None:
        pairs["from run"] = origin
    return tuple(pairs.items())
