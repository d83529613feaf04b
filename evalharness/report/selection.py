"""Which prompts the page shows: chosen by a rule that is printed beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

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
    spreads = {dimension: _spreads(cells, dimension) for dimension in dimensions}
    picked, shown = dict.fromkeys(dimensions, 0), dict.fromkeys(dimensions, 0)
    chosen: list[Choice] = []
    taken: set[str] = set()
    while len(chosen) < count:
        left = {d: spreads[d].keys() - taken for d in dimensions}
        open_dimensions = [d for d in dimensions if left[d]]
        if not open_dimensions:
            break
        dimension = min(open_dimensions, key=lambda d: (picked[d], shown[d]))
        prompt = min(left[dimension], key=lambda p: (-spreads[dimension][p], -_total(spreads, p), p))
        chosen.append(Choice(prompt, dimension))
        taken.add(prompt)
        picked[dimension] += 1
        for other in dimensions:
            shown[other] += prompt in spreads[other]
    return chosen


def _total(spreads: Mapping[str, Mapping[str, float]], prompt: str) -> float:
    return sum(each.get(prompt, 0.0) for each in spreads.values())


def _spreads(cells: Sequence[CellResult], dimension: str) -> Mapping[str, float]:
    """Prompt -> largest minus smallest score over the cells, each the mean over its samples."""
    means = [_prompt_means(cell, dimension) for cell in cells]
    prompts = {prompt for each in means for prompt in each}
    found = {p: [each[p] for each in means if p in each] for p in prompts}
    return {p: max(values) - min(values) for p, values in found.items()}


def _prompt_means(cell: CellResult, dimension: str) -> dict[str, float]:
    """Prompt -> mean score over its samples."""
    values: dict[str, list[float]] = {}
    for row in cell.scores[dimension]:
        values.setdefault(row.prompt_id, []).append(row.value)
    return {prompt: sum(scores) / len(scores) for prompt, scores in values.items()}
