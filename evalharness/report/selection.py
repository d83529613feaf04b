"""Which prompts the page shows: chosen by a rule that is printed beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalharness.scoretable import Names, ScoreTable, union

if TYPE_CHECKING:
    from evalharness.result_schema import CellResult, Results

RULE = (
    "Chosen by rule, not by eye: each in turn for another dimension, the one least shown so far, and for "
    "that dimension the prompt on which the rows below differ most. Differences are thus larger than on a "
    "typical prompt; the tables hold the averages."
)


class Choice(NamedTuple):
    """A prompt and the dimension it was chosen for."""

    prompt_id: str
    dimension: str


def shown_cells(results: Results) -> list[CellResult]:
    """The first seed of every method and bit width: reference, many bits to few, then by name."""
    first: dict[tuple[object, ...], CellResult] = {}
    for cell in sorted(results.cells, key=lambda cell: (_place(cell), cell.seed)):
        first.setdefault(_place(cell), cell)
    return list(first.values())


def _place(cell: CellResult) -> tuple[str, bool, int, int, str]:
    return (cell.model, not cell.is_reference, -cell.w_bits, -cell.a_bits, cell.method)


def choose_prompts(cells: Sequence[CellResult], dimensions: Sequence[str], count: int) -> list[Choice]:
    """At most ``count`` prompts by ``RULE``; ties go to the earlier dimension,
    the larger spread over all dimensions, and the smaller id.
    """
    names, spreads = spreads_of(cells, dimensions)
    known = ~np.isnan(spreads)
    total = np.zeros(len(names))
    for row in np.where(known, spreads, 0.0):
        total += row
    picked, shown = [0] * len(dimensions), [0] * len(dimensions)
    is_left = np.ones(len(names), dtype=bool)
    chosen: list[Choice] = []
    while len(chosen) < count:
        open_dimensions = [d for d in range(len(dimensions)) if (known[d] & is_left).any()]
        if not open_dimensions:
            break
        dimension = min(open_dimensions, key=lambda d: (picked[d], shown[d]))
        left = np.flatnonzero(known[dimension] & is_left)
        best = np.lexsort((left, -total[left], -spreads[dimension][left]))[0]
        prompt = left[best]
        chosen.append(Choice(names[prompt], dimensions[dimension]))
        is_left[prompt] = False
        picked[dimension] += 1
        for other in range(len(dimensions)):
            shown[other] += bool(known[other, prompt])
    return chosen


def spreads_of(cells: Sequence[CellResult], dimensions: Sequence[str]) -> tuple[Names, NDArray[np.float64]]:
    """Prompts in order, and dimension by dimension the largest minus the smallest score over the cells.

    Each score is the mean over a prompt's samples; [dimensions, prompts], nan without any.
    """
    tables = [[ScoreTable.of(cell.scores[name]) for cell in cells] for name in dimensions]
    names, places = union([table.names for each in tables for table in each])
    place = iter(places)
    spreads = np.full((len(dimensions), len(names)), np.nan)
    for row, each in zip(spreads, tables, strict=True):
        if each:
            means = np.array([_prompt_means(table, next(place), len(names)) for table in each])
            row[:] = np.fmax.reduce(means) - np.fmin.reduce(means)
    return names, spreads


def _prompt_means(table: ScoreTable, place: NDArray[np.int32], prompts: int) -> NDArray[np.float64]:
    """Mean score of each prompt over its samples; nan without any."""
    rows = place[table.prompt]
    sums, counts = np.bincount(rows, table.value, prompts), np.bincount(rows, minlength=prompts)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(prompts, np.nan), where=counts > 0)
    return means
